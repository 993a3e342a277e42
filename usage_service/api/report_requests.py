"""Reading report requests: every bad field is found and named before anything is asked of the ledger."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Generic, Protocol, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from service_runtime.errors import FieldViolation, InvalidRequest
from turnpike.usage.v1 import pricing_service_pb2, token_usage_pb2, usage_service_pb2
from usage_service.api.convert_reports import instant_from_proto
from usage_service.domain import paging
from usage_service.domain.provider_names import normalise_provider
from usage_service.domain.report import FailureKey, Grouping, UsageFilter
from usage_service.domain.steps import MAX_STEP_COUNT, Step, StepUnit
from usage_service.domain.usage_event import AttemptStatus, Funding
from usage_service.domain.window import Window
from usage_service.metering.report_ports import AfterDailyCost, AfterFailure, AfterGroup, AfterRecord, AfterStep

MAX_WINDOW = timedelta(days=400)
_MAX_NAME_CHARACTERS = 200

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_COUNT = re.compile(r"[0-9]{1,18}", re.ASCII)
_USD = re.compile(r"-?[0-9]{1,16}(\.[0-9]{1,12})?", re.ASCII)

_ABSORBED = {
    usage_service_pb2.ATTEMPT_FILTER_UNSPECIFIED: None,
    usage_service_pb2.ATTEMPT_FILTER_USER_VISIBLE: False,
    usage_service_pb2.ATTEMPT_FILTER_ABSORBED: True,
}
_GROUPING = {
    usage_service_pb2.USAGE_GROUPING_NONE: Grouping.NONE,
    usage_service_pb2.USAGE_GROUPING_PROVIDER: Grouping.PROVIDER,
    usage_service_pb2.USAGE_GROUPING_MODEL: Grouping.MODEL,
}
_STEP_UNIT = {
    usage_service_pb2.TIME_STEP_MINUTE: StepUnit.MINUTE,
    usage_service_pb2.TIME_STEP_HOUR: StepUnit.HOUR,
    usage_service_pb2.TIME_STEP_DAY: StepUnit.DAY,
}
_FUNDING = {
    token_usage_pb2.FUNDING_UNSPECIFIED: Funding.NO_KEY,
    token_usage_pb2.FUNDING_TENANT_KEY: Funding.TENANT_KEY,
    token_usage_pb2.FUNDING_SYSTEM_KEY: Funding.SYSTEM_KEY,
}

After = TypeVar("After")


class WindowedRequest(Protocol):
    """What every report's request has."""

    @property
    def start_time(self) -> Timestamp: ...
    @property
    def end_time(self) -> Timestamp: ...


@dataclass(frozen=True, slots=True)
class Turn(Generic[After]):
    """Which page is asked for: of which window, how many entries, after which."""

    window: Window
    page_size: int
    after: After | None
    fingerprint: str

    def next_token(self, *position: str) -> str:
        """The token of the page after the entry at `position`."""
        frozen = (_to_text(self.window.start), _to_text(self.window.end))
        return paging.encode(paging.PageToken(self.fingerprint, (*frozen, *position)))


class RequestReader:
    """Reads the fields of one request and collects what is wrong; `done` raises it all at once.

    A bad field reads as a harmless stand-in, so that the others can still be read.
    """

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._violations: list[FieldViolation] = []

    def done(self) -> None:
        """Raise InvalidRequest when any field was bad."""
        self.done_with(())

    def done_with(self, others: Sequence[FieldViolation]) -> None:
        """The same, with what the caller itself has found."""
        if found := [*self._violations, *others]:
            raise InvalidRequest(found)

    def uuid(self, field: str, text: str) -> UUID:
        if _UUID.fullmatch(text) is None:
            self._refuse(field, f"must be a UUID such as 018f3c3e-7a1b-7c1d-8e2f-0123456789ab, not {text[:60]!r}")
            return UUID(int=0)
        return UUID(text)

    def optional_uuid(self, field: str, text: str) -> UUID | None:
        return self.uuid(field, text) if text else None

    def provider(self, field: str, text: str) -> str:
        """The catalogue name of a name in any spelling; empty when nothing was said."""
        return normalise_provider(self.name(field, text)) if text else ""

    def name(self, field: str, text: str) -> str:
        if len(text) > _MAX_NAME_CHARACTERS:
            self._refuse(field, f"must have at most {_MAX_NAME_CHARACTERS} characters, not {len(text)}")
        elif "\x00" in text:
            self._refuse(field, "must not hold the character U+0000, which no name in the ledger has")
        else:
            return text
        return ""

    def usage_filter(self, asked: usage_service_pb2.UsageFilter) -> UsageFilter:
        if asked.attempts not in _ABSORBED:
            self._refuse("filter.attempts", f"must be USER_VISIBLE, ABSORBED or absent, not {asked.attempts}")
        if asked.funding not in _FUNDING:
            self._refuse("filter.funding", f"must be TENANT_KEY, SYSTEM_KEY or absent, not {asked.funding}")
        return UsageFilter(
            provider=self.provider("filter.provider", asked.provider),
            model=self.name("filter.model", asked.model),
            absorbed=_ABSORBED.get(asked.attempts),
            funding=_FUNDING.get(asked.funding, Funding.NO_KEY),
        )

    def grouping(self, asked: usage_service_pb2.UsageGrouping.ValueType, *, default: Grouping) -> Grouping:
        if asked not in (*_GROUPING, usage_service_pb2.USAGE_GROUPING_UNSPECIFIED):
            self._refuse("grouping", f"must be NONE, PROVIDER, MODEL or absent, not {asked}")
        return _GROUPING.get(asked, default)

    def step(self, asked: usage_service_pb2.TimeStep.ValueType, count: int) -> Step | None:
        """The length of a step; None leaves it to the window's."""
        if not 0 <= count <= MAX_STEP_COUNT:
            self._refuse("step_count", f"must be 1 to {MAX_STEP_COUNT}, or 0 for 1, not {count}")
            return None
        if asked in _STEP_UNIT:
            return Step(_STEP_UNIT[asked], count or 1)
        if asked != usage_service_pb2.TIME_STEP_UNSPECIFIED:
            self._refuse("step", f"must be MINUTE, HOUR, DAY or absent, not {asked}")
        elif count:
            self._refuse("step", "must be MINUTE, HOUR or DAY when step_count is given")
        return None

    def span(
        self, field: str, asked: Duration | None, *, default: timedelta, least: timedelta, most: timedelta
    ) -> timedelta:
        """A length of time between two bounds; None is the default."""
        if asked is None:
            return default
        seconds = asked.seconds + asked.nanos / 1e9
        if not least.total_seconds() <= seconds <= most.total_seconds():
            self._refuse(field, f"must be {least} to {most}, not {seconds:g} s")
            return default
        return timedelta(seconds=seconds)

    def zone(self, field: str, text: str) -> ZoneInfo:
        try:
            return ZoneInfo(text or "UTC")
        # Depending on what lies in the time zone database under the name, each of these says that it is no zone.
        except (KeyError, ValueError, OSError):
            self._refuse(field, f"must be an IANA time zone such as Europe/Berlin, not {text[:60]!r}")
            return ZoneInfo("UTC")

    def window(self, request: WindowedRequest, *, default_length: timedelta) -> Window:
        """The asked window, which ends now and has the default length unless said otherwise."""
        assert isinstance(request, Message)
        end = self._instant("end_time", request.end_time) if request.HasField("end_time") else self._now
        start = self._instant("start_time", request.start_time) if request.HasField("start_time") else None
        if end is None or (start is None and request.HasField("start_time")):
            return Window(self._now - default_length, self._now)
        return self._checked_window(end - default_length if start is None else start, end)

    def turn(
        self,
        report: str,
        request: PagedRequest,
        *,
        default_length: timedelta,
        default_page_size: int,
        position_length: int,
        read_position: Callable[[tuple[str, ...]], After],
    ) -> Turn[After]:
        """Which page is asked for. From the second page on the window is the one that the first page resolved.

        `read_position` makes the last entry's place of `position_length` texts; it raises ValueError for bad ones.
        """
        size = default_page_size
        try:
            size = paging.page_size(request.page_size, default=default_page_size)
        except ValueError as error:
            self._refuse("page_size", str(error))
        mark = _fingerprint(report, request)
        if not request.page_token:
            return Turn(self.window(request, default_length=default_length), size, None, mark)
        try:
            token = paging.decode(request.page_token, fingerprint=mark, position_length=position_length + 2)
            start, end, *position = token.position
            window = Window(_instant_from_text(start), _instant_from_text(end))
            return Turn(self._checked_window(window.start, window.end), size, read_position(tuple(position)), mark)
        except paging.BadPageToken as error:
            self._refuse("page_token", str(error))
        except ValueError:
            self._refuse("page_token", "is not a token of this method; pass next_page_token unchanged")
        return Turn(Window(self._now - default_length, self._now), size, None, mark)

    def _checked_window(self, start: datetime, end: datetime) -> Window:
        if end <= start:
            self._refuse("end_time", f"must be after start_time {start.isoformat()}, not {end.isoformat()}")
        elif end - start > MAX_WINDOW:
            self._refuse("start_time", f"must be at most {MAX_WINDOW.days} days before end_time, not {end - start}")
        elif start < _EPOCH:
            self._refuse("start_time", "must lie between 1970 and 2199")
        else:
            return Window(start, end)
        return Window(self._now - _MICROSECOND, self._now)

    def _instant(self, field: str, timestamp: Timestamp) -> datetime | None:
        try:
            return instant_from_proto(timestamp)
        except ValueError as error:
            self._refuse(field, str(error))
            return None

    def _refuse(self, field: str, description: str) -> None:
        self._violations.append(FieldViolation(field, description))


PagedRequest = (
    pricing_service_pb2.ListCostAdjustmentsRequest
    | usage_service_pb2.GetTenantUsageStatsRequest
    | usage_service_pb2.QueryUsageTimeSeriesRequest
    | usage_service_pb2.GetLatencyDistributionRequest
    | usage_service_pb2.ListDailyCostsRequest
    | usage_service_pb2.ListErrorsRequest
    | usage_service_pb2.ListUsageRecordsRequest
)


def group_position(texts: tuple[str, ...]) -> AfterGroup:
    """From the numbers of requests and attempts, provider and model. Raises ValueError."""
    requests, attempts, provider, model = texts
    return AfterGroup(_count(requests), _count(attempts), provider, model)


def step_position(texts: tuple[str, ...]) -> AfterStep:
    """From the next step's start, and the step's unit and count. Raises ValueError."""
    resume_at, unit, count = texts
    if unit not in StepUnit.__members__:
        raise ValueError(unit)
    return AfterStep(_instant_from_text(resume_at), Step(StepUnit[unit], _count(count)))


def daily_cost_position(texts: tuple[str, ...]) -> AfterDailyCost:
    """From day, cost and provider. Raises ValueError."""
    day, cost_usd, provider = texts
    if _USD.fullmatch(cost_usd) is None:
        raise ValueError(cost_usd)
    return AfterDailyCost(datetime.fromisoformat(day).date(), Decimal(cost_usd), provider)


def failure_position(texts: tuple[str, ...]) -> AfterFailure:
    """From the number of occurrences and the failure's labels. Raises ValueError."""
    occurrences, provider, model, status, error_class = texts
    return AfterFailure(_count(occurrences), FailureKey(provider, model, AttemptStatus(status), error_class))


def record_position(texts: tuple[str, ...]) -> AfterRecord:
    """From usage time and event id. Raises ValueError."""
    used_at, event_id = texts
    return AfterRecord(_instant_from_text(used_at), UUID(event_id))


def instant_to_position(instant: datetime) -> str:
    """An instant as it stands in a page token: microseconds since 1970."""
    return _to_text(instant)


def _fingerprint(report: str, request: PagedRequest) -> str:
    fields = copy.copy(request)
    fields.ClearField("page_size")  # may differ from page to page
    fields.ClearField("page_token")
    return paging.fingerprint(report, fields.SerializeToString(deterministic=True).hex())


def _to_text(instant: datetime) -> str:
    return str((instant - _EPOCH) // _MICROSECOND)


def _instant_from_text(text: str) -> datetime:
    try:
        return _EPOCH + _count(text) * _MICROSECOND
    except OverflowError as error:
        raise ValueError(text) from error


def _count(text: str) -> int:
    if _COUNT.fullmatch(text) is None:
        raise ValueError(text)
    return int(text)
