"""Recounts of the ledger in Postgres, each on a snapshot of its own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from service_runtime.postgres import Postgres
from usage_service.domain import histogram
from usage_service.domain.audit import AuditPart, CheckResult, Discrepancy, LedgerCheck, Results
from usage_service.domain.window import Grain, Window
from usage_service.metering.auditing import HeldRows
from usage_service.storage.audit_checks import QUERIES, bounded, counted
from usage_service.storage.journal_audit import verify_journals
from usage_service.storage.partitions import held_weeks, week_of

if TYPE_CHECKING:
    from asyncpg import Record

    from service_runtime.postgres import Connection

_WEEK = timedelta(weeks=1)
# A request's attempts follow one another within its deadline.
_LONGEST_REQUEST = timedelta(hours=1)
_ROLLUPS = {
    LedgerCheck.MINUTE_ROLLUP: ("usage_rollup_minute", "1 minute"),
    LedgerCheck.HOUR_ROLLUP: ("usage_rollup_hour", "1 hour"),
    LedgerCheck.DAY_ROLLUP: ("usage_rollup_day", "1 day"),
}
_LABELS = ("bucket", "provider", "model_name", "status", "error_class", "funding", "absorbed", "usage_source")


class PostgresAudit:
    """The ledger, as `metering.auditing.AuditStore` wants it. `postgres` should be a pool for audits alone."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def held_rows(self, now: datetime, raw_retention: timedelta | None) -> HeldRows:
        async with self._postgres.acquire() as connection:
            weeks = await held_weeks(connection)
        oldest = _monday(min(weeks)) if weeks else Grain.DAY.floor(now)
        if raw_retention is None:
            return HeldRows(oldest, some_were_dropped=False)
        # A day of room: a week that retention drops meanwhile must not look like a hole.
        first_kept = _monday(week_of(now - raw_retention + timedelta(days=1)))
        return HeldRows(max(oldest, first_kept), some_were_dropped=oldest <= first_kept)

    async def tenants_after(self, tenant_id: UUID, window: Window, *, limit: int) -> list[UUID]:
        # Whole weeks, which are whole partitions: a tenant is then found by one probe of an index.
        first, end = _monday(week_of(window.start)), _monday(week_of(window.end)) + _WEEK
        async with self._postgres.acquire() as connection:
            fetched = await connection.fetch(QUERIES["tenants_after"], tenant_id, first, end, limit)
        return [record["tenant_id"] for record in fetched]

    async def rows_by_day(self, tenant_id: UUID, window: Window) -> Mapping[datetime, int]:
        async with self._postgres.acquire() as connection:
            fetched = await connection.fetch(QUERIES["rows_by_day"], tenant_id, window.start, window.end)
        return {record["bucket"]: record["attempts"] for record in fetched}

    async def verify_part(self, part: AuditPart, *, most: int) -> Results:
        async with self._snapshot() as connection:
            return {
                check: await bounded(connection, part.name, partial(verify, connection, part, most))
                for check, verify in _CHECKS.items()
            }

    async def verify_journals(
        self, window: Window, held: HeldRows, *, now: datetime, open_since: datetime, accept_back: timedelta, most: int
    ) -> Results:
        async with self._snapshot() as connection:
            return await verify_journals(
                connection, window, held, now=now, open_since=open_since, accept_back=accept_back, most=most
            )

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[bool]:
        # The lock is the session's, and goes when the pool takes the connection back.
        async with self._postgres.acquire() as connection:
            yield await connection.fetchval(QUERIES["try_lock"])

    @asynccontextmanager
    async def _snapshot(self) -> AsyncIterator[Connection]:
        async with (
            self._postgres.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            yield connection


def _rollup_check(check: LedgerCheck) -> Callable[[Connection, AuditPart, int], Awaitable[CheckResult]]:
    rollup, width = _ROLLUPS[check]
    query = QUERIES["rollup"].replace("{rollup}", rollup).replace("{width}", width)

    async def verify(connection: Connection, part: AuditPart, most: int) -> CheckResult:
        since = {
            LedgerCheck.MINUTE_ROLLUP: part.minutes_since,
            LedgerCheck.HOUR_ROLLUP: part.hours_since,
        }.get(check, part.window.start)
        start = max(part.window.start, since)
        if start >= part.window.end:
            return CheckResult()
        fetched = await connection.fetch(query, part.tenant_id, start, part.window.end, most)
        grain = check.value.removesuffix("_rollup")
        return counted(fetched, lambda record: _rollup_discrepancy(part.tenant_id, grain, record), "wrong")

    return verify


def _rollup_discrepancy(tenant_id: UUID, grain: str, record: Record) -> Discrepancy:
    recounted, stored = _sums(record["recounted"]), _sums(record["stored"])
    labels = recounted or stored or {}
    key = " ".join(f"{name}={labels[name]}" for name in _LABELS)
    if recounted is None:
        return Discrepancy(f"tenant {tenant_id} {grain} {key}", "no bucket: it has no row", _summary(stored))
    if stored is None:
        return Discrepancy(f"tenant {tenant_id} {grain} {key}", _summary(recounted), "no bucket")
    columns = [name for name in recounted if recounted[name] != stored[name]]
    return Discrepancy(f"tenant {tenant_id} {grain} {key}", _listed(recounted, columns), _listed(stored, columns))


def _sums(text: str | None) -> dict[str, Any] | None:
    sums: dict[str, Any] | None = None if text is None else json.loads(text, parse_float=Decimal)
    return sums


def _listed(sums: dict[str, Any], columns: list[str]) -> str:
    return ", ".join(f"{name}={_readable(name, sums[name])}" for name in columns)


def _readable(column: str, value: Any) -> str:
    """A histogram as its buckets that have a count, anything else as it is."""
    if not column.endswith("_histogram"):
        return str(value)
    counts = enumerate(histogram.unpacked(Decimal(value)))
    return "{" + ", ".join(f"{bucket}: {count}" for bucket, count in counts if count) + "}"


def _summary(sums: dict[str, Any] | None) -> str:
    return "" if sums is None else f"attempts={sums['attempts']}, cost_usd={sums['cost_usd']}"


async def _verify_costs(connection: Connection, part: AuditPart, most: int) -> CheckResult:
    def discrepancy(record: Record) -> Discrepancy:
        due = "price x tokens" if record["due_usd"] is None else f"{record['due_usd']:f}"
        state = record["pricing_state"]
        expected = {
            "priced": due if record["price_applies"] else f"a price that holds for the row, not {record['price_id']}",
            "unpriced": "no cost, no price, and tokens",
            "nothing_consumed": "cost 0, no price, and no tokens",
        }.get(state, "a known pricing state")
        cost = "no cost" if record["cost_usd"] is None else f"{record['cost_usd']:f}"
        return Discrepancy(_row_key(part, record), expected, f"{state}, {cost}, price {record['price_id']}")

    return counted(await _fetch(connection, "costs", part, most), discrepancy, "id")


async def _verify_adjustments(connection: Connection, part: AuditPart, most: int) -> CheckResult:
    def discrepancy(record: Record) -> Discrepancy:
        key = f"tenant {part.tenant_id} event {record['event_id']} revision {record['revision']}"
        if record["is_last"]:
            return Discrepancy(key, f"the row's cost, {record['cost_usd']}", f"{record['new_cost_usd']}")
        return Discrepancy(key, "what the revision before it left", "another beginning, or a missing revision")

    return counted(await _fetch(connection, "adjustments", part, most), discrepancy, "event_id")


async def _verify_rows(connection: Connection, part: AuditPart, most: int) -> CheckResult:
    def discrepancy(record: Record) -> Discrepancy:
        if record["total_tokens"] != record["class_tokens"]:
            return Discrepancy(
                _row_key(part, record), f"total_tokens={record['class_tokens']}", f"{record['total_tokens']}"
            )
        return Discrepancy(_row_key(part, record), f"the time in its id, {record['id_time']}", f"{record['timestamp']}")

    return counted(await _fetch(connection, "rows", part, most), discrepancy, "id")


async def _verify_final_attempts(connection: Connection, part: AuditPart, most: int) -> CheckResult:
    def discrepancy(record: Record) -> Discrepancy:
        key = f"tenant {part.tenant_id} request {record['request_id']}"
        return Discrepancy(key, "1 attempt that was not absorbed", f"{record['finals']}")

    fetched = await _fetch(connection, "final_attempts", part, most, part.window.start - _LONGEST_REQUEST)
    return counted(fetched, discrepancy, "request_id")


async def _fetch(connection: Connection, query: str, part: AuditPart, most: int, *more: object) -> list[Record]:
    return await connection.fetch(QUERIES[query], part.tenant_id, part.window.start, part.window.end, most, *more)


def _row_key(part: AuditPart, record: Record) -> str:
    return f"tenant {part.tenant_id} event {record['id']} at {record['timestamp']:%Y-%m-%dT%H:%M:%S.%fZ}"


def _monday(week: date) -> datetime:
    return datetime(week.year, week.month, week.day, tzinfo=UTC)


_CHECKS: Mapping[LedgerCheck, Callable[[Connection, AuditPart, int], Awaitable[CheckResult]]] = {
    **{check: _rollup_check(check) for check in _ROLLUPS},
    LedgerCheck.COST: _verify_costs,
    LedgerCheck.ADJUSTMENTS: _verify_adjustments,
    LedgerCheck.ROW: _verify_rows,
    LedgerCheck.FINAL_ATTEMPT: _verify_final_attempts,
}
