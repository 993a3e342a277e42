"""Tell how close a tenant is to its limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from usage_service.domain.rate_limit import (
    MINUTE_S,
    Consumption,
    LevelThresholds,
    LimitKey,
    LimitLevel,
    LimitPosition,
    LimitRule,
    ToldLevel,
    applicable,
    current_window,
    position,
    valid_for,
    worst_first,
)
from usage_service.domain.window import RollupRetention, answerable, tiles
from usage_service.metering.report_ports import LevelChange, Limits, Rollups


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """A tenant's position against every limit that applies, worst first, as of `as_of`."""

    positions: Sequence[LimitPosition]
    as_of: datetime
    valid_for: timedelta

    @property
    def level(self) -> LimitLevel:
        """The worst level; HEALTHY when no limit applies."""
        return max((one.level for one in self.positions), default=LimitLevel.HEALTHY)

    @property
    def should_failover(self) -> bool:
        return any(one.should_failover for one in self.positions)


class Limiting:
    """Compares the ledger with the limits: `defaults` per provider, and the tenants' own. `now` is in UTC."""

    def __init__(
        self,
        *,
        rollups: Rollups,
        limits: Limits,
        defaults: Sequence[LimitRule],
        thresholds: LevelThresholds,
        retention: RollupRetention,
        now: Callable[[], datetime],
    ) -> None:
        self._rollups = rollups
        self._limits = limits
        self._defaults = tuple(defaults)
        self._thresholds = thresholds
        self._retention = retention
        self._now = now

    def now(self) -> datetime:
        """The present, at which usage is judged."""
        return self._now()

    async def status(self, tenant_id: UUID, *, provider: str = "", model: str = "") -> LimitStatus:
        """The tenant's positions at `provider` (a catalogue name) for `model`; empty ones do not filter."""
        overrides = await self._limits.of_tenant(tenant_id)
        rules = applicable(self._defaults, overrides, provider=provider, model=model)
        # After the limits were read: a window that began meanwhile must not be judged by the one before.
        now = self._now()
        used = await self._used(tenant_id, {rule.window_s for rule in rules}, now)
        told = await self._limits.told_levels(tenant_id) if rules else {}
        positions = worst_first(
            position(rule, _part(used, rule), now, thresholds=self._thresholds, told=told.get(LimitKey.of(rule)))
            for rule in rules
        )
        if changes := _changes(positions, told):
            await self._limits.tell_levels(tenant_id, changes)
        return LimitStatus(positions, now, valid_for(positions, now))

    async def _used(
        self, tenant_id: UUID, window_lengths_s: set[int], now: datetime
    ) -> Mapping[tuple[int, str, str], Consumption]:
        windows = {length_s: current_window(length_s, now) for length_s in sorted(window_lengths_s)}
        kept = self._retention.kept_at(now)
        covering = {
            length_s: tiles(answerable(window, kept)) for length_s, window in windows.items() if length_s >= MINUTE_S
        }
        recent = {length_s: window for length_s, window in windows.items() if length_s < MINUTE_S}
        used: dict[tuple[int, str, str], Consumption] = {}
        if covering:
            used.update(await self._rollups.consumption(tenant_id, covering))
        if recent:
            used.update(await self._limits.recent_consumption(tenant_id, recent))
        return used


def _part(used: Mapping[tuple[int, str, str], Consumption], rule: LimitRule) -> Consumption:
    """What of `used` the rule counts."""
    parts = (
        one
        for (window_s, provider, model), one in used.items()
        if window_s == rule.window_s and provider == rule.provider and rule.model in ("", model)
    )
    return sum(parts, start=Consumption())


def _changes(positions: Sequence[LimitPosition], told: Mapping[LimitKey, ToldLevel]) -> list[LevelChange]:
    """The levels that are not what was told last of their window; until something is told a window is HEALTHY."""
    changes = []
    for one in positions:
        key, now = LimitKey.of(one.rule), ToldLevel(one.window.start, one.level)
        before = told.get(key)
        is_of_window = before is not None and before.window_start == now.window_start
        if now != before and (is_of_window or now.level is not LimitLevel.HEALTHY):
            changes.append(LevelChange(key, before, now))
    return changes
