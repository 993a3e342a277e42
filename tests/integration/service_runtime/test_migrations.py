from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest

from service_runtime.embedded_postgres import EmbeddedPostgres
from service_runtime.errors import ServiceError
from service_runtime.migrations import MigrationError, migrate
from tests.support.postgres import LEDGER_MIGRATIONS, TENANTS_MIGRATIONS, dsn_of


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "0001_pre_first.sql").write_text("CREATE TABLE first (id int);")
    return tmp_path


async def tables(dsn: str) -> set[str]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    finally:
        await connection.close()
    return {row["tablename"] for row in rows} - {"schema_migrations"}


async def test_pending_files_are_applied_once_and_in_order(empty_database: str, directory: Path) -> None:
    (directory / "0002_pre_second.sql").write_text("ALTER TABLE first RENAME TO second;")

    first_run = await migrate(empty_database, "books", directory)
    second_run = await migrate(empty_database, "books", directory)

    assert first_run == ["0001_pre_first.sql", "0002_pre_second.sql"]
    assert second_run == []
    assert await tables(empty_database) == {"second"}


async def test_a_missing_database_is_created(postgres_server: EmbeddedPostgres, directory: Path) -> None:
    dsn = dsn_of(postgres_server, "made_by_migrate")

    await migrate(dsn, "books", directory)

    assert await tables(dsn) == {"first"}


async def test_two_services_may_start_at_the_same_time_on_a_database_that_does_not_exist_yet(
    postgres_server: EmbeddedPostgres,
) -> None:
    dsn = dsn_of(postgres_server, "made_by_a_crowd")

    applied = await asyncio.gather(
        *(migrate(dsn, "usage_service", LEDGER_MIGRATIONS) for _ in range(3)),
        *(migrate(dsn, "router_service", TENANTS_MIGRATIONS) for _ in range(3)),
    )

    assert sum(len(names) > 0 for names in applied) == 2
    assert {"tenants", "model_usage_stats"} <= await tables(dsn)


async def test_services_count_their_own_versions(empty_database: str, directory: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "0001_pre_other.sql").write_text("CREATE TABLE other (id int);")

    await migrate(empty_database, "books", directory)
    await migrate(empty_database, "films", other)

    assert await tables(empty_database) == {"first", "other"}


async def test_a_file_that_was_changed_after_it_was_applied_is_refused(empty_database: str, directory: Path) -> None:
    await migrate(empty_database, "books", directory)
    (directory / "0001_pre_first.sql").write_text("CREATE TABLE first (id bigint);")

    with pytest.raises(MigrationError, match=r"0001_pre_first\.sql was changed"):
        await migrate(empty_database, "books", directory)


async def test_a_failing_file_leaves_no_trace_and_keeps_those_before_it(empty_database: str, directory: Path) -> None:
    (directory / "0002_pre_broken.sql").write_text("CREATE TABLE half (id int); SELECT nonsense;")

    with pytest.raises(MigrationError, match=r"0002_pre_broken\.sql failed and was rolled back"):
        await migrate(empty_database, "books", directory)

    assert await tables(empty_database) == {"first"}


async def test_trailing_post_files_wait_while_old_code_still_runs(empty_database: str, directory: Path) -> None:
    (directory / "0002_post_tidy.sql").write_text("CREATE TABLE tidied (id int);")

    during_upgrade = await migrate(empty_database, "books", directory, include_post=False)
    afterwards = await migrate(empty_database, "books", directory)

    assert during_upgrade == ["0001_pre_first.sql"]
    assert afterwards == ["0002_post_tidy.sql"]


async def test_a_post_file_before_a_pending_pre_file_is_applied_in_its_turn(
    empty_database: str, directory: Path
) -> None:
    (directory / "0002_post_tidy.sql").write_text("ALTER TABLE first ADD COLUMN tidy int;")
    (directory / "0003_pre_next.sql").write_text("ALTER TABLE first DROP COLUMN tidy;")

    applied = await migrate(empty_database, "books", directory, include_post=False)

    assert applied == ["0001_pre_first.sql", "0002_post_tidy.sql", "0003_pre_next.sql"]


async def test_a_database_that_is_ahead_of_the_files_is_left_alone(empty_database: str, directory: Path) -> None:
    newer = directory / "0002_pre_second.sql"
    newer.write_text("CREATE TABLE second (id int);")
    await migrate(empty_database, "books", directory)
    newer.unlink()

    assert await migrate(empty_database, "books", directory) == []


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("2_first.sql", "is no migration"), ("0001_pre_twin.sql", "have the same number")],
)
async def test_misnamed_files_are_refused_before_the_database_is_touched(
    name: str, complaint: str, directory: Path
) -> None:
    (directory / name).write_text("SELECT 1;")

    with pytest.raises(MigrationError, match=complaint):
        await migrate("postgresql://nowhere.invalid/none", "books", directory)


async def test_a_table_lock_that_is_held_for_a_while_is_waited_for(empty_database: str, directory: Path) -> None:
    await migrate(empty_database, "books", directory)
    (directory / "0002_pre_alter.sql").write_text(
        "SET LOCAL lock_timeout = '50ms'; ALTER TABLE first ADD COLUMN x int;"
    )
    holder = await asyncpg.connect(empty_database)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("LOCK TABLE first IN ACCESS SHARE MODE")

    migration = asyncio.create_task(migrate(empty_database, "books", directory))
    await asyncio.sleep(0.2)
    await transaction.rollback()

    assert await migration == ["0002_pre_alter.sql"]
    await holder.close()


async def test_a_database_that_does_not_answer_is_unavailable(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(ServiceError) as caught:
        await migrate(f"postgresql://postgres@/none?host={tmp_path}", "books", directory)

    assert caught.value.reason == "DATABASE_UNAVAILABLE"
