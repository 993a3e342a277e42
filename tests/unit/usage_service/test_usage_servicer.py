"""RecordUsage on the wire: what a router sends and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2

from service_runtime.errors import InvalidRequest
from service_runtime.metrics import Metrics
from tests.support.prices import PublishedPrices, StoredPrices, price_of
from tests.support.usage_events import REQUEST, TENANT, event_id_at
from turnpike.usage.v1 import token_usage_pb2, usage_event_pb2
from turnpike.usage.v1 import usage_service_pb2 as pb
from usage_service.api.convert_event import submission_from_proto
from usage_service.api.journal_metrics import PrometheusJournalMetrics
from usage_service.api.recording_metrics import PrometheusRecordingMetrics
from usage_service.api.usage_servicer import UsageServicer
from usage_service.domain.journal import Journal, JournalReport, SequenceRange, ranges_of
from usage_service.domain.pricing import PricedUsage, PricingState, TokenCounts
from usage_service.domain.usage_event import AttemptStatus, EventRules, Funding, UsageSource
from usage_service.metering.journals import JournalAudit
from usage_service.metering.ports import AlreadyStored, Inserted, LedgerRow, QuarantinedEvent, StoreOutcome
from usage_service.metering.pricing import Pricing
from usage_service.metering.recording import Recorder

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
NOT_ASKED = cast("Any", None)  # RecordUsage looks neither at the reports nor at the call's context


class LedgerInMemory:
    """Keeps rows by id."""

    def __init__(self) -> None:
        self.rows: dict[str, LedgerRow] = {}

    async def store(self, rows: Sequence[LedgerRow]) -> list[StoreOutcome]:
        return [self._store(row) for row in rows]

    def _store(self, row: LedgerRow) -> StoreOutcome:
        held = self.rows.setdefault(str(row.event.event_id), row)
        return (
            Inserted()
            if held is row
            else AlreadyStored(held.content_hash, held.priced.cost_usd, held.priced.state, held.router_epoch)
        )


class QuarantineInMemory:
    """Keeps events in order."""

    def __init__(self) -> None:
        self.kept: list[QuarantinedEvent] = []

    async def keep(self, events: Sequence[QuarantinedEvent]) -> None:
        self.kept.extend(events)


class JournalsInMemory:
    """Keeps sequences and reports by router and epoch."""

    def __init__(self) -> None:
        self.sequences: dict[tuple[str, str], set[int]] = {}
        self.reports: dict[tuple[str, str], JournalReport] = {}

    async def answered(self, router_id: str, epoch: str, ranges: Sequence[SequenceRange]) -> None:
        known = self.sequences.setdefault((router_id, epoch), set())
        known.update(sequence for each in ranges for sequence in range(each.first, each.last + 1))

    async def report(self, router_id: str, epoch: str, report: JournalReport) -> Journal:
        self.reports[router_id, epoch] = report
        return Journal(router_id, epoch, ranges_of(list(self.sequences.get((router_id, epoch), ()))), report)

    async def load(self) -> list[Journal]:
        return []


@pytest.fixture
def journals() -> JournalsInMemory:
    return JournalsInMemory()


@pytest.fixture
def ledger() -> LedgerInMemory:
    return LedgerInMemory()


@pytest.fixture
def quarantine() -> QuarantineInMemory:
    return QuarantineInMemory()


@pytest.fixture
async def servicer(ledger: LedgerInMemory, quarantine: QuarantineInMemory, journals: JournalsInMemory) -> UsageServicer:
    prices = StoredPrices()
    await prices.add([price_of("groq", "llama", "0.59", "0.79")])
    pricing = Pricing(store=prices, vendors=PublishedPrices(), now=lambda: NOW)
    await pricing.refresh()
    recorder = Recorder(
        ledger=ledger,
        quarantine=quarantine,
        pricing=pricing,
        rules=EventRules(),
        metrics=PrometheusRecordingMetrics(Metrics()),
        now=lambda: NOW,
        monotonic_s=lambda: 0.0,
    )
    audit = JournalAudit(journals, PrometheusJournalMetrics(Metrics(), now=lambda: NOW))
    return UsageServicer(recorder=recorder, reports=NOT_ASKED, watch=NOT_ASKED, journals=audit, now=lambda: NOW)


def sent(**changes: Any) -> usage_event_pb2.UsageEvent:
    event = usage_event_pb2.UsageEvent(
        event_id=str(event_id_at(NOW)),
        tenant_id=TENANT,
        request_id=REQUEST,
        attempt=1,
        provider="groq",
        model="llama",
        status=usage_event_pb2.USAGE_STATUS_SUCCESS,
        token_usage=token_usage_pb2.TokenUsage(input_tokens=1_000, output_tokens=500),
        usage_source=token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER,
        funding=token_usage_pb2.FUNDING_SYSTEM_KEY,
        labels={"b": "2", "a": "1"},
    )
    event.latency.FromMicroseconds(812_999)
    event.MergeFrom(usage_event_pb2.UsageEvent(**changes))
    return event


async def record(servicer: UsageServicer, *events: usage_event_pb2.UsageEvent) -> list[pb.RecordUsageResult]:
    request = pb.RecordUsageRequest(router_id="router-1", epoch="epoch-1", events=events)
    return list((await servicer.RecordUsage(request, NOT_ASKED)).results)


async def test_a_stored_event_is_answered_with_its_cost(servicer: UsageServicer, ledger: LedgerInMemory) -> None:
    event = sent()

    (result,) = await record(servicer, event)

    assert result == pb.RecordUsageResult(
        event_id=event.event_id,
        disposition=pb.RECORD_DISPOSITION_ACCEPTED,
        cost_usd="0.000985000000",
        pricing_state=token_usage_pb2.PRICING_STATE_PRICED,
    )
    row = ledger.rows[event.event_id]
    assert row.priced == PricedUsage(PricingState.PRICED, row.priced.cost_usd, 1)
    assert (row.router_id, row.router_epoch) == ("router-1", "epoch-1")


def test_every_field_of_an_event_is_read() -> None:
    event = sent(requested_model="m", endpoint="e", user_id="u", error_class="c", error_message="t", absorbed=True)
    event.time_to_first_token.FromMilliseconds(95)
    event.sequence, event.task_type, event.decision = 7, "chat", "{}"

    reported = submission_from_proto(event).event

    assert (reported.status, reported.usage_source) == (AttemptStatus.SUCCESS, UsageSource.PROVIDER)
    assert reported.funding is Funding.SYSTEM_KEY
    assert reported.tokens == TokenCounts(input_tokens=1_000, output_tokens=500)
    assert (reported.latency_ms, reported.first_token_ms) == (812, 95)
    assert reported.labels == {"a": "1", "b": "2"}
    assert (reported.requested_model, reported.endpoint, reported.user_id) == ("m", "e", "u")
    assert (reported.error_class, reported.error_message, reported.absorbed) == ("c", "t", True)
    assert (reported.sequence, reported.task_type, reported.decision) == (7, "chat", "{}")


def test_absent_parts_stay_absent() -> None:
    reported = submission_from_proto(usage_event_pb2.UsageEvent()).event

    assert (reported.latency_ms, reported.first_token_ms, reported.tokens) == (None, None, TokenCounts())
    assert (reported.status, reported.usage_source, reported.funding) == (None, None, Funding.NO_KEY)


def test_an_event_has_the_same_bytes_however_its_labels_came() -> None:
    one, other = sent(event_id="x"), sent(event_id="x")
    for event, keys in ((one, "ab"), (other, "ba")):
        event.ClearField("event_id")
        event.labels.clear()
        for key in keys:
            event.labels[key] = key

    assert submission_from_proto(one).payload == submission_from_proto(other).payload


async def test_a_bad_event_is_answered_with_the_paths_of_its_bad_fields(
    servicer: UsageServicer, quarantine: QuarantineInMemory
) -> None:
    bad = sent(token_usage=token_usage_pb2.TokenUsage(input_tokens=-1), provider="acme")

    good_result, bad_result = await record(servicer, sent(), bad)

    assert good_result.disposition == pb.RECORD_DISPOSITION_ACCEPTED
    assert bad_result.disposition == pb.RECORD_DISPOSITION_REJECTED
    assert (bad_result.error.code, bad_result.cost_usd) == (code_pb2.INVALID_ARGUMENT, "")
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert bad_result.error.details[0].Unpack(info)
    assert bad_result.error.details[1].Unpack(bad_request)
    assert info.domain == "turnpike"
    paths = [violation.field for violation in bad_request.field_violations]
    assert paths == ["events[1].provider", "events[1].token_usage.input_tokens"]
    assert [usage_event_pb2.UsageEvent.FromString(kept.payload) for kept in quarantine.kept] == [bad]


async def test_other_content_under_a_stored_id_is_answered_as_a_conflict(servicer: UsageServicer) -> None:
    event = sent()
    await record(servicer, event)

    same, other = await record(servicer, event, sent(event_id=event.event_id, user_id="somebody else"))

    assert (same.disposition, same.cost_usd) == (pb.RECORD_DISPOSITION_DUPLICATE, "0.000985000000")
    assert (other.disposition, other.error.code) == (pb.RECORD_DISPOSITION_CONFLICT, code_pb2.ALREADY_EXISTS)


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.RecordUsageRequest(), ["router_id", "events"]),
        (pb.RecordUsageRequest(router_id="r", events=[sent()] * 1_001), ["events"]),
        (pb.RecordUsageRequest(router_id="r" * 201, epoch="\0", events=[sent()]), ["router_id", "epoch"]),
    ],
)
async def test_a_malformed_batch_is_refused_as_a_whole(
    servicer: UsageServicer, ledger: LedgerInMemory, request_: pb.RecordUsageRequest, fields: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await servicer.RecordUsage(request_, NOT_ASKED)

    assert [violation.field for violation in refused.value.violations] == fields
    assert ledger.rows == {}


async def test_sequences_are_noted_as_soon_as_their_events_are_answered_for_good(
    servicer: UsageServicer, journals: JournalsInMemory
) -> None:
    bad = sent(token_usage=token_usage_pb2.TokenUsage(input_tokens=-1), sequence=8)
    await record(servicer, sent(sequence=7), bad, sent())

    assert journals.sequences == {("router-1", "epoch-1"): {7, 8}}


async def test_events_that_come_from_no_journal_are_not_noted(
    servicer: UsageServicer, journals: JournalsInMemory
) -> None:
    await servicer.RecordUsage(pb.RecordUsageRequest(router_id="sdk", events=[sent(sequence=1)]), NOT_ASKED)

    assert journals.sequences == {}


async def test_a_report_of_a_journal_is_answered_with_what_is_missing(
    servicer: UsageServicer, journals: JournalsInMemory
) -> None:
    await record(servicer, sent(sequence=1), sent(sequence=3))
    request = pb.ReportJournalStateRequest(
        router_id="router-1", epoch="epoch-1", last_sequence=6, first_waiting_sequence=5, waiting_count=2, open_count=1
    )
    request.oldest_waiting_time.FromDatetime(NOW)

    response = await servicer.ReportJournalState(request, NOT_ASKED)

    assert response.missing_count == 2
    kept = journals.reports["router-1", "epoch-1"]
    assert (kept.reported_at, kept.last_sequence, kept.waiting, kept.opened) == (NOW, 6, 2, 1)
    assert (kept.oldest_waiting_at, kept.oldest_open_at) == (NOW, None)


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.ReportJournalStateRequest(), ["router_id", "epoch"]),
        (
            pb.ReportJournalStateRequest(router_id="r", epoch="e", last_sequence=-1, dead_letter_count=-2),
            ["last_sequence", "dead_letter_count"],
        ),
        (
            pb.ReportJournalStateRequest(router_id="r", epoch="e", last_sequence=3, first_waiting_sequence=4),
            ["first_waiting_sequence"],
        ),
        (
            pb.ReportJournalStateRequest(router_id="r", epoch="e", oldest_open_time=Timestamp(seconds=-1)),
            ["oldest_open_time"],
        ),
    ],
)
async def test_a_report_that_cannot_be_true_is_refused_with_its_fields(
    servicer: UsageServicer, request_: pb.ReportJournalStateRequest, fields: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await servicer.ReportJournalState(request_, NOT_ASKED)

    assert [violation.field for violation in refused.value.violations] == fields
