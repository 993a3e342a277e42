"""VerifyLedger: a sound ledger passes whatever happens to it meanwhile, and every kind of damage is found and named."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from service_runtime.errors import ServiceError
from service_runtime.metrics import Metrics
from service_runtime.postgres import Postgres
from tests.support.ledger import LedgerUnderTest, ledger_on
from tests.support.repricing import reprice
from tests.support.usage_events import OTHER_TENANT, TENANT, event_id_at, reported_event, submission
from turnpike.usage.v1 import audit_service_pb2 as pb
from usage_service.api.audit_metrics import PrometheusAuditMetrics
from usage_service.api.audit_servicer import AuditServicer
from usage_service.api.convert_reports import timestamp_to_proto
from usage_service.domain.audit import AuditPart, CheckResult, LedgerCheck
from usage_service.domain.journal import JournalReport
from usage_service.domain.pricing import Rates, TokenCounts
from usage_service.domain.usage_event import AttemptStatus, ReportedEvent, UsageSource
from usage_service.domain.window import RollupRetention, Window
from usage_service.metering import auditing as auditing_module
from usage_service.metering.auditing import Auditing
from usage_service.metering.journals import JournalAudit
from usage_service.metering.recording import Batch, Disposition
from usage_service.storage import journal_audit
from usage_service.storage.audit import PostgresAudit
from usage_service.storage.journals import PostgresJournals
from usage_service.storage.rollups import purge_rollups

NOW = datetime.now(UTC).replace(microsecond=0)
TODAY = NOW.replace(hour=0, minute=0, second=0)
CHECKS = set(LedgerCheck)


class NoJournalMetrics:
    def journals_known(self, journals: Sequence[Any]) -> None: ...


@dataclass
class Books:
    """A ledger that is filled as routers fill it, and audited."""

    ledger: LedgerUnderTest
    now: datetime = NOW
    metrics: Metrics = field(default_factory=Metrics)
    retention: RollupRetention = field(default_factory=RollupRetention)
    raw_retention: timedelta | None = timedelta(days=240)

    @property
    def journals(self) -> JournalAudit:
        return JournalAudit(PostgresJournals(self.ledger.postgres), NoJournalMetrics())

    @property
    def auditing(self) -> Auditing:
        return Auditing(
            store=PostgresAudit(self.ledger.postgres),
            metrics=PrometheusAuditMetrics(self.metrics),
            retention=self.retention,
            raw_retention=self.raw_retention,
            accept_back=timedelta(days=35),
            open_attempt_bound=timedelta(hours=1),
            now=lambda: self.now,
            monotonic_s=time.monotonic,
        )

    async def send(self, *events: ReportedEvent, epoch: str = "epoch-1") -> list[Disposition]:
        batch = Batch("router-1", epoch, [submission(event) for event in events])
        outcomes = await self.ledger.recorder.record(batch)
        await self.journals.note(batch, outcomes)
        return [outcome.disposition for outcome in outcomes]

    async def damage(self, statement: str, *arguments: object) -> None:
        await self.ledger.connection.execute(statement, *arguments)

    async def verify(self, **asked: Any) -> dict[LedgerCheck, CheckResult]:
        window = asked.pop("window", Window(self.now - timedelta(days=40), self.now))
        page = await self.auditing.verify(
            window, asked.pop("tenant_id", None), most=asked.pop("most", 10), after=None, budget_s=60
        )
        assert page.resume is None
        return dict(page.results)

    async def wrong(self, **asked: Any) -> dict[LedgerCheck, int]:
        """How many of what are wrong; checks that find nothing wrong are left out."""
        results = await self.verify(**asked)
        assert all(not result.unchecked for result in results.values())
        return {check: result.wrong for check, result in results.items() if result.wrong}


@pytest.fixture
async def books(ledger_database: str) -> AsyncIterator[Books]:
    async with ledger_on(ledger_database, now=lambda: NOW) as ledger:
        await ledger.partitions.cover(NOW - timedelta(days=36), NOW)
        yield Books(ledger)


def attempt(sequence: int, used_at: datetime | None = None, **fields: Any) -> ReportedEvent:
    """The event at a place in the router's journal; each is a request of its own."""
    at = used_at or NOW - timedelta(minutes=sequence % 60, hours=sequence % 30)
    return reported_event(
        at,
        **{
            "event_id": str(event_id_at(at)),
            "request_id": str(uuid4()),
            "sequence": sequence,
            "tenant_id": TENANT if sequence % 3 else OTHER_TENANT,
            "latency_ms": sequence * 37,
            **fields,
        },
    )


def varied(number: int) -> list[ReportedEvent]:
    """Attempts of every outcome, price and certainty."""
    rng = random.Random(number)
    return [
        attempt(
            sequence,
            status=rng.choice(list(AttemptStatus)),
            provider=rng.choice(["groq", "llm7"]),
            model=rng.choice(["llama-3.3-70b-versatile", "unheard-of"]),
            usage_source=rng.choice(list(UsageSource)),
            tokens=TokenCounts(*(rng.choice([0, rng.randrange(10**6)]) for _ in range(5))),
            provider_reported_cost_usd=rng.choice(["", "0.25"]),
        )
        for sequence in range(1, number + 1)
    ]


@pytest.fixture
async def kept(books: Books) -> Books:
    """A sound ledger of 40 attempts."""
    await books.send(*varied(40))
    return books


async def test_a_sound_ledger_passes_every_check(kept: Books) -> None:
    results = await kept.verify()

    assert set(results) == CHECKS
    assert {check: result.wrong for check, result in results.items() if result.wrong or result.unchecked} == {}
    for check in (LedgerCheck.COST, LedgerCheck.ROW, LedgerCheck.DUPLICATE_EVENT, LedgerCheck.SEQUENCE_GAP):
        assert results[check].checked == 40
    assert results[LedgerCheck.DAY_ROLLUP].checked > 1


async def test_an_empty_ledger_passes(books: Books) -> None:
    results = await books.verify()

    assert set(results) == CHECKS
    assert {(result.checked, result.wrong) for result in results.values()} == {(0, 0)}


ROLLUP_COLUMNS = [
    "attempts", "input_tokens", "output_tokens", "cached_read_tokens", "cached_write_tokens", "reasoning_tokens",
    "cost_usd", "provider_cost_usd", "unpriced_attempts", "unpriced_tokens", "latency_count", "latency_sum_ms",
    "first_token_count", "first_token_sum_ms",
]  # fmt: skip


@pytest.mark.parametrize("grain", ["minute", "hour", "day"])
async def test_an_altered_bucket_is_found_in_whichever_column(kept: Books, grain: str) -> None:
    check = LedgerCheck(f"{grain}_rollup")
    one = (
        f"(tenant_id, bucket, provider, model_name, status) = (SELECT tenant_id, bucket, provider, model_name, status \
FROM usage_rollup_{grain} WHERE latency_count > 0 ORDER BY bucket DESC, tenant_id LIMIT 1)"
    )
    histograms = [f"{name} = {name} + 1000000000000" for name in ("latency_histogram", "first_token_histogram")]
    for change in [f"{column} = {column} + 1" for column in ROLLUP_COLUMNS] + histograms:
        transaction = kept.ledger.connection.transaction()
        await transaction.start()
        await kept.damage(f"CREATE TABLE kept AS SELECT * FROM usage_rollup_{grain}")
        await kept.damage(f"UPDATE usage_rollup_{grain} SET {change} WHERE {one}")
        await transaction.commit()
        results = await kept.verify()

        column = change.partition(" ")[0]
        assert {name: result.wrong for name, result in results.items() if result.wrong} == {check: 1}, change
        (found,) = results[check].discrepancies
        assert f"{grain} bucket=" in found.key
        assert f"{column}=" in found.expected
        assert f"{column}=" in found.actual
        await kept.damage(f"TRUNCATE usage_rollup_{grain}")
        await kept.damage(f"INSERT INTO usage_rollup_{grain} SELECT * FROM kept")
        await kept.damage("DROP TABLE kept")


async def test_a_bucket_that_is_missing_or_has_no_row_is_found(kept: Books) -> None:
    await kept.damage("DELETE FROM usage_rollup_day WHERE tenant_id = $1", UUID(TENANT))
    await kept.damage(
        "INSERT INTO usage_rollup_hour SELECT '33333333-3333-4333-8333-333333333333', bucket, provider, model_name,"
        " status, error_class, funding, absorbed, usage_source, attempts, input_tokens, output_tokens,"
        " cached_read_tokens, cached_write_tokens, reasoning_tokens, cost_usd, provider_cost_usd, unpriced_attempts,"
        " unpriced_tokens, latency_count, latency_sum_ms, latency_histogram, first_token_count, first_token_sum_ms,"
        " first_token_histogram FROM usage_rollup_hour WHERE tenant_id = $1 ORDER BY bucket LIMIT 1",
        UUID(TENANT),
    )

    results = await kept.verify()

    assert results[LedgerCheck.HOUR_ROLLUP].wrong == 1
    assert results[LedgerCheck.HOUR_ROLLUP].discrepancies[0].expected == "no bucket: it has no row"
    assert results[LedgerCheck.DAY_ROLLUP].wrong > 1
    assert {one.actual for one in results[LedgerCheck.DAY_ROLLUP].discrepancies} == {"no bucket"}


async def test_a_deleted_row_is_missing_in_every_rollup_and_in_its_journal(kept: Books) -> None:
    await kept.damage("DELETE FROM model_usage_stats WHERE router_sequence = 17")

    results = await kept.verify()

    assert {check: result.wrong for check, result in results.items() if result.wrong} == {
        LedgerCheck.MINUTE_ROLLUP: 1,
        LedgerCheck.HOUR_ROLLUP: 1,
        LedgerCheck.DAY_ROLLUP: 1,
        LedgerCheck.SEQUENCE_GAP: 1,
    }
    assert results[LedgerCheck.SEQUENCE_GAP].discrepancies[0].key == "router router-1 epoch epoch-1 sequence 17"


async def test_the_first_and_the_last_of_a_journal_are_missed_too(kept: Books) -> None:
    await kept.damage("DELETE FROM model_usage_stats WHERE router_sequence IN (1, 40)")

    assert (await kept.wrong())[LedgerCheck.SEQUENCE_GAP] == 2


async def test_a_sequence_that_two_events_have_is_found_with_both(kept: Books) -> None:
    await kept.damage("UPDATE model_usage_stats SET router_sequence = 21 WHERE router_sequence = 20")

    results = await kept.verify()

    assert {check: result.wrong for check, result in results.items() if result.wrong} == {
        LedgerCheck.DUPLICATE_SEQUENCE: 1,
        LedgerCheck.SEQUENCE_GAP: 1,
    }
    (found,) = results[LedgerCheck.DUPLICATE_SEQUENCE].discrepancies
    assert found.key == "router router-1 epoch epoch-1 sequence 21"
    assert len(found.actual.split(", ")) == 2


async def test_a_sequence_that_events_of_different_weeks_have_is_found(books: Books) -> None:
    await books.send(attempt(1), attempt(2, NOW - timedelta(days=20)), attempt(3))
    await books.damage("UPDATE model_usage_stats SET router_sequence = 1 WHERE router_sequence = 2")

    assert await books.wrong() == {LedgerCheck.DUPLICATE_SEQUENCE: 1, LedgerCheck.SEQUENCE_GAP: 1}


COPY_OF_5 = (
    "INSERT INTO model_usage_stats SELECT (jsonb_populate_record(kept, $1::jsonb)).* FROM model_usage_stats AS kept"
    " WHERE router_sequence = 5"
)


@pytest.mark.parametrize(
    ("change", "also"),
    [
        ('{"tenant_id": "33333333-3333-4333-8333-333333333333"}', set()),
        (json.dumps({"timestamp": (NOW - timedelta(days=20)).isoformat()}), {LedgerCheck.ROW}),
    ],
    ids=["under another tenant", "in another week"],
)
async def test_an_event_that_stands_twice_in_the_ledger_is_found(
    kept: Books, change: str, also: set[LedgerCheck]
) -> None:
    await kept.damage(COPY_OF_5, change)

    wrong = await kept.wrong()

    rollups = {LedgerCheck.HOUR_ROLLUP, LedgerCheck.DAY_ROLLUP}
    assert also | rollups <= set(wrong)
    assert wrong[LedgerCheck.DUPLICATE_SEQUENCE] == 1
    assert wrong.get(LedgerCheck.DUPLICATE_EVENT, 0) == (0 if also else 1)


async def test_a_request_with_two_final_attempts_is_found_also_across_midnight(books: Books) -> None:
    request_id = str(uuid4())
    await books.send(
        attempt(1, TODAY - timedelta(seconds=3), tenant_id=TENANT, request_id=request_id),
        attempt(2, TODAY + timedelta(seconds=3), tenant_id=TENANT, request_id=request_id),
        attempt(3, TODAY - timedelta(seconds=2), tenant_id=TENANT, request_id=str(uuid4()), absorbed=True),
    )

    results = await books.verify()

    assert {check: result.wrong for check, result in results.items() if result.wrong} == {LedgerCheck.FINAL_ATTEMPT: 1}
    assert request_id in results[LedgerCheck.FINAL_ATTEMPT].discrepancies[0].key


async def test_a_cost_that_is_not_price_times_tokens_is_found(books: Books) -> None:
    await books.send(attempt(1), attempt(2))
    sound = await books.ledger.connection.fetchrow("SELECT * FROM model_usage_stats WHERE router_sequence = 1")
    assert sound is not None
    for change, check in (
        ("estimated_cost_usd = estimated_cost_usd + 0.000000000001", LedgerCheck.COST),
        ("price_id = (SELECT id FROM model_prices WHERE provider = 'local')", LedgerCheck.COST),
        ("price_id = NULL", LedgerCheck.COST),
        ("pricing_state = 'unpriced'", LedgerCheck.COST),
        ("pricing_state = 'nothing_consumed'", LedgerCheck.COST),
        ("pricing_state = 'free'", LedgerCheck.COST),
        ("total_tokens = total_tokens + 1", LedgerCheck.ROW),
    ):
        await books.damage(f"UPDATE model_usage_stats SET {change} WHERE router_sequence = 1")
        assert (await books.wrong())[check] == 1, change
        await books.damage(
            "UPDATE model_usage_stats SET estimated_cost_usd = $1, price_id = $2, pricing_state = $3, total_tokens = $4"
            " WHERE router_sequence = 1",
            *(sound[name] for name in ("estimated_cost_usd", "price_id", "pricing_state", "total_tokens")),
        )
    assert await books.wrong() == {}


async def test_a_cost_at_the_thirteenth_decimal_is_rounded_half_to_even(books: Books) -> None:
    # Half of the last digit: once above an even one, once above an odd one.
    await books.damage(
        "INSERT INTO model_prices (provider, model_name, input_usd, output_usd, effective_at, source)"
        " VALUES ('groq', 'odd', 0.590500500, 0, '2020-01-01+00', 'test')"
    )
    await books.ledger.pricing.refresh()
    await books.send(*(attempt(tokens, model="odd", tokens=TokenCounts(input_tokens=tokens)) for tokens in (1, 3)))

    costs = await books.ledger.connection.fetch("SELECT estimated_cost_usd AS usd FROM model_usage_stats ORDER BY 1")
    assert [cost["usd"] for cost in costs] == [Decimal("0.000000590500"), Decimal("0.000001771502")]
    assert await books.wrong() == {}


async def test_corrections_that_do_not_follow_from_one_another_are_found(books: Books) -> None:
    await books.send(attempt(1, tenant_id=TENANT), attempt(2, tenant_id=TENANT))
    for revision, old, new in ((1, "price_id - 1", "price_id - 2"), (2, "price_id - 2", "price_id")):
        await books.damage(
            "INSERT INTO usage_cost_adjustments SELECT tenant_id, timestamp, id, $1, provider, model_name, 'priced',"
            f" {old}, estimated_cost_usd, 'priced', {new}, estimated_cost_usd, 0, 'test', id FROM model_usage_stats",
            revision,
        )
    assert (await books.verify())[LedgerCheck.ADJUSTMENTS] == CheckResult(checked=4)

    await books.damage("UPDATE usage_cost_adjustments SET old_price_id = 99 WHERE revision = 2")
    assert await books.wrong() == {LedgerCheck.ADJUSTMENTS: 2}
    await books.damage("DELETE FROM usage_cost_adjustments WHERE revision = 2")
    assert await books.wrong() == {LedgerCheck.ADJUSTMENTS: 2}  # the row holds something else than the last one


async def test_rejected_and_conflicting_events_leave_no_gap(books: Books) -> None:
    first, bad, third = attempt(1), attempt(2, provider="acme"), attempt(3)
    conflicting = attempt(4, event_id=first.event_id, tenant_id=first.tenant_id)

    assert await books.send(first, bad, third, conflicting, attempt(5)) == [
        Disposition.ACCEPTED,
        Disposition.REJECTED,
        Disposition.ACCEPTED,
        Disposition.CONFLICT,
        Disposition.ACCEPTED,
    ]

    assert await books.wrong() == {}
    await books.damage("DELETE FROM usage_events_rejected WHERE router_sequence = 2")
    assert await books.wrong() == {LedgerCheck.SEQUENCE_GAP: 1}


async def test_what_a_router_sends_again_from_a_new_journal_leaves_no_gap(books: Books) -> None:
    events = [attempt(1), attempt(2)]
    await books.send(*events)

    # The old journal was damaged after the events were sent and before the answer was noted.
    assert await books.send(*events, attempt(3), epoch="epoch-2") == [
        Disposition.DUPLICATE,
        Disposition.DUPLICATE,
        Disposition.ACCEPTED,
    ]
    await books.send(*events, epoch="epoch-2")

    assert await books.wrong() == {}
    assert await books.ledger.connection.fetchval("SELECT count(*) FROM usage_events_rejected") == 2


async def test_a_repriced_ledger_passes_and_a_lost_correction_is_found(books: Books) -> None:
    await books.send(*(attempt(sequence) for sequence in range(1, 6)))
    for input_usd in ("1.1", "1.3"):
        await books.ledger.pricing.set_price(
            "groq",
            "llama-3.3-70b-versatile",
            Rates(Decimal(input_usd), Decimal("2.2"), cached_read_usd=Decimal("0.3")),
            effective_at=datetime(2020, 1, 1, tzinfo=UTC),
            replace=True,
            source="operator",
        )
        await reprice(books.ledger, job_id=uuid4())
        assert await books.wrong() == {}
    assert (await books.verify())[LedgerCheck.ADJUSTMENTS].checked == 10

    await books.damage("DELETE FROM usage_cost_adjustments WHERE revision = 1")
    assert await books.wrong() == {LedgerCheck.ADJUSTMENTS: 5}


async def test_what_is_under_way_is_no_gap_until_its_router_says_that_it_was_sent(books: Books) -> None:
    await books.send(attempt(1), attempt(3))
    assert await books.wrong() == {}

    report = JournalReport(NOW, last_sequence=3, first_waiting_sequence=2, waiting=1, opened=0, held=0, dead_letters=0)
    await books.journals.report("router-1", "epoch-1", report)
    assert await books.wrong() == {}

    report = JournalReport(NOW, last_sequence=4, first_waiting_sequence=0, waiting=0, opened=0, held=0, dead_letters=0)
    await books.journals.report("router-1", "epoch-1", report)
    assert await books.wrong() == {LedgerCheck.SEQUENCE_GAP: 2}


async def test_a_gap_that_no_router_reports_on_shows_after_ten_minutes(books: Books) -> None:
    await books.send(attempt(1), attempt(3))

    books.now = datetime.now(UTC) + timedelta(minutes=11)

    assert await books.wrong() == {LedgerCheck.SEQUENCE_GAP: 1}


async def test_an_attempt_that_its_router_calls_open_for_hours_is_found(books: Books) -> None:
    for opened_at, wrong in ((NOW - timedelta(minutes=59), 0), (NOW - timedelta(minutes=61), 1)):
        report = JournalReport(NOW, 0, 0, waiting=0, opened=1, held=0, dead_letters=0, oldest_open_at=opened_at)
        await books.journals.report("router-1", "epoch-1", report)

        result = (await books.verify())[LedgerCheck.OPEN_ATTEMPT]

        assert (result.checked, result.wrong, len(result.discrepancies)) == (1, wrong, wrong)


async def test_a_window_looks_past_its_edges_for_what_is_no_gap(books: Books) -> None:
    # Sequences are given at the end of an attempt, usage times are those of its beginning.
    await books.send(
        attempt(1, TODAY - timedelta(days=1) + timedelta(hours=1)),
        attempt(2, TODAY - timedelta(days=9)),
        attempt(3, TODAY - timedelta(days=1) + timedelta(hours=2)),
    )

    assert await books.wrong(window=Window(TODAY - timedelta(days=1), TODAY)) == {}


async def test_what_retention_dropped_is_neither_missing_nor_without_rows(books: Books) -> None:
    old = [attempt(sequence, NOW - timedelta(days=30, minutes=100 - sequence)) for sequence in range(1, 5)]
    # An event of the dropped week that was sent when the router came back.
    late = attempt(6, NOW - timedelta(days=30))
    await books.send(*old, attempt(5), late, attempt(7))
    await books.ledger.partitions.drop_before(NOW - timedelta(days=20))
    books.raw_retention = timedelta(days=20)

    results = await books.verify()

    assert {check: result.wrong for check, result in results.items() if result.wrong} == {}
    assert results[LedgerCheck.COST].checked == 2


async def test_purged_minutes_and_hours_are_not_missed(books: Books) -> None:
    books.retention = RollupRetention(timedelta(hours=2), timedelta(days=2))
    await books.send(*[attempt(sequence, NOW - timedelta(hours=5 * sequence)) for sequence in range(1, 15)])
    await purge_rollups(books.ledger.owner, books.retention, NOW)

    results = await books.verify()

    assert {check: result.wrong for check, result in results.items() if result.wrong} == {}
    assert results[LedgerCheck.HOUR_ROLLUP].checked < results[LedgerCheck.COST].checked == 14


async def test_nothing_looks_wrong_while_events_arrive(books: Books) -> None:
    stop = asyncio.Event()

    async def ingest() -> None:
        sequence = 0
        while not stop.is_set():
            events = [attempt(sequence + number) for number in range(1, 26)]
            sequence += 25
            await books.send(*events)
            await books.send(*events)

    writer = asyncio.create_task(ingest())
    try:
        for _ in range(5):
            assert await books.wrong() == {}
    finally:
        stop.set()
        await writer
    assert (await books.verify())[LedgerCheck.COST].checked > 100
    assert await books.wrong() == {}


async def test_pages_put_together_are_the_whole_audit(kept: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing_module, "_ROWS_OF_A_PART", 5)
    monkeypatch.setattr(auditing_module, "_TENANTS_AT_A_TIME", 1)
    await kept.damage("UPDATE usage_rollup_day SET attempts = attempts + 1")
    whole = await kept.verify(most=100)
    window = Window(NOW - timedelta(days=40), NOW)

    pages, position = [], None
    while True:
        page = await kept.auditing.verify(window, None, most=100, after=position, budget_s=0)
        pages.append(page.results)
        position = page.resume
        if position is None:
            break

    assert len(pages) > 4
    for check in LedgerCheck:
        parts = [page[check] for page in pages if check in page]
        assert sum(part.checked for part in parts) == whole[check].checked
        assert sum(part.wrong for part in parts) == whole[check].wrong
        assert [one for part in parts for one in part.discrepancies] == list(whole[check].discrepancies)


async def test_one_tenant_is_verified_alone(kept: Books) -> None:
    await kept.damage("UPDATE usage_rollup_day SET attempts = attempts + 1 WHERE tenant_id = $1", UUID(OTHER_TENANT))

    mine = await kept.verify(tenant_id=UUID(TENANT))
    other = await kept.verify(tenant_id=UUID(OTHER_TENANT))

    assert not any(result.wrong for result in mine.values())
    assert LedgerCheck.SEQUENCE_GAP not in mine
    assert other[LedgerCheck.DAY_ROLLUP].wrong > 0


async def test_a_scheduled_audit_moves_the_metrics(kept: Books) -> None:
    await kept.damage("DELETE FROM model_usage_stats WHERE router_sequence = 17")

    assert await kept.auditing.verify_on_schedule(3) is not None

    def value(name: str, **labels: str) -> float | None:
        return kept.metrics.registry.get_sample_value(name, labels)

    assert value("usage_ledger_discrepancies", check="hour_rollup") == 1
    assert value("usage_ledger_discrepancies", check="sequence_gap") == 1
    assert value("usage_ledger_discrepancies", check="cost") == 0
    assert value("usage_ledger_unchecked_parts", check="cost") == 0
    assert value("usage_ledger_audit_timestamp_seconds") == NOW.timestamp()


async def test_only_one_process_audits_on_schedule(kept: Books) -> None:
    async with PostgresAudit(kept.ledger.postgres).alone() as first:
        assert first
        assert await kept.auditing.verify_on_schedule(3) is None

    assert await kept.auditing.verify_on_schedule(3) is not None


async def test_a_part_that_takes_too_long_is_not_called_right(kept: Books, ledger_database: str) -> None:
    hurried = await Postgres.connect(ledger_database, min_size=0, max_size=2, statement_timeout_s=0.2)
    part = AuditPart(UUID(TENANT), Window(TODAY, TODAY + timedelta(days=1)), NOW, NOW)
    async with kept.ledger.connection.transaction():
        await kept.damage("LOCK usage_cost_adjustments")
        results = await PostgresAudit(hurried).verify_part(part, most=1)
    await hurried.close()

    assert {check for check, result in results.items() if result.unchecked} == {LedgerCheck.ADJUSTMENTS}
    assert results[LedgerCheck.ADJUSTMENTS].unchecked[0].startswith(f"tenant {TENANT}, ")
    assert results[LedgerCheck.ROW].checked > 0


async def test_journals_in_pieces_past_counting_are_not_called_right(
    kept: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_audit, "_MAX_RUNS", 1)

    results = await kept.verify()

    assert results[LedgerCheck.DUPLICATE_SEQUENCE].unchecked
    assert results[LedgerCheck.SEQUENCE_GAP].unchecked == results[LedgerCheck.DUPLICATE_SEQUENCE].unchecked


async def test_the_method_verifies_two_days_unless_asked_for_others(kept: Books) -> None:
    servicer = AuditServicer(kept.auditing)
    answer = await servicer.VerifyLedger(pb.VerifyLedgerRequest(), None)  # type: ignore[arg-type]

    assert answer.start_time == timestamp_to_proto(TODAY - timedelta(days=2))
    assert answer.end_time == timestamp_to_proto(TODAY + timedelta(days=1))
    assert [result.check for result in answer.results] == list(range(1, 12))
    assert answer.next_page_token == ""


async def test_a_third_audit_at_a_time_is_refused(kept: Books) -> None:
    auditing, window = kept.auditing, Window(NOW - timedelta(days=2), NOW)

    async def verify() -> None:
        await auditing.verify(window, None, most=1, after=None, budget_s=60)

    outcomes = await asyncio.gather(verify(), verify(), verify(), return_exceptions=True)

    refused = [outcome for outcome in outcomes if isinstance(outcome, ServiceError)]
    assert [error.reason for error in refused] == ["AUDIT_BUSY"]
