"""A month of ledger, made inside the database: rows from a random generator, rollups by the service's own statement.

The statement is handed days instead of batches, so that a rollup row is written once or a few times and not by every
event: millions of rows take minutes. What it leaves is recounted once all rows are there.
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncpg

import usage_service.storage.events as storage
from service_runtime.postgres import Postgres, load_queries
from tests.bench.ledger_events import MODELS, TENANTS, ZIPF_EXPONENT
from tests.bench.processes import BenchFailed
from usage_service.storage.partitions import Partitions

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

DAYS: Final = 30
# Beside the others: one tenant with few models and a fixed number of rows, or half of all where these are too few.
FIXED_TENANT: Final = TENANTS
FIXED_TENANT_ROWS: Final = 150_000
FIXED_TENANT_MODELS: Final = 4
_MINUTES_KEPT: Final = timedelta(hours=48)
_CHUNK_ROWS: Final = 400_000

_INGEST: Final = load_queries(Path(storage.__file__).with_name("ingest.sql"))["ingest"]
_RESULT: Final = "SELECT tenant_id, id FROM inserted"  # what is stored; nobody asks here
assert _RESULT in _INGEST

_ROWS: Final = """(
    SELECT
        (lpad(to_hex(unix_ms), 12, '0') || '7' || substr(hash, 1, 3) || '8' || substr(hash, 4, 15))::uuid AS id,
        ('00000000-0000-4000-8000-' || lpad(to_hex(tenant), 12, '0'))::uuid AS tenant_id,
        'user-' || unix_ms % 1000 AS user_id,
        event.provider,
        event.model_name,
        '/chat' AS endpoint,
        'epoch'::timestamptz + unix_ms * interval '1 millisecond' AS "timestamp",
        latency_ms,
        input_tokens,
        output_tokens,
        input_tokens + output_tokens AS total_tokens,
        CASE WHEN was_answered
            THEN (input_tokens * price.input_usd + output_tokens * price.output_usd) / 1000000 ELSE 0
        END AS estimated_cost_usd,
        status,
        CASE WHEN status <> 'success' THEN 'the provider did not answer as it should' END AS error_message,
        '{"labels": {"team": "search"}, "task_type": "chat"}'::jsonb AS metadata,
        hash::uuid AS request_id,
        1::smallint AS attempt,
        '' AS requested_model,
        error_class,
        status <> 'success' AND unix_ms % 2 = 0 AS absorbed,
        CASE WHEN tenant % 2 = 0 THEN 'tenant_key' ELSE 'system_key' END AS funding,
        0 AS cached_read_tokens,
        0 AS cached_write_tokens,
        0 AS reasoning_tokens,
        CASE WHEN was_answered THEN 'provider' ELSE 'none' END AS usage_source,
        CASE WHEN was_answered THEN latency_ms / 4 END AS first_token_ms,
        CASE WHEN was_answered THEN price.id END AS price_id,
        CASE WHEN NOT was_answered THEN 'nothing_consumed' WHEN price.id IS NULL THEN 'unpriced' ELSE 'priced'
        END AS pricing_state,
        NULL::numeric AS provider_cost_usd,
        'bench' AS router_id,
        '1' AS router_epoch,
        0::bigint AS router_sequence,
        decode(hash, 'hex') AS content_hash
    FROM (
        SELECT unix_ms, hash, tenant, latency_ms, outcome[1] AS status, outcome[2] AS error_class,
            ($9::text[])[model_number + 1] AS provider,
            ($10::text[])[model_number + 1] AS model_name,
            outcome[1] = 'success' AS was_answered,
            CASE WHEN outcome[1] = 'success' THEN input_tokens ELSE 0 END AS input_tokens,
            CASE WHEN outcome[1] = 'success' THEN output_tokens ELSE 0 END AS output_tokens
        FROM (
            SELECT
                $1::bigint + floor(random() * $2::bigint)::bigint AS unix_ms,
                md5(random()::text || number) AS hash,
                CASE WHEN number <= $5::integer THEN $6::integer
                    ELSE width_bucket(random(), $7::double precision[])
                END AS tenant,
                least(600000, exp(6.8 + 0.9 * random_normal()))::integer AS latency_ms,
                20 + floor(random() * 3980)::bigint AS input_tokens,
                1 + floor(random() * 799)::bigint AS output_tokens,
                width_bucket(
                    random() * CASE WHEN number <= $5 THEN $11::double precision ELSE 1 END, $8::double precision[]
                ) AS model_number,
                random() AS chance
            FROM generate_series($3::integer, $4::integer) AS number
        ) AS drawn
        CROSS JOIN LATERAL (
            SELECT CASE
                WHEN chance < 0.95 THEN ARRAY['success', '']
                WHEN chance < 0.97 THEN ARRAY['error', 'overloaded']
                WHEN chance < 0.98 THEN ARRAY['error', 'timeout']
                WHEN chance < 0.995 THEN ARRAY['rate_limit', 'rate_limit']
                ELSE ARRAY['cancelled', '']
            END AS outcome
        ) AS ended
    ) AS event
    LEFT JOIN model_prices AS price ON price.provider = event.provider AND price.model_name IN (event.model_name, '*')
) AS stage"""


class History:
    """Fills a database with the ledger's schema. Grows; never shrinks."""

    def __init__(self, dsn: str, end: datetime) -> None:
        """The month ends at `end`."""
        self._dsn = dsn
        self._end = end
        self._connection: Connection
        self.rows = 0
        tenants = [(number + 1) ** -ZIPF_EXPONENT for number in range(TENANTS)]
        self._tenant_bounds = [part / sum(tenants) for part in itertools.accumulate(tenants)][:-1]
        models = [share for _, _, share in MODELS]
        self._model_bounds = [part / sum(models) for part in itertools.accumulate(models)][:-1]

    @classmethod
    async def on(cls, dsn: str) -> History:
        """An empty one, with its partitions."""
        end = datetime.now(UTC)
        owner = await Postgres.connect(dsn, min_size=0, max_size=1)
        await Partitions(owner).cover(end - timedelta(days=36), end + timedelta(days=15))
        await owner.close()
        history = cls(dsn, end)
        await history.open()
        return history

    async def open(self) -> None:
        """Connect, also after `close`."""
        self._connection = await asyncpg.connect(self._dsn)
        # How the rows came in is not measured here.
        await self._connection.execute("SET synchronous_commit = off; SET work_mem = '256MB'; SET jit = off")

    async def grow_to(self, rows: int) -> None:
        """Add rows all over the month until there are `rows`."""
        fixed = min(FIXED_TENANT_ROWS, rows // 2) - min(FIXED_TENANT_ROWS, self.rows // 2)
        missing = rows - self.rows
        day = self._end - timedelta(days=DAYS)
        for number in range(DAYS):
            start, count = day + timedelta(days=number), _share(missing, number)
            for first in range(0, count, _CHUNK_ROWS):
                chunk = min(_CHUNK_ROWS, count - first)
                fixed_rows = max(0, min(chunk, _share(fixed, number) - first))
                await self._add(start, chunk, fixed_rows)
        self.rows = rows

    async def _add(self, start: datetime, rows: int, fixed_rows: int) -> None:
        statement = _INGEST if start + timedelta(days=1) > self._end - _MINUTES_KEPT else _without_minutes(_INGEST)
        stored = await self._connection.execute(
            statement.replace("{stage}", _ROWS).replace(_RESULT, f"{_RESULT} LIMIT 0"),
            int(start.timestamp() * 1_000),
            86_400_000,
            1,
            rows,
            fixed_rows,
            FIXED_TENANT,
            self._tenant_bounds,
            self._model_bounds,
            [provider for provider, _, _ in MODELS],
            [model for _, model, _ in MODELS],
            self._model_bounds[FIXED_TENANT_MODELS - 1],
            timeout=600,
        )
        assert stored == "SELECT 0"

    async def finish(self) -> None:
        """Clean up as autovacuum would have, and recount. Raises BenchFailed when rows and rollups differ."""
        for table in ("model_usage_stats", "usage_rollup_minute", "usage_rollup_hour", "usage_rollup_day"):
            await self._connection.execute(f"VACUUM (ANALYZE) {table}", timeout=600)
        sums = "sum({}), sum(input_tokens), sum(output_tokens), sum({}), sum({})"
        raw = await self._connection.fetchrow(
            f"SELECT {sums.format('1', 'estimated_cost_usd', 'latency_ms')} FROM model_usage_stats", timeout=600
        )
        assert raw is not None
        for grain in ("hour", "day"):
            rollup = await self._connection.fetchrow(
                f"SELECT {sums.format('attempts', 'cost_usd', 'latency_sum_ms')} FROM usage_rollup_{grain}"
            )
            if tuple(raw) != tuple(rollup or ()):
                raise BenchFailed(f"{grain} rollups hold {rollup}, the rows {raw}")
        if raw[0] != self.rows:
            raise BenchFailed(f"{raw[0]} rows were stored, not {self.rows}")

    async def close(self) -> None:
        await self._connection.close()


def _share(total: int, number: int) -> int:
    """The part of `total` that falls on day `number`, so that all days together have exactly that."""
    return total * (number + 1) // DAYS - total * number // DAYS


def _without_minutes(statement: str) -> str:
    """For days whose minutes are gone by retention."""
    start, end = statement.index("minute_rollup AS ("), statement.index("by_hour AS (")
    return statement[:start] + statement[end:]
