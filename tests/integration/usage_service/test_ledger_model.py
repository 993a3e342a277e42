"""The ledger against a model of it in plain Python: any events, in any order, in any batches (U3, U5)."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service_runtime.embedded_postgres import EmbeddedPostgres
from service_runtime.postgres import Postgres
from tests.support.ledger import ledger_on
from tests.support.postgres import dsn_of
from tests.support.usage_events import OTHER_TENANT, TENANT, event_id_at, reported_event, submission
from usage_service.domain import histogram
from usage_service.domain.audit import AuditPart, LedgerCheck
from usage_service.domain.pricing import TokenCounts
from usage_service.domain.usage_event import AttemptStatus, Funding, ReportedEvent, UsageSource
from usage_service.domain.window import Window
from usage_service.metering.recording import Batch
from usage_service.storage import events as events_module
from usage_service.storage.audit import PostgresAudit

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    Rollup = dict[tuple[Any, ...], list[Any]]

NOW = datetime.now(UTC).replace(microsecond=0)
# Dollars per million tokens, input and output, of what the events below use; None is unpriced.
PRICES = {
    ("groq", "llama-3.3-70b-versatile"): ("0.59", "0.79"),
    ("openrouter", "deepseek/deepseek-r1"): ("0.55", "2.19"),
    ("llm7", "unheard-of"): None,
    ("local", "anything"): ("0", "0"),
}
GRAINS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}
SUMS = (
    "attempts", "input_tokens", "output_tokens", "cached_read_tokens", "cached_write_tokens", "reasoning_tokens",
    "cost_usd", "provider_cost_usd", "unpriced_attempts", "unpriced_tokens", "latency_count", "latency_sum_ms",
    "first_token_count", "first_token_sum_ms",
)  # fmt: skip
ROW = (
    "id", "tenant_id", "user_id", "provider", "model_name", "endpoint", '"timestamp"', "latency_ms", "input_tokens",
    "output_tokens", "total_tokens", "estimated_cost_usd", "status", "error_message", "request_id", "attempt",
    "requested_model", "error_class", "absorbed", "funding", "cached_read_tokens", "cached_write_tokens",
    "reasoning_tokens", "usage_source", "first_token_ms", "price_id", "pricing_state", "provider_cost_usd", "router_id",
    "router_epoch", "router_sequence",
)  # fmt: skip


@st.composite
def usage_events(draw: st.DrawFn) -> list[ReportedEvent]:
    """A handful of events close enough in time and labels to meet in the same rollup rows."""
    found: list[ReportedEvent] = []
    for number in range(draw(st.integers(1, 12))):
        provider, model = draw(st.sampled_from(sorted(PRICES)))
        age_ms = draw(st.sampled_from([0, 1, 59_999, 60_000, 3_600_000, 86_400_000, 9 * 86_400_000]))
        tokens = draw(
            st.builds(
                TokenCounts,
                st.integers(0, 10**6),
                st.integers(0, 10**6),
                st.sampled_from([0, 10**12]),
                st.integers(0, 9),
                st.integers(0, 9),
            )
            | st.just(TokenCounts())
        )
        found.append(
            reported_event(
                NOW,
                event_id=str(event_id_at(NOW - timedelta(milliseconds=age_ms), number)),
                tenant_id=draw(st.sampled_from([TENANT, OTHER_TENANT])),
                provider=provider,
                model=model,
                status=draw(st.sampled_from(AttemptStatus)),
                error_class=draw(st.sampled_from(["", "overloaded"])),
                absorbed=draw(st.booleans()),
                funding=draw(st.sampled_from(Funding)),
                usage_source=draw(st.sampled_from(UsageSource)),
                tokens=tokens,
                latency_ms=draw(st.none() | st.integers(0, 2_000_000)),
                first_token_ms=draw(st.none() | st.integers(0, 5_000)),
                provider_reported_cost_usd=draw(st.sampled_from(["", "0.000000000001", "12.5"])),
            )
        )
    return found


def bucket_start(used_at: datetime, grain: timedelta) -> datetime:
    epoch = datetime(2000, 1, 1, tzinfo=UTC)
    return epoch + (used_at - epoch) // grain * grain


def cost_usd(event: ReportedEvent) -> Fraction | None:
    """The exact cost, None when unpriced; by fractions, so that nothing is shared with the code under test."""
    tokens = event.tokens
    prompt = tokens.input_tokens + tokens.cached_read_tokens + tokens.cached_write_tokens
    completion = tokens.output_tokens + tokens.reasoning_tokens
    if prompt + completion == 0:
        return Fraction(0)
    price = PRICES[event.provider, event.model]
    return None if price is None else (prompt * Fraction(price[0]) + completion * Fraction(price[1])) / 1_000_000


def expected_rollup(events: list[ReportedEvent], grain: timedelta) -> Rollup:
    rows: dict[tuple[Any, ...], dict[str, Any]] = defaultdict(
        lambda: dict.fromkeys(SUMS, 0) | {"latencies": [], "first_tokens": []}
    )
    for event in events:
        used_at = datetime.fromtimestamp(int(event.event_id.replace("-", "")[:12], 16) / 1000, tz=UTC)
        key = (
            event.tenant_id, bucket_start(used_at, grain), event.provider, event.model, str(event.status),
            event.error_class, str(event.funding), event.absorbed, str(event.usage_source),
        )  # fmt: skip
        row, tokens, cost = rows[key], event.tokens, cost_usd(event)
        row["attempts"] += 1
        for name in SUMS[1:6]:
            row[name] += getattr(tokens, name)
        row["cost_usd"] += cost or 0
        row["provider_cost_usd"] += Fraction(event.provider_reported_cost_usd or 0)
        row["unpriced_attempts"] += cost is None
        row["unpriced_tokens"] += tokens.total_tokens if cost is None else 0
        row["latencies"].append(event.latency_ms)
        row["first_tokens"].append(event.first_token_ms)
        row["latency_count"] += event.latency_ms is not None
        row["latency_sum_ms"] += event.latency_ms or 0
        row["first_token_count"] += event.first_token_ms is not None
        row["first_token_sum_ms"] += event.first_token_ms or 0
    return {
        key: [row[name] for name in SUMS] + [histogram.count(row["latencies"]), histogram.count(row["first_tokens"])]
        for key, row in rows.items()
    }


async def stored_rollup(connection: Connection, name: str) -> Rollup:
    rows = await connection.fetch(
        "SELECT *, hist_counts(latency_histogram) AS latencies, hist_counts(first_token_histogram) AS first_tokens"
        f" FROM usage_rollup_{name}"
    )
    return {
        (
            str(row["tenant_id"]), row["bucket"], row["provider"], row["model_name"], row["status"],
            row["error_class"], row["funding"], row["absorbed"], row["usage_source"],
        ): [Fraction(row[column]) for column in SUMS]
        + [tuple(row["latencies"]), tuple(row["first_tokens"])]
        for row in rows
    }  # fmt: skip


@pytest.fixture(scope="module")
def ledger_dsn(postgres_server: EmbeddedPostgres, ledger_template: str) -> str:
    async def create() -> None:
        connection = await asyncpg.connect(dsn_of(postgres_server, "postgres"))
        await connection.execute(f"CREATE DATABASE ledger_model TEMPLATE {ledger_template}")
        await connection.close()

    asyncio.run(create())
    return dsn_of(postgres_server, "ledger_model")


@pytest.mark.parametrize("copy_from_rows", [1, 1_000], ids=["by COPY", "by arrays"])
def test_the_tables_equal_a_model_whatever_the_order_and_the_batches(
    ledger_dsn: str, copy_from_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "COPY_FROM_ROWS", copy_from_rows)

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(usage_events(), st.randoms(use_true_random=False), st.integers(1, 12))
    def holds(events: list[ReportedEvent], chance: random.Random, batch_size: int) -> None:
        asyncio.run(check(ledger_dsn, events, chance, batch_size))

    holds()


async def check(dsn: str, events: list[ReportedEvent], chance: random.Random, batch_size: int) -> None:
    # Every event is sent two or three times, shuffled, cut into batches; half of the batches go out together.
    sent = events * chance.choice([2, 3])
    chance.shuffle(sent)
    batches = [
        Batch("router-1", "", [submission(event) for event in sent[start : start + batch_size]])
        for start in range(0, len(sent), batch_size)
    ]
    async with ledger_on(dsn, now=lambda: NOW) as ledger:
        await ledger.connection.execute(
            "TRUNCATE model_usage_stats, usage_rollup_minute, usage_rollup_hour, usage_rollup_day"
        )
        middle = len(batches) // 2
        await asyncio.gather(*(ledger.recorder.record(each) for each in batches[:middle]))
        for each in batches[middle:]:
            await ledger.recorder.record(each)

        rows = await ledger.connection.fetch(f"SELECT {', '.join(ROW)} FROM model_usage_stats")
        prices = {
            (row["provider"], row["model_name"]): row["id"]
            for row in await ledger.connection.fetch("SELECT id, provider, model_name FROM model_prices")
        }
        assert {str(row["id"]): tuple(row) for row in rows} == {
            event.event_id: expected_row(event, prices) for event in events
        }
        assert len(rows) == len(events)
        for name, grain in GRAINS.items():
            assert await stored_rollup(ledger.connection, name) == expected_rollup(events, grain)
        await assert_the_audit_finds_nothing(ledger.postgres, events)


async def assert_the_audit_finds_nothing(postgres: Postgres, events: list[ReportedEvent]) -> None:
    days = Window(
        bucket_start(NOW, GRAINS["day"]) - timedelta(days=14), bucket_start(NOW, GRAINS["day"]) + GRAINS["day"]
    )
    for tenant in (TENANT, OTHER_TENANT):
        part = AuditPart(UUID(tenant), days, minutes_since=days.start, hours_since=days.start)
        results = await PostgresAudit(postgres).verify_part(part, most=5)
        found = {check: result for check, result in results.items() if result.wrong or result.unchecked}
        # The events share one request, which is no fault of the ledger's.
        assert set(found) <= {LedgerCheck.FINAL_ATTEMPT}, found
        assert results[LedgerCheck.COST].checked == sum(event.tenant_id == tenant for event in events)


def expected_row(event: ReportedEvent, prices: dict[tuple[str, str], int]) -> tuple[Any, ...]:
    """What a row must hold of its event, in the order of `ROW`."""
    cost, tokens = cost_usd(event), event.tokens
    is_priced = cost is not None and tokens.total_tokens > 0
    own = prices.get((event.provider, event.model), prices.get((event.provider, "*")))
    return (
        UUID(event.event_id), UUID(event.tenant_id), event.user_id, event.provider, event.model, event.endpoint,
        datetime.fromtimestamp(int(event.event_id.replace("-", "")[:12], 16) / 1000, tz=UTC), event.latency_ms,
        tokens.input_tokens, tokens.output_tokens, tokens.total_tokens, as_decimal(cost), str(event.status),
        event.error_message or None, UUID(event.request_id), event.attempt, event.requested_model, event.error_class,
        event.absorbed, str(event.funding), tokens.cached_read_tokens, tokens.cached_write_tokens,
        tokens.reasoning_tokens, str(event.usage_source), event.first_token_ms, own if is_priced else None,
        "priced" if is_priced else "unpriced" if cost is None else "nothing_consumed",
        Decimal(event.provider_reported_cost_usd) if event.provider_reported_cost_usd else None, "router-1", "",
        event.sequence,
    )  # fmt: skip


def as_decimal(cost: Fraction | None) -> Decimal | None:
    return None if cost is None else Decimal(cost.numerator) / Decimal(cost.denominator)
