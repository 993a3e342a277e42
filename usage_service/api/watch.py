"""WatchUsage: live totals for as long as the caller stays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import timedelta

from service_runtime.call_context import current_call
from turnpike.usage.v1 import usage_service_pb2 as pb
from usage_service.api.convert_reports import model_usage_to_proto, timestamp_to_proto
from usage_service.api.report_requests import RequestReader
from usage_service.domain.report import Grouping
from usage_service.metering.watching import LiveTotals, Watched, Watching

_DAY = timedelta(days=1)
_MINUTE = timedelta(minutes=1)
_SECOND = timedelta(seconds=1)
_LONGEST = timedelta(days=31)
# Left of the deadline when the stream ends by itself, so that the end arrives as one.
_MARGIN_S = 0.25


class WatchHandler:
    """Raises InvalidRequest naming every bad field, and what `Watching` raises."""

    def __init__(self, watching: Watching) -> None:
        self._watching = watching

    async def watch(self, request: pb.WatchUsageRequest) -> AsyncIterator[pb.WatchUsageResponse]:
        """The totals at once, then as they change."""
        reader = RequestReader(self._watching.now())
        watched = Watched(
            tenant_id=reader.uuid("tenant_id", request.tenant_id),
            length=reader.span(
                "window",
                request.window if request.HasField("window") else None,
                default=_DAY,
                least=_MINUTE,
                most=_LONGEST,
            ),
            only=reader.usage_filter(request.filter),
            grouping=reader.grouping(request.grouping, default=Grouping.NONE),
        )
        min_interval = reader.span(
            "min_interval",
            request.min_interval if request.HasField("min_interval") else None,
            default=_SECOND,
            least=timedelta(0),
            most=_MINUTE,
        )
        reader.done()
        totals = self._watching.watch(
            watched, min_interval_s=min_interval.total_seconds(), remaining_s=_until_the_deadline()
        )
        async with aclosing(totals):  # type: ignore[type-var]  # it is a generator
            async for one in totals:
                yield _totals_to_proto(one)


def _until_the_deadline() -> Callable[[], float]:
    call = current_call()
    if call is None:
        return lambda: 600.0
    margin_s = min(_MARGIN_S, call.remaining_s() / 10)
    return lambda: call.remaining_s() - margin_s


def _totals_to_proto(totals: LiveTotals) -> pb.WatchUsageResponse:
    report = totals.report
    return pb.WatchUsageResponse(
        stats=[model_usage_to_proto(one) for one in report.models if one.provider],
        total=model_usage_to_proto(report.total),
        start_time=timestamp_to_proto(report.window.start),
        end_time=timestamp_to_proto(report.window.end),
        as_of_time=timestamp_to_proto(totals.as_of),
        is_heartbeat=totals.is_heartbeat,
    )
