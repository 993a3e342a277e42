"""What a recorder answers, against a ledger in memory that keeps the ports' promises."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import pytest

from service_runtime.errors import Category, ServiceError
from service_runtime.metrics import Metrics
from tests.support.prices import PublishedPrices, StoredPrices
from tests.support.usage_events import event_id_at, reported_event, submission
from usage_service.api.recording_metrics import PrometheusRecordingMetrics
from usage_service.domain.usage_event import EventRules, ReportedEvent
from usage_service.metering.ports import (
    AlreadyStored,
    Inserted,
    LedgerRow,
    NotStoredNow,
    QuarantinedEvent,
    StoreOutcome,
    Unstorable,
)
from usage_service.metering.pricing import Pricing
from usage_service.metering.recording import Batch, Disposition, Recorder

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@dataclass
class LedgerInMemory:
    """A ledger that can be told what to answer for an event, and to wait."""

    rows: dict[UUID, LedgerRow] = field(default_factory=dict)
    answers: dict[str, StoreOutcome] = field(default_factory=dict)
    open: asyncio.Event = field(default_factory=asyncio.Event)

    async def store(self, rows: Sequence[LedgerRow]) -> list[StoreOutcome]:
        await self.open.wait()
        return [self._store(row) for row in rows]

    def _store(self, row: LedgerRow) -> StoreOutcome:
        if row.event.reported.event_id in self.answers:
            return self.answers[row.event.reported.event_id]
        held = self.rows.setdefault(row.event.event_id, row)
        if held is row:
            return Inserted()
        return AlreadyStored(held.content_hash, held.priced.cost_usd, held.priced.state, held.router_epoch)


@dataclass
class QuarantineInMemory:
    kept: list[QuarantinedEvent] = field(default_factory=list)
    is_away: bool = False

    async def keep(self, events: Sequence[QuarantinedEvent]) -> None:
        if self.is_away:
            raise ServiceError(Category.UNAVAILABLE, "DATABASE_UNAVAILABLE", "away")
        self.kept.extend(events)


@pytest.fixture
def ledger() -> LedgerInMemory:
    ledger = LedgerInMemory()
    ledger.open.set()
    return ledger


@pytest.fixture
def quarantine() -> QuarantineInMemory:
    return QuarantineInMemory()


@pytest.fixture
def clock_s() -> list[float]:
    """The monotonic clock that the recorder reads; a test sets its one number."""
    return [0.0]


@pytest.fixture
def recorder(ledger: LedgerInMemory, quarantine: QuarantineInMemory, clock_s: list[float]) -> Recorder:
    return Recorder(
        ledger=ledger,
        quarantine=quarantine,
        pricing=Pricing(store=StoredPrices(), vendors=PublishedPrices(), now=lambda: NOW),
        rules=EventRules(),
        metrics=PrometheusRecordingMetrics(Metrics()),
        now=lambda: NOW,
        monotonic_s=lambda: clock_s[0],
        writers=2,
        max_waiting=4,
    )


def batch(*events: ReportedEvent) -> Batch:
    return Batch("router-1", "", [submission(event) for event in events])


async def test_answers_come_in_the_order_of_the_batch(recorder: Recorder, ledger: LedgerInMemory) -> None:
    known, new, bad = reported_event(NOW), reported_event(NOW), reported_event(NOW, attempt=0)
    await recorder.record(batch(known))

    outcomes = await recorder.record(batch(bad, new, known, bad))

    assert [outcome.disposition for outcome in outcomes] == [
        Disposition.REJECTED,
        Disposition.ACCEPTED,
        Disposition.DUPLICATE,
        Disposition.REJECTED,
    ]
    assert set(ledger.rows) == {UUID(known.event_id), UUID(new.event_id)}


async def test_an_unstorable_event_is_rejected_and_kept(
    recorder: Recorder, ledger: LedgerInMemory, quarantine: QuarantineInMemory
) -> None:
    event = reported_event(NOW)
    ledger.answers[event.event_id] = Unstorable("numeric field overflow")

    outcomes = await recorder.record(batch(event, event))

    assert [(outcome.disposition, outcome.reason) for outcome in outcomes] == [
        (Disposition.REJECTED, "numeric field overflow")
    ] * 2
    assert {kept.event_id for kept in quarantine.kept} == {event.event_id}


async def test_other_content_under_the_id_of_an_unstorable_event_gets_its_own_try(
    recorder: Recorder, ledger: LedgerInMemory
) -> None:
    event_id = str(event_id_at(NOW))
    ledger.answers[event_id] = Unstorable("numeric field overflow")

    outcomes = await recorder.record(
        batch(reported_event(NOW, event_id=event_id), reported_event(NOW, event_id=event_id, attempt=2))
    )

    assert [outcome.disposition for outcome in outcomes] == [Disposition.REJECTED, Disposition.RETRY]


async def test_an_event_in_conflict_with_the_ledger_leaves_its_twin_a_duplicate(
    recorder: Recorder, ledger: LedgerInMemory
) -> None:
    event_id = str(event_id_at(NOW))
    first, other = reported_event(NOW, event_id=event_id), reported_event(NOW, event_id=event_id, attempt=2)
    await recorder.record(batch(first))

    outcomes = await recorder.record(batch(other, first))

    assert [outcome.disposition for outcome in outcomes] == [Disposition.CONFLICT, Disposition.DUPLICATE]


async def test_what_passes_is_to_be_sent_again_and_is_not_kept_aside(
    recorder: Recorder, ledger: LedgerInMemory, quarantine: QuarantineInMemory
) -> None:
    event = reported_event(NOW)
    ledger.answers[event.event_id] = NotStoredNow("busy")

    outcomes = await recorder.record(batch(event))

    assert (outcomes[0].disposition, outcomes[0].reason) == (Disposition.RETRY, "busy")
    assert quarantine.kept == []


async def test_nobody_is_told_of_a_rejection_that_could_not_be_kept(
    recorder: Recorder, quarantine: QuarantineInMemory
) -> None:
    quarantine.is_away = True

    with pytest.raises(ServiceError, match="away"):
        await recorder.record(batch(reported_event(NOW, attempt=0)))


async def test_too_many_waiting_batches_are_refused(recorder: Recorder, ledger: LedgerInMemory) -> None:
    ledger.open.clear()
    running = [asyncio.create_task(recorder.record(batch(reported_event(NOW)))) for _ in range(4)]
    await asyncio.sleep(0)

    with pytest.raises(ServiceError) as refused:
        await recorder.record(batch(reported_event(NOW)))
    ledger.open.set()
    answers = await asyncio.gather(*running)

    assert (refused.value.category, refused.value.reason) == (Category.RESOURCE_EXHAUSTED, "LEDGER_BUSY")
    assert refused.value.retry_after_s is not None
    assert Counter(outcome.disposition for (outcome,) in answers) == {Disposition.ACCEPTED: 4}


async def test_routers_are_asked_to_pause_only_while_batches_queue(recorder: Recorder, ledger: LedgerInMemory) -> None:
    assert recorder.min_send_interval_s() is None
    ledger.open.clear()
    running = [asyncio.create_task(recorder.record(batch(reported_event(NOW)))) for _ in range(3)]
    await asyncio.sleep(0)

    assert recorder.min_send_interval_s() is not None

    ledger.open.set()
    await asyncio.gather(*running)
    assert recorder.min_send_interval_s() is None


async def test_the_pause_is_no_longer_than_a_batch_takes_however_many_wait(
    recorder: Recorder, ledger: LedgerInMemory, clock_s: list[float]
) -> None:
    # They are written together, so twice as many do not take twice as long.
    ledger.open.clear()
    slow = asyncio.create_task(recorder.record(batch(reported_event(NOW))))
    await asyncio.sleep(0)
    clock_s[0] += 8.0  # of which the running mean takes an eighth
    ledger.open.set()
    await slow
    ledger.open.clear()
    running = [asyncio.create_task(recorder.record(batch(reported_event(NOW)))) for _ in range(4)]
    await asyncio.sleep(0)

    pause_s = recorder.min_send_interval_s()

    ledger.open.set()
    await asyncio.gather(*running)
    assert pause_s == pytest.approx(0.5)  # two of the four are being written, two wait


async def test_a_caller_who_leaves_gives_its_place_back(recorder: Recorder, ledger: LedgerInMemory) -> None:
    ledger.open.clear()
    for _ in range(5):
        task = asyncio.create_task(recorder.record(batch(reported_event(NOW))))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    ledger.open.set()

    (outcome,) = await recorder.record(batch(reported_event(NOW)))

    assert outcome.disposition is Disposition.ACCEPTED
