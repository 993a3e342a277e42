"""The router's copy of the price book; while usage_service is away the last good one is kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from decimal import Decimal

import grpc.aio

from router_service.domain.pricing import ANY_MODEL, Price, cost_usd
from router_service.domain.usage import TokenUsage
from service_runtime.errors import Category, ServiceError
from turnpike.usage.v1 import pricing_service_pb2, pricing_service_pb2_grpc, token_usage_pb2

_TIMEOUT_S = 5.0
_PAGE_SIZE = 1000
_MAX_ASKED = 1000
_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


class PriceCache:
    """Implements `routing.ports.Prices`. Call `refresh` now and then; nothing here ever waits on the request path.

    `models`, each with its provider, are asked for from the beginning, all others once somebody has used them.
    """

    def __init__(self, channel: grpc.aio.Channel, models: Iterable[tuple[str, str]] = ()) -> None:
        self._stub = pricing_service_pb2_grpc.PricingServiceStub(channel)
        self._prices: dict[tuple[str, str], Price] = {}
        # Models that the book does not list: usage_service may know them from elsewhere. None: it does not either.
        self._asked: OrderedDict[tuple[str, str], Price | None] = OrderedDict.fromkeys(models)

    def cost_usd(self, provider: str, model: str, usage: TokenUsage) -> Decimal | None:
        """See `routing.ports.Prices`."""
        price = self._price(provider, model)
        return None if price is None else cost_usd(price, usage)

    def usd_per_million(self, provider: str, model: str) -> tuple[Decimal, Decimal] | None:
        """See `routing.ports.Prices`."""
        price = self._price(provider, model)
        return None if price is None else (price.input_usd, price.output_usd)

    async def refresh(self) -> None:
        """Read the book, and ask for what it does not list.

        Raises ServiceError UNAVAILABLE when usage_service is away; what is held stays.
        """
        try:
            self._prices = await self._read_book()
            unknown = [key for key, price in self._asked.items() if price is None and self._listed(*key) is None]
            for provider, model in unknown:
                price = await self._ask(provider, model)
                if (provider, model) in self._asked:  # else it gave way to a model asked for since
                    self._asked[provider, model] = price
        except grpc.aio.AioRpcError as error:
            raise ServiceError(
                Category.UNAVAILABLE,
                "USAGE_SERVICE_UNAVAILABLE",
                f"prices were not refreshed ({error.code().name}); {len(self._prices)} are held",
            ) from error

    def _price(self, provider: str, model: str) -> Price | None:
        price = self._listed(provider, model)
        if price is not None:
            return price
        key = (provider, model)
        if key not in self._asked:
            self._asked[key] = None
            if len(self._asked) > _MAX_ASKED:
                self._asked.popitem(last=False)
        return self._asked[key]

    def _listed(self, provider: str, model: str) -> Price | None:
        return self._prices.get((provider, model)) or self._prices.get((provider, ANY_MODEL))

    async def _read_book(self) -> dict[tuple[str, str], Price]:
        book: dict[tuple[str, str], Price] = {}
        token = ""
        while True:
            request = pricing_service_pb2.ListPricesRequest(page_size=_PAGE_SIZE, page_token=token)
            page = await self._stub.ListPrices(request, timeout=_TIMEOUT_S)
            book.update({(price.provider, price.model): _from_proto(price) for price in page.prices})
            token = page.next_page_token
            if not token:
                return book

    async def _ask(self, provider: str, model: str) -> Price | None:
        request = pricing_service_pb2.CalculateCostRequest(provider=provider, model=model, input_tokens=1)
        try:
            answer = await self._stub.CalculateCost(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in _AWAY:
                raise
            return None  # this model's trouble is not the others'
        if answer.pricing_state != token_usage_pb2.PRICING_STATE_PRICED:
            return None
        return _from_proto(answer.price)


def _from_proto(price: pricing_service_pb2.Price) -> Price:
    def optional(text: str) -> Decimal | None:
        return Decimal(text) if text else None

    return Price(
        Decimal(price.input_usd_per_million),
        Decimal(price.output_usd_per_million),
        optional(price.cached_read_usd_per_million),
        optional(price.cached_write_usd_per_million),
        optional(price.reasoning_usd_per_million),
        max_prompt_tokens=price.max_prompt_tokens or None,
    )
