"""Reading report requests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from service_runtime.errors import InvalidRequest
from turnpike.usage.v1 import token_usage_pb2
from turnpike.usage.v1 import usage_service_pb2 as pb
from usage_service.api.convert_reports import instant_from_proto, timestamp_to_proto, usd_to_text
from usage_service.api.report_requests import (
    RequestReader,
    Turn,
    daily_cost_position,
    failure_position,
    record_position,
)
from usage_service.domain import paging
from usage_service.domain.report import UsageFilter
from usage_service.domain.usage_event import Funding
from usage_service.domain.window import Window
from usage_service.metering.report_ports import AfterRecord

NOW = datetime(2026, 3, 18, 10, 41, 7, tzinfo=UTC)
DAY = timedelta(days=1)
TENANT = "11111111-1111-4111-8111-111111111111"


def window_of(**fields: datetime) -> Window:
    reader = RequestReader(NOW)
    request = pb.GetTenantUsageStatsRequest()
    for name, at in fields.items():
        getattr(request, name).CopyFrom(timestamp_to_proto(at))
    window = reader.window(request, default_length=DAY)
    reader.done()
    return window


def turn_of(request: pb.ListUsageRecordsRequest, now: datetime = NOW) -> Turn[AfterRecord]:
    reader = RequestReader(now)
    turn = reader.turn(
        "records",
        request,
        default_length=DAY,
        default_page_size=50,
        position_length=2,
        read_position=record_position,
    )
    reader.done()
    return turn


def refused_fields(read: Any) -> list[str]:
    reader = RequestReader(NOW)
    read(reader)
    with pytest.raises(InvalidRequest) as caught:
        reader.done()
    return [one.field for one in caught.value.violations]


def test_a_window_ends_now_and_has_the_default_length() -> None:
    assert window_of() == Window(NOW - DAY, NOW)
    assert window_of(end_time=NOW - DAY) == Window(NOW - 2 * DAY, NOW - DAY)
    assert window_of(start_time=NOW - 3 * DAY) == Window(NOW - 3 * DAY, NOW)


def test_a_window_of_400_days_is_the_longest() -> None:
    assert window_of(start_time=NOW - 400 * DAY).length == 400 * DAY
    with pytest.raises(InvalidRequest, match="at most 400 days"):
        window_of(start_time=NOW - 400 * DAY - timedelta(microseconds=1))


@pytest.mark.parametrize("end", [NOW - DAY, NOW - 2 * DAY])
def test_a_window_that_does_not_end_after_its_start_is_refused(end: datetime) -> None:
    with pytest.raises(InvalidRequest, match="end_time: must be after start_time"):
        window_of(start_time=NOW - DAY, end_time=end)


@pytest.mark.parametrize(
    "timestamp",
    [
        Timestamp(seconds=-1),
        Timestamp(seconds=253_402_300_800),
        Timestamp(seconds=-(2**63)),
        Timestamp(seconds=2**63 - 1),
        Timestamp(seconds=0, nanos=-1),
        Timestamp(seconds=0, nanos=1_000_000_000),
    ],
)
def test_times_outside_the_calendar_of_the_ledger_are_refused_and_named(timestamp: Timestamp) -> None:
    request = pb.GetTenantUsageStatsRequest(start_time=timestamp, end_time=timestamp)

    assert refused_fields(lambda reader: reader.window(request, default_length=DAY)) == ["end_time", "start_time"]


def test_a_default_window_that_would_begin_before_1970_is_refused() -> None:
    request = pb.GetTenantUsageStatsRequest(end_time=Timestamp(seconds=60))

    assert refused_fields(lambda reader: reader.window(request, default_length=DAY)) == ["start_time"]


def test_an_edge_between_two_microseconds_moves_up_so_that_no_earlier_event_enters() -> None:
    assert instant_from_proto(Timestamp(seconds=1, nanos=1_001)) == datetime(1970, 1, 1, 0, 0, 1, 2, tzinfo=UTC)


@given(st.datetimes(datetime(1970, 1, 1), datetime(2199, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001 - hypothesis adds the zone
def test_instants_survive_the_wire(instant: datetime) -> None:
    assert instant_from_proto(timestamp_to_proto(instant)) == instant


@pytest.mark.parametrize(
    "text", ["", "x", TENANT[:-1], "{" + TENANT + "}", TENANT.replace("-", ""), "urn:uuid:" + TENANT]
)
def test_only_the_plain_spelling_of_a_uuid_is_accepted(text: str) -> None:
    assert refused_fields(lambda reader: reader.uuid("tenant_id", text)) == ["tenant_id"]


def test_a_filter_is_read_with_the_providers_catalogue_name() -> None:
    reader = RequestReader(NOW)
    asked = pb.UsageFilter(
        provider="OpenRouter",
        model="m",
        attempts=pb.ATTEMPT_FILTER_ABSORBED,
        funding=token_usage_pb2.FUNDING_SYSTEM_KEY,
    )

    assert reader.usage_filter(asked) == UsageFilter("openrouter", "m", absorbed=True, funding=Funding.SYSTEM_KEY)
    assert reader.usage_filter(pb.UsageFilter()) == UsageFilter()
    assert reader.usage_filter(pb.UsageFilter(attempts=pb.ATTEMPT_FILTER_USER_VISIBLE)).absorbed is False
    reader.done()


def test_every_bad_field_of_a_filter_is_named() -> None:
    asked = pb.UsageFilter(provider="p" * 201, model="m\x00", attempts=9, funding=9)  # type: ignore[arg-type]  # unknown to this version

    assert refused_fields(lambda reader: reader.usage_filter(asked)) == [
        "filter.attempts",
        "filter.funding",
        "filter.provider",
        "filter.model",
    ]


@pytest.mark.parametrize(
    "text", ["Nowhere/City", "../../etc/passwd", "/etc/localtime", "America", "a\x00b", "Europe/" * 99]
)
def test_what_is_no_time_zone_is_refused(text: str) -> None:
    assert refused_fields(lambda reader: reader.zone("time_zone", text)) == ["time_zone"]


def test_no_time_zone_means_utc() -> None:
    assert RequestReader(NOW).zone("time_zone", "").key == "UTC"


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="page_size: must be 1 to 1000"):
        turn_of(pb.ListUsageRecordsRequest(page_size=-1))


def test_the_next_page_has_the_window_of_the_first_and_may_have_another_size() -> None:
    first = turn_of(pb.ListUsageRecordsRequest(tenant_id=TENANT, page_size=10))
    token = first.next_token("1773830467000000", TENANT)

    second = turn_of(
        pb.ListUsageRecordsRequest(tenant_id=TENANT, page_size=500, page_token=token), now=NOW + timedelta(hours=5)
    )

    assert first.window == second.window == Window(NOW - DAY, NOW)
    assert (first.after, first.page_size, second.page_size) == (None, 10, 500)
    assert second.after is not None
    assert second.after.used_at == NOW


@pytest.mark.parametrize(
    "position",
    [
        ("x", "2", "3", TENANT),
        ("-5", "2", "3", TENANT),
        ("5", "5", "3", TENANT),
        ("0", "34560000000001", "3", TENANT),
        ("0", "9" * 18, "3", TENANT),
        ("1", "2", "999999999999999999999", TENANT),
        ("1", "2", "٣", TENANT),
        ("1", "2", "3", "no uuid"),
    ],
)
def test_a_forged_token_is_input_like_any_other(position: tuple[str, ...]) -> None:
    request = pb.ListUsageRecordsRequest(tenant_id=TENANT)
    mark = turn_of(request).fingerprint
    request.page_token = paging.encode(paging.PageToken(mark, position))

    with pytest.raises(InvalidRequest):
        turn_of(request)


@pytest.mark.parametrize("cost", ["", "NaN", "1e9999999", "--1", "9" * 17, "0." + "1" * 13, "Infinity"])
def test_a_forged_cost_is_no_position(cost: str) -> None:
    with pytest.raises(ValueError):
        daily_cost_position(("2026-03-18", cost, "groq"))


@pytest.mark.parametrize("status", ["", "SUCCESS", "unknown"])
def test_a_forged_status_is_no_position(status: str) -> None:
    with pytest.raises(ValueError):
        failure_position(("3", "groq", "m", status, ""))


@pytest.mark.parametrize(
    ("amount", "text"), [("0", "0.000000000000"), ("2.5", "2.500000000000"), ("-0.000000000001", "-0.000000000001")]
)
def test_money_always_has_twelve_decimals(amount: str, text: str) -> None:
    assert usd_to_text(Decimal(amount)) == text
    assert daily_cost_position(("2026-03-18", text, "groq")).cost_usd == Decimal(amount)
