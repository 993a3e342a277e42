"""A ledger in a dictionary."""

# ruff: noqa: N802, ARG002 - the contract names the methods and what they are given
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, status_pb2

from turnpike.usage.v1 import (
    pricing_service_pb2,
    token_usage_pb2,
    usage_event_pb2,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from turnpike_client.enums import RecordDisposition, to_wire
from turnpike_client.testing.charts import distribution, grouped, names, points, used_at, window
from turnpike_client.testing.pages import page_of
from turnpike_client.testing.pricing import FakePricing
from turnpike_client.wire import to_timestamp


class FakeLedger(usage_service_pb2_grpc.UsageServiceServicer):
    """Keeps the first event of each id and adds them up by tenant; windows and filters are passed over.

    `dispositions` overrides what becomes of an event, by its id; "" stands for the next one of any id. The window of
    every report request stays in `requests`.
    """

    def __init__(self, pricing: FakePricing) -> None:
        self.events: dict[str, usage_event_pb2.UsageEvent] = {}
        self.requests: list[Any] = []
        self.dispositions: dict[str, RecordDisposition] = {}
        self.watch_ends_after = 1_000
        self._recorded = asyncio.Condition()
        self._pricing = pricing

    async def RecordUsage(
        self, request: usage_service_pb2.RecordUsageRequest, context: Any
    ) -> usage_service_pb2.RecordUsageResponse:
        self.requests.append(request)
        results = [self._record(event) for event in request.events]
        async with self._recorded:
            self._recorded.notify_all()
        return usage_service_pb2.RecordUsageResponse(results=results)

    async def ReportJournalState(
        self, request: usage_service_pb2.ReportJournalStateRequest, context: Any
    ) -> usage_service_pb2.ReportJournalStateResponse:
        """Miss nothing: this ledger has all that it was ever sent."""
        return usage_service_pb2.ReportJournalStateResponse()

    def _record(self, event: usage_event_pb2.UsageEvent) -> usage_service_pb2.RecordUsageResult:
        stored = self.events.get(event.event_id)
        default = RecordDisposition.ACCEPTED
        if stored is not None:
            default = RecordDisposition.DUPLICATE if stored == event else RecordDisposition.CONFLICT
        key = event.event_id if event.event_id in self.dispositions else ""
        disposition = self.dispositions.pop(key, default)
        result = usage_service_pb2.RecordUsageResult(
            event_id=event.event_id, disposition=cast("Any", to_wire(disposition))
        )
        if disposition in (RecordDisposition.ACCEPTED, RecordDisposition.DUPLICATE):
            self.events.setdefault(event.event_id, event)
            quote = self._quote(event)
            result.cost_usd, result.pricing_state = quote.cost_usd, quote.pricing_state
        else:
            result.error.CopyFrom(status_pb2.Status(code=code_pb2.ABORTED, message="as the test asked"))
        return result

    async def GetTenantUsageStats(
        self, request: usage_service_pb2.GetTenantUsageStatsRequest, context: Any
    ) -> usage_service_pb2.GetTenantUsageStatsResponse:
        self.requests.append(request)
        events = self._of(request.tenant_id)
        groups = grouped(events, lambda event: (event.provider, event.model))
        stats = [self.stats(members, *key) for key, members in groups.items()]
        return usage_service_pb2.GetTenantUsageStatsResponse(
            stats=sorted(stats, key=lambda entry: -entry.requests), total=self.stats(events, "", ""), **window(request)
        )

    async def QueryUsageTimeSeries(
        self, request: usage_service_pb2.QueryUsageTimeSeriesRequest, context: Any
    ) -> usage_service_pb2.QueryUsageTimeSeriesResponse:
        self.requests.append(request)
        page, token = page_of(points(self._of(request.tenant_id), request, self.stats), request)
        return usage_service_pb2.QueryUsageTimeSeriesResponse(points=page, next_page_token=token, **window(request))

    async def GetLatencyDistribution(
        self, request: usage_service_pb2.GetLatencyDistributionRequest, context: Any
    ) -> usage_service_pb2.GetLatencyDistributionResponse:
        self.requests.append(request)
        events = self._of(request.tenant_id)
        grouping = request.grouping or usage_service_pb2.USAGE_GROUPING_MODEL
        groups = grouped(events, lambda event: names(event, grouping))
        page, token = page_of([distribution(members, *key) for key, members in groups.items()], request)
        return usage_service_pb2.GetLatencyDistributionResponse(
            distributions=page, total=distribution(events, "", ""), next_page_token=token, **window(request)
        )

    async def ListDailyCosts(
        self, request: usage_service_pb2.ListDailyCostsRequest, context: Any
    ) -> usage_service_pb2.ListDailyCostsResponse:
        self.requests.append(request)
        groups = grouped(self._of(request.tenant_id), lambda event: (_day(event), event.provider))
        costs = [
            usage_service_pb2.DailyCost(
                date=day,
                provider=provider,
                requests=sum(not event.absorbed for event in members),
                total_tokens=sum(_total(event) for event in members),
                cost=self._cost(members),
            )
            for (day, provider), members in sorted(groups.items(), reverse=True)
        ]
        page, token = page_of(costs, request)
        return usage_service_pb2.ListDailyCostsResponse(costs=page, next_page_token=token)

    async def ListErrors(
        self, request: usage_service_pb2.ListErrorsRequest, context: Any
    ) -> usage_service_pb2.ListErrorsResponse:
        self.requests.append(request)
        failed = [e for e in self._of(request.tenant_id) if e.status != usage_event_pb2.USAGE_STATUS_SUCCESS]
        groups = grouped(failed, lambda event: (event.provider, event.model, event.status, event.error_class))
        errors = [
            usage_service_pb2.ErrorSummary(
                provider=provider,
                model=model,
                status=status,
                error_class=error_class,
                occurrences=len(members),
                absorbed=sum(event.absorbed for event in members),
                first_seen_time=min((used_at(event) for event in members), key=Timestamp.ToNanoseconds),
                last_seen_time=max((used_at(event) for event in members), key=Timestamp.ToNanoseconds),
                cost=self._cost(members),
                sample_message=members[0].error_message,
            )
            for (provider, model, status, error_class), members in groups.items()
        ]
        page, token = page_of(sorted(errors, key=lambda entry: -entry.occurrences), request)
        return usage_service_pb2.ListErrorsResponse(errors=page, next_page_token=token)

    async def ListUsageRecords(
        self, request: usage_service_pb2.ListUsageRecordsRequest, context: Any
    ) -> usage_service_pb2.ListUsageRecordsResponse:
        self.requests.append(request)
        events = [e for e in self._of(request.tenant_id) if request.request_id in ("", e.request_id)]
        records = []
        for event in sorted(events, key=lambda event: event.event_id, reverse=True):
            quote = self._quote(event)
            records.append(
                usage_service_pb2.UsageRecord(
                    event=event,
                    usage_time=used_at(event),
                    ingest_time=used_at(event),
                    cost_usd=quote.cost_usd,
                    pricing_state=quote.pricing_state,
                    price_id=quote.price.price_id,
                    router_id="fake",
                )
            )
        page, token = page_of(records, request)
        return usage_service_pb2.ListUsageRecordsResponse(records=page, next_page_token=token)

    async def WatchUsage(
        self, request: usage_service_pb2.WatchUsageRequest, context: Any
    ) -> AsyncIterator[usage_service_pb2.WatchUsageResponse]:
        """The totals at once and whenever something was recorded; `watch_ends_after` messages end a stream."""
        self.requests.append(request)
        grouping = request.grouping or usage_service_pb2.USAGE_GROUPING_NONE
        seen = -1
        for _ in range(self.watch_ends_after):
            await self._until_more_than(seen)
            seen = len(self.events)
            events = self._of(request.tenant_id)
            groups = (
                {}
                if grouping == usage_service_pb2.USAGE_GROUPING_NONE
                else grouped(events, lambda event: names(event, grouping))
            )
            now = datetime.now(UTC)
            yield usage_service_pb2.WatchUsageResponse(
                stats=[self.stats(members, *key) for key, members in groups.items()],
                total=self.stats(events, "", ""),
                start_time=to_timestamp(now - (request.window.ToTimedelta() or timedelta(days=1))),
                end_time=to_timestamp(now),
                as_of_time=to_timestamp(now),
            )

    async def _until_more_than(self, events: int) -> None:
        async with self._recorded:
            await self._recorded.wait_for(lambda: len(self.events) > events)

    def _of(self, tenant_id: str) -> list[usage_event_pb2.UsageEvent]:
        return [event for event in self.events.values() if event.tenant_id == tenant_id]

    def _quote(self, event: usage_event_pb2.UsageEvent) -> pricing_service_pb2.CalculateCostResponse:
        if not _total(event):
            state = token_usage_pb2.PRICING_STATE_NOTHING_CONSUMED
            return pricing_service_pb2.CalculateCostResponse(cost_usd="0.000000", pricing_state=state)
        tokens = event.token_usage
        prompt = tokens.input_tokens + tokens.cached_read_tokens + tokens.cached_write_tokens
        return self._pricing.quote(event.provider, event.model, prompt, tokens.output_tokens + tokens.reasoning_tokens)

    def _cost(self, events: Iterable[usage_event_pb2.UsageEvent]) -> usage_service_pb2.CostSummary:
        summary = usage_service_pb2.CostSummary()
        known = Decimal(0)
        for event in events:
            quote = self._quote(event)
            if quote.pricing_state == token_usage_pb2.PRICING_STATE_PRICED:
                known += Decimal(quote.cost_usd)
            elif quote.pricing_state == token_usage_pb2.PRICING_STATE_UNPRICED:
                summary.unpriced_attempts += 1
                summary.unpriced_tokens += _total(event)
        summary.cost_usd = summary.exact_usd = f"{known:.12f}"
        summary.estimated_usd = f"{Decimal(0):.12f}"
        return summary

    def stats(
        self, events: list[usage_event_pb2.UsageEvent], provider: str, model: str
    ) -> usage_service_pb2.UsageStats:
        """Usage of some events, summed up."""

        def count(*statuses: usage_event_pb2.UsageStatus.ValueType) -> int:
            return sum(event.status in statuses for event in events)

        return usage_service_pb2.UsageStats(
            provider=provider,
            model=model,
            requests=sum(not event.absorbed for event in events),
            attempts=len(events),
            succeeded=count(usage_event_pb2.USAGE_STATUS_SUCCESS),
            failed=count(usage_event_pb2.USAGE_STATUS_ERROR, usage_event_pb2.USAGE_STATUS_INTERRUPTED),
            rate_limited=count(usage_event_pb2.USAGE_STATUS_RATE_LIMIT),
            cancelled=count(usage_event_pb2.USAGE_STATUS_CANCELLED),
            absorbed=sum(event.absorbed for event in events),
            token_usage=_sum(event.token_usage for event in events),
            total_tokens=sum(_total(event) for event in events),
            cost=self._cost(events),
        )


def _sum(usages: Iterable[token_usage_pb2.TokenUsage]) -> token_usage_pb2.TokenUsage:
    names = [field.name for field in token_usage_pb2.TokenUsage.DESCRIPTOR.fields]
    total = dict.fromkeys(names, 0)
    for usage in usages:
        for name in names:
            total[name] += getattr(usage, name)
    return token_usage_pb2.TokenUsage(**total)


def _total(event: usage_event_pb2.UsageEvent) -> int:
    usage = event.token_usage
    return (
        usage.input_tokens
        + usage.output_tokens
        + usage.cached_read_tokens
        + usage.cached_write_tokens
        + usage.reasoning_tokens
    )


def _day(event: usage_event_pb2.UsageEvent) -> str:
    return used_at(event).ToDatetime(UTC).date().isoformat()
