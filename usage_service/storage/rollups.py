"""Reads of the rollups in Postgres, and the removal of those that are no longer kept."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from service_runtime.postgres import Postgres
from usage_service.domain.pricing import TokenCounts
from usage_service.domain.rate_limit import Consumption
from usage_service.domain.report import (
    Cost,
    DailyCost,
    Durations,
    Failure,
    FailureKey,
    GroupedUsage,
    Grouping,
    ModelUsage,
    Outcomes,
    UsageFilter,
    UsagePoint,
)
from usage_service.domain.usage_event import AttemptStatus
from usage_service.domain.window import KeptGrains, LocalDay, RollupRetention, Tile, Window, merged, tiles
from usage_service.metering.report_ports import AfterDailyCost, AfterFailure, AfterGroup
from usage_service.storage import packed_histogram
from usage_service.storage.report_statements import Statement, on_tiles, plain

if TYPE_CHECKING:
    from asyncpg import Record

# Of the connections that reports are asked over. Their bounds are parameters, so the planner takes thousands of rows
# for a handful and would sort them, text by text and each row copied, instead of hashing them: half as long again.
CONNECTION_SETTINGS: Final[Mapping[str, str]] = {"enable_sort": "off", "default_transaction_read_only": "on"}


class PostgresRollups:
    """The rollups, as `metering.report_ports.Rollups` wants them. Every report is one statement, so one snapshot.

    `postgres` is meant to have `CONNECTION_SETTINGS`; without them the answers are the same, and later.
    """

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def usage_by_group(
        self, tenant_id: UUID, tiles: Sequence[Tile], only: UsageFilter, *, grouping: Grouping, limit: int
    ) -> list[ModelUsage]:
        statement = on_tiles("usage_by_group", tenant_id, limit, tiles=tiles, only=only, grouping=grouping)
        return [_model_usage(record) for record in await self._fetch(statement)]

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
        statement = on_tiles(
            "page_of_usage_by_group",
            tenant_id,
            *((after.requests, after.attempts, after.provider, after.model) if after else (None,) * 4),
            limit,
            tiles=tiles,
            only=only,
            grouping=grouping,
        )
        usages = [_model_usage(record) for record in await self._fetch(statement)]
        return GroupedUsage(usages[:-1], usages[-1])

    async def usage_by_step(
        self, tenant_id: UUID, steps: Sequence[Window], only: UsageFilter, *, grouping: Grouping, limit: int
    ) -> list[UsagePoint]:
        statement = on_tiles(
            "usage_by_step",
            tenant_id,
            [step.start for step in steps],
            limit,
            tiles=merged(tile for step in steps for tile in tiles(step)),
            only=only,
            grouping=grouping,
        )
        return [UsagePoint(steps[record["step"] - 1], _model_usage(record)) for record in await self._fetch(statement)]

    async def costs_by_day(
        self, tenant_id: UUID, days: Sequence[LocalDay], only: UsageFilter, *, after: AfterDailyCost | None, limit: int
    ) -> list[DailyCost]:
        if not days:
            return []
        dates = [day.day for day in days]
        statement = on_tiles(
            "costs_by_day",
            tenant_id,
            [day.window.start for day in days],
            *((bisect_left(dates, after.day) + 1, after.cost_usd, after.provider) if after else (None,) * 3),
            limit,
            tiles=merged(tile for day in days for tile in tiles(day.window)),
            only=only,
        )
        return [_daily_cost(record, dates) for record in await self._fetch(statement)]

    async def failures(
        self,
        tenant_id: UUID,
        tiles: Sequence[Tile],
        only: UsageFilter,
        *,
        kept: KeptGrains,
        after: AfterFailure | None,
        limit: int,
    ) -> list[Failure]:
        statement = on_tiles(
            "failures",
            tenant_id,
            *_failure_position(after),
            limit,
            kept.minutes_since,
            kept.hours_since,
            [tile.start for tile in tiles],
            [tile.grain.value for tile in tiles],
            tiles=tiles,
            only=only,
        )
        return [_failure(record) for record in await self._fetch(statement)]

    async def consumption(
        self, windows: Mapping[UUID, Mapping[int, Sequence[Tile]]]
    ) -> dict[UUID, dict[tuple[int, str, str], Consumption]]:
        asked = [
            (tenant_id, key, tile)
            for tenant_id, of_tenant in windows.items()
            for key, covering in of_tenant.items()
            for tile in covering
        ]
        tenant_ids, keys = [tenant_id for tenant_id, _, _ in asked], [key for _, key, _ in asked]
        columns = _columns(tile for _, _, tile in asked)
        return consumption_by_tenant(await self._fetch(plain("consumption", tenant_ids, keys, *columns)))

    async def _fetch(self, statement: Statement) -> list[Record]:
        async with self._postgres.acquire() as connection:
            return await connection.fetch(statement.text, *statement.arguments)


@dataclass(frozen=True, slots=True)
class Purged:
    """How many rows of each rollup a purge removed."""

    minutes: int
    hours: int


async def purge_rollups(postgres: Postgres, retention: RollupRetention, now: datetime) -> Purged:
    """Remove minute and hour buckets that are no longer kept. Days stay for good.

    Goes tenant by tenant, each in a transaction of its own, so that it holds few locks and needs no further index; a
    purge that was interrupted is completed by the next. Several may run at once.
    """
    kept = retention.purgeable_at(now)
    return Purged(
        minutes=await _purge(postgres, "tenant_with_minutes", "purge_minutes", kept.minutes_since),
        hours=await _purge(postgres, "tenant_with_hours", "purge_hours", kept.hours_since),
    )


async def _purge(postgres: Postgres, find_tenant: str, delete: str, before: datetime) -> int:
    removed, start = 0, UUID(int=0)
    while True:
        async with postgres.acquire() as connection:
            tenant_id: UUID | None = await connection.fetchval(plain(find_tenant).text, start)
            if tenant_id is None:
                return removed
            tag = await connection.execute(plain(delete).text, tenant_id, before)
        removed += int(tag.rpartition(" ")[2])  # "DELETE 12"
        if tenant_id.int == UUID(int=2**128 - 1).int:
            return removed
        start = UUID(int=tenant_id.int + 1)


def consumption_by_tenant(fetched: Iterable[Record]) -> dict[UUID, dict[tuple[int, str, str], Consumption]]:
    """What each tenant used, by key of the window, provider and model."""
    used: dict[UUID, dict[tuple[int, str, str], Consumption]] = {}
    for record in fetched:
        used.setdefault(record["tenant_id"], {})[record["window_key"], record["provider"], record["model_name"]] = (
            Consumption(record["requests"], record["tokens"], record["cost_usd"])
        )
    return used


def _columns(tiles: Iterable[Tile]) -> tuple[list[str], list[datetime], list[datetime]]:
    covering = list(tiles)
    return [one.grain.label for one in covering], [one.start for one in covering], [one.end for one in covering]


def _failure_position(after: AfterFailure | None) -> Sequence[Any]:
    if after is None:
        return (None, None, None, None, None)
    key = after.key
    return (after.occurrences, key.provider, key.model, key.status, key.error_class)


def _model_usage(record: Record) -> ModelUsage:
    return ModelUsage(
        provider=record["provider"],
        model=record["model_name"],
        outcomes=Outcomes(
            requests=record["requests"],
            attempts=record["attempts"],
            succeeded=record["succeeded"],
            failed=record["attempts"] - record["succeeded"] - record["rate_limited"] - record["cancelled"],
            rate_limited=record["rate_limited"],
            cancelled=record["cancelled"],
            absorbed=record["absorbed"],
        ),
        tokens=TokenCounts(
            input_tokens=record["input_tokens"],
            output_tokens=record["output_tokens"],
            cached_read_tokens=record["cached_read_tokens"],
            cached_write_tokens=record["cached_write_tokens"],
            reasoning_tokens=record["reasoning_tokens"],
        ),
        cost=_cost(record),
        latency=_durations(record, "latency"),
        first_token=_durations(record, "first_token"),
    )


def _durations(record: Record, name: str) -> Durations:
    counts = packed_histogram.unpacked(record[f"{name}_histogram"])
    return Durations(sum(counts), record[f"{name}_sum_ms"], counts)


def _cost(record: Record) -> Cost:
    return Cost(
        exact_usd=record["exact_usd"],
        estimated_usd=record["estimated_usd"],
        unpriced_attempts=record["unpriced_attempts"],
        unpriced_tokens=record["unpriced_tokens"],
    )


def _daily_cost(record: Record, days: Sequence[date]) -> DailyCost:
    return DailyCost(
        day=days[record["number"] - 1],
        provider=record["provider"],
        requests=record["requests"],
        total_tokens=record["total_tokens"],
        cost=_cost(record),
    )


def _failure(record: Record) -> Failure:
    return Failure(
        key=FailureKey(
            record["provider"], record["model_name"], AttemptStatus(record["status"]), record["error_class"]
        ),
        occurrences=record["occurrences"],
        absorbed=record["absorbed"],
        first_seen=record["first_seen"],
        last_seen=record["last_seen"],
        cost=_cost(record),
        sample_message=record["sample_message"],
    )
