"""What tokens cost: a price book with validity dates, and exact arithmetic on it.

Unknown is unknown: where no price applies the answer is None, never zero.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, Inexact, Rounded
from enum import StrEnum
from operator import attrgetter
from typing import NamedTuple

ANY_MODEL = "*"
LEDGER_DECIMALS = 12
ANSWER_DECIMALS = 6
PRICE_DECIMALS = 9
# Ten cents a token. With at most 10^12 tokens of each of five classes a cost stays below the ledger's 10^12 dollars.
MAX_USD_PER_MILLION = Decimal(100_000)

# Room for 13 digits of tokens times 18 digits of price: no product or sum is ever rounded before the end.
_EXACT = Context(prec=80, rounding=ROUND_HALF_EVEN, traps=[Inexact, Rounded])
_ROUNDING = Context(prec=80, rounding=ROUND_HALF_EVEN)
_LEDGER_UNIT = Decimal(1).scaleb(-LEDGER_DECIMALS)
_ANSWER_UNIT = Decimal(1).scaleb(-ANSWER_DECIMALS)
_ZERO_USD = Decimal(0).quantize(_LEDGER_UNIT)


class PricingState(StrEnum):
    """Whether a price was known. The values stand in the ledger."""

    PRICED = "priced"
    UNPRICED = "unpriced"
    NOTHING_CONSUMED = "nothing_consumed"


class TokenCounts(NamedTuple):
    """Tokens in disjoint classes: every token is counted once, so the total is the plain sum."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_read_tokens: int = 0
    cached_write_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        return self.input_tokens + self.cached_read_tokens + self.cached_write_tokens

    @property
    def total_tokens(self) -> int:
        return sum(self)


@dataclass(frozen=True, slots=True)
class Rates:
    """US dollars per million tokens of each class. None: cache classes as input, reasoning as output.

    `max_prompt_tokens`: the vendor charges more for longer prompts; for those these rates say nothing.
    """

    input_usd: Decimal
    output_usd: Decimal
    cached_read_usd: Decimal | None = None
    cached_write_usd: Decimal | None = None
    reasoning_usd: Decimal | None = None
    max_prompt_tokens: int | None = None
    # In the order of TokenCounts, in 10^-15 dollars per token: a cost is then a sum of whole numbers, in a quarter of
    # the time. None when a rate has more than PRICE_DECIMALS, which no price book holds.
    femtodollars_per_token: tuple[int, int, int, int, int] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "femtodollars_per_token", _femtodollars_per_token(self))


@dataclass(frozen=True, slots=True)
class Price:
    """One entry of the price book, valid from `effective_at` until the next one of the same provider and model.

    `price_id` is None for a price that is offered but stands in no book.
    """

    price_id: int | None
    provider: str
    model: str
    rates: Rates
    effective_at: datetime
    source: str


@dataclass(frozen=True, slots=True)
class ListedPrice:
    """A price with the end of its validity, not included; None while it is the last.

    `replaced_at`: when another took its place and start; such a price is in no book, but rows may refer to it.
    """

    price: Price
    expires_at: datetime | None
    replaced_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """An exact cost in US dollars, not rounded, by part."""

    input_usd: Decimal
    output_usd: Decimal

    @property
    def total_usd(self) -> Decimal:
        return _EXACT.add(self.input_usd, self.output_usd)


class PricedUsage(NamedTuple):
    """What the ledger stores of a price: the cost at 12 decimals, None when unpriced."""

    state: PricingState
    cost_usd: Decimal | None
    price_id: int | None


def cost_of(tokens: TokenCounts, rates: Rates) -> Cost | None:
    """Price times tokens, exactly; None when the prompt is longer than the rates hold for."""
    if not _hold_for(tokens, rates):
        return None
    return Cost(
        input_usd=_EXACT.scaleb(_prompt_millionths(tokens, rates), -6),
        output_usd=_EXACT.scaleb(_completion_millionths(tokens, rates), -6),
    )


def at_ledger_precision(usd: Decimal) -> Decimal:
    """Rounded half to even at the 12 decimals that the ledger keeps."""
    return usd.quantize(_LEDGER_UNIT, context=_ROUNDING)


def at_answer_precision(usd: Decimal) -> Decimal:
    """Rounded half to even at the 6 decimals that `CalculateCost` answers."""
    return usd.quantize(_ANSWER_UNIT, context=_ROUNDING)


def price_usage(tokens: TokenCounts, price: Price | None) -> PricedUsage:
    """Price what an attempt consumed; without tokens there is nothing to price and the cost is exactly zero."""
    if tokens.total_tokens == 0:
        return PricedUsage(PricingState.NOTHING_CONSUMED, _ZERO_USD, None)
    if price is None:
        return PricedUsage(PricingState.UNPRICED, None, None)
    rates = price.rates
    if not _hold_for(tokens, rates):
        return PricedUsage(PricingState.UNPRICED, None, None)
    # What at_ledger_precision(cost_of(tokens, rates).total_usd) is, sooner: this is asked for every event.
    if rates.femtodollars_per_token is None:
        millionths = _EXACT.add(_prompt_millionths(tokens, rates), _completion_millionths(tokens, rates))
        cost_usd = at_ledger_precision(_EXACT.scaleb(millionths, -6))
    else:
        cost_usd = _whole_cost(tokens, rates.femtodollars_per_token)
    return PricedUsage(PricingState.PRICED, cost_usd, price.price_id)


def _femtodollars_per_token(rates: Rates) -> tuple[int, int, int, int, int] | None:
    per_million = (
        rates.input_usd,
        rates.output_usd,
        rates.input_usd if rates.cached_read_usd is None else rates.cached_read_usd,
        rates.input_usd if rates.cached_write_usd is None else rates.cached_write_usd,
        rates.output_usd if rates.reasoning_usd is None else rates.reasoning_usd,
    )
    # A millionth of a dollar per million is 10^-12 dollars per token, so nine decimals make whole 10^-15.
    scaled = [_EXACT.scaleb(usd, PRICE_DECIMALS) for usd in per_million]
    if any(one != one.to_integral_value() for one in scaled):
        return None
    input_rate, output_rate, cached_read_rate, cached_write_rate, reasoning_rate = map(int, scaled)
    return input_rate, output_rate, cached_read_rate, cached_write_rate, reasoning_rate


def _whole_cost(tokens: TokenCounts, rates: tuple[int, int, int, int, int]) -> Decimal:
    """Price times tokens, rounded half to even at the ledger's 12 decimals."""
    input_tokens, output_tokens, cached_read_tokens, cached_write_tokens, reasoning_tokens = tokens
    input_rate, output_rate, cached_read_rate, cached_write_rate, reasoning_rate = rates
    picodollars, rest = divmod(
        input_tokens * input_rate
        + output_tokens * output_rate
        + cached_read_tokens * cached_read_rate
        + cached_write_tokens * cached_write_rate
        + reasoning_tokens * reasoning_rate,
        1_000,
    )
    if rest > 500 or (rest == 500 and picodollars % 2):
        picodollars += 1
    return _EXACT.scaleb(Decimal(picodollars), -LEDGER_DECIMALS)


def _hold_for(tokens: TokenCounts, rates: Rates) -> bool:
    return rates.max_prompt_tokens is None or tokens.prompt_tokens <= rates.max_prompt_tokens


def _prompt_millionths(tokens: TokenCounts, rates: Rates) -> Decimal:
    """What the prompt costs in millionths of a dollar."""
    millionths = _EXACT.multiply(tokens.input_tokens, rates.input_usd)
    if tokens.cached_read_tokens:
        usd = rates.input_usd if rates.cached_read_usd is None else rates.cached_read_usd
        millionths = _EXACT.fma(tokens.cached_read_tokens, usd, millionths)
    if tokens.cached_write_tokens:
        usd = rates.input_usd if rates.cached_write_usd is None else rates.cached_write_usd
        millionths = _EXACT.fma(tokens.cached_write_tokens, usd, millionths)
    return millionths


def _completion_millionths(tokens: TokenCounts, rates: Rates) -> Decimal:
    """What the answer costs in millionths of a dollar."""
    millionths = _EXACT.multiply(tokens.output_tokens, rates.output_usd)
    if tokens.reasoning_tokens:
        usd = rates.output_usd if rates.reasoning_usd is None else rates.reasoning_usd
        millionths = _EXACT.fma(tokens.reasoning_tokens, usd, millionths)
    return millionths


@dataclass(frozen=True, slots=True)
class PriceBook:
    """An immutable snapshot of all prices. A model's own price goes before its provider's "*"."""

    _entries: Mapping[tuple[str, str], Sequence[Price]] = field(default_factory=dict)

    @classmethod
    def of(cls, prices: Iterable[Price]) -> PriceBook:
        """A book of `prices` in any order."""
        entries: dict[tuple[str, str], list[Price]] = {}
        for price in prices:
            entries.setdefault((price.provider, price.model), []).append(price)
        for history in entries.values():
            history.sort(key=attrgetter("effective_at"))
        return cls(entries)

    def find(self, provider: str, model: str, at: datetime) -> Price | None:
        """The price that held at a time, or None."""
        return self._held(provider, model, at) or self._held(provider, ANY_MODEL, at)

    def find_listed(self, provider: str, model: str, at: datetime) -> ListedPrice | None:
        """The price that held at a time with the end of its validity, or None."""
        price = self.find(provider, model, at)
        if price is None:
            return None
        history = self._entries[price.provider, price.model]
        following = history.index(price) + 1
        return ListedPrice(price, history[following].effective_at if following < len(history) else None)

    def find_own(self, provider: str, model: str, at: datetime) -> Price | None:
        """The model's own price that held at a time, or None; its provider's "*" is not looked at."""
        return self._held(provider, model, at)

    def including(self, prices: Iterable[Price]) -> PriceBook:
        """The entries of this book and `prices`."""
        return PriceBook.of([*(price for history in self._entries.values() for price in history), *prices])

    def latest(self) -> list[Price]:
        """The newest entry of each provider and model, also when it is not valid yet."""
        return [history[-1] for history in self._entries.values()]

    def listed(self, at: datetime) -> list[ListedPrice]:
        """The prices that held at a time, by provider, then model."""
        found = []
        for key in sorted(self._entries):
            history = self._entries[key]
            following = bisect_right(history, at, key=attrgetter("effective_at"))
            if following > 0:
                expires_at = history[following].effective_at if following < len(history) else None
                found.append(ListedPrice(history[following - 1], expires_at))
        return found

    def _held(self, provider: str, model: str, at: datetime) -> Price | None:
        history = self._entries.get((provider, model))
        if history is None:
            return None
        if history[-1].effective_at <= at:  # nearly always, and then there is nothing to look for
            return history[-1]
        following = bisect_right(history, at, key=attrgetter("effective_at"))
        return history[following - 1] if following > 0 else None
