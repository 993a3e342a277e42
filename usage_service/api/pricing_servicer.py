"""`turnpike.usage.v1.PricingService`: what tokens cost, the price book, and correcting what was booked with it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import grpc.aio

from turnpike.usage.v1 import pricing_service_pb2 as pb
from turnpike.usage.v1 import pricing_service_pb2_grpc, token_usage_pb2
from usage_service.api.convert_prices import (
    adjustment_to_proto,
    answer_to_text,
    price_set_to_proto,
    price_to_proto,
    progress_to_proto,
    quote_to_proto,
)
from usage_service.api.pricing_requests import PricingReader, adjustment_position, reprice_call
from usage_service.api.report_requests import RequestReader, instant_to_position
from usage_service.domain import paging
from usage_service.domain.provider_names import normalise_provider
from usage_service.metering.pricing import Pricing
from usage_service.metering.repricing import Repricing

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

_DEFAULT_PAGE_SIZE = 200
_DEFAULT_ADJUSTMENTS = 100
_ADJUSTMENTS_OF = timedelta(days=30)


class PricingServicer(pricing_service_pb2_grpc.PricingServiceServicer):
    """Raises InvalidRequest naming every bad field, and what `Pricing` and `Repricing` raise."""

    def __init__(
        self,
        *,
        pricing: Pricing,
        repricing: Repricing,
        providers: frozenset[str],
        now: Callable[[], datetime],
    ) -> None:
        self._pricing = pricing
        self._repricing = repricing
        self._providers = providers
        self._now = now

    async def CalculateCost(self, request: pb.CalculateCostRequest, _context: Context) -> pb.CalculateCostResponse:
        """Price a number of tokens."""
        reader = self._reader()
        provider = reader.known_provider(request.provider)
        model = reader.model(request.model)
        tokens = reader.tokens(request)
        as_of = reader.as_of(request)
        reader.done()
        if tokens.total_tokens == 0:
            return pb.CalculateCostResponse(
                cost_usd=answer_to_text(Decimal(0)),
                input_cost_usd=answer_to_text(Decimal(0)),
                output_cost_usd=answer_to_text(Decimal(0)),
                pricing_state=token_usage_pb2.PRICING_STATE_NOTHING_CONSUMED,
            )
        return quote_to_proto(await self._pricing.quote(provider, model, tokens, as_of))

    async def ListPrices(self, request: pb.ListPricesRequest, _context: Context) -> pb.ListPricesResponse:
        """List the prices that were valid at a time, by provider, then model."""
        provider = normalise_provider(request.provider, self._providers) if request.provider else ""
        asked_time = str(request.as_of_time.ToNanoseconds()) if request.HasField("as_of_time") else ""
        fingerprint = paging.fingerprint("ListPrices", provider, asked_time)
        reader = self._reader()
        as_of = reader.as_of(request)
        size = reader.page_size(request.page_size, default=_DEFAULT_PAGE_SIZE)
        after = None
        if texts := reader.position(request.page_token, fingerprint=fingerprint, length=3):
            resolved, *last = texts
            after = tuple(last)
            try:
                as_of = datetime.fromisoformat(resolved).astimezone(UTC)
            except (ValueError, OverflowError) as error:
                reader.refuse("page_token", str(error))
        reader.done()

        found = [
            listed
            for listed in self._pricing.book.listed(as_of)
            if (not provider or listed.price.provider == provider)
            and (after is None or (listed.price.provider, listed.price.model) > after)
        ]
        response = pb.ListPricesResponse(prices=[price_to_proto(listed) for listed in found[:size]])
        if len(found) > size:
            last_price = found[size - 1].price
            position = (as_of.isoformat(), last_price.provider, last_price.model)
            response.next_page_token = paging.encode(paging.PageToken(fingerprint, position))
        return response

    async def ListPriceHistory(
        self, request: pb.ListPriceHistoryRequest, _context: Context
    ) -> pb.ListPriceHistoryResponse:
        """List every price of a model, latest start first."""
        reader = self._reader()
        provider = reader.known_provider(request.provider)
        model = reader.model(request.model)
        size = reader.page_size(request.page_size, default=_DEFAULT_PAGE_SIZE)
        fingerprint = paging.fingerprint("ListPriceHistory", provider, model)
        after = reader.position(request.page_token, fingerprint=fingerprint, length=1)
        reader.done()

        history = list(await self._pricing.history(provider, model))
        ids = [str(listed.price.price_id) for listed in history]
        start = 0
        if after is not None:
            if after[0] not in ids:
                reader.refuse("page_token", "is not a token of this method; pass next_page_token unchanged")
                reader.done()
            start = ids.index(after[0]) + 1
        response = pb.ListPriceHistoryResponse(prices=map(price_to_proto, history[start : start + size]))
        if start + size < len(history):
            response.next_page_token = paging.encode(paging.PageToken(fingerprint, (ids[start + size - 1],)))
        return response

    async def SetPrice(self, request: pb.SetPriceRequest, _context: Context) -> pb.SetPriceResponse:
        """Enter a price."""
        reader = self._reader()
        asked = reader.price(request)
        reader.done()
        price_set = await self._pricing.set_price(
            asked.provider,
            asked.model,
            asked.rates,
            effective_at=asked.effective_at,
            replace=asked.replace,
            source=asked.source,
        )
        return price_set_to_proto(price_set)

    async def Reprice(self, request: pb.RepriceRequest, _context: Context) -> pb.RepriceResponse:
        """Price a bounded number of stored rows anew, or tell what that would change."""
        reader = self._reader()
        call = reprice_call(reader, request, now=self._now(), new_id=uuid.uuid4())
        reader.done()
        progress = await self._repricing.run(call.job, call.after, max_rows=call.max_rows)
        response = progress_to_proto(call.job, progress)
        if progress.rest is not None:
            response.next_page_token = call.next_token(progress.rest)
        return response

    async def ListCostAdjustments(
        self, request: pb.ListCostAdjustmentsRequest, _context: Context
    ) -> pb.ListCostAdjustmentsResponse:
        """List what was corrected of a tenant's usage, newest usage first."""
        reader = RequestReader(self._now())
        tenant_id = reader.uuid("tenant_id", request.tenant_id)
        job_id = reader.optional_uuid("job_id", request.job_id)
        turn = reader.turn(
            "adjustments",
            request,
            default_length=_ADJUSTMENTS_OF,
            default_page_size=_DEFAULT_ADJUSTMENTS,
            position_length=3,
            read_position=adjustment_position,
        )
        reader.done()
        found = await self._repricing.adjustments(
            tenant_id, turn.window, job_id=job_id, after=turn.after, limit=turn.page_size + 1
        )
        page = found[: turn.page_size]
        response = pb.ListCostAdjustmentsResponse(adjustments=map(adjustment_to_proto, page))
        if len(found) > len(page):
            last = page[-1]
            response.next_page_token = turn.next_token(
                instant_to_position(last.used_at), str(last.event_id), str(last.revision)
            )
        return response

    def _reader(self) -> PricingReader:
        return PricingReader(self._providers, self._now())
