"""The report methods of UsageService: read the request, ask, write the answer."""

from __future__ import annotations

from datetime import timedelta

from turnpike.usage.v1 import usage_service_pb2
from usage_service.api.convert_reports import (
    daily_cost_to_proto,
    distributions_to_proto,
    failure_to_proto,
    record_to_proto,
    series_to_proto,
    usage_report_to_proto,
    usd_to_text,
)
from usage_service.api.report_requests import (
    RequestReader,
    Turn,
    daily_cost_position,
    failure_position,
    group_position,
    instant_to_position,
    record_position,
    step_position,
)
from usage_service.domain.report import Grouping, UsageReport
from usage_service.metering.report_ports import AfterGroup
from usage_service.metering.reporting import Reporting

_DAY = timedelta(days=1)
_MONTH = timedelta(days=30)
_WHOLE = 0  # no pages: the whole report


class ReportHandlers:
    """One method per report. Each raises InvalidRequest naming every bad field, and what `Reporting` raises."""

    def __init__(self, reporting: Reporting) -> None:
        self._reporting = reporting

    async def get_tenant_usage_stats(
        self, request: usage_service_pb2.GetTenantUsageStatsRequest
    ) -> usage_service_pb2.GetTenantUsageStatsResponse:
        reader = RequestReader(self._reporting.now())
        tenant_id = reader.uuid("tenant_id", request.tenant_id)
        only = reader.usage_filter(request.filter)
        turn = reader.turn(
            "usage_stats",
            request,
            default_length=_DAY,
            default_page_size=_WHOLE,
            position_length=4,
            read_position=group_position,
        )
        reader.done()
        page_size = None if turn.page_size == _WHOLE else turn.page_size
        report = await self._reporting.usage(tenant_id, turn.window, only, after=turn.after, page_size=page_size)
        response = usage_report_to_proto(report)
        response.next_page_token = _token_after(report, turn)
        return response

    async def query_usage_time_series(
        self, request: usage_service_pb2.QueryUsageTimeSeriesRequest
    ) -> usage_service_pb2.QueryUsageTimeSeriesResponse:
        reader = RequestReader(self._reporting.now())
        tenant_id = reader.uuid("tenant_id", request.tenant_id)
        only = reader.usage_filter(request.filter)
        step = reader.step(request.step, request.step_count)
        zone = reader.zone("time_zone", request.time_zone)
        grouping = reader.grouping(request.grouping, default=Grouping.NONE)
        turn = reader.turn(
            "time_series",
            request,
            default_length=_DAY,
            default_page_size=500,
            position_length=3,
            read_position=step_position,
        )
        reader.done()
        series = await self._reporting.series(
            tenant_id,
            turn.window,
            only,
            step=step,
            zone=zone,
            grouping=grouping,
            after=turn.after,
            page_size=turn.page_size,
        )
        response = series_to_proto(series)
        if series.resume_at is not None:
            step = series.step
            response.next_page_token = turn.next_token(
                instant_to_position(series.resume_at), step.unit.name, str(step.count)
            )
        return response

    async def get_latency_distribution(
        self, request: usage_service_pb2.GetLatencyDistributionRequest
    ) -> usage_service_pb2.GetLatencyDistributionResponse:
        reader = RequestReader(self._reporting.now())
        tenant_id = reader.uuid("tenant_id", request.tenant_id)
        only = reader.usage_filter(request.filter)
        grouping = reader.grouping(request.grouping, default=Grouping.MODEL)
        turn = reader.turn(
            "latency",
            request,
            default_length=_DAY,
            default_page_size=100,
            position_length=4,
            read_position=group_position,
        )
        reader.done()
        report = await self._reporting.usage(
            tenant_id, turn.window, only, grouping=grouping, after=turn.after, page_size=turn.page_size
        )
        response = distributions_to_proto(report)
        response.next_page_token = _token_after(report, turn)
        return response

    async def list_daily_costs(
        self, request: usage_service_pb2.ListDailyCostsRequest
    ) -> usage_service_pb2.ListDailyCostsResponse:
        reader = RequestReader(self._reporting.now())
        tenant_id = reader.uuid("tenant_id", request.tenant_id)
        zone = reader.zone("time_zone", request.time_zone)
        only = reader.usage_filter(request.filter)
        turn = reader.turn(
            "daily_costs",
            request,
            default_length=_MONTH,
            default_page_size=100,
            position_length=3,
            read_position=daily_cost_position,
        )
        reader.done()
        page = await self._reporting.daily_costs(
            tenant_id, turn.window, only, zone=zone, after=turn.after, page_size=turn.page_size
        )
        response = usage_service_pb2.ListDailyCostsResponse(costs=[daily_cost_to_proto(one) for one in page.entries])
        if page.has_more:
            last = page.entries[-1]
            response.next_page_token = turn.next_token(last.day.isoformat(), usd_to_text(last.cost.usd), last.provider)
        return response

    async def list_errors(self, request: usage_service_pb2.ListErrorsRequest) -> usage_service_pb2.ListErrorsResponse:
        reader = RequestReader(self._reporting.now())
        tenant_id = reader.uuid("tenant_id", request.tenant_id)
        only = reader.usage_filter(request.filter)
        turn = reader.turn(
            "errors",
            request,
            default_length=_DAY,
            default_page_size=100,
            position_length=5,
            read_position=failure_position,
        )
        reader.done()
        page = await self._reporting.failures(tenant_id, turn.window, only, after=turn.after, page_size=turn.page_size)
        response = usage_service_pb2.ListErrorsResponse(errors=[failure_to_proto(one) for one in page.entries])
        if page.has_more:
            last = page.entries[-1]
            key = last.key
            response.next_page_token = turn.next_token(
                str(last.occurrences), key.provider, key.model, key.status, key.error_class
            )
        return response

    async def list_usage_records(
        self, request: usage_service_pb2.ListUsageRecordsRequest
    ) -> usage_service_pb2.ListUsageRecordsResponse:
        reader = RequestReader(self._reporting.now())
        tenant_id = reader.uuid("tenant_id", request.tenant_id)
        request_id = reader.optional_uuid("request_id", request.request_id)
        only = reader.usage_filter(request.filter)
        turn = reader.turn(
            "records",
            request,
            default_length=_DAY,
            default_page_size=50,
            position_length=2,
            read_position=record_position,
        )
        reader.done()
        page = await self._reporting.records(
            tenant_id, turn.window, only, request_id=request_id, after=turn.after, page_size=turn.page_size
        )
        response = usage_service_pb2.ListUsageRecordsResponse(records=[record_to_proto(one) for one in page.entries])
        if page.has_more:
            last = page.entries[-1]
            response.next_page_token = turn.next_token(instant_to_position(last.used_at), str(last.event_id))
        return response


def _token_after(report: UsageReport, turn: Turn[AfterGroup]) -> str:
    """The token of the page after a page of groups; '' on the last."""
    if not report.has_more:
        return ""
    last = report.models[-1]
    counts = last.outcomes
    return turn.next_token(str(counts.requests), str(counts.attempts), last.provider, last.model)
