"""Corrections in Postgres: a row's cost, its adjustment and its share in every rollup change together or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg

from service_runtime.errors import Category, ServiceError
from service_runtime.postgres import Postgres, load_queries
from usage_service.domain.pricing import PricedUsage, PricingState, TokenCounts
from usage_service.domain.repricing import (
    Adjustment,
    BookedUsage,
    Correction,
    RollupChange,
    RollupKey,
    rollup_changes,
)
from usage_service.domain.window import Grain, Window
from usage_service.metering.repricing import AfterAdjustment, Decide, RepriceJob, RepriceScope, RowPosition

if TYPE_CHECKING:
    from service_runtime.postgres import Connection

_QUERIES = load_queries(Path(__file__).with_name("corrections.sql"))
_READ_ROWS = _QUERIES["read_rows"]
_LOCK_ROWS = f"{_READ_ROWS} {_QUERIES['lock_rows']}"
# In the order in which ingest comes to them.
_GRAINS = (Grain.DAY, Grain.HOUR, Grain.MINUTE)

_ATTEMPTS = 6
_FIRST_RETRY_S = 0.01
_LAST_UUID = UUID(int=2**128 - 1)
_PASSING: tuple[type[Exception], ...] = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.InvalidCachedStatementError,
)
_SERVER_FAULTS: tuple[type[Exception], ...] = (
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,
)


class PostgresBookedRows:
    """The rows and what was corrected of them, as `metering.repricing.BookedRows` wants them."""

    def __init__(self, postgres: Postgres, *, jitter: Callable[[], float]) -> None:
        """`jitter` returns a number from 0 to 1; it spreads the retries of writers that met."""
        self._postgres = postgres
        self._jitter = jitter

    async def next_day(self, scope: RepriceScope, after: RowPosition) -> tuple[UUID, datetime] | None:
        async with self._postgres.acquire() as connection:
            found = await connection.fetchrow(
                _QUERIES["next_day"],
                after.tenant_id,
                Grain.DAY.floor(after.used_at),
                scope.tenant_id,
                Grain.DAY.floor(scope.window.start),
                scope.window.end,
                scope.provider,
                scope.model,
            )
        return None if found is None else (found["tenant_id"], found["bucket"])

    async def read(self, scope: RepriceScope, day: Window, after: RowPosition, *, limit: int) -> list[BookedUsage]:
        async with self._postgres.acquire() as connection:
            return await _rows(connection, _READ_ROWS, scope, day, after, limit=limit)

    async def correct(
        self, job: RepriceJob, day: Window, after: RowPosition, *, limit: int, decide: Decide
    ) -> tuple[Sequence[BookedUsage], Sequence[Correction]]:
        for attempt in range(_ATTEMPTS):
            try:
                return await self._correct_at_once(job, day, after, limit, decide)
            except _PASSING:
                await asyncio.sleep(_FIRST_RETRY_S * 2**attempt * self._jitter())
            except _SERVER_FAULTS as error:
                raise ServiceError(
                    Category.UNAVAILABLE,
                    "DATABASE_UNAVAILABLE",
                    f"the database cannot correct rows now ({type(error).__name__}); go on later with the same token",
                    retry_after_s=1.0,
                ) from error
        raise ServiceError(
            Category.RESOURCE_EXHAUSTED,
            "LEDGER_BUSY",
            f"other writers were in the way {_ATTEMPTS} times; go on later with the same token",
            retry_after_s=1.0,
        )

    async def adjustments(
        self, tenant_id: UUID, window: Window, *, job_id: UUID | None, after: AfterAdjustment | None, limit: int
    ) -> list[Adjustment]:
        # Every adjustment of the window comes before its end.
        last = after or AfterAdjustment(window.end, _LAST_UUID, 0)
        async with self._postgres.acquire() as connection:
            fetched = await connection.fetch(
                _QUERIES["adjustments"],
                tenant_id,
                window.start,
                window.end,
                job_id,
                last.used_at,
                last.event_id,
                last.revision,
                limit,
            )
        return [_adjustment(record) for record in fetched]

    async def _correct_at_once(
        self, job: RepriceJob, day: Window, after: RowPosition, limit: int, decide: Decide
    ) -> tuple[Sequence[BookedUsage], Sequence[Correction]]:
        async with self._postgres.transaction() as connection:
            rows = await _rows(connection, _LOCK_ROWS, job.scope, day, after, limit=limit)
            corrections = decide(rows)
            if corrections:
                await _correct_rows(connection, job, day, corrections)
                for grain in _GRAINS:
                    await _change_rollups(connection, grain, after.tenant_id, rollup_changes(corrections, grain))
        return rows, corrections


async def _rows(
    connection: Connection, query: str, scope: RepriceScope, day: Window, after: RowPosition, *, limit: int
) -> list[BookedUsage]:
    fetched = await connection.fetch(
        query, after.tenant_id, day.start, day.end, after.used_at, after.event_id, scope.provider, scope.model, limit
    )
    return [_booked_usage(record) for record in fetched]


async def _correct_rows(
    connection: Connection, job: RepriceJob, day: Window, corrections: Sequence[Correction]
) -> None:
    columns = zip(
        *(
            (
                one.usage.used_at,
                one.usage.event_id,
                one.usage.provider,
                one.usage.model,
                one.usage.priced.state,
                one.usage.priced.price_id,
                one.usage.priced.cost_usd,
                one.corrected.state,
                one.corrected.price_id,
                one.corrected.cost_usd,
                one.delta_usd,
            )
            for one in corrections
        ),
        strict=True,
    )
    tenant_id = corrections[0].usage.tenant_id
    await connection.execute(_QUERIES["correct_rows"], tenant_id, *columns, job.reason, job.job_id, day.start, day.end)


async def _change_rollups(
    connection: Connection, grain: Grain, tenant_id: UUID, changes: Mapping[RollupKey, RollupChange]
) -> None:
    """Change what is kept of the rollup; only days are kept for good."""
    keys = list(zip(*changes, strict=True))
    amounts = zip(
        *((change.cost_usd, change.unpriced_attempts, change.unpriced_tokens) for change in changes.values()),
        strict=True,
    )
    await connection.execute(_QUERIES["lock_rollups"].replace("{grain}", grain.label), tenant_id, *keys)
    changed = await connection.fetchval(
        _QUERIES["change_rollups"].replace("{grain}", grain.label), tenant_id, *keys, *amounts
    )
    if grain is Grain.DAY and changed != len(changes):
        raise ServiceError(
            Category.FAILED_PRECONDITION,
            "LEDGER_UNBALANCED",
            f"{len(changes) - changed} of {len(changes)} day rollups of tenant {tenant_id} that rows belong to are "
            "missing; nothing was changed here: verify the ledger and mend its rollups, then reprice",
            metadata={"tenant_id": str(tenant_id)},
        )


def _booked_usage(record: asyncpg.Record) -> BookedUsage:
    return BookedUsage(
        tenant_id=record["tenant_id"],
        event_id=record["id"],
        used_at=record["timestamp"],
        provider=record["provider"],
        model=record["model_name"],
        status=record["status"],
        error_class=record["error_class"],
        funding=record["funding"],
        absorbed=record["absorbed"],
        usage_source=record["usage_source"],
        tokens=TokenCounts(
            record["input_tokens"],
            record["output_tokens"],
            record["cached_read_tokens"],
            record["cached_write_tokens"],
            record["reasoning_tokens"],
        ),
        priced=PricedUsage(PricingState(record["pricing_state"]), record["estimated_cost_usd"], record["price_id"]),
    )


def _adjustment(record: asyncpg.Record) -> Adjustment:
    return Adjustment(
        event_id=record["event_id"],
        used_at=record["timestamp"],
        revision=record["revision"],
        provider=record["provider"],
        model=record["model_name"],
        old_cost_usd=record["old_cost_usd"],
        old_price_id=record["old_price_id"],
        new_cost_usd=record["new_cost_usd"],
        new_price_id=record["new_price_id"],
        delta_usd=record["delta_usd"],
        reason=record["reason"],
        job_id=record["job_id"],
        created_at=record["created_at"],
    )
