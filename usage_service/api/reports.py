"""The report methods of UsageService: read the request, ask, write the answer."""

from __future__ import annotations

from datetime import timedelta

from turnpike.usage.v1 import usage_service_pb2
from usage_service.api.convert_reports import (
    daily_cost_to_proto,
    failure_to_proto,
    record_to_proto,
    usage_report_to_proto,
    usd_to_text,
)
from usage_service.api.report_requests import (
    RequestReader,
    daily_cost_position,
    failure_position,
    instant_to_position,
    record_position,
)
from usage_service.metering.reporting import Reporting

_DAY = timedelta(days=1)
_MONTH = timedelta(days=30)


class ReportHandlers:
    """One method per report. Each raises InvalidRequest naming every bad field, and what `Reporting` raises."""

    def __init__(self, reporting: Reporting) -> None:
        self._reporting = reporting

    async def get_tenant_usage_stats(
        self, request: usage_service_pb2.GetTenantUsageStatsRequest
    ) -> usage_service_pb2.GetTenantUsageStatsResponse:
        reader = RequestReader(self._reporting.now())
        tenant_id = reader.uuid("tenant_id", request.tenant_id)
        window = reader.window(request, default_length=_DAY)
        only = reader.usage_filter(request.filter)
        reader.done()
        return usage_report_to_proto(await self._reporting.usage(tenant_id, window, only))

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
