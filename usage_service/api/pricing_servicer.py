"""`turnpike.usage.v1.PricingService`: what tokens cost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from service_runtime.errors import FieldViolation, InvalidRequest
from turnpike.usage.v1 import pricing_service_pb2 as pb
from turnpike.usage.v1 import pricing_service_pb2_grpc, token_usage_pb2
from usage_service.domain import paging
from usage_service.domain.pricing import ListedPrice, TokenCounts, at_answer_precision
from usage_service.domain.provider_names import normalise_provider
from usage_service.domain.usage_event import MAX_NAME_CHARACTERS, MAX_TOKENS
from usage_service.metering.pricing import Pricing, Quote

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

_DEFAULT_PAGE_SIZE = 200
_TOKEN_FIELDS = ("input_tokens", "output_tokens", "cached_read_tokens", "cached_write_tokens", "reasoning_tokens")


class PricingServicer(pricing_service_pb2_grpc.PricingServiceServicer):
    """Answers from the price book in memory. Stores nothing."""

    def __init__(self, *, pricing: Pricing, providers: frozenset[str], now: Callable[[], datetime]) -> None:
        self._pricing = pricing
        self._providers = providers
        self._now = now

    async def CalculateCost(self, request: pb.CalculateCostRequest, _context: Context) -> pb.CalculateCostResponse:
        """Price a number of tokens."""
        provider, tokens, as_of = self._parsed(request)
        if tokens.total_tokens == 0:
            return pb.CalculateCostResponse(
                cost_usd=_answer(Decimal(0)),
                input_cost_usd=_answer(Decimal(0)),
                output_cost_usd=_answer(Decimal(0)),
                pricing_state=token_usage_pb2.PRICING_STATE_NOTHING_CONSUMED,
            )
        return _quote_to_proto(await self._pricing.quote(provider, request.model, tokens, as_of))

    async def ListPrices(self, request: pb.ListPricesRequest, _context: Context) -> pb.ListPricesResponse:
        """List the prices that were valid at a time, by provider, then model."""
        provider = normalise_provider(request.provider, self._providers) if request.provider else ""
        asked_time = str(request.as_of_time.ToNanoseconds()) if request.HasField("as_of_time") else ""
        fingerprint = paging.fingerprint("ListPrices", provider, asked_time)
        size, after, as_of = self._page(request, fingerprint)

        found = [
            listed
            for listed in self._pricing.book.listed(as_of)
            if (not provider or listed.price.provider == provider)
            and (after is None or (listed.price.provider, listed.price.model) > after)
        ]
        response = pb.ListPricesResponse(prices=[_price_to_proto(listed) for listed in found[:size]])
        if len(found) > size:
            last = found[size - 1].price
            position = (as_of.isoformat(), last.provider, last.model)
            response.next_page_token = paging.encode(paging.PageToken(fingerprint, position))
        return response

    def _parsed(self, request: pb.CalculateCostRequest) -> tuple[str, TokenCounts, datetime]:
        violations: list[FieldViolation] = []
        provider = normalise_provider(request.provider, self._providers)
        if provider not in self._providers:
            known = ", ".join(sorted(self._providers))
            violations.append(FieldViolation("provider", f"must be one of {known}, not {request.provider[:60]!r}"))
        if not 1 <= len(request.model) <= MAX_NAME_CHARACTERS:
            violations.append(
                FieldViolation("model", f"must have 1 to {MAX_NAME_CHARACTERS} characters, not {len(request.model)}")
            )
        counts = {field: int(getattr(request, field)) for field in _TOKEN_FIELDS}
        violations.extend(
            FieldViolation(field, f"must lie between 0 and {MAX_TOKENS}, not {number}")
            for field, number in counts.items()
            if not 0 <= number <= MAX_TOKENS
        )
        as_of = self._as_of(request.as_of_time if request.HasField("as_of_time") else None, violations)
        if violations:
            raise InvalidRequest(violations)
        return provider, TokenCounts(**counts), as_of

    def _page(self, request: pb.ListPricesRequest, fingerprint: str) -> tuple[int, tuple[str, str] | None, datetime]:
        """Page size, the entry after which the page begins, and the time that the first page resolved."""
        violations: list[FieldViolation] = []
        as_of = self._as_of(request.as_of_time if request.HasField("as_of_time") else None, violations)
        size, after = _DEFAULT_PAGE_SIZE, None
        try:
            size = paging.page_size(request.page_size, default=_DEFAULT_PAGE_SIZE)
        except ValueError as error:
            violations.append(FieldViolation("page_size", str(error)))
        if request.page_token:
            try:
                token = paging.decode(request.page_token, fingerprint=fingerprint, position_length=3)
                resolved, provider, model = token.position
                as_of, after = datetime.fromisoformat(resolved).astimezone(UTC), (provider, model)
            except (ValueError, OverflowError) as error:
                violations.append(FieldViolation("page_token", str(error)))
        if violations:
            raise InvalidRequest(violations)
        return size, after, as_of

    def _as_of(self, time: Timestamp | None, violations: list[FieldViolation]) -> datetime:
        now = self._now()
        if time is None:
            return now
        try:
            return time.ToDatetime(tzinfo=UTC)
        except (ValueError, OverflowError):
            violations.append(FieldViolation("as_of_time", "must lie between the years 1 and 9999"))
            return now


def _quote_to_proto(quote: Quote) -> pb.CalculateCostResponse:
    if quote.cost is None or quote.listed is None:
        return pb.CalculateCostResponse(pricing_state=token_usage_pb2.PRICING_STATE_UNPRICED)
    return pb.CalculateCostResponse(
        cost_usd=_answer(quote.cost.total_usd),
        input_cost_usd=_answer(quote.cost.input_usd),
        output_cost_usd=_answer(quote.cost.output_usd),
        pricing_state=token_usage_pb2.PRICING_STATE_PRICED,
        price=_price_to_proto(quote.listed),
    )


def _price_to_proto(listed: ListedPrice) -> pb.Price:
    price, rates = listed.price, listed.price.rates
    message = pb.Price(
        price_id="" if price.price_id is None else str(price.price_id),
        provider=price.provider,
        model=price.model,
        input_usd_per_million=_plain(rates.input_usd),
        output_usd_per_million=_plain(rates.output_usd),
        cached_read_usd_per_million=_plain(rates.cached_read_usd),
        cached_write_usd_per_million=_plain(rates.cached_write_usd),
        reasoning_usd_per_million=_plain(rates.reasoning_usd),
        source=price.source,
    )
    message.effective_time.FromDatetime(price.effective_at)
    if listed.expires_at is not None:
        message.expire_time.FromDatetime(listed.expires_at)
    return message


def _answer(usd: Decimal) -> str:
    return f"{at_answer_precision(usd):f}"


def _plain(usd_per_million: Decimal | None) -> str:
    """A price without trailing zeros or an exponent; '' when there is none."""
    if usd_per_million is None:
        return ""
    text = f"{usd_per_million:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
