"""Administration of prices, reached as `UsageClient.price_book`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from decimal import Decimal
from typing import Any

from turnpike.usage.v1 import pricing_service_pb2 as pb
from turnpike.usage.v1 import pricing_service_pb2_grpc
from turnpike_client.accounting import CostAdjustment, Price, PriceChange, RepriceReport
from turnpike_client.accounting_codec import price_from_proto
from turnpike_client.connection import Connection, Deadlines
from turnpike_client.wire import instant, known_money, money, to_timestamp

# A call of Reprice works for about ten seconds before it hands over to the next.
_REPRICE_CALL_S = 60.0


class PriceBookClient:
    """Sets prices, and corrects what was booked with other ones. Prices are US dollars per million tokens."""

    def __init__(self, connection: Connection, deadlines: Deadlines) -> None:
        self._connection = connection
        self._timeout_s = deadlines.call_s

    async def set(
        self,
        provider: str,
        model: str,
        *,
        input_usd_per_million: Decimal,
        output_usd_per_million: Decimal,
        cached_read_usd_per_million: Decimal | None = None,
        cached_write_usd_per_million: Decimal | None = None,
        reasoning_usd_per_million: Decimal | None = None,
        max_prompt_tokens: int | None = None,
        effective_at: datetime | None = None,
        replace: bool = False,
        source: str = "",
    ) -> PriceChange:
        """Enter a price that holds from `effective_at` on, by default from now; the same again changes nothing.

        None for a class is "as input", for reasoning "as output". Raises AlreadyExists when another price has the same
        start, unless `replace` puts the new one in its place. Stored usage keeps its cost until `reprice`.
        """
        request = pb.SetPriceRequest(
            provider=provider,
            model=model,
            input_usd_per_million=f"{input_usd_per_million:f}",
            output_usd_per_million=f"{output_usd_per_million:f}",
            cached_read_usd_per_million=_text(cached_read_usd_per_million),
            cached_write_usd_per_million=_text(cached_write_usd_per_million),
            reasoning_usd_per_million=_text(reasoning_usd_per_million),
            max_prompt_tokens=max_prompt_tokens or 0,
            effective_time=to_timestamp(effective_at) if effective_at else None,
            replace=replace,
            source=source,
        )
        response: pb.SetPriceResponse = await self._call(self._stub().SetPrice, request)
        return PriceChange(
            price=price_from_proto(response.price),
            created=response.created,
            replaced=price_from_proto(response.replaced) if response.HasField("replaced") else None,
            reprice_needed=response.reprice_needed,
            proto=response,
        )

    async def history(self, provider: str, model: str, *, page_size: int = 0) -> AsyncIterator[Price]:
        """Every price that a model ever had or will have, latest start first, replaced ones after their successors."""
        request = pb.ListPriceHistoryRequest(provider=provider, model=model, page_size=page_size)
        while True:
            page: pb.ListPriceHistoryResponse = await self._call(self._stub().ListPriceHistory, request)
            for price in page.prices:
                yield price_from_proto(price)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def reprice(
        self,
        start: datetime,
        *,
        end: datetime | None = None,
        tenant_id: str = "",
        provider: str = "",
        model: str = "",
        apply: bool = False,
        reason: str = "",
        job_id: str = "",
    ) -> RepriceReport:
        """Price stored usage from `start` on anew; without `apply` only tell what that would change.

        Makes as many calls as it takes and adds them up. When this raises, what was corrected stays corrected: call it
        again, and it changes the rest.
        """
        request = pb.RepriceRequest(
            tenant_id=tenant_id,
            provider=provider,
            model=model,
            start_time=to_timestamp(start),
            end_time=to_timestamp(end) if end else None,
            apply=apply,
            reason=reason,
            job_id=job_id,
        )
        calls: list[pb.RepriceResponse] = []
        while True:
            response: pb.RepriceResponse = await self._connection.unary(
                self._stub().Reprice, request, timeout_s=max(self._timeout_s, _REPRICE_CALL_S)
            )
            calls.append(response)
            if not response.next_page_token:
                return _added_up(calls)
            request.page_token = response.next_page_token

    async def adjustments(
        self,
        tenant_id: str,
        *,
        job_id: str = "",
        start: datetime | None = None,
        end: datetime | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[CostAdjustment]:
        """What was corrected of a tenant's usage, newest usage first; by default of the last 30 days."""
        request = pb.ListCostAdjustmentsRequest(
            tenant_id=tenant_id,
            job_id=job_id,
            start_time=to_timestamp(start) if start else None,
            end_time=to_timestamp(end) if end else None,
            page_size=page_size,
        )
        while True:
            page: pb.ListCostAdjustmentsResponse = await self._call(self._stub().ListCostAdjustments, request)
            for adjustment in page.adjustments:
                yield _adjustment_from_proto(adjustment)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _stub(self) -> pricing_service_pb2_grpc.PricingServiceAsyncStub:
        return pricing_service_pb2_grpc.PricingServiceStub(self._connection.channel)

    async def _call(self, method: Any, request: Any) -> Any:
        return await self._connection.unary(method, request, timeout_s=self._timeout_s)


def _text(usd: Decimal | None) -> str:
    return "" if usd is None else f"{usd:f}"


def _added_up(calls: list[pb.RepriceResponse]) -> RepriceReport:
    def total(field: str) -> int:
        return sum(getattr(call, field) for call in calls)

    def dollars(field: str) -> Decimal:
        return sum((known_money(getattr(call, field)) for call in calls), start=Decimal(0))

    return RepriceReport(
        job_id=calls[-1].job_id,
        applied=calls[-1].applied,
        scanned_rows=total("scanned_rows"),
        changed_rows=total("changed_rows"),
        newly_priced_rows=total("newly_priced_rows"),
        newly_unpriced_rows=total("newly_unpriced_rows"),
        unpriced_rows=total("unpriced_rows"),
        old_cost_usd=dollars("old_cost_usd"),
        new_cost_usd=dollars("new_cost_usd"),
        delta_usd=dollars("delta_usd"),
    )


def _adjustment_from_proto(message: pb.CostAdjustment) -> CostAdjustment:
    return CostAdjustment(
        event_id=message.event_id,
        used_at=instant(message.usage_time),
        revision=message.revision,
        provider=message.provider,
        model=message.model,
        old_cost_usd=money(message.old_cost_usd),
        old_price_id=message.old_price_id,
        new_cost_usd=money(message.new_cost_usd),
        new_price_id=message.new_price_id,
        delta_usd=known_money(message.delta_usd),
        reason=message.reason,
        job_id=message.job_id,
        created_at=instant(message.create_time),
        proto=message,
    )
