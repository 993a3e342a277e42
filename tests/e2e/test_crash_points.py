"""U1, U2: a process that dies at any named point loses no usage and books none twice.

For each point a real service is killed there by itself, started again, and the books are compared with what the caller
saw, with the provider's own log and with the tables. A point without a scenario fails the first test.
"""

from __future__ import annotations

import signal
import sqlite3
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest

from service_runtime.embedded_postgres import EmbeddedPostgres
from service_runtime.faults import CrashPoint, Sabotage
from service_runtime.ids import uuid7
from tests.support.attempts import TENANT as SEEDED_TENANT
from tests.support.forked import Forked, Nursery
from tests.support.forked_site import RouterUnderTest, Site, eventually
from tests.support.postgres import dsn_of
from tests.support.provider_server import GENERATION, ProviderProcess

AT_ONCE = 4  # requests beside each other when the process dies, so that a group of records is under way
BACKLOG = 1_200  # more than the journal writes between two rotations of its log

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
WHILE_HOLDING = {
    CrashPoint.JOURNAL_BEFORE_HELD_SYNC: 1,
    CrashPoint.JOURNAL_AFTER_HELD_SYNC: 1,
    CrashPoint.JOURNAL_BEFORE_RELEASE_SYNC: 1,
    CrashPoint.JOURNAL_AFTER_RELEASE_SYNC: 1,
}
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
    WHILE_HOLDING,
    WHILE_STORING,
)


def test_every_crash_point_has_exactly_one_scenario() -> None:
    named = [point for scenario in SCENARIOS for point in scenario]

    assert sorted(named) == sorted(CrashPoint)


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
    with router.site.usage_away():  # else a quick sender saves what the journal lost
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


@pytest.mark.parametrize("point", WHILE_HOLDING)
def test_u1_u2_a_router_that_dies_while_a_record_waits_for_a_late_count(
    site: Site, router: RouterUnderTest, point: CrashPoint
) -> None:
    settings = {
        "ROUTER_OPENROUTER_BASE_URL": site.provider.base_url,
        "OPENROUTER_API_KEY": "sk-or-v1-0123456789abcdef",
        "ROUTER_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    model = f"ok?n=1000&gap_ms=10&id={uuid.uuid4().hex}"
    site.provider.script(GENERATION, f"generation?prompt=31&completion=9&cost=0.00042&model={quote(model, safe='')}")
    router.start(f"{point}:{WHILE_HOLDING[point]}", settings=settings)

    router.leave(model)

    assert_died_at(router.process, point)
    router.start(settings=settings)
    router.check()
    (row,) = [row for row in router.rows() if row["model_name"] == model]
    if point is CrashPoint.JOURNAL_BEFORE_HELD_SYNC:
        assert (row["status"], row["usage_source"]) == ("interrupted", "estimated")
    else:
        assert (row["status"], row["usage_source"]) == ("cancelled", "provider_late")
        assert (row["input_tokens"], row["output_tokens"]) == (31, 9)


@pytest.mark.parametrize("point", WHILE_STORING)
def test_u1_a_usage_service_that_dies_while_it_stores(site: Site, router: RouterUnderTest, point: CrashPoint) -> None:
    with site.usage_under(f"{point}:{WHILE_STORING[point]}") as armed:
        router.start()
        while armed.exit_code is None:
            router.ask_at_once(AT_ONCE)
        assert_died_at(armed, point)

    router.check()
    assert len(router.history.results) == len(router.history.asked), "the ledger's death is no concern of a caller's"
