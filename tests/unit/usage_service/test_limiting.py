"""Limits against usage, with rollups and limits in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from service_runtime.errors import Category, ServiceError
from usage_service.domain.rate_limit import (
    Consumption,
    LevelThresholds,
    LimitKey,
    LimitLevel,
    LimitMetric,
    LimitRule,
    ToldLevel,
)
from usage_service.domain.report import DailyCost, Failure, GroupedUsage, Grouping, ModelUsage, UsageFilter, UsagePoint
from usage_service.domain.window import KeptGrains, LocalDay, RollupRetention, Tile, Window
from usage_service.metering.limiting import Limiting, LimitStatus
from usage_service.metering.report_ports import AfterDailyCost, AfterFailure, AfterGroup, Consumed, LevelChange

NOW = datetime(2026, 3, 18, 10, 41, 50, tzinfo=UTC)
TENANT = UUID(int=1)


class UsedUp:
    """Rollups that know what was used at which minute."""

    def __init__(self, used: Sequence[tuple[datetime, str, str, Consumption]]) -> None:
        self._used = used
        self.asked: list[Mapping[UUID, Mapping[int, Sequence[Tile]]]] = []

    async def consumption(self, windows: Mapping[UUID, Mapping[int, Sequence[Tile]]]) -> Mapping[UUID, Consumed]:
        self.asked.append(windows)
        return {tenant_id: self._consumed(of_tenant) for tenant_id, of_tenant in windows.items()}

    def _consumed(self, windows: Mapping[int, Sequence[Tile]]) -> Consumed:
        found: dict[tuple[int, str, str], Consumption] = {}
        for window_s, covering in windows.items():
            for at, provider, model, amount in self._used:
                if any(tile.start <= at < tile.end for tile in covering):
                    key = (window_s, provider, model)
                    found[key] = found.get(key, Consumption()) + amount
        return found

    async def usage_by_group(
        self, tenant_id: UUID, tiles: Sequence[Tile], only: UsageFilter, *, grouping: Grouping, limit: int
    ) -> Sequence[ModelUsage]:
        raise AssertionError("limits ask for consumption only")

    async def page_of_usage_by_group(
        self,
        tenant_id: UUID,
        tiles: Sequence[Tile],
        only: UsageFilter,
        *,
        grouping: Grouping,
        after: AfterGroup | None,
        limit: int,
    ) -> GroupedUsage:
        raise AssertionError("limits ask for consumption only")

    async def usage_by_step(
        self, tenant_id: UUID, steps: Sequence[Window], only: UsageFilter, *, grouping: Grouping, limit: int
    ) -> Sequence[UsagePoint]:
        raise AssertionError("limits ask for consumption only")

    async def costs_by_day(
        self, tenant_id: UUID, days: Sequence[LocalDay], only: UsageFilter, *, after: AfterDailyCost | None, limit: int
    ) -> Sequence[DailyCost]:
        raise AssertionError("limits ask for consumption only")

    async def failures(
        self,
        tenant_id: UUID,
        tiles: Sequence[Tile],
        only: UsageFilter,
        *,
        kept: KeptGrains,
        after: AfterFailure | None,
        limit: int,
    ) -> Sequence[Failure]:
        raise AssertionError("limits ask for consumption only")


class OwnLimits:
    """The limits of every tenant, and what was told of them; `recent` is what rows say of windows under a minute."""

    def __init__(self, *rules: LimitRule, recent: Consumed | None = None) -> None:
        self._rules = rules
        self._recent = recent or {}
        self.told: dict[LimitKey, ToldLevel] = {}
        self.recent_windows: list[Mapping[UUID, Mapping[int, Window]]] = []
        self.unusable: dict[UUID, ServiceError] = {}
        self.asked: list[Collection[UUID]] = []

    async def told_levels(self, tenant_ids: Collection[UUID]) -> Mapping[UUID, Mapping[LimitKey, ToldLevel]]:
        return {tenant_id: dict(self.told) for tenant_id in tenant_ids}

    async def tell_levels(self, changes: Mapping[UUID, Sequence[LevelChange]]) -> None:
        for of_tenant in changes.values():
            for change in of_tenant:
                assert change.before == self.told.get(change.key)
                self.told[change.key] = change.now

    async def recent_consumption(self, windows: Mapping[UUID, Mapping[int, Window]]) -> Mapping[UUID, Consumed]:
        self.recent_windows.append(windows)
        return dict.fromkeys(windows, self._recent)

    async def of_tenants(self, tenant_ids: Collection[UUID]) -> Mapping[UUID, Sequence[LimitRule] | ServiceError]:
        self.asked.append(tenant_ids)
        return {tenant_id: self.unusable.get(tenant_id, self._rules) for tenant_id in tenant_ids}


def limiting(
    rollups: UsedUp, *rules: LimitRule, own: OwnLimits | None = None, now: Callable[[], datetime] | None = None
) -> Limiting:
    return Limiting(
        rollups=rollups,
        limits=own or OwnLimits(),
        defaults=rules,
        thresholds=LevelThresholds(),
        retention=RollupRetention(),
        now=now or (lambda: NOW),
    )


async def test_each_limit_counts_what_was_used_in_its_own_window() -> None:
    one = Consumption(1, 10, Decimal("0.5"))
    rollups = UsedUp(
        [
            (NOW, "groq", "a", one),
            (NOW - timedelta(minutes=1), "groq", "b", one),
            (NOW - timedelta(hours=2), "groq", "a", one),
            (NOW - timedelta(hours=11), "groq", "a", one),  # yesterday
            (NOW, "llm7", "a", one),
        ]
    )
    rules = [
        LimitRule("groq", LimitMetric.REQUESTS, 60, Decimal(100)),
        LimitRule("groq", LimitMetric.TOKENS, 3600, Decimal(1000)),
        LimitRule("groq", LimitMetric.TOKENS, 86_400, Decimal(1000)),
        LimitRule("groq", LimitMetric.TOKENS, 86_400, Decimal(1000), model="a"),
        LimitRule("groq", LimitMetric.COST, 86_400, Decimal(100)),
    ]

    status = await limiting(rollups, *rules).status(TENANT)

    assert {one.rule: one.used for one in status.positions} == dict(
        zip(rules, [1, 20, 30, 20, Decimal("1.5")], strict=True)
    )
    assert [len(one[TENANT]) for one in rollups.asked] == [3]


async def test_the_worst_limit_decides_for_all() -> None:
    rollups = UsedUp([(NOW, "groq", "a", Consumption(96, 0, Decimal(0)))])
    minute = LimitRule("groq", LimitMetric.REQUESTS, 60, Decimal(100))
    day = LimitRule("groq", LimitMetric.REQUESTS, 86_400, Decimal(100_000))

    status = await limiting(rollups, day, minute).status(TENANT)

    assert [one.rule for one in status.positions] == [minute, day]
    assert status.level is LimitLevel.CRITICAL
    assert status.should_failover
    assert status.valid_for == timedelta(seconds=5)
    assert status.as_of == NOW


async def test_without_a_limit_nothing_is_asked_and_all_is_healthy() -> None:
    rollups = UsedUp([])

    status = await limiting(rollups).status(TENANT, provider="local")

    assert (status.level, status.should_failover, list(status.positions)) == (LimitLevel.HEALTHY, False, [])
    assert rollups.asked == []


async def test_the_tenants_own_limit_takes_the_place_of_the_default() -> None:
    rollups = UsedUp([(NOW, "groq", "a", Consumption(29, 0, Decimal(0)))])
    default = LimitRule("groq", LimitMetric.REQUESTS, 60, Decimal(30))
    own = LimitRule("groq", LimitMetric.REQUESTS, 60, Decimal(1000), is_override=True)

    status = await limiting(rollups, default, own=OwnLimits(own)).status(TENANT)

    assert [one.rule for one in status.positions] == [own]
    assert status.level is LimitLevel.HEALTHY


async def test_requests_that_never_reached_a_provider_count_against_no_provider() -> None:
    rollups = UsedUp([(NOW, "turnpike", "a", Consumption(1000, 0, Decimal(0)))])
    rule = LimitRule("groq", LimitMetric.REQUESTS, 60, Decimal(30))

    status = await limiting(rollups, rule).status(TENANT)

    assert [one.used for one in status.positions] == [0]


async def test_windows_of_less_than_a_minute_are_counted_from_rows() -> None:
    rollups = UsedUp([(NOW, "groq", "a", Consumption(9, 90, Decimal(0)))])
    second = LimitRule("groq", LimitMetric.REQUESTS, 10, Decimal(5))
    minute = LimitRule("groq", LimitMetric.REQUESTS, 60, Decimal(100))
    own = OwnLimits(recent={(10, "groq", "a"): Consumption(4, 40, Decimal(0))})

    status = await limiting(rollups, second, minute, own=own).status(TENANT)

    assert {one.rule: one.used for one in status.positions} == {second: 4, minute: 9}
    assert own.recent_windows == [{TENANT: {10: Window(NOW, NOW + timedelta(seconds=10))}}]
    assert [set(asked[TENANT]) for asked in rollups.asked] == [{60}]


async def test_two_replicas_answer_the_same_and_leave_a_level_only_below_its_margin() -> None:
    day = LimitRule("groq", LimitMetric.COST, 86_400, Decimal(10))
    known = OwnLimits()

    async def told_with(used_usd: str) -> LimitLevel:
        rollups = UsedUp([(NOW, "groq", "a", Consumption(1, 0, Decimal(used_usd)))])
        replicas = [limiting(rollups, day, own=known) for _ in range(2)]
        levels = {(await replica.status(TENANT)).level for replica in replicas}
        assert len(levels) == 1
        return levels.pop()

    # A price was corrected, and usage got cheaper within the window.
    levels = [await told_with(usd) for usd in ("7.9", "8", "7.6", "7.4", "7.6", "0")]

    assert levels == [
        LimitLevel.NORMAL,
        LimitLevel.WARNING,
        LimitLevel.WARNING,
        LimitLevel.NORMAL,
        LimitLevel.NORMAL,
        LimitLevel.HEALTHY,
    ]


async def test_a_new_window_begins_without_a_level() -> None:
    minute = LimitRule("groq", LimitMetric.REQUESTS, 60, Decimal(100))
    known = OwnLimits()
    clock = [NOW]
    later = NOW + timedelta(minutes=1)
    rollups = UsedUp(
        [
            (NOW, "groq", "a", Consumption(96, 0, Decimal(0))),
            (later, "groq", "a", Consumption(91, 0, Decimal(0))),
        ]
    )
    replica = limiting(rollups, minute, own=known, now=lambda: clock[0])

    before = (await replica.status(TENANT)).level
    clock[0] = later.replace(second=1)
    after = (await replica.status(TENANT)).level

    assert (before, after) == (LimitLevel.CRITICAL, LimitLevel.WARNING)


async def test_nothing_is_written_while_no_level_changes() -> None:
    class Unwritable(OwnLimits):
        async def tell_levels(self, changes: Mapping[UUID, Sequence[LevelChange]]) -> None:
            raise AssertionError(changes)

    rollups = UsedUp([(NOW, "groq", "a", Consumption(10, 0, Decimal(0)))])
    minute = LimitRule("groq", LimitMetric.REQUESTS, 60, Decimal(100))

    assert (await limiting(rollups, minute, own=Unwritable()).status(TENANT)).level is LimitLevel.HEALTHY


async def test_many_tenants_are_one_question_and_each_has_its_own_answer() -> None:
    minute = LimitRule("groq", LimitMetric.REQUESTS, 60, Decimal(100))
    rollups = UsedUp([(NOW, "groq", "a", Consumption(10, 0, Decimal(0)))])
    own = OwnLimits()
    tenants = [UUID(int=number) for number in range(50)]
    broken = ServiceError(Category.FAILED_PRECONDITION, "LIMIT_INVALID", "a limit cannot be used; delete it")
    own.unusable[tenants[7]] = broken

    answers = await limiting(rollups, minute, own=own).statuses(tenants)

    assert set(answers) == set(tenants)
    assert answers[tenants[7]] is broken
    told = [one for one in answers.values() if isinstance(one, LimitStatus)]
    assert [[position.used for position in one.positions] for one in told] == [[10]] * 49
    assert (len(own.asked), len(rollups.asked)) == (1, 1)
    assert set(rollups.asked[0]) == set(tenants) - {tenants[7]}
