"""Single records, as a caller sees them, on a real ledger."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from service_runtime.postgres import Postgres
from tests.integration.usage_service.reports.clock import NOW
from tests.support.ledger_rows import ledger_row, store
from tests.support.usage_events import TENANT
from turnpike.usage.v1 import token_usage_pb2, usage_event_pb2
from turnpike.usage.v1 import usage_service_pb2 as pb
from usage_service.api.convert_reports import timestamp_to_proto
from usage_service.api.reports import ReportHandlers
from usage_service.domain.pricing import TokenCounts
from usage_service.domain.usage_event import AttemptStatus, Funding, UsageSource


async def test_a_records_window_is_exact_and_half_open(postgres: Postgres, reports: ReportHandlers) -> None:
    start, end = NOW - timedelta(minutes=10), NOW - timedelta(minutes=5)
    rows = [ledger_row(at) for at in (start - timedelta(milliseconds=1), start, end - timedelta(milliseconds=1), end)]
    await store(postgres, rows)

    answer = await reports.list_usage_records(
        pb.ListUsageRecordsRequest(
            tenant_id=TENANT, start_time=timestamp_to_proto(start), end_time=timestamp_to_proto(end)
        )
    )

    assert [one.event.event_id for one in answer.records] == [str(row.event.event_id) for row in (rows[2], rows[1])]


async def test_a_record_says_all_that_was_stored(postgres: Postgres, reports: ReportHandlers) -> None:
    used_at = NOW - timedelta(minutes=1)
    row = ledger_row(
        used_at,
        attempt=2,
        requested_model="llama",
        status=AttemptStatus.CANCELLED,
        error_class="caller_gone",
        error_message="the caller left",
        absorbed=True,
        tokens=TokenCounts(1, 2, 3, 4, 5),
        usage_source=UsageSource.COUNTED,
        funding=Funding.SYSTEM_KEY,
        latency_ms=1234,
        first_token_ms=None,
        provider_reported_cost_usd="0.5",
        sequence=17,
    )
    await store(postgres, [row])

    (record,) = (await reports.list_usage_records(pb.ListUsageRecordsRequest(tenant_id=TENANT))).records

    event = record.event
    assert record.usage_time == timestamp_to_proto(used_at)
    assert record.HasField("ingest_time")
    assert (record.cost_usd, record.pricing_state) == ("0.000985000000", token_usage_pb2.PRICING_STATE_PRICED)
    assert (record.price_id, record.router_id) == ("1", "router-1")
    assert event.event_id == str(row.event.event_id)
    assert (event.attempt, event.absorbed, event.sequence) == (2, True, 17)
    assert (event.requested_model, event.endpoint, event.user_id) == ("llama", "/v1/chat", "user-7")
    assert event.status == usage_event_pb2.USAGE_STATUS_CANCELLED
    assert (event.error_class, event.error_message) == ("caller_gone", "the caller left")
    assert event.token_usage == token_usage_pb2.TokenUsage(
        input_tokens=1, output_tokens=2, cached_read_tokens=3, cached_write_tokens=4, reasoning_tokens=5
    )
    assert event.usage_source == token_usage_pb2.TOKEN_USAGE_SOURCE_COUNTED
    assert event.funding == token_usage_pb2.FUNDING_SYSTEM_KEY
    assert event.latency.ToMilliseconds() == 1234
    assert not event.HasField("time_to_first_token")
    assert event.provider_reported_cost_usd == "0.500000000000"
    assert dict(event.labels) == {"team": "search"}
    assert (event.task_type, event.decision) == ("chat", '{"score": 0.9}')


async def test_what_was_not_consumed_priced_or_measured_stays_absent(
    postgres: Postgres, reports: ReportHandlers
) -> None:
    await store(
        postgres,
        [
            ledger_row(NOW - timedelta(minutes=1), cost_usd=None, labels={}, task_type="", decision=""),
            ledger_row(
                NOW - timedelta(minutes=2), tokens=TokenCounts(), usage_source=UsageSource.NONE, latency_ms=None
            ),
        ],
    )

    unpriced, unsent = (await reports.list_usage_records(pb.ListUsageRecordsRequest(tenant_id=TENANT))).records

    assert (unpriced.cost_usd, unpriced.price_id) == ("", "")
    assert unpriced.pricing_state == token_usage_pb2.PRICING_STATE_UNPRICED
    assert unsent.cost_usd == "0.000000000000"
    assert not unsent.event.HasField("token_usage")
    assert not unsent.event.HasField("latency")


async def test_records_of_one_request_are_all_its_attempts(postgres: Postgres, reports: ReportHandlers) -> None:
    request_id = UUID(int=77)
    attempts = [ledger_row(NOW - timedelta(seconds=9 - number), request_id=str(request_id)) for number in range(3)]
    await store(postgres, [*attempts, ledger_row(NOW)])

    answer = await reports.list_usage_records(
        pb.ListUsageRecordsRequest(tenant_id=TENANT, request_id=str(request_id), page_size=2)
    )

    assert [one.event.event_id for one in answer.records] == [str(row.event.event_id) for row in attempts[:0:-1]]
    assert answer.next_page_token
