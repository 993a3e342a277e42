"""The client of the ledger: reports, limits, prices and recording usage of one's own."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc

from turnpike.usage.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    pricing_service_pb2,
    pricing_service_pb2_grpc,
    quota_service_pb2,
    quota_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from turnpike_client import accounting_codec as codec
from turnpike_client.accounting import (
    CostQuote,
    DailyCost,
    ErrorSummary,
    LimitReport,
    Price,
    RecordResult,
    UsageEvent,
    UsageFilter,
    UsageRecord,
    UsageReport,
)
from turnpike_client.audit import LedgerAudit
from turnpike_client.audit_codec import audit_with_page
from turnpike_client.charts import LatencyDistribution, LatencyReport, LiveUsage, UsagePoint
from turnpike_client.charts_codec import distribution_from_proto, live_from_proto, point_from_proto
from turnpike_client.completions import TokenUsage
from turnpike_client.connection import DEFAULT_USAGE, Connection, Deadlines
from turnpike_client.enums import (
    Funding,
    RecordDisposition,
    TimeStep,
    UsageGrouping,
    UsageSource,
    UsageStatus,
    to_wire,
)
from turnpike_client.error_codec import from_status
from turnpike_client.errors import UsageNotRecorded
from turnpike_client.limit_client import LimitClient
from turnpike_client.price_book_client import PriceBookClient
from turnpike_client.wire import instant, new_event_id, to_duration, to_timestamp

_Item = TypeVar("_Item")

_WATCH_TIMEOUT_S = 600.0  # of one stream, after which the next one is opened
_REOPEN_S = 0.5  # a server that ends every stream at once is not to be asked in a tight loop
_VERIFY_TIMEOUT_S = 60.0  # of one page, which the server makes shorter

_STORED = frozenset({RecordDisposition.ACCEPTED, RecordDisposition.DUPLICATE})


class UsageClient:
    """A typed client of the usage service.

    async with UsageClient("127.0.0.1:50052") as usage:
        report = await usage.stats(tenant_id)
    """

    def __init__(
        self,
        target: str = DEFAULT_USAGE,
        *,
        reporter_id: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Mapping[str, str] | None = None,
        deadlines: Deadlines | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        """Prepare a client; nothing is connected before the first call.

        `reporter_id` names this process in the records it makes; by default `client@<host name>`. The rest is as in
        `RouterClient`.
        """
        self._connection = Connection(target, credentials=credentials, metadata=metadata, options=options)
        self._timeout_s = (deadlines or Deadlines()).call_s
        self.price_book = PriceBookClient(self._connection, deadlines or Deadlines())
        self.own_limits = LimitClient(self._connection, deadlines or Deadlines())
        self._reporter_id = reporter_id or f"client@{socket.gethostname()}"

    @property
    def target(self) -> str:
        """The usage service's address."""
        return self._connection.target

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection and cancel what runs on it."""
        await self._connection.close()

    async def stats(
        self,
        tenant_id: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        only: UsageFilter | None = None,
    ) -> UsageReport:
        """Usage by provider and model; by default of the last 24 hours."""
        request = usage_service_pb2.GetTenantUsageStatsRequest(**_window(tenant_id, start, end, only))
        response: usage_service_pb2.GetTenantUsageStatsResponse = await self._call(
            self._usage().GetTenantUsageStats, request
        )
        return codec.report_from_proto(response)

    def series(
        self,
        tenant_id: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        step: TimeStep = TimeStep.AUTO,
        step_count: int = 0,
        time_zone: str = "",
        grouping: UsageGrouping = UsageGrouping.NONE,
        only: UsageFilter | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[UsagePoint]:
        """Usage step by step, oldest first; by default of the last 24 hours.

        `step_count` units of `step` are one step, by default one; days begin where `time_zone` says, by default in UTC.
        Without grouping every step has one point; with it each group that used something has.
        """
        request = usage_service_pb2.QueryUsageTimeSeriesRequest(
            **_window(tenant_id, start, end, only),
            step=cast("Any", to_wire(step)),
            step_count=step_count,
            time_zone=time_zone,
            grouping=cast("Any", to_wire(grouping)),
            page_size=page_size,
        )
        return self._pages(self._usage().QueryUsageTimeSeries, request, "points", point_from_proto)

    async def latency(
        self,
        tenant_id: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        grouping: UsageGrouping = UsageGrouping.MODEL,
        only: UsageFilter | None = None,
    ) -> LatencyReport:
        """How latencies and times to first token are distributed; by default of the last 24 hours."""
        request = usage_service_pb2.GetLatencyDistributionRequest(
            **_window(tenant_id, start, end, only), grouping=cast("Any", to_wire(grouping)), page_size=1000
        )
        groups: list[LatencyDistribution] = []
        while True:
            response: usage_service_pb2.GetLatencyDistributionResponse = await self._call(
                self._usage().GetLatencyDistribution, request
            )
            groups += [distribution_from_proto(one) for one in response.distributions]
            if not response.next_page_token:
                break
            request.page_token = response.next_page_token
        return LatencyReport(
            distributions=tuple(groups),
            total=distribution_from_proto(response.total),
            start=instant(response.start_time),
            end=instant(response.end_time),
        )

    async def watch(
        self,
        tenant_id: str,
        *,
        window: timedelta | None = None,
        grouping: UsageGrouping = UsageGrouping.NONE,
        only: UsageFilter | None = None,
        min_interval: timedelta | None = None,
    ) -> AsyncGenerator[LiveUsage, None]:
        """Live totals of the window that ends now, by default of 24 hours: at once, then whenever they change.

        Goes on until the caller leaves: a stream that the server ends in time is opened again. Raises when that fails.
        """
        request = usage_service_pb2.WatchUsageRequest(
            tenant_id=tenant_id,
            window=to_duration(window) if window is not None else None,
            filter=codec.filter_to_proto(only) if only else None,
            grouping=cast("Any", to_wire(grouping)),
            min_interval=to_duration(min_interval) if min_interval is not None else None,
        )
        while True:
            stream = self._connection.server_stream(self._usage().WatchUsage, request, timeout_s=_WATCH_TIMEOUT_S)
            async with aclosing(stream):
                async for message in stream:
                    yield live_from_proto(message)
            await asyncio.sleep(_REOPEN_S)

    async def verify(
        self,
        *,
        tenant_id: str = "",
        start: datetime | None = None,
        end: datetime | None = None,
        max_discrepancies: int = 0,
        on_page: Callable[[LedgerAudit], None] | None = None,
    ) -> LedgerAudit:
        """Have the ledger recounted: by default the last two days of every tenant.

        Calls as often as it takes; `on_page` is told how far it has come. For each check at most `max_discrepancies`,
        by default 10, are named.
        """
        request = audit_service_pb2.VerifyLedgerRequest(
            tenant_id=tenant_id,
            start_time=to_timestamp(start) if start else None,
            end_time=to_timestamp(end) if end else None,
            max_discrepancies=max_discrepancies,
        )
        stub = audit_service_pb2_grpc.AuditServiceStub(self._connection.channel)
        audit: LedgerAudit | None = None
        while True:
            response: audit_service_pb2.VerifyLedgerResponse = await self._connection.unary(
                stub.VerifyLedger, request, timeout_s=max(self._timeout_s, _VERIFY_TIMEOUT_S)
            )
            audit = audit_with_page(audit, response, most=max_discrepancies or 10)
            if on_page is not None:
                on_page(audit)
            if not response.next_page_token:
                return audit
            request.page_token = response.next_page_token

    def daily_costs(
        self,
        tenant_id: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        time_zone: str = "",
        only: UsageFilter | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[DailyCost]:
        """Cost per day and provider, newest day first; by default of the last 30 days, with days as in UTC."""
        request = usage_service_pb2.ListDailyCostsRequest(
            **_window(tenant_id, start, end, only), time_zone=time_zone, page_size=page_size
        )
        return self._pages(self._usage().ListDailyCosts, request, "costs", codec.daily_cost_from_proto)

    def errors(
        self,
        tenant_id: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        only: UsageFilter | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[ErrorSummary]:
        """Failures by kind, most frequent first; by default of the last 24 hours."""
        request = usage_service_pb2.ListErrorsRequest(**_window(tenant_id, start, end, only), page_size=page_size)
        return self._pages(self._usage().ListErrors, request, "errors", codec.error_from_proto)

    def records(
        self,
        tenant_id: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        request_id: str = "",
        only: UsageFilter | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[UsageRecord]:
        """Single attempts, newest first; by default of the last 24 hours. Stop reading to stop fetching pages."""
        request = usage_service_pb2.ListUsageRecordsRequest(
            **_window(tenant_id, start, end, only), request_id=request_id, page_size=page_size
        )
        return self._pages(self._usage().ListUsageRecords, request, "records", codec.record_from_proto)

    async def limits(self, tenant_id: str, *, provider: str = "", model: str = "") -> LimitReport:
        """How near the tenant is to its limits."""
        request = quota_service_pb2.CheckRateLimitStatusRequest(tenant_id=tenant_id, provider=provider, model=model)
        stub = quota_service_pb2_grpc.QuotaServiceStub(self._connection.channel)
        return codec.limits_from_proto(await self._call(stub.CheckRateLimitStatus, request))

    async def calculate_cost(
        self, provider: str, model: str, tokens: TokenUsage, *, as_of: datetime | None = None
    ) -> CostQuote:
        """What a number of tokens costs, rounded to 6 decimals. Stores nothing."""
        request = pricing_service_pb2.CalculateCostRequest(
            provider=provider,
            model=model,
            input_tokens=tokens.input_tokens,
            output_tokens=tokens.output_tokens,
            cached_read_tokens=tokens.cached_read_tokens,
            cached_write_tokens=tokens.cached_write_tokens,
            reasoning_tokens=tokens.reasoning_tokens,
            as_of_time=to_timestamp(as_of) if as_of else None,
        )
        return codec.quote_from_proto(await self._call(self._pricing().CalculateCost, request))

    def prices(self, *, provider: str = "", as_of: datetime | None = None, page_size: int = 0) -> AsyncIterator[Price]:
        """The price book, by provider and model."""
        request = pricing_service_pb2.ListPricesRequest(
            provider=provider, as_of_time=to_timestamp(as_of) if as_of else None, page_size=page_size
        )
        return self._pages(self._pricing().ListPrices, request, "prices", codec.price_from_proto)

    async def record(self, events: Sequence[UsageEvent]) -> list[RecordResult]:
        """Record 1 to 1000 attempts, each exactly once, and say what became of each, in order.

        When this raises, the outcome is unknown: record the same events again. Their ids keep them from counting twice.
        """
        request = usage_service_pb2.RecordUsageRequest(
            router_id=self._reporter_id, events=[codec.event_to_proto(event) for event in events]
        )
        response: usage_service_pb2.RecordUsageResponse = await self._call(self._usage().RecordUsage, request)
        return [codec.result_from_proto(result) for result in response.results]

    async def track_usage(
        self,
        tenant_id: str,
        provider: str,
        model: str,
        tokens: TokenUsage | None,
        *,
        status: UsageStatus = UsageStatus.SUCCESS,
        usage_source: UsageSource | None = None,
        event_id: str | None = None,
        request_id: str | None = None,
        funding: Funding = Funding.TENANT_KEY,
        latency: timedelta | None = None,
        time_to_first_token: timedelta | None = None,
        endpoint: str = "",
        user_id: str = "",
        error_class: str = "",
        error_message: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> RecordResult:
        """Book a call that you made to a provider yourself, past the router.

        `usage_source` says how sure the tokens are: by default PROVIDER, or NONE without tokens. Raises
        `UsageNotRecorded` with the event when the ledger answers that it did not store it. When the answer is lost
        (any other error), call again with the same `event_id` to be sure that it counts once: `new_event_id` makes one.
        """
        default_source = UsageSource.NONE if tokens is None else UsageSource.PROVIDER
        event = UsageEvent(
            event_id=event_id or str(new_event_id()),
            tenant_id=tenant_id,
            request_id=request_id or str(uuid.uuid4()),
            provider=provider,
            model=model,
            status=status,
            usage_source=usage_source or default_source,
            tokens=tokens,
            funding=funding,
            latency=latency,
            time_to_first_token=time_to_first_token,
            endpoint=endpoint,
            user_id=user_id,
            error_class=error_class,
            error_message=error_message,
            labels=labels or {},
        )
        [result] = await self.record([event])
        if result.disposition not in _STORED:
            failure = from_status(result.proto.error, self.target)
            message = f"the ledger did not store usage event {event.event_id}: {result.disposition}"
            message += f", {result.problem}" if result.problem else ""
            raise UsageNotRecorded(replace(failure, message=message), event, result.disposition)
        return result

    def _usage(self) -> usage_service_pb2_grpc.UsageServiceAsyncStub:
        return usage_service_pb2_grpc.UsageServiceStub(self._connection.channel)

    def _pricing(self) -> pricing_service_pb2_grpc.PricingServiceAsyncStub:
        return pricing_service_pb2_grpc.PricingServiceStub(self._connection.channel)

    async def _call(self, method: Any, request: Any) -> Any:
        return await self._connection.unary(method, request, timeout_s=self._timeout_s)

    async def _pages(
        self, method: Any, request: Any, items: str, from_proto: Callable[[Any], _Item]
    ) -> AsyncIterator[_Item]:
        """Every item of a paged list. The request keeps its fields; only the token moves on."""
        while True:
            response = await self._call(method, request)
            for item in getattr(response, items):
                yield from_proto(item)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token


def _window(tenant_id: str, start: datetime | None, end: datetime | None, only: UsageFilter | None) -> dict[str, Any]:
    """The fields that every report on a tenant shares."""
    return {
        "tenant_id": tenant_id,
        "start_time": to_timestamp(start) if start else None,
        "end_time": to_timestamp(end) if end else None,
        "filter": codec.filter_to_proto(only) if only else None,
    }
