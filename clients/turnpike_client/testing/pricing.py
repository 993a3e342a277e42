"""A price book in a list."""

# ruff: noqa: N802, ARG002 - the contract names the methods and what they are given
from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import grpc

from turnpike.usage.v1 import pricing_service_pb2, pricing_service_pb2_grpc, token_usage_pb2
from turnpike_client.testing.pages import page_of
from turnpike_client.wire import to_timestamp

_MILLION = Decimal(1_000_000)
_VALUES = (
    "input_usd_per_million",
    "output_usd_per_million",
    "cached_read_usd_per_million",
    "cached_write_usd_per_million",
    "reasoning_usd_per_million",
    "max_prompt_tokens",
)


class FakePricing(pricing_service_pb2_grpc.PricingServiceServicer):
    """Prices from `prices`, where the last one of a model holds; a model that is not there is unpriced.

    `reprices` are the answers of `Reprice`, next first, the last one for good; `requests` keeps what was asked of it.
    """

    def __init__(self) -> None:
        self.prices: list[pricing_service_pb2.Price] = []
        self.replaced: list[pricing_service_pb2.Price] = []
        self.adjustments: list[pricing_service_pb2.CostAdjustment] = []
        self.reprices: list[pricing_service_pb2.RepriceResponse] = []
        self.requests: list[pricing_service_pb2.RepriceRequest] = []

    def add(self, provider: str, model: str, *, input_usd: str, output_usd: str) -> None:
        """Set a price in US dollars per million tokens."""
        self.prices.append(
            pricing_service_pb2.Price(
                price_id=f"{provider}/{model}",
                provider=provider,
                model=model,
                input_usd_per_million=input_usd,
                output_usd_per_million=output_usd,
                effective_time=to_timestamp(datetime(2026, 1, 1, tzinfo=UTC)),
                source="test",
            )
        )

    def quote(
        self, provider: str, model: str, prompt_tokens: int, completion_tokens: int
    ) -> pricing_service_pb2.CalculateCostResponse:
        """What tokens cost."""
        price = next((p for p in reversed(self.prices) if (p.provider, p.model) == (provider, model)), None)
        if price is None:
            return pricing_service_pb2.CalculateCostResponse(pricing_state=token_usage_pb2.PRICING_STATE_UNPRICED)
        prompt = Decimal(price.input_usd_per_million) * prompt_tokens / _MILLION
        completion = Decimal(price.output_usd_per_million) * completion_tokens / _MILLION
        return pricing_service_pb2.CalculateCostResponse(
            cost_usd=f"{prompt + completion:.6f}",
            input_cost_usd=f"{prompt:.6f}",
            output_cost_usd=f"{completion:.6f}",
            pricing_state=token_usage_pb2.PRICING_STATE_PRICED,
            price=price,
        )

    async def CalculateCost(
        self, request: pricing_service_pb2.CalculateCostRequest, context: Any
    ) -> pricing_service_pb2.CalculateCostResponse:
        prompt = request.input_tokens + request.cached_read_tokens + request.cached_write_tokens
        return self.quote(request.provider, request.model, prompt, request.output_tokens + request.reasoning_tokens)

    async def ListPrices(
        self, request: pricing_service_pb2.ListPricesRequest, context: Any
    ) -> pricing_service_pb2.ListPricesResponse:
        prices = [price for price in self.prices if request.provider in ("", price.provider)]
        page, token = page_of(prices, request)
        return pricing_service_pb2.ListPricesResponse(prices=page, next_page_token=token)

    async def ListPriceHistory(
        self, request: pricing_service_pb2.ListPriceHistoryRequest, context: Any
    ) -> pricing_service_pb2.ListPriceHistoryResponse:
        ever = [*reversed(self.prices), *reversed(self.replaced)]
        found = [price for price in ever if (price.provider, price.model) == (request.provider, request.model)]
        page, token = page_of(found, request)
        return pricing_service_pb2.ListPriceHistoryResponse(prices=page, next_page_token=token)

    async def SetPrice(
        self, request: pricing_service_pb2.SetPriceRequest, context: Any
    ) -> pricing_service_pb2.SetPriceResponse:
        now = datetime.now(UTC)
        start = request.effective_time if request.HasField("effective_time") else to_timestamp(now)
        price = pricing_service_pb2.Price(
            price_id=f"{request.provider}/{request.model}/{len(self.prices) + len(self.replaced)}",
            provider=request.provider,
            model=request.model,
            effective_time=start,
            source=request.source or "operator",
            **{name: getattr(request, name) for name in _VALUES},
        )
        answer = pricing_service_pb2.SetPriceResponse(
            price=price, created=True, reprice_needed=start.ToNanoseconds() <= to_timestamp(now).ToNanoseconds()
        )
        key = (price.provider, price.model, start)
        standing = next((p for p in self.prices if (p.provider, p.model, p.effective_time) == key), None)
        if standing is not None:
            if all(getattr(standing, name) == getattr(price, name) for name in _VALUES):
                return pricing_service_pb2.SetPriceResponse(price=standing, reprice_needed=answer.reprice_needed)
            if not request.replace:
                await context.abort(grpc.StatusCode.ALREADY_EXISTS, "another price has this start; set replace")
            answer.replaced.CopyFrom(standing)
            self.prices.remove(standing)
            standing.replace_time.CopyFrom(to_timestamp(now))
            self.replaced.append(standing)
        self.prices.append(price)
        return answer

    async def Reprice(
        self, request: pricing_service_pb2.RepriceRequest, context: Any
    ) -> pricing_service_pb2.RepriceResponse:
        self.requests.append(request)
        if not self.reprices:
            return pricing_service_pb2.RepriceResponse(job_id=request.job_id or "job", applied=request.apply)
        return self.reprices.pop(0) if len(self.reprices) > 1 else self.reprices[0]

    async def ListCostAdjustments(
        self, request: pricing_service_pb2.ListCostAdjustmentsRequest, context: Any
    ) -> pricing_service_pb2.ListCostAdjustmentsResponse:
        found = [one for one in self.adjustments if request.job_id in ("", one.job_id)]
        page, token = page_of(found, request)
        return pricing_service_pb2.ListCostAdjustmentsResponse(adjustments=page, next_page_token=token)
