"""U1, U2: a process that dies at any named point loses no usage and books none twice.

For each point a real service is killed there by itself, started again, and the books are compared with what the caller
saw, with the provider's own log and with the tables. A point without a scenario fails the first test.
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import asyncpg
import grpc
import pytest

from router_service.usage.journal import SqliteJournal
from service_runtime.embedded_postgres import EmbeddedPostgres
from service_runtime.faults import CrashPoint, Sabotage
from service_runtime.ids import uuid7
from tests.support.attempts import TENANT as SEEDED_TENANT
from tests.support.attempts import journal_metrics, settled_attempt
from tests.support.forked import Forked, Nursery
from tests.support.postgres import dsn_of, run_apart
from tests.support.provider_server import ProviderProcess
from tests.support.stack import free_port
from turnpike.router.v1 import completion_pb2, router_service_pb2, router_service_pb2_grpc

T = TypeVar("T")

AT_ONCE = 4  # requests beside each other when the process dies, so that a group of records is under way
BACKLOG = 1_200  # more than the journal writes between two rotations of its log
TOKENS = 3
WORDS = 2  # of the prompt: the scripted provider counts a token each

# The point, and the passing at which the process dies: late enough that others went well before.
WHILE_SERVING = {
    CrashPoint.JOURNAL_BEFORE_OPENED_SYNC: 3,
    CrashPoint.JOURNAL_AFTER_OPENED_SYNC: 3,
    CrashPoint.JOURNAL_BEFORE_SETTLED_SYNC: 3,
    CrashPoint.JOURNAL_AFTER_SETTLED_SYNC: 3,
    CrashPoint.ATTEMPT_BEFORE_CONNECT: 3,
    CrashPoint.ATTEMPT_AFTER_CONNECT: 3,
    CrashPoint.ATTEMPT_BEFORE_FIRST_TOKEN: 3,
    CrashPoint.CALLER_AFTER_FIRST_TOKEN: 3,
    CrashPoint.CALLER_BEFORE_FINAL_WRITE: 3,
    CrashPoint.CALLER_AFTER_FINAL_WRITE: 3,
    CrashPoint.SENDER_BEFORE_SEND: 1,
    CrashPoint.SENDER_AFTER_SEND: 1,
    CrashPoint.SENDER_AFTER_ACKNOWLEDGEMENT: 1,
    CrashPoint.JOURNAL_BEFORE_REMOVAL_SYNC: 1,
    CrashPoint.JOURNAL_AFTER_REMOVAL_SYNC: 1,
}
WHILE_A_BACKLOG_DRAINS = {CrashPoint.JOURNAL_BEFORE_ROTATION: 1, CrashPoint.JOURNAL_AFTER_ROTATION: 1}
WHILE_RECOVERING = {CrashPoint.RECOVERY_BEFORE_SYNC: 1, CrashPoint.RECOVERY_AFTER_SYNC: 1}
WHILE_MENDING = {
    CrashPoint.TAKE_OVER_BEFORE_SET_ASIDE: 1,
    CrashPoint.TAKE_OVER_AFTER_SET_ASIDE: 1,
    CrashPoint.TAKE_OVER_AFTER_RENAME: 1,
}
WHILE_BURYING = {CrashPoint.JOURNAL_BEFORE_BURIAL_SYNC: 1, CrashPoint.JOURNAL_AFTER_BURIAL_SYNC: 1}
WHILE_STORING = {
    CrashPoint.INGEST_BEFORE_INSERT: 2,
    CrashPoint.INGEST_BEFORE_COMMIT: 2,
    CrashPoint.INGEST_AFTER_COMMIT: 2,
    CrashPoint.INGEST_BEFORE_ACKNOWLEDGEMENT: 2,
}
SCENARIOS = (
    WHILE_SERVING,
    WHILE_A_BACKLOG_DRAINS,
    WHILE_RECOVERING,
    WHILE_MENDING,
    WHILE_BURYING,
    WHILE_STORING,
)


def test_every_crash_point_has_exactly_one_scenario() -> None:
    named = [point for scenario in SCENARIOS for point in scenario]

    assert sorted(named) == sorted(CrashPoint)


@dataclass
class Site:
    """Postgres, the provider, and a usage_service that all routers of this module report to."""

    nursery: Nursery
    dsn: str
    provider: ProviderProcess
    directory: Path
    usage_port: int = field(default_factory=free_port)
    usage: Forked | None = None

    def start_usage(self, faults: str = "") -> Forked:
        environment = self.environment(self.directory / "usage", faults) | {"USAGE_PORT": str(self.usage_port)}
        self.usage = self.nursery.start("usage_service", environment, self.directory / "usage.log")
        return self.usage.wait_until_logged("usage.ready")

    @contextmanager
    def usage_under(self, faults: str) -> Iterator[Forked]:
        """Another usage_service in the place of the usual one, for the block."""
        assert self.usage is not None
        self.usage.kill()
        try:
            yield self.start_usage(faults)
        finally:
            self.usage.kill()
            self.start_usage()

    def environment(self, data_dir: Path, faults: str) -> dict[str, str]:
        return {
            "TURNPIKE_DATA_DIR": str(data_dir),
            "TURNPIKE_DATABASE_URL": self.dsn,
            "TURNPIKE_FAULTS": faults,
            "ROUTER_LOCAL_BASE_URL": self.provider.base_url,
            "ROUTER_SANDBOX": "false",
            "ROUTER_USAGE_TARGET": f"127.0.0.1:{self.usage_port}",
            "GRPC_ENABLE_FORK_SUPPORT": "0",
        }

    def sql(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        async def fetch() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.dsn)
            try:
                return await connection.fetch(statement, *arguments)
            finally:
                await connection.close()

        return asyncio.run(fetch())


@dataclass
class History:
    """What the caller saw, by request: the result, or the error that the stream ended with."""

    asked: set[str] = field(default_factory=set)
    results: dict[str, completion_pb2.CompletionResult] = field(default_factory=dict)
    errors: list[grpc.StatusCode] = field(default_factory=list)


class RouterUnderTest:
    """One router with a name and a journal of its own."""

    def __init__(self, site: Site, directory: Path) -> None:
        self.site = site
        self.directory = directory
        self.name = f"router-{uuid.uuid4()}"
        self.tenant_id = str(uuid.uuid4())
        self.port = free_port()
        self.history = History()
        self.process: Forked | None = None

    @property
    def journal(self) -> Path:
        return self.directory / "journal"

    def launch(self, faults: str = "") -> Forked:
        environment = self.site.environment(self.directory, faults) | {
            "ROUTER_PORT": str(self.port),
            "ROUTER_ROUTER_ID": self.name,
        }
        self.process = self.site.nursery.start("router_service", environment, self.directory.with_suffix(".log"))
        return self.process

    def start(self, faults: str = "") -> Forked:
        return self.launch(faults).wait_until_logged("router.ready")

    def ask(self, script: str = f"ok?n={TOKENS}") -> str:
        """One stream, to whatever end; its model, which names it."""
        model = f"{script}&id={uuid.uuid4().hex}"
        self.history.asked.add(model)
        request = router_service_pb2.StreamCompletionRequest(
            tenant_id=self.tenant_id,
            messages=[completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="hello there")],
            provider="local",
            model=model,
        )
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            try:
                for event in router_service_pb2_grpc.RouterServiceStub(channel).StreamCompletion(request, timeout=20):
                    if event.WhichOneof("event") == "result":
                        self.history.results[model] = event.result
            except grpc.RpcError as error:
                self.history.errors.append(error.code())
        return model

    def ask_at_once(self, count: int) -> None:
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(lambda _: self.ask(f"ok?n={TOKENS}&gap_ms=10"), range(count)))

    def seed(self, *event_ids: uuid.UUID) -> None:
        """Put settled attempts into the journal, as a run before this one left them."""
        run_apart(self._settle(event_ids))

    async def _settle(self, event_ids: tuple[uuid.UUID, ...]) -> None:
        journal = SqliteJournal.open(
            self.journal, max_bytes=1 << 30, metrics=journal_metrics(), new_epoch=lambda: f"epoch-of-{self.name}"
        )
        await asyncio.gather(*(journal.settled(settled_attempt(event_id)) for event_id in event_ids))
        await journal.close()

    def rows(self) -> list[asyncpg.Record]:
        return self.site.sql("SELECT * FROM model_usage_stats WHERE router_id = $1", self.name)

    def waiting(self) -> int:
        """Records in the journal, read beside the router that owns it."""
        with sqlite3.connect(f"file:{self.journal / 'journal.sqlite'}?mode=ro", uri=True) as connection:
            (opened,), (outbox,) = (
                connection.execute(f"SELECT count(*) FROM {table}").fetchone() for table in ("opened", "outbox")
            )
        return int(opened + outbox)

    def check(self) -> None:
        """Start anew if need be, let everything drain, and compare the three witnesses."""
        if self.process is None or self.process.exit_code is not None:
            self.start()
        self.ask()
        assert eventually(self.waiting, lambda waiting: waiting == 0) == 0
        rows = [row for row in self.rows() if row["tenant_id"] != SEEDED_TENANT]
        by_model = {row["model_name"]: row for row in rows}
        served = [entry.model for entry in self.site.provider.served if entry.model in self.history.asked]

        assert set(self.history.errors) <= {grpc.StatusCode.UNAVAILABLE}
        assert len(by_model) == len(rows), "an attempt was booked twice"
        assert set(by_model) <= self.history.asked, "a row that nobody asked for"
        assert set(served) <= set(by_model), "the provider served what nobody booked"
        assert set(self.history.results) <= set(by_model), "a caller saw the end of what nobody booked"
        for model, result in self.history.results.items():
            row = by_model[model]
            assert (row["status"], row["usage_source"]) == ("success", "provider")
            assert (row["input_tokens"], row["output_tokens"]) == (WORDS, TOKENS)
            assert (result.input_tokens, result.output_tokens) == (WORDS, TOKENS)
        for model in set(by_model) - set(self.history.results):
            assert by_model[model]["status"] in {"success", "interrupted", "cancelled"}
        self._check_rollups()
        self._check_sequences()

    def _check_rollups(self) -> None:
        totals = "sum(input_tokens) AS input, sum(output_tokens) AS output"
        rows = self.site.sql(
            f"SELECT count(*)::bigint AS n, {totals} FROM model_usage_stats WHERE tenant_id = $1",
            uuid.UUID(self.tenant_id),
        )
        rollups = self.site.sql(
            f"SELECT sum(attempts)::bigint AS n, {totals} FROM usage_rollup_day WHERE tenant_id = $1",
            uuid.UUID(self.tenant_id),
        )
        assert [tuple(row) for row in rollups] == [tuple(row) for row in rows]

    def _check_sequences(self) -> None:
        """No hole in what the ledger answered for, in any epoch."""
        for row in self.site.sql("SELECT epoch, answered FROM usage_journals WHERE router_id = $1", self.name):
            assert len(row["answered"]) == 1, row
            assert row["answered"][0].lower == 1, row


def eventually(look: Callable[[], T], is_it: Callable[[T], bool], within_s: float = 20.0) -> T:
    """What `look` sees as soon as `is_it`, or in the end: the caller asserts on it."""
    give_up_at = time.monotonic() + within_s
    while not is_it(seen := look()) and time.monotonic() < give_up_at:
        time.sleep(0.02)
    return seen


@pytest.fixture(scope="module")
def site(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = Path(tmp_path_factory.mktemp("site"))
    dsn = dsn_of(postgres_server, f"crash_points_{uuid.uuid4().hex}")
    with Nursery() as nursery, ProviderProcess(directory) as provider:
        site = Site(nursery, dsn, provider, directory)
        site.start_usage()
        yield site


@pytest.fixture
def router(site: Site, tmp_path: Path) -> Iterator[RouterUnderTest]:
    router = RouterUnderTest(site, tmp_path / "router")
    yield router
    if router.process is not None:
        router.process.kill()


def assert_died_at(process: Forked | None, point: CrashPoint) -> None:
    assert process is not None
    assert process.wait() == -signal.SIGKILL
    assert f"killing this process at {point}" in process.output()


@pytest.mark.parametrize("point", WHILE_SERVING)
def test_u1_u2_a_router_that_dies_while_it_serves(router: RouterUnderTest, point: CrashPoint) -> None:
    router.start(f"{point}:{WHILE_SERVING[point]}")

    router.ask()
    router.ask_at_once(AT_ONCE)

    assert_died_at(router.process, point)
    router.check()


@pytest.mark.parametrize(
    ("faults", "verdict"),
    [
        (f"{Sabotage.SKIP_SYNC},{CrashPoint.CALLER_AFTER_FINAL_WRITE}:3", "nobody booked"),
        (f"{Sabotage.REMOVE_BEFORE_ACKNOWLEDGEMENT},{CrashPoint.SENDER_BEFORE_SEND}", "nobody booked"),
    ],
)
def test_a_router_that_breaks_its_promise_is_found_out(router: RouterUnderTest, faults: str, verdict: str) -> None:
    router.start(faults)
    router.ask()
    router.ask_at_once(AT_ONCE)
    assert router.process is not None
    assert router.process.wait() == -signal.SIGKILL

    with pytest.raises(AssertionError, match=verdict):
        router.check()


def test_a_ledger_that_stores_what_is_resent_again_is_found_out(site: Site, router: RouterUnderTest) -> None:
    with site.usage_under(Sabotage.NO_DEDUPE):
        router.start(CrashPoint.SENDER_AFTER_ACKNOWLEDGEMENT)
        router.ask()
        router.ask_at_once(AT_ONCE)
        assert_died_at(router.process, CrashPoint.SENDER_AFTER_ACKNOWLEDGEMENT)

        with pytest.raises(AssertionError, match="booked twice"):
            router.check()


def test_a_ledger_that_acknowledges_what_it_has_not_stored_is_found_out(site: Site, router: RouterUnderTest) -> None:
    with site.usage_under(Sabotage.ACKNOWLEDGE_BEFORE_COMMIT) as usage:
        router.start()
        router.ask()
        eventually(router.waiting, lambda waiting: waiting == 0)
        usage.kill()

    with pytest.raises(AssertionError, match="nobody booked"):
        router.check()


@pytest.mark.parametrize("point", WHILE_A_BACKLOG_DRAINS)
def test_u1_a_router_that_dies_while_a_backlog_drains(router: RouterUnderTest, point: CrashPoint) -> None:
    event_ids = [uuid7() for _ in range(BACKLOG)]
    router.seed(*event_ids)
    router.launch(f"{point}:{WHILE_A_BACKLOG_DRAINS[point]}")

    assert_died_at(router.process, point)
    router.check()
    assert sorted(row["id"] for row in router.rows() if row["tenant_id"] == SEEDED_TENANT) == sorted(event_ids)


@pytest.mark.parametrize("point", WHILE_RECOVERING)
def test_u2_a_router_that_dies_while_it_recovers_from_an_earlier_death(
    router: RouterUnderTest, point: CrashPoint
) -> None:
    process = router.start()
    with ThreadPoolExecutor(1) as thread:
        stream = thread.submit(router.ask, "ok?n=100&gap_ms=50")
        eventually(router.waiting, lambda waiting: waiting == 1)
        process.kill()
        interrupted = stream.result()
    router.launch(f"{point}:{WHILE_RECOVERING[point]}")

    assert_died_at(router.process, point)
    router.check()
    (row,) = [row for row in router.rows() if row["model_name"] == interrupted]
    assert (row["status"], row["usage_source"]) == ("interrupted", "estimated")
    assert row["input_tokens"] > 0


@pytest.mark.parametrize("point", WHILE_MENDING)
def test_u1_a_router_that_dies_while_it_mends_its_journal(router: RouterUnderTest, point: CrashPoint) -> None:
    event_ids = [uuid7() for _ in range(50)]
    router.seed(*event_ids)
    with sqlite3.connect(router.journal / "journal.sqlite") as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'")
    router.launch(f"{point}:{WHILE_MENDING[point]}")

    assert_died_at(router.process, point)
    router.check()
    assert sorted(row["id"] for row in router.rows() if row["tenant_id"] == SEEDED_TENANT) == sorted(event_ids)


@pytest.mark.parametrize("point", WHILE_BURYING)
def test_u1_a_router_that_dies_while_it_sets_a_refused_event_aside(router: RouterUnderTest, point: CrashPoint) -> None:
    too_old = uuid.UUID(int=uuid7().int - (int(timedelta(days=100).total_seconds() * 1000) << 80))
    good = uuid7()
    router.seed(too_old, good)
    router.launch(f"{point}:{WHILE_BURYING[point]}")

    assert_died_at(router.process, point)
    router.check()
    assert [row["id"] for row in router.rows() if row["tenant_id"] == SEEDED_TENANT] == [good]
    kept = router.site.sql("SELECT event_id FROM usage_events_rejected WHERE router_id = $1", router.name)
    assert [row["event_id"] for row in kept] == [str(too_old)]
    with sqlite3.connect(f"file:{router.journal / 'journal.sqlite'}?mode=ro", uri=True) as connection:
        assert connection.execute("SELECT event_id, reason FROM dead_letter").fetchall() == [
            (too_old.bytes, "rejected")
        ]


@pytest.mark.parametrize("point", WHILE_STORING)
def test_u1_a_usage_service_that_dies_while_it_stores(site: Site, router: RouterUnderTest, point: CrashPoint) -> None:
    with site.usage_under(f"{point}:{WHILE_STORING[point]}") as armed:
        router.start()
        while armed.exit_code is None:
            router.ask_at_once(AT_ONCE)
        assert_died_at(armed, point)

    router.check()
    assert len(router.history.results) == len(router.history.asked), "the ledger's death is no concern of a caller's"
