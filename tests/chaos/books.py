"""Reads the ledger's tables with SQL of the checker's own: what the services' queries say of them proves nothing."""

from __future__ import annotations

import asyncpg

from tests.chaos.witnesses import Books, Row, Tokens

_ROWS = """
SELECT id, request_id, tenant_id, attempt, provider, model_name, status, absorbed, usage_source, input_tokens,
       output_tokens, cached_read_tokens, cached_write_tokens, reasoning_tokens, total_tokens, estimated_cost_usd,
       router_id, router_epoch, router_sequence
FROM model_usage_stats
ORDER BY router_id, router_epoch, router_sequence
"""

_KEPT_ASIDE = "SELECT disposition || ' ' || event_id || ' ' || reason AS what FROM usage_events_rejected ORDER BY 1"

_GRAINS = ("minute", "hour", "day")
_ROLLUP_DIFFERENCES = """
WITH counted AS (
    SELECT tenant_id, date_trunc('{grain}', "timestamp", 'UTC') AS bucket, provider, model_name, status, error_class,
           funding, absorbed, usage_source,
           count(*) AS attempts, sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
           sum(cached_read_tokens) AS cached_read_tokens, sum(cached_write_tokens) AS cached_write_tokens,
           sum(reasoning_tokens) AS reasoning_tokens, coalesce(sum(estimated_cost_usd), 0) AS cost_usd,
           count(*) FILTER (WHERE pricing_state = 'unpriced') AS unpriced_attempts,
           count(latency_ms) AS latency_count, coalesce(sum(latency_ms), 0) AS latency_sum_ms,
           count(first_token_ms) AS first_token_count, coalesce(sum(first_token_ms), 0) AS first_token_sum_ms
    FROM model_usage_stats
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
), kept AS (
    -- The counts are the digits in base 10^12, and a number leaves the remainder of its digits' sum.
    SELECT *, mod(latency_histogram, 999999999999) AS in_histogram,
           mod(first_token_histogram, 999999999999) AS in_first_token_histogram
    FROM usage_rollup_{grain}
)
SELECT '{grain} rollup of ' || concat_ws(' ', tenant_id, bucket, provider, model_name, status, error_class, funding,
                                        absorbed, usage_source)
       || ': the rows give ' || coalesce(counted.attempts, 0) || ' attempts, it says ' || coalesce(kept.attempts, 0)
       || ' (or one of its other sums differs)' AS what
FROM counted
FULL JOIN kept
USING (tenant_id, bucket, provider, model_name, status, error_class, funding, absorbed, usage_source)
WHERE (counted.attempts, counted.input_tokens, counted.output_tokens, counted.cached_read_tokens,
       counted.cached_write_tokens, counted.reasoning_tokens, counted.cost_usd, counted.unpriced_attempts,
       counted.latency_count, counted.latency_sum_ms, counted.latency_count, counted.first_token_count,
       counted.first_token_sum_ms, counted.first_token_count)
      IS DISTINCT FROM
      (kept.attempts, kept.input_tokens, kept.output_tokens, kept.cached_read_tokens,
       kept.cached_write_tokens, kept.reasoning_tokens, kept.cost_usd, kept.unpriced_attempts,
       kept.latency_count, kept.latency_sum_ms, kept.in_histogram, kept.first_token_count,
       kept.first_token_sum_ms, kept.in_first_token_histogram)
ORDER BY 1
"""


async def read_books(dsn: str) -> Books:
    """Everything that the checker needs to know of the tables."""
    connection = await asyncpg.connect(dsn, timeout=30, command_timeout=120)
    try:
        rows = [_row(record) for record in await connection.fetch(_ROWS)]
        kept_aside = [str(record["what"]) for record in await connection.fetch(_KEPT_ASIDE)]
        differences = [
            str(record["what"])
            for grain in _GRAINS
            for record in await connection.fetch(_ROLLUP_DIFFERENCES.format(grain=grain))
        ]
    finally:
        await connection.close(timeout=10)
    return Books(rows, kept_aside, differences)


def _row(record: asyncpg.Record) -> Row:
    return Row(
        id=str(record["id"]),
        request_id=str(record["request_id"]),
        tenant_id=str(record["tenant_id"]),
        attempt=record["attempt"],
        provider=record["provider"],
        model=record["model_name"],
        status=record["status"],
        absorbed=record["absorbed"],
        usage_source=record["usage_source"],
        tokens=Tokens(
            record["input_tokens"],
            record["output_tokens"],
            record["cached_read_tokens"],
            record["cached_write_tokens"],
            record["reasoning_tokens"],
        ),
        total_tokens=record["total_tokens"],
        cost_usd=record["estimated_cost_usd"],
        router_id=record["router_id"],
        epoch=record["router_epoch"],
        sequence=record["router_sequence"],
    )
