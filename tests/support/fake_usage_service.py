"""A usage_service for tests of the router's side: real sockets, scripted answers, a memory of what it was sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from turnpike.usage.v1 import (
    pricing_service_pb2,
    pricing_service_pb2_grpc,
    quota_service_pb2,
    quota_service_pb2_grpc,
    token_usage_pb2,
    usage_event_pb2,
    usage_service_pb2,
    usage_service_pb2_grpc,
)

Disposition = Callable[[usage_event_pb2.UsageEvent], usage_service_pb2.RecordDisposition.ValueType]


def accept(_event: usage_event_pb2.UsageEvent) -> usage_service_pb2.RecordDisposition.ValueType:
    """The disposition of a service in good health."""
    return usage_service_pb2.RECORD_DISPOSITION_ACCEPTED


class FakeUsageService(
    usage_service_pb2_grpc.UsageServiceServicer,
    pricing_service_pb2_grpc.PricingServiceServicer,
    quota_service_pb2_grpc.QuotaServiceServicer,
):
    """Answers as `dispose`, `failure`, `prices` and `statuses` say."""

    def __init__(self) -> None:
        self.batches: list[usage_service_pb2.RecordUsageRequest] = []
        self.dispose: Disposition = accept
        self.failure: grpc.StatusCode | None = None
        self.journal_states: list[usage_service_pb2.ReportJournalStateRequest] = []
        self.missing = 0
        self.refused = 0  # batches that `failure` answered
        self.prices: list[pricing_service_pb2.Price] = []
        self.other_prices: dict[str, pricing_service_pb2.Price] = {}
        self.prices_asked: list[str] = []
        self.status = quota_service_pb2.CheckRateLimitStatusResponse()

    @property
    def event_ids(self) -> list[str]:
        """The ids of all events that were sent, in order of arrival."""
        return [event.event_id for batch in self.batches for event in batch.events]

    async def RecordUsage(
        self, request: usage_service_pb2.RecordUsageRequest, context: Any
    ) -> usage_service_pb2.RecordUsageResponse:
        if self.failure is not None:
            self.refused += 1
            await context.abort(self.failure, "scripted")
        self.batches.append(request)
        return usage_service_pb2.RecordUsageResponse(
            results=[
                usage_service_pb2.RecordUsageResult(event_id=event.event_id, disposition=self.dispose(event))
                for event in request.events
            ]
        )

    async def ReportJournalState(
        self, request: usage_service_pb2.ReportJournalStateRequest, context: Any
    ) -> usage_service_pb2.ReportJournalStateResponse:
        if self.failure is not None:
            await context.abort(self.failure, "scripted")
        self.journal_states.append(request)
        return usage_service_pb2.ReportJournalStateResponse(missing_count=self.missing)

    async def GetTenantUsageStats(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the router asks for no reports")

    ListDailyCosts = ListErrors = ListUsageRecords = GetTenantUsageStats
    QueryUsageTimeSeries = GetLatencyDistribution = GetTenantUsageStats
    WatchUsage: Any = GetTenantUsageStats
    CheckRateLimitStatus = SetLimit = ListLimits = DeleteLimit = GetTenantUsageStats
    SetPrice = ListPriceHistory = Reprice = ListCostAdjustments = GetTenantUsageStats

    async def ListPrices(
        self, request: pricing_service_pb2.ListPricesRequest, context: Any
    ) -> pricing_service_pb2.ListPricesResponse:
        if self.failure is not None:
            await context.abort(self.failure, "scripted")
        position = int(request.page_token or 0)
        more = str(position + 1) if position + 1 < len(self.prices) else ""
        return pricing_service_pb2.ListPricesResponse(prices=self.prices[position : position + 1], next_page_token=more)

    async def CalculateCost(
        self, request: pricing_service_pb2.CalculateCostRequest, context: Any
    ) -> pricing_service_pb2.CalculateCostResponse:
        self.prices_asked.append(request.model)
        price = self.other_prices.get(request.model)
        if price is None:
            return pricing_service_pb2.CalculateCostResponse(pricing_state=token_usage_pb2.PRICING_STATE_UNPRICED)
        return pricing_service_pb2.CalculateCostResponse(
            pricing_state=token_usage_pb2.PRICING_STATE_PRICED, price=price
        )

    async def BatchCheckRateLimitStatus(
        self, request: quota_service_pb2.BatchCheckRateLimitStatusRequest, context: Any
    ) -> quota_service_pb2.BatchCheckRateLimitStatusResponse:
        if self.failure is not None:
            await context.abort(self.failure, "scripted")
        results = [
            quota_service_pb2.TenantRateLimitStatus(tenant_id=tenant_id, status=self.status)
            for tenant_id in request.tenant_ids
        ]
        return quota_service_pb2.BatchCheckRateLimitStatusResponse(results=results)


@asynccontextmanager
async def serving(service: FakeUsageService, port: int = 0) -> AsyncIterator[str]:
    """Serve on loopback; gives the address."""
    server = grpc.aio.server()
    usage_service_pb2_grpc.add_UsageServiceServicer_to_server(service, server)
    pricing_service_pb2_grpc.add_PricingServiceServicer_to_server(service, server)
    quota_service_pb2_grpc.add_QuotaServiceServicer_to_server(service, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        await server.stop(0)
