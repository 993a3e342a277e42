"""What the ledger must hold after any sending of events, added up in plain Python integers.

Nothing of the service's arithmetic is used but the pure histogram's bounds. Costs are whole numbers of 10^-12 dollars:
a price of 0.59 dollars per million tokens is 590,000 of them a token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from turnpike.usage.v1 import token_usage_pb2 as token_pb
from turnpike.usage.v1 import usage_event_pb2 as event_pb
from usage_service.domain import histogram

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

# Input and output of the models of ledger_events in 10^-12 dollars a token, as the price list of a new ledger says.
PRICES: Final[Mapping[str, tuple[int, int] | None]] = {
    "llama-3.3-70b-versatile": (590_000, 790_000),
    "llama-3.1-70b-versatile": (590_000, 790_000),
    "mixtral-8x7b-32768": (240_000, 240_000),
    "deepseek/deepseek-r1": (550_000, 2_190_000),
    "anthropic/claude-3.5-sonnet": (3_000_000, 15_000_000),
    "google/gemini-pro-1.5": (1_250_000, 5_000_000),
    "gpt-4o-mini": (150_000, 600_000),
    "gpt-4o": (5_000_000, 15_000_000),
    "gpt-4-turbo": (10_000_000, 30_000_000),
    "llama3.2": (0, 0),
    "qwen2.5": (0, 0),
    "unheard-of": None,
}
GRAINS_MS: Final = {"minute": 60_000, "hour": 3_600_000, "day": 86_400_000}
_STATUS: Final = {
    event_pb.USAGE_STATUS_SUCCESS: "success",
    event_pb.USAGE_STATUS_ERROR: "error",
    event_pb.USAGE_STATUS_RATE_LIMIT: "rate_limit",
    event_pb.USAGE_STATUS_CANCELLED: "cancelled",
}
_SOURCE: Final = {token_pb.TOKEN_USAGE_SOURCE_PROVIDER: "provider", token_pb.TOKEN_USAGE_SOURCE_NONE: "none"}
_FUNDING: Final = {token_pb.FUNDING_TENANT_KEY: "tenant_key", token_pb.FUNDING_SYSTEM_KEY: "system_key"}
_FETCHED_AT_ONCE: Final = 20_000
_SHOWN: Final = 5

_ROLLUP_QUERY: Final = """
    SELECT tenant_id, (extract(epoch FROM bucket) * 1000)::bigint AS bucket_ms, provider, model_name, status,
        error_class, funding, absorbed, usage_source, attempts, input_tokens, output_tokens,
        cached_read_tokens + cached_write_tokens + reasoning_tokens AS other_tokens, cost_usd, provider_cost_usd,
        unpriced_attempts, unpriced_tokens, latency_count, latency_sum_ms, hist_counts(latency_histogram) AS latencies,
        first_token_count, first_token_sum_ms, hist_counts(first_token_histogram) AS first_tokens
    FROM usage_rollup_{grain}
"""


@dataclass(slots=True)
class Sums:
    """One rollup row."""

    attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: int = 0
    unpriced_attempts: int = 0
    unpriced_tokens: int = 0
    latencies_ms: Counter[int] = field(default_factory=Counter)
    first_tokens_ms: Counter[int] = field(default_factory=Counter)

    def as_row(self) -> tuple[Any, ...]:
        """The row's values in the order of the query."""
        return (
            self.attempts,
            self.input_tokens,
            self.output_tokens,
            0,
            Decimal(self.cost).scaleb(-12),
            Decimal(0),
            self.unpriced_attempts,
            self.unpriced_tokens,
            *_durations(self.latencies_ms),
            *_durations(self.first_tokens_ms),
        )


@dataclass(slots=True)
class LedgerModel:
    """Each event once, whatever was sent how often."""

    rows: dict[str, tuple[int, int | None]] = field(default_factory=dict)  # tokens and cost by event id
    rollups: dict[str, dict[tuple[Any, ...], Sums]] = field(default_factory=lambda: {grain: {} for grain in GRAINS_MS})

    def add(self, event: event_pb.UsageEvent) -> None:
        """Count an event that was not there yet."""
        assert event.event_id not in self.rows
        tokens = event.token_usage.input_tokens + event.token_usage.output_tokens
        price = PRICES[event.model]
        cost: int | None = 0
        if tokens:
            cost = price and event.token_usage.input_tokens * price[0] + event.token_usage.output_tokens * price[1]
            cost = None if price is None else cost
        self.rows[event.event_id] = (tokens, cost)
        unix_ms = int(event.event_id.replace("-", "")[:12], 16)
        labels = (
            event.provider,
            event.model,
            _STATUS[event.status],
            event.error_class,
            _FUNDING[event.funding],
            event.absorbed,
            _SOURCE[event.usage_source],
        )
        for grain, length_ms in GRAINS_MS.items():
            key = (event.tenant_id, unix_ms - unix_ms % length_ms, *labels)
            sums = self.rollups[grain].setdefault(key, Sums())
            sums.attempts += 1
            sums.input_tokens += event.token_usage.input_tokens
            sums.output_tokens += event.token_usage.output_tokens
            sums.cost += cost or 0
            sums.unpriced_attempts += cost is None
            sums.unpriced_tokens += tokens if cost is None else 0
            if event.HasField("latency"):
                sums.latencies_ms[event.latency.ToMilliseconds()] += 1
            if event.HasField("time_to_first_token"):
                sums.first_tokens_ms[event.time_to_first_token.ToMilliseconds()] += 1

    async def differences(self, connection: Connection) -> list[str]:
        """Where the database holds something else, to the last digit: the first few of each table. Empty when equal."""
        found = await _compare(
            "model_usage_stats",
            connection,
            "SELECT id, total_tokens, estimated_cost_usd FROM model_usage_stats",
            {
                (event_id,): (tokens, None if cost is None else Decimal(cost).scaleb(-12))
                for event_id, (tokens, cost) in self.rows.items()
            },
            key_columns=1,
        )
        for grain, rows in self.rollups.items():
            expected = {key: sums.as_row() for key, sums in rows.items()}
            found += await _compare(
                f"usage_rollup_{grain}", connection, _ROLLUP_QUERY.format(grain=grain), expected, key_columns=9
            )
        return found


async def _compare(
    table: str, connection: Connection, query: str, expected: dict[Any, tuple[Any, ...]], *, key_columns: int
) -> list[str]:
    found: list[str] = []
    async with connection.transaction():
        async for row in connection.cursor(query, prefetch=_FETCHED_AT_ONCE):
            values = [tuple(value) if isinstance(value, list) else value for value in row]
            key = (str(values[0]), *values[1:key_columns])
            wanted = expected.pop(key, None)
            if wanted != tuple(values[key_columns:]):
                found.append(f"{table} {key}: holds {values[key_columns:]}, should hold {wanted}")
    found += [f"{table} {key}: is missing" for key in expected]
    return found[:_SHOWN]


def _durations(counted: Counter[int]) -> Iterator[Any]:
    yield counted.total()
    yield sum(duration * number for duration, number in counted.items())
    yield histogram.count(counted.elements())
