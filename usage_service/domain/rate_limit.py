"""How close usage is to a limit.

Windows are fixed and aligned to UTC (the minute, the hour, the UTC day, the month), because providers count so and
because the rollups can then answer them. What is used is read from the ledger, so it is settled usage: attempts under
way are not in it. The router's own leases see to those.

A used share only grows within a window, but a pace rises and falls, limits are raised and prices corrected. So that a
level does not come and go, it is left only a margin below where it begins. For that the level that was last told for
the window is an argument here; it is kept in the ledger, where every replica finds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import assert_never
from uuid import UUID

from usage_service.domain.window import Window

# The rollups' finest buckets; shorter windows are counted from rows.
MINUTE_S = 60
WEEK_S = 7 * 86_400
MAX_FIXED_WINDOW_S = 30 * 86_400
MONTH_S = 31 * 86_400  # stands for the calendar month, however many days it has

MAX_COUNT = Decimal(10) ** 15
MAX_COST_USD = Decimal(10) ** 12
COST_DECIMALS = 6

# A handful of requests: fewer are no pace.
_PROJECTION_MIN_REQUESTS = 5

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "mo": MONTH_S}


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
class LevelThresholds:
    """Used shares of a limit at which levels begin, from 0 to 1, and by how much usage must be below to leave one.

    A pace, which is the share that would be used at the window's end, counts once `pace_after` of the window is over: a
    burst at its start is no pace.
    """

    normal: float = 0.6
    warning: float = 0.8
    critical: float = 0.95
    margin: float = 0.05
    pace_after: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.normal < self.warning < self.critical <= 1:
            raise ValueError(
                "levels must begin at rising shares above 0 up to 1, not at "
                f"{self.normal}, {self.warning} and {self.critical}"
            )
        if not 0 <= self.margin < self.normal:
            raise ValueError(f"the margin must be at least 0 and below {self.normal}, not {self.margin}")
        if not 0 < self.pace_after <= 1:
            raise ValueError(f"a pace must count after a share of the window above 0 up to 1, not {self.pace_after}")


DEFAULT_THRESHOLDS = LevelThresholds()


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
        if not is_window(self.window_s):
            raise ValueError(
                f"a limit's window must be 1 to 59 s, whole minutes up to {MAX_FIXED_WINDOW_S} s, or {MONTH_S} s for "
                f"the calendar month, not {self.window_s} s"
            )
        if not self.limit.is_finite() or self.limit < 0:
            raise ValueError(f"a limit must be a number of at least 0, not {self.limit}")

    @classmethod
    def parse(cls, provider: str, text: str) -> LimitRule:
        """Read "30 requests per 1m", "100_000 tokens per 1d" or "2.50 cost per 1mo". Raises ValueError."""
        match = re.fullmatch(r"\s*([\d_]+(?:\.\d+)?)\s+(requests|tokens|cost)\s+per\s+(\d{1,8})([smhd]|mo)\s*", text)
        if match is None:
            raise ValueError(f"{text!r} for {provider!r} is no limit; write it like '30 requests per 1m'")
        amount, metric, length, unit = match.groups()
        return cls(provider, LimitMetric(metric), int(length) * _SECONDS[unit], Decimal(amount.replace("_", "")))


@dataclass(frozen=True, slots=True)
class LimitKey:
    """What tells one limit of a tenant from another."""

    provider: str
    model: str
    metric: LimitMetric
    window_s: int

    @classmethod
    def of(cls, rule: LimitRule) -> LimitKey:
        """The key of a rule."""
        return cls(rule.provider, rule.model, rule.metric, rule.window_s)


@dataclass(frozen=True, slots=True)
class TenantLimit:
    """A limit of a tenant's own as it is stored."""

    tenant_id: UUID
    rule: LimitRule
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ToldLevel:
    """The level of a limit as it was last told, which says nothing of other windows."""

    window_start: datetime
    level: LimitLevel


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
    window: Window

    @property
    def reset_at(self) -> datetime:
        return self.window.end

    @property
    def remaining(self) -> Decimal:
        return max(self.rule.limit - self.used, Decimal(0))

    @property
    def should_failover(self) -> bool:
        return self.level is LimitLevel.CRITICAL


def parse_limits(table: Mapping[str, Sequence[str]]) -> tuple[LimitRule, ...]:
    """The rules of a settings table: provider to limits in words. Raises ValueError naming the bad one."""
    return tuple(LimitRule.parse(provider, text) for provider, texts in table.items() for text in texts)


def is_window(window_s: int) -> bool:
    """Whether limits can have a window of this length: what rows or the rollups' minutes can be counted for."""
    if window_s < MINUTE_S:
        return window_s >= 1
    return window_s == MONTH_S or (window_s <= MAX_FIXED_WINDOW_S and window_s % MINUTE_S == 0)


def current_window(window_s: int, now: datetime) -> Window:
    """The window that holds `now`, in UTC: the calendar month, or one of the fixed ones that follow each other.

    Those of 7 days begin on Mondays, all others are counted from 1970-01-01 on.
    """
    if window_s == MONTH_S:
        start = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        return Window(start, (start + timedelta(days=31)).replace(day=1))
    length = timedelta(seconds=window_s)
    start = now - (now - (_FIRST_MONDAY if window_s == WEEK_S else _EPOCH)) % length
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


def position(
    rule: LimitRule,
    used: Consumption,
    now: datetime,
    *,
    thresholds: LevelThresholds = DEFAULT_THRESHOLDS,
    told: ToldLevel | None = None,
) -> LimitPosition:
    """Where `used`, consumed in the current window of `rule`, stands at `now`; `told` is what was last said of it."""
    window = current_window(rule.window_s, now)
    amount = used.of(rule.metric)
    # A limit of zero allows nothing, so it is always used up.
    ratio = float(amount / rule.limit) if rule.limit else 1.0
    elapsed = (now - window.start) / window.length
    is_pace = elapsed >= thresholds.pace_after and used.requests >= _PROJECTION_MIN_REQUESTS
    last = told.level if told is not None and told.window_start == window.start else LimitLevel.HEALTHY
    found = level(ratio, pace=ratio / elapsed if is_pace else 0.0, thresholds=thresholds, last=last)
    return LimitPosition(rule, amount, ratio, found, window)


def level(
    ratio: float,
    *,
    pace: float,
    thresholds: LevelThresholds = DEFAULT_THRESHOLDS,
    last: LimitLevel = LimitLevel.HEALTHY,
) -> LimitLevel:
    """The level for a used share, and a pace that exhausts the limit before the reset when it is above 1.

    `last` was told before: it is left, or a part of the way down, only where usage is the margin below.
    """
    begun = _begun(ratio, pace, thresholds, margin=0.0)
    not_left = _begun(ratio, pace, thresholds, margin=thresholds.margin)
    return max(begun, min(last, not_left))


def _begun(ratio: float, pace: float, thresholds: LevelThresholds, *, margin: float) -> LimitLevel:
    if ratio >= thresholds.critical - margin or pace > 1 - margin:
        return LimitLevel.CRITICAL
    if ratio >= thresholds.warning - margin:
        return LimitLevel.WARNING
    if ratio >= thresholds.normal - margin:
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
