"""The ledger's rows in Postgres: every event once, together with its share in every rollup."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import msgspec

from service_runtime.faults import SABOTAGE_DELAY_S, CrashPoint, Sabotage, crash_point, is_sabotaged
from service_runtime.ids import uuid7
from service_runtime.postgres import Postgres, load_queries
from usage_service.domain.pricing import PricingState
from usage_service.domain.usage_event import ReportedEvent, UsageEvent
from usage_service.metering.ports import (
    AlreadyStored,
    Inserted,
    LedgerRow,
    NotStoredNow,
    StoreOutcome,
    Unstorable,
)
from usage_service.storage.partitions import Partitions
from usage_service.storage.server_faults import SERVER_FAULTS, cannot_write

if TYPE_CHECKING:
    from asyncpg import Record

    from service_runtime.postgres import Connection

# The temp table costs about a millisecond per transaction; from about here on COPY saves more than that.
COPY_FROM_ROWS = 300
_ATTEMPTS = 6
_FIRST_RETRY_S = 0.01
_encode_json = msgspec.json.Encoder().encode
_RANDOM_BITS = (1 << 62) - 1  # of a UUIDv7; before them come its version and its time, which is the row's

_COLUMNS = (
    "id", "tenant_id", "user_id", "provider", "model_name", "endpoint", "timestamp", "latency_ms", "input_tokens",
    "output_tokens", "total_tokens", "estimated_cost_usd", "status", "error_message", "metadata", "request_id",
    "attempt", "requested_model", "error_class", "absorbed", "funding", "cached_read_tokens", "cached_write_tokens",
    "reasoning_tokens", "usage_source", "first_token_ms", "price_id", "pricing_state", "provider_cost_usd",
    "router_id", "router_epoch", "router_sequence", "content_hash",
)  # fmt: skip

_QUERIES = load_queries(Path(__file__).with_name("ingest.sql"))
_INGEST_COPIED = _QUERIES["ingest"].replace("{stage}", _QUERIES["stage_from_copy"])
_INGEST_ARRAYS = _QUERIES["ingest"].replace("{stage}", _QUERIES["stage_from_arrays"])

# Another transaction was in the way; the same statements succeed when tried again.
_PASSING: tuple[type[Exception], ...] = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.InvalidCachedStatementError,
)
# The values are at fault; the same statement fails forever.
_DATA_FAULTS: tuple[type[Exception], ...] = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.UntranslatableCharacterError,
)


class PostgresLedger:
    """Stores rows and rollups in one transaction per batch."""

    def __init__(self, postgres: Postgres, *, partitions: Partitions, jitter: Callable[[], float]) -> None:
        """`jitter` returns a number from 0 to 1; it spreads the retries of writers that met."""
        self._postgres = postgres
        self._partitions = partitions
        self._jitter = jitter
        self._promised: list[asyncio.Task[None]] = []  # only under sabotage

    async def store(self, rows: Sequence[LedgerRow]) -> list[StoreOutcome]:
        """Store rows with distinct keys; see `metering.ports.Ledger`.

        A batch that the database refuses for its values is halved until the culprits stand alone; the rest is stored.
        """
        if not rows:
            return []
        times = [row.event.used_at for row in rows]
        await self._partitions.cover(min(times), max(times))
        if is_sabotaged(Sabotage.ACKNOWLEDGE_BEFORE_COMMIT):
            self._promised.append(asyncio.create_task(self._store_later(rows), name="store what was acknowledged"))
            return [Inserted()] * len(rows)
        return await self._store_or_halve(rows, [_record(row) for row in rows])

    async def _store_later(self, rows: Sequence[LedgerRow]) -> None:
        await asyncio.sleep(SABOTAGE_DELAY_S)
        await self._store_or_halve(rows, [_record(row) for row in rows])

    async def _store_or_halve(
        self, rows: Sequence[LedgerRow], records: Sequence[tuple[Any, ...]]
    ) -> list[StoreOutcome]:
        try:
            return await self._store_with_retries(rows, records)
        except _DATA_FAULTS as error:
            if len(rows) > 1:
                middle = len(rows) // 2
                first_half = await self._store_or_halve(rows[:middle], records[:middle])
                return first_half + await self._store_or_halve(rows[middle:], records[middle:])
            if isinstance(error, asyncpg.CheckViolationError) and not error.constraint_name:
                # No partition holds the time: it was dropped between our check and the insert, or somebody else did it.
                self._partitions.forget()
                return [NotStoredNow("the ledger has no partition for the usage time yet")]
            return [Unstorable(f"the database refuses the values: {_description(error)}")]

    async def _store_with_retries(
        self, rows: Sequence[LedgerRow], records: Sequence[tuple[Any, ...]]
    ) -> list[StoreOutcome]:
        for attempt in range(_ATTEMPTS):
            try:
                return await self._store_at_once(rows, records)
            except _PASSING:
                await asyncio.sleep(_FIRST_RETRY_S * 2**attempt * self._jitter())
            except SERVER_FAULTS as error:
                raise cannot_write(error) from error
        return [NotStoredNow(f"other writers were in the way {_ATTEMPTS} times")] * len(rows)

    async def _store_at_once(self, rows: Sequence[LedgerRow], records: Sequence[tuple[Any, ...]]) -> list[StoreOutcome]:
        crash_point(CrashPoint.INGEST_BEFORE_INSERT)
        async with self._postgres.transaction() as connection:
            inserted = await _insert(connection, records)
            outcomes: list[StoreOutcome]
            if len(inserted) == len(rows):
                outcomes = [Inserted()] * len(rows)
            else:
                outcomes = await _told_apart(connection, rows, {_key_of(record) for record in inserted})
            crash_point(CrashPoint.INGEST_BEFORE_COMMIT)
        crash_point(CrashPoint.INGEST_AFTER_COMMIT)
        return outcomes


# In the way of the insert, yet not there a moment later: its partition was dropped in between.
_VANISHED = NotStoredNow("the row that was in the way has gone")


async def _insert(connection: Connection, records: Sequence[tuple[Any, ...]]) -> list[Record]:
    """Insert and roll up; returns the keys that are new."""
    if len(records) >= COPY_FROM_ROWS:
        await connection.execute(_QUERIES["create_stage"])
        await connection.copy_records_to_table(
            "usage_stage", schema_name="pg_temp", records=records, columns=list(_COLUMNS)
        )
        return await connection.fetch(_INGEST_COPIED)
    return await connection.fetch(_INGEST_ARRAYS, *zip(*records, strict=True))


def _key_of(record: Record) -> int:
    """`UsageEvent.key` of a row."""
    key: int = record["id"].int << 128 | record["tenant_id"].int
    return key


async def _told_apart(connection: Connection, rows: Sequence[LedgerRow], inserted: set[int]) -> list[StoreOutcome]:
    """The outcome of each row, given the keys of those that are new."""
    held = await _find_stored(connection, [row for row in rows if row.event.key not in inserted])
    return [Inserted() if row.event.key in inserted else held.get(row.event.key, _VANISHED) for row in rows]


async def _find_stored(connection: Connection, rows: Sequence[LedgerRow]) -> dict[int, StoreOutcome]:
    times = [row.event.used_at for row in rows]
    fetched = await connection.fetch(
        _QUERIES["find_stored"],
        [row.event.tenant_id for row in rows],
        times,
        [row.event.event_id for row in rows],
        min(times),
        max(times),
    )
    return {
        _key_of(record): AlreadyStored(
            content_hash=record["content_hash"],
            cost_usd=record["estimated_cost_usd"],
            pricing_state=PricingState(record["pricing_state"]),
            router_epoch=record["router_epoch"],
        )
        for record in fetched
    }


def _record(row: LedgerRow) -> tuple[Any, ...]:
    """The row's values in the order of `_COLUMNS`. Ids go as the text that they came as, which asyncpg encodes in C."""
    event, (pricing_state, cost_usd, price_id), content_hash, router_id, router_epoch = row
    reported = event.reported
    # All at once and by place: this is done for every event, and so takes half the time.
    (
        _, tenant_id, request_id, attempt, provider, model, requested_model, endpoint, user_id, status, error_class,
        error_message, absorbed, tokens, usage_source, funding, latency_ms, first_token_ms, _, _, sequence, _, _,
    ) = reported  # fmt: skip
    input_tokens, output_tokens, cached_read_tokens, cached_write_tokens, reasoning_tokens = tokens
    return (
        _key(event), tenant_id, user_id, provider, model, endpoint, event.used_at, latency_ms, input_tokens,
        output_tokens, sum(tokens), cost_usd, status, error_message or None, _metadata(reported), request_id,
        attempt, requested_model, error_class, absorbed, funding, cached_read_tokens, cached_write_tokens,
        reasoning_tokens, usage_source, first_token_ms, price_id, pricing_state, event.provider_cost_usd,
        router_id, router_epoch, sequence, content_hash,
    )  # fmt: skip


def _key(event: UsageEvent) -> str:
    """The row's id, which is the event's: what is resent finds its row taken."""
    if is_sabotaged(Sabotage.NO_DEDUPE):
        return str(UUID(int=event.id_bits ^ uuid7().int & _RANDOM_BITS))
    return event.reported.event_id


def _metadata(reported: ReportedEvent) -> str:
    """What has no column of its own: labels, task_type and decision, each only when it is there."""
    if not (reported.labels or reported.task_type or reported.decision):
        return "{}"
    fields: dict[str, object] = {}
    if reported.labels:
        fields["labels"] = reported.labels
    if reported.task_type:
        fields["task_type"] = reported.task_type
    if reported.decision:
        fields["decision"] = reported.decision
    return _encode_json(fields).decode()


def _description(error: Exception) -> str:
    """What the database says of the values. Its own words name the column and the rule, and quote no prompt."""
    return str(error).partition("\n")[0][:300]
