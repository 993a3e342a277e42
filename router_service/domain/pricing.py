"""What a completion costs, by the router's copy of the price book. The ledger computes its own figure the same way."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal

from router_service.domain.usage import TokenUsage

ANY_MODEL = "*"
_LEDGER_UNIT = Decimal("0.000000000001")
_MILLION = Decimal(1_000_000)
_CONTEXT = Context(prec=80, rounding=ROUND_HALF_EVEN)


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens. None: cached tokens cost as input, reasoning costs as output.

    `max_prompt_tokens`: the vendor charges more for longer prompts; for those the price says nothing.
    """

    input_usd: Decimal
    output_usd: Decimal
    cached_read_usd: Decimal | None = None
    cached_write_usd: Decimal | None = None
    reasoning_usd: Decimal | None = None
    max_prompt_tokens: int | None = None


def cost_usd(price: Price, usage: TokenUsage) -> Decimal | None:
    """Price times tokens, exact and then rounded half to even at the ledger's 12 decimals.

    None when the prompt, cached tokens included, is longer than the price holds for.
    """
    if price.max_prompt_tokens is not None and usage.prompt_tokens > price.max_prompt_tokens:
        return None

    parts = (
        (usage.input_tokens, price.input_usd, price.input_usd),
        (usage.cached_read_tokens, price.cached_read_usd, price.input_usd),
        (usage.cached_write_tokens, price.cached_write_usd, price.input_usd),
        (usage.output_tokens, price.output_usd, price.output_usd),
        (usage.reasoning_tokens, price.reasoning_usd, price.output_usd),
    )
    total = Decimal(0)
    for tokens, usd, otherwise_usd in parts:
        if tokens:  # three of the five classes are empty in most answers
            total = _CONTEXT.fma(Decimal(tokens), otherwise_usd if usd is None else usd, total)
    return _CONTEXT.quantize(_CONTEXT.divide(total, _MILLION), _LEDGER_UNIT)
