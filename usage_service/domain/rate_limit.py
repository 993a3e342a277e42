"""How close usage is to a limit.

Windows are fixed and aligned to UTC (the minute, the hour, the UTC day), because providers count so and because the
rollups can then answer them. What is used is read from the ledger, so it is settled usage: attempts under way are not
in it. The router's own leases see to those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import assert_never

from usage_service.domain.window import Window

MIN_WINDOW_S = 60
MAX_WINDOW_S = 31 * 86_400

# A projection needs a fifth of the window and a handful of requests: a burst at the window's start is no pace.
_PROJECTION_MIN_ELAPSED = 0.2
_PROJECTION_MIN_REQUESTS = 5

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class LimitMetric(StrEnum):
    """What a limit counts. The values stand in the table of limits."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    COST = "cost"


class LimitLevel(IntEnum):
    """How close usage is to a limit; a higher value is worse."""

    HEALTHY = 1
    NORMAL = 2
    WARNING = 3
    CRITICAL = 4


@dataclass(frozen=True, slots=True)
class LimitRule:
    """One limit: at most `limit` of `metric` per `window_s` seconds at `provider`.

    `model` is empty when all models count together. `limit` is a count, or US dollars for COST. `is_override` says
    that it is the tenant's own and not a default from the settings.
    """

    provider: str
    metric: LimitMetric
    window_s: int
    limit: Decimal
    model: str = ""
    is_override: bool = False

    def __post_init__(self) -> None:
        if not MIN_WINDOW_S <= self.window_s <= MAX_WINDOW_S or self.window_s % MIN_WINDOW_S:
            raise ValueError(
                f"a limit's window must be whole minutes, {MIN_WINDOW_S} s to {MAX_WINDOW_S} s, not {self.window_s} s"
            )
        if not self.limit.is_finite() or self.limit < 0:
            raise ValueError(f"a limit must be a number of at least 0, not {self.limit}")

    @classmethod
    def parse(cls, provider: str, text: str) -> LimitRule:
        """Read "30 requests per 1m", "100_000 tokens per 1d" or "2.50 cost per 1h". Raises ValueError."""
        match = re.fullmatch(r"\s*([\d_]+(?:\.\d+)?)\s+(requests|tokens|cost)\s+per\s+(\d{1,8})([smhd])\s*", text)
        if match is None:
            raise ValueError(f"{text!r} for {provider!r} is no limit; write it like '30 requests per 1m'")
        amount, metric, length, unit = match.groups()
        return cls(provider, LimitMetric(metric), int(length) * _SECONDS[unit], Decimal(amount.replace("_", "")))


@dataclass(frozen=True, slots=True)
class Consumption:
    """What was used of one model, or of all together."""

    requests: int = 0
    tokens: int = 0
    cost_usd: Decimal = Decimal(0)

    def __add__(self, other: Consumption) -> Consumption:
        return Consumption(self.requests + other.requests, self.tokens + other.tokens, self.cost_usd + other.cost_usd)

    def of(self, metric: LimitMetric) -> Decimal:
        """The part that `metric` counts."""
        match metric:
            case LimitMetric.REQUESTS:
                return Decimal(self.requests)
            case LimitMetric.TOKENS:
                return Decimal(self.tokens)
            case LimitMetric.COST:
                return self.cost_usd
            case _:
                assert_never(metric)


@dataclass(frozen=True, slots=True)
class LimitPosition:
    """A tenant's position against one limit."""

    rule: LimitRule
    used: Decimal
    usage_ratio: float
    level: LimitLevel
    reset_at: datetime

    @property
    def remaining(self) -> Decimal:
        return max(self.rule.limit - self.used, Decimal(0))

    @property
    def should_failover(self) -> bool:
        return self.level is LimitLevel.CRITICAL


def parse_limits(table: Mapping[str, Sequence[str]]) -> tuple[LimitRule, ...]:
    """The rules of a settings table: provider to limits in words. Raises ValueError naming the bad one."""
    return tuple(LimitRule.parse(provider, text) for provider, texts in table.items() for text in texts)


def current_window(window_s: int, now: datetime) -> Window:
    """The fixed window that holds `now`: windows of a length follow each other from 1970-01-01 UTC on."""
    length = timedelta(seconds=window_s)
    start = now - (now - _EPOCH) % length
    return Window(start, start + length)


def applicable(
    defaults: Iterable[LimitRule], overrides: Iterable[LimitRule], *, provider: str, model: str
) -> tuple[LimitRule, ...]:
    """The limits in force: a provider for which the tenant has limits of its own has none of the defaults.

    Mixing would leave, say, a daily default in force below a minute limit that was raised a hundredfold. An empty
    `provider` or `model` does not filter; limits on all models together apply to every model.
    """
    own = tuple(overrides)
    own_providers = {rule.provider for rule in own}
    in_force = (*own, *(rule for rule in defaults if rule.provider not in own_providers))
    return tuple(
        rule for rule in in_force if provider in ("", rule.provider) and (not model or rule.model in ("", model))
    )


def position(rule: LimitRule, used: Consumption, now: datetime) -> LimitPosition:
    """Where `used`, consumed in the current window of `rule`, stands at `now`."""
    window = current_window(rule.window_s, now)
    amount = used.of(rule.metric)
    # A limit of zero allows nothing, so it is always used up.
    ratio = float(amount / rule.limit) if rule.limit else 1.0
    elapsed = (now - window.start) / window.length
    projected_to_exhaust = (
        elapsed >= _PROJECTION_MIN_ELAPSED and used.requests >= _PROJECTION_MIN_REQUESTS and ratio / elapsed > 1
    )
    return LimitPosition(rule, amount, ratio, level(ratio, projected_to_exhaust=projected_to_exhaust), window.end)


def level(ratio: float, *, projected_to_exhaust: bool) -> LimitLevel:
    """The level for a used share of the limit; a pace that exhausts it before the reset is critical at any share."""
    if ratio >= 0.95 or projected_to_exhaust:
        return LimitLevel.CRITICAL
    if ratio >= 0.8:
        return LimitLevel.WARNING
    if ratio >= 0.6:
        return LimitLevel.NORMAL
    return LimitLevel.HEALTHY


def worst_first(positions: Iterable[LimitPosition]) -> tuple[LimitPosition, ...]:
    """By level, then by used share, then by name so that equal ones keep their place."""
    return tuple(
        sorted(
            positions,
            key=lambda one: (
                -one.level,
                -one.usage_ratio,
                one.rule.provider,
                one.rule.model,
                one.rule.metric,
                one.rule.window_s,
            ),
        )
    )


def valid_for(positions: Sequence[LimitPosition], now: datetime) -> timedelta:
    """How long an answer may be reused: shorter the closer the worst limit is, never past a reset, at least 1 s."""
    worst = max((one.level for one in positions), default=LimitLevel.HEALTHY)
    until_reset = min((one.reset_at - now for one in positions), default=timedelta.max)
    return max(min(_reusable(worst), until_reset), timedelta(seconds=1))


def _reusable(worst: LimitLevel) -> timedelta:
    match worst:
        case LimitLevel.HEALTHY:
            return timedelta(seconds=30)
        case LimitLevel.NORMAL:
            return timedelta(seconds=15)
        case LimitLevel.WARNING | LimitLevel.CRITICAL:
            return timedelta(seconds=5)
        case _:
            assert_never(worst)


# What the providers grant a new account without a contract. A tenant with another plan has rows in the table of limits.
DEFAULT_LIMITS: Mapping[str, Sequence[str]] = {
    "groq": (
        "30 requests per 1m",
        "1_000 requests per 1d",
        "12_000 tokens per 1m",
        "100_000 tokens per 1d",
    ),
    "openrouter": ("20 requests per 1m",),
    "llm7": ("60 requests per 1m", "1_500 requests per 1h"),
    "local": (),
    "sandbox": (),
}
