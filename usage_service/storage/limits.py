"""The tenants' own limits in Postgres, and the levels that were told of all limits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import groupby, starmap
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from service_runtime.errors import Category, ServiceError
from service_runtime.postgres import Postgres, load_queries
from usage_service.domain.rate_limit import (
    Consumption,
    LimitKey,
    LimitLevel,
    LimitMetric,
    LimitRule,
    TenantLimit,
    ToldLevel,
)
from usage_service.domain.window import Window
from usage_service.metering.limit_setting import AfterLimit, LimitSet
from usage_service.metering.report_ports import LevelChange
from usage_service.storage.rollups import consumption_by_tenant

if TYPE_CHECKING:
    from asyncpg import Record

_QUERIES = load_queries(Path(__file__).with_name("limits.sql"))


class PostgresLimits:
    """The tables, as `metering.report_ports.Limits` and `metering.limit_setting.LimitTable` want them."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def of_tenants(self, tenant_ids: Collection[UUID]) -> dict[UUID, list[LimitRule] | ServiceError]:
        async with self._postgres.acquire() as connection:
            fetched = await connection.fetch(_QUERIES["limits_of_tenants"], list(tenant_ids))
        return {tenant_id: _rules(tenant_id, records) for tenant_id, records in groupby(fetched, itemgetter(0))}

    async def set(self, tenant_id: UUID, rule: LimitRule, *, most: int) -> LimitSet | None:
        key = (rule.provider, rule.model, rule.metric, rule.window_s)
        async with self._postgres.transaction() as connection:
            await connection.execute(_QUERIES["lock_limits_of_tenant"], tenant_id)
            before = await connection.fetchrow(_QUERIES["limit_before"], tenant_id, *key)
            assert before is not None
            if before["limit_value"] is None and before["others"] >= most:
                return None
            stored = await connection.fetchrow(_QUERIES["set_limit"], tenant_id, *key, rule.limit)
            assert stored is not None
        return LimitSet(_tenant_limit(stored), before["limit_value"])

    async def delete(self, tenant_id: UUID, key: LimitKey) -> TenantLimit | None:
        async with self._postgres.acquire() as connection:
            removed = await connection.fetchrow(
                _QUERIES["delete_limit"], tenant_id, key.provider, key.model, key.metric, key.window_s
            )
        return None if removed is None else _tenant_limit(removed)

    async def page(
        self, *, tenant_id: UUID | None, provider: str, after: AfterLimit | None, limit: int
    ) -> list[TenantLimit]:
        last: tuple[object, ...] = (None, None, None, None, None)
        if after is not None:
            key = after.key
            last = (after.tenant_id, key.provider, key.model, key.metric, key.window_s)
        async with self._postgres.acquire() as connection:
            fetched = await connection.fetch(_QUERIES["page_of_limits"], tenant_id, provider, *last, limit)
        return [_tenant_limit(record) for record in fetched]

    async def told_levels(self, tenant_ids: Collection[UUID]) -> dict[UUID, dict[LimitKey, ToldLevel]]:
        async with self._postgres.acquire() as connection:
            fetched = await connection.fetch(_QUERIES["told_levels"], list(tenant_ids))
        told: dict[UUID, dict[LimitKey, ToldLevel]] = {}
        for record in fetched:
            key = LimitKey(record["provider"], record["model_name"], LimitMetric(record["metric"]), record["window_s"])
            told.setdefault(record["tenant_id"], {})[key] = ToldLevel(
                record["window_start"], LimitLevel(record["level"])
            )
        return told

    async def tell_levels(self, changes: Mapping[UUID, Sequence[LevelChange]]) -> None:
        all_changes = [(tenant_id, one) for tenant_id, of_tenant in changes.items() for one in of_tenant]
        lowered = [(tenant_id, one) for tenant_id, one in all_changes if _is_lower(one)]
        begun = [(tenant_id, one) for tenant_id, one in all_changes if not _is_lower(one)]
        async with self._postgres.acquire() as connection:
            # Not in one transaction: each locks its rows in order, both together would not, and no row needs another.
            for query, part in (("tell_levels", begun), ("lower_levels", lowered)):
                if part:
                    await connection.execute(_QUERIES[query], *zip(*starmap(_change, part), strict=True))

    async def recent_consumption(
        self, windows: Mapping[UUID, Mapping[int, Window]]
    ) -> dict[UUID, dict[tuple[int, str, str], Consumption]]:
        asked = [(tenant_id, key, one) for tenant_id, of_tenant in windows.items() for key, one in of_tenant.items()]
        starts, ends = [one.start for _, _, one in asked], [one.end for _, _, one in asked]
        tenant_ids, keys = [tenant_id for tenant_id, _, _ in asked], [key for _, key, _ in asked]
        async with self._postgres.acquire() as connection:
            fetched = await connection.fetch(
                _QUERIES["recent_consumption"], tenant_ids, keys, starts, ends, min(starts), max(ends)
            )
        return consumption_by_tenant(fetched)


async def forget_levels(owner: Postgres, before: datetime) -> None:
    """Remove the levels that were told before a time."""
    async with owner.acquire() as connection:
        await connection.execute(_QUERIES["forget_levels"], before)


def _is_lower(change: LevelChange) -> bool:
    before, now = change.before, change.now
    return before is not None and before.window_start == now.window_start and now.level < before.level


def _change(tenant_id: UUID, change: LevelChange) -> tuple[object, ...]:
    key, now = change.key, change.now
    before = change.before.level if change.before is not None else LimitLevel.HEALTHY
    return (tenant_id, key.provider, key.model, key.metric, key.window_s, now.window_start, now.level, before)


def _tenant_limit(record: Record) -> TenantLimit:
    return TenantLimit(record["tenant_id"], _rule(record["tenant_id"], record), record["updated_at"])


def _rules(tenant_id: UUID, records: Iterable[Record]) -> list[LimitRule] | ServiceError:
    try:
        return [_rule(tenant_id, record) for record in records]
    except ServiceError as error:
        return error


def _rule(tenant_id: UUID, record: Record) -> LimitRule:
    try:
        return LimitRule(
            provider=record["provider"],
            metric=LimitMetric(record["metric"]),
            window_s=record["window_s"],
            limit=record["limit_value"],
            model=record["model_name"],
            is_override=True,
        )
    except ValueError as error:
        # A limit that is left out would let everything through, so this tenant gets no answer until it is mended.
        raise ServiceError(
            Category.FAILED_PRECONDITION,
            "LIMIT_INVALID",
            f"a limit of tenant {tenant_id} cannot be used ({record['provider']}, {record['metric']} per "
            f"{record['window_s']} s): {error}; correct or delete its row in usage_limits",
            metadata={"provider": record["provider"], "metric": record["metric"]},
        ) from error
