from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import asyncpg
import pytest

from service_runtime.embedded_postgres import EmbeddedPostgres
from service_runtime.errors import Category, ServiceError
from service_runtime.postgres import Listener, Postgres
from tests.integration.service_runtime.echo import eventually
from tests.support.postgres import FAST_SETTINGS


async def test_a_transaction_is_committed_at_its_end_and_rolled_back_when_it_raises(empty_database: str) -> None:
    postgres = await Postgres.connect(empty_database, min_size=1, max_size=2)
    async with postgres.transaction() as connection:
        await connection.execute("CREATE TABLE numbers (number int)")
        await connection.execute("INSERT INTO numbers VALUES (1)")

    with pytest.raises(RuntimeError):
        await insert_and_fail(postgres)

    async with postgres.acquire() as connection:
        assert await connection.fetchval("SELECT sum(number) FROM numbers") == 1
    await postgres.close()


async def insert_and_fail(postgres: Postgres) -> None:
    async with postgres.transaction() as connection:
        await connection.execute("INSERT INTO numbers VALUES (2)")
        raise RuntimeError


async def test_a_transaction_that_is_left_open_reaches_nobody_else(empty_database: str) -> None:
    postgres = await Postgres.connect(empty_database, min_size=1, max_size=1)
    await run(postgres, "CREATE TABLE numbers (number int)")
    async with postgres.acquire() as connection:
        await connection.execute("BEGIN; SET LOCAL work_mem = '77kB'; INSERT INTO numbers VALUES (1)")

    assert await run(postgres, "SELECT count(*) FROM numbers") == 0
    assert await run(postgres, "SELECT current_setting('work_mem') <> '77kB'") is True
    await postgres.close()


async def test_statements_run_under_the_role_with_its_rights_only(empty_database: str) -> None:
    owner = await Postgres.connect(empty_database, min_size=1, max_size=1)
    async with owner.acquire() as connection:
        await connection.execute("CREATE TABLE hidden (id int)")
        await connection.execute("DROP ROLE IF EXISTS reader; CREATE ROLE reader")
    reader = await Postgres.connect(empty_database, min_size=0, max_size=1, role="reader")

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await run(reader, "SELECT * FROM hidden")
    assert await run(reader, "SELECT current_user") == "reader"  # also on a connection that was given back

    await reader.close()
    async with owner.acquire() as connection:
        await connection.execute("DROP ROLE reader")
    await owner.close()


async def run(postgres: Postgres, statement: str) -> object:
    async with postgres.acquire() as connection:
        return await connection.fetchval(statement)


async def test_a_statement_that_takes_too_long_is_ended_by_the_server(empty_database: str) -> None:
    postgres = await Postgres.connect(empty_database, min_size=1, max_size=1, statement_timeout_s=0.1)

    with pytest.raises(asyncpg.QueryCanceledError):
        await run(postgres, "SELECT pg_sleep(5)")

    assert await run(postgres, "SELECT 1") == 1
    await postgres.close()


async def test_a_mistake_in_a_statement_stays_what_it_is(empty_database: str) -> None:
    postgres = await Postgres.connect(empty_database, min_size=1, max_size=1)

    with pytest.raises(asyncpg.UndefinedTableError):
        await run(postgres, "SELECT * FROM nowhere")
    with pytest.raises(asyncpg.InterfaceError, match="argument"):
        async with postgres.acquire() as connection:
            await connection.fetchval("SELECT $1::int")

    await postgres.close()


async def test_an_exhausted_pool_is_unavailable_and_recovers(empty_database: str) -> None:
    postgres = await Postgres.connect(empty_database, min_size=1, max_size=1, acquire_timeout_s=0.05)

    async with postgres.acquire():
        with pytest.raises(ServiceError) as caught:
            await run(postgres, "SELECT 1")

    assert (caught.value.category, caught.value.reason) == (Category.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    assert await run(postgres, "SELECT 1") == 1
    await postgres.close()


async def test_a_connection_that_is_cut_is_unavailable_and_the_next_one_works(empty_database: str) -> None:
    postgres = await Postgres.connect(empty_database, min_size=1, max_size=1)

    with pytest.raises(ServiceError) as caught:
        await run(postgres, "SELECT pg_terminate_backend(pg_backend_pid())")

    assert caught.value.reason == "DATABASE_UNAVAILABLE"
    assert await run(postgres, "SELECT 1") == 1
    await postgres.close()


async def test_a_database_that_is_away_is_unavailable_at_once_and_says_nothing_of_its_address(tmp_path: Path) -> None:
    dsn = f"postgresql://someone:PASSWORD-CANARY@/none?host={tmp_path}"

    with pytest.raises(ServiceError) as caught:
        await Postgres.connect(dsn, min_size=1, max_size=1)

    assert caught.value.reason == "DATABASE_UNAVAILABLE"
    assert caught.value.retry_after_s is not None
    assert "CANARY" not in str(caught.value)


async def test_the_pool_outlives_a_restart_of_the_server(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "pg", settings=FAST_SETTINGS, database="postgres") as server:
        postgres = await Postgres.connect(server.dsn, min_size=2, max_size=2)
        server.stop()
        with pytest.raises(ServiceError) as caught:
            await run(postgres, "SELECT 1")
        server.start()

        assert await run(postgres, "SELECT 1") == 1
        await postgres.close()
    assert caught.value.reason == "DATABASE_UNAVAILABLE"


async def test_a_frozen_server_is_given_up_on_and_used_again_when_it_thaws(tmp_path: Path) -> None:
    """S1: a frozen Postgres costs each call its time-out and no more."""
    with EmbeddedPostgres(tmp_path / "pg", settings=FAST_SETTINGS, database="postgres") as server:
        postgres = await Postgres.connect(
            server.dsn, min_size=1, max_size=1, statement_timeout_s=0.1, acquire_timeout_s=0.3
        )
        backend = await run(postgres, "SELECT pg_backend_pid()")
        assert isinstance(backend, int)
        assert server.process_id is not None
        os.kill(backend, signal.SIGSTOP)
        os.kill(server.process_id, signal.SIGSTOP)
        try:
            with pytest.raises(ServiceError) as caught:
                async with asyncio.timeout(10):
                    await run(postgres, "SELECT 1")
        finally:
            os.kill(server.process_id, signal.SIGCONT)
            os.kill(backend, signal.SIGCONT)

        assert await run(postgres, "SELECT 1") == 1
        await postgres.close()
    assert caught.value.reason == "DATABASE_UNAVAILABLE"


class Recorder:
    """What a listener was told."""

    def __init__(self) -> None:
        self.loads = 0
        self.notified: list[tuple[str, str]] = []

    async def load(self) -> None:
        self.loads += 1

    def notify(self, channel: str, payload: str) -> None:
        self.notified.append((channel, payload))

    def listener(self, dsn: str) -> Listener:
        return Listener(
            dsn, ["news"], on_connect=self.load, on_notify=self.notify, first_retry_s=0.01, check_interval_s=0.1
        )


async def test_a_listener_loads_first_and_then_hears_every_notification(empty_database: str) -> None:
    postgres = await Postgres.connect(empty_database, min_size=1, max_size=1)
    recorder = Recorder()
    listener = recorder.listener(empty_database)
    listener.start()
    await eventually(lambda: listener.is_connected)

    await run(postgres, "SELECT pg_notify('news', '1')")
    await run(postgres, "SELECT pg_notify('news', '2')")
    await eventually(lambda: len(recorder.notified) == 2)
    await listener.close()

    assert recorder.notified == [("news", "1"), ("news", "2")]
    assert recorder.loads == 1
    await postgres.close()


async def test_a_listener_comes_back_after_its_connection_is_cut_and_loads_again(empty_database: str) -> None:
    postgres = await Postgres.connect(empty_database, min_size=1, max_size=1)
    recorder = Recorder()
    listener = recorder.listener(empty_database)
    listener.start()
    await eventually(lambda: listener.is_connected)

    await run(
        postgres,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'turnpike-listener' AND datname = current_database()",
    )
    await eventually(lambda: recorder.loads == 2 and listener.is_connected)
    await run(postgres, "SELECT pg_notify('news', 'after')")
    await eventually(lambda: recorder.notified == [("news", "after")])

    await listener.close()
    await postgres.close()


async def test_a_listener_waits_for_a_database_that_is_away(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg", settings=FAST_SETTINGS, database="postgres")
    recorder = Recorder()
    listener = recorder.listener(server.dsn)
    listener.start()
    await asyncio.sleep(0.05)

    with server:
        await eventually(lambda: listener.is_connected)
        await listener.close()

    assert recorder.loads == 1


async def test_a_load_that_fails_is_tried_again(empty_database: str) -> None:
    attempts = []

    async def load() -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise ServiceError(Category.UNAVAILABLE, "DATABASE_UNAVAILABLE", "not yet")

    listener = Listener(empty_database, ["news"], on_connect=load, on_notify=lambda *_: None, first_retry_s=0.01)
    listener.start()
    await eventually(lambda: listener.is_connected)
    await listener.close()

    assert len(attempts) == 3
