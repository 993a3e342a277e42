"""Events sent one to five times each, shuffled, by eight writers at once (U3, U5). The bench does it by the million."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

from service_runtime.metrics import Metrics
from tests.bench.ledger_events import Traffic
from tests.bench.ledger_model import LedgerModel
from tests.bench.ledger_replay import Sending, fingerprint
from tests.support.ledger import LedgerUnderTest, ledger_on
from turnpike.usage.v1 import usage_service_pb2
from usage_service.api.convert_event import submission_from_proto
from usage_service.api.recording_metrics import PrometheusRecordingMetrics
from usage_service.domain.usage_event import EventRules
from usage_service.metering.group_commit import GroupedLedger
from usage_service.metering.recording import Batch, Disposition, Recorder
from usage_service.storage.quarantine import PostgresQuarantine

WRITERS = 8
EVENTS = 4_000


def a_writer(ledger: LedgerUnderTest) -> Recorder:
    """What each replica of the service has of its own."""
    return Recorder(
        ledger=GroupedLedger(ledger.store),
        quarantine=PostgresQuarantine(ledger.postgres),
        pricing=ledger.pricing,
        rules=EventRules(),
        metrics=PrometheusRecordingMetrics(Metrics()),
        now=lambda: datetime.now(UTC),
        monotonic_s=time.monotonic,
    )


async def send_all(sending: Sending, recorder: Recorder, answered: Counter[Disposition]) -> None:
    while (request := sending.next_batch()) is not None:
        sent = usage_service_pb2.RecordUsageRequest.FromString(request)
        outcomes = await recorder.record(
            Batch(sent.router_id, sent.epoch, [submission_from_proto(event) for event in sent.events])
        )
        answered.update(outcome.disposition for outcome in outcomes)


async def test_shuffled_repeats_by_eight_writers_leave_what_a_model_says_and_change_nothing(
    ledger_database: str,
) -> None:
    # 50 ms apart over a midnight, so that every rollup has several buckets.
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    traffic = Traffic(seed=7, start=midnight - timedelta(seconds=100), gap=timedelta(milliseconds=50), tenants=20)
    events = list(itertools.islice(traffic.events(), EVENTS))
    model = LedgerModel()
    for event in events:
        model.add(event)
    async with ledger_on(ledger_database) as ledger:
        writers = [a_writer(ledger) for _ in range(WRITERS)]
        sending, answered = Sending.of(events, seed=8), Counter[Disposition]()
        await asyncio.gather(*(send_all(sending, writer, answered) for writer in writers))
        before = await fingerprint(ledger.connection)
        again, answered_again = Sending.of(events[:500], seed=9), Counter[Disposition]()
        await asyncio.gather(*(send_all(again, writer, answered_again) for writer in writers))

        assert answered == {Disposition.ACCEPTED: EVENTS, Disposition.DUPLICATE: len(sending.order) - EVENTS}
        assert set(answered_again) == {Disposition.DUPLICATE}
        assert await fingerprint(ledger.connection) == before
        assert await model.differences(ledger.connection) == []
        assert ledger.retries == []


async def test_the_model_notices_a_row_that_was_altered(ledger_database: str) -> None:
    traffic = Traffic(seed=7, start=datetime.now(UTC) - timedelta(minutes=1), tenants=3)
    events = list(itertools.islice(traffic.events(), 50))
    model = LedgerModel()
    for event in events:
        model.add(event)
    async with ledger_on(ledger_database) as ledger:
        await send_all(Sending.of(events, seed=1), ledger.recorder, Counter())
        assert await model.differences(ledger.connection) == []

        await ledger.connection.execute(
            "UPDATE usage_rollup_hour SET first_token_histogram = first_token_histogram + 1"
            " WHERE ctid = (SELECT min(ctid) FROM usage_rollup_hour)"
        )

        (difference,) = await model.differences(ledger.connection)
    assert difference.startswith("usage_rollup_hour")
