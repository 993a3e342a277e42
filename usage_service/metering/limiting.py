"""Tell how close tenants are to their limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

from service_runtime.errors import ServiceError
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
from usage_service.metering.report_ports import Consumed, LevelChange, Limits, Rollups

T = TypeVar("T")


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
        """The tenant's positions at `provider` (a catalogue name) for `model`; empty ones do not filter.

        Raises ServiceError FAILED_PRECONDITION LIMIT_INVALID, naming the limit of the tenant's own that cannot be used.
        """
        found = (await self.statuses([tenant_id], provider=provider, model=model))[tenant_id]
        if isinstance(found, ServiceError):
            raise found
        return found

    async def statuses(
        self, tenant_ids: Collection[UUID], *, provider: str = "", model: str = ""
    ) -> Mapping[UUID, LimitStatus | ServiceError]:
        """The same of many tenants, in as many questions to the ledger as for one; the error is each tenant's own."""
        own = await self._limits.of_tenants(tenant_ids)
        answers: dict[UUID, LimitStatus | ServiceError] = {}
        rules: dict[UUID, Sequence[LimitRule]] = {}
        for tenant_id in tenant_ids:
            overrides = own.get(tenant_id, ())
            if isinstance(overrides, ServiceError):
                answers[tenant_id] = overrides
            else:
                rules[tenant_id] = applicable(self._defaults, overrides, provider=provider, model=model)
        # After the limits were read: a window that began meanwhile must not be judged by the one before.
        now = self._now()
        limited = [tenant_id for tenant_id, of_tenant in rules.items() if of_tenant]
        used = await self._used({tenant_id: {rule.window_s for rule in rules[tenant_id]} for tenant_id in limited}, now)
        told = await self._limits.told_levels(limited) if limited else {}
        changes: dict[UUID, Sequence[LevelChange]] = {}
        for tenant_id, of_tenant in rules.items():
            told_before = told.get(tenant_id, {})
            positions = self._positions(of_tenant, used.get(tenant_id, {}), told_before, now)
            if changed := _changes(positions, told_before):
                changes[tenant_id] = changed
            answers[tenant_id] = LimitStatus(positions, now, valid_for(positions, now))
            await asyncio.sleep(0)  # a hundred tenants are many milliseconds: others' calls go on between two of them
        if changes:
            await self._limits.tell_levels(changes)
        return answers

    def _positions(
        self, rules: Sequence[LimitRule], used: Consumed, told: Mapping[LimitKey, ToldLevel], now: datetime
    ) -> Sequence[LimitPosition]:
        return worst_first(
            position(rule, _part(used, rule), now, thresholds=self._thresholds, told=told.get(LimitKey.of(rule)))
            for rule in rules
        )

    async def _used(self, lengths_s: Mapping[UUID, Collection[int]], now: datetime) -> Mapping[UUID, Consumed]:
        """What each tenant used in the present windows of its lengths."""
        windows = {length_s: current_window(length_s, now) for length_s in set().union(*lengths_s.values())}
        kept = self._retention.kept_at(now)
        covering = {
            length_s: tiles(answerable(window, kept)) for length_s, window in windows.items() if length_s >= MINUTE_S
        }
        recent = {length_s: window for length_s, window in windows.items() if length_s < MINUTE_S}
        used: dict[UUID, dict[tuple[int, str, str], Consumption]] = {tenant_id: {} for tenant_id in lengths_s}
        if from_rollups := _of_each(lengths_s, covering):
            for tenant_id, consumed in (await self._rollups.consumption(from_rollups)).items():
                used[tenant_id].update(consumed)
        if from_rows := _of_each(lengths_s, recent):
            for tenant_id, consumed in (await self._limits.recent_consumption(from_rows)).items():
                used[tenant_id].update(consumed)
        return used


def _of_each(lengths_s: Mapping[UUID, Collection[int]], by_length: Mapping[int, T]) -> dict[UUID, dict[int, T]]:
    """Of `by_length` what each tenant has, by length; tenants with none of it are left out."""
    found = {
        tenant_id: {length_s: by_length[length_s] for length_s in sorted(lengths) if length_s in by_length}
        for tenant_id, lengths in lengths_s.items()
    }
    return {tenant_id: windows for tenant_id, windows in found.items() if windows}


def _part(used: Consumed, rule: LimitRule) -> Consumption:
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
