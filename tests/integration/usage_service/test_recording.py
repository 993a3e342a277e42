"""Recording into a real ledger: once, completely, and what does not fit is kept aside (U1, U3)."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.support.ledger import LedgerUnderTest, ledger_on
from tests.support.usage_events import OTHER_TENANT, TENANT, event_id_at, reported_event, submission
from usage_service.domain.pricing import PricingState, TokenCounts
from usage_service.domain.usage_event import AttemptStatus, ReportedEvent
from usage_service.metering.recording import Batch, Disposition, Outcome
from usage_service.storage.events import COPY_FROM_ROWS

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

NOW = datetime.now(UTC).replace(microsecond=0)
TABLES = ("model_usage_stats", "usage_rollup_minute", "usage_rollup_hour", "usage_rollup_day")


def batch(*events: ReportedEvent, router_id: str = "router-1") -> Batch:
    return Batch(router_id, "epoch-1", [submission(event) for event in events])


def dispositions(outcomes: Sequence[Outcome]) -> list[Disposition]:
    return [outcome.disposition for outcome in outcomes]


async def one_row(connection: Connection, query: str, *arguments: Any) -> asyncpg.Record:
    (row,) = await connection.fetch(query, *arguments)
    return row


async def contents(connection: Connection) -> dict[str, list[asyncpg.Record]]:
    """Everything in the ledger and its rollups, in a form that two states can be compared by."""
    return {table: await connection.fetch(f"SELECT t::text FROM {table} AS t ORDER BY 1") for table in TABLES}


@pytest.fixture
async def ledger(ledger_database: str) -> AsyncIterator[LedgerUnderTest]:
    async with ledger_on(ledger_database) as ledger:
        yield ledger


async def test_an_event_becomes_one_priced_row_with_every_field(ledger: LedgerUnderTest) -> None:
    event = reported_event(NOW, provider_reported_cost_usd="0.001")

    outcomes = await ledger.recorder.record(batch(event))

    assert dispositions(outcomes) == [Disposition.ACCEPTED]
    assert outcomes[0].cost_usd == Decimal("0.000985000000")
    row = await one_row(ledger.connection, "SELECT *, metadata->'labels'->>'team' AS team FROM model_usage_stats")
    assert str(row["id"]) == event.event_id
    assert row["timestamp"] == NOW
    assert (row["input_tokens"], row["output_tokens"], row["total_tokens"]) == (1_000, 500, 1_500)
    assert row["estimated_cost_usd"] == Decimal("0.000985000000")
    assert row["provider_cost_usd"] == Decimal("0.001")
    assert (row["pricing_state"], row["team"], row["error_message"]) == ("priced", "search", None)
    assert (row["router_id"], row["router_epoch"], row["router_sequence"]) == ("router-1", "epoch-1", 1)
    price = await one_row(ledger.connection, "SELECT * FROM model_prices WHERE id = $1", row["price_id"])
    assert (price["provider"], price["model_name"]) == ("groq", "llama-3.3-70b-versatile")


@pytest.mark.parametrize("size", [3, COPY_FROM_ROWS])
async def test_the_same_batch_again_changes_nothing(ledger: LedgerUnderTest, size: int) -> None:
    events = [reported_event(NOW - timedelta(minutes=n)) for n in range(size)]
    await ledger.recorder.record(batch(*events))
    before = await contents(ledger.connection)

    random.Random(1).shuffle(events)
    outcomes = await ledger.recorder.record(batch(*events, router_id="router-2"))

    assert set(dispositions(outcomes)) == {Disposition.DUPLICATE}
    assert {outcome.cost_usd for outcome in outcomes} == {Decimal("0.000985000000")}
    assert await contents(ledger.connection) == before


async def test_an_event_that_comes_twice_in_one_batch_counts_once(ledger: LedgerUnderTest) -> None:
    event = reported_event(NOW)

    outcomes = await ledger.recorder.record(batch(event, event))

    assert dispositions(outcomes) == [Disposition.ACCEPTED, Disposition.DUPLICATE]
    assert await ledger.connection.fetchval("SELECT sum(attempts) FROM usage_rollup_day") == 1


async def test_the_same_id_with_other_content_is_kept_aside_and_the_first_stays(ledger: LedgerUnderTest) -> None:
    event_id = str(event_id_at(NOW))
    first = reported_event(NOW, event_id=event_id)
    other = reported_event(NOW, event_id=event_id, tokens=TokenCounts(input_tokens=7))

    together = await ledger.recorder.record(batch(first, other))
    later = await ledger.recorder.record(batch(other))

    assert dispositions(together) == [Disposition.ACCEPTED, Disposition.CONFLICT]
    assert dispositions(later) == [Disposition.CONFLICT]
    assert await ledger.connection.fetchval("SELECT input_tokens FROM model_usage_stats") == 1_000
    kept = await ledger.connection.fetch("SELECT event_id, disposition, payload FROM usage_events_rejected")
    assert [tuple(row) for row in kept] == [(event_id, "conflict", submission(other).payload)]


@pytest.mark.parametrize("sizes", [(4,), (2, 2), (1, 1, 1, 1), (1, 3)])
async def test_the_same_id_of_another_tenant_is_another_event_however_the_batches_are_split(
    ledger: LedgerUnderTest, sizes: tuple[int, ...]
) -> None:
    event_id = str(event_id_at(NOW))
    one = reported_event(NOW, event_id=event_id)
    other = reported_event(NOW, event_id=event_id, tenant_id=OTHER_TENANT, tokens=TokenCounts(input_tokens=7))
    sent = iter([one, other, other, one])

    outcomes = []
    for size in sizes:
        outcomes += await ledger.recorder.record(batch(*islice(sent, size)))

    assert dispositions(outcomes) == [Disposition.ACCEPTED] * 2 + [Disposition.DUPLICATE] * 2
    assert [outcome.cost_usd for outcome in outcomes[:2]] == [outcome.cost_usd for outcome in outcomes[:1:-1]]
    for table in ("model_usage_stats", "usage_rollup_minute", "usage_rollup_hour", "usage_rollup_day"):
        kept = await ledger.connection.fetch(f"SELECT tenant_id::text, input_tokens FROM {table}")
        assert {tuple(row) for row in kept} == {(TENANT, 1_000), (OTHER_TENANT, 7)}
        assert len(kept) == 2
    assert await ledger.connection.fetchval("SELECT count(*) FROM usage_events_rejected") == 0


async def test_a_bad_event_is_kept_with_its_reason_and_the_rest_is_stored(ledger: LedgerUnderTest) -> None:
    bad = reported_event(NOW, error_message="\x00", tokens=TokenCounts(input_tokens=-1))

    outcomes = await ledger.recorder.record(batch(reported_event(NOW), bad, reported_event(NOW)))

    assert dispositions(outcomes) == [Disposition.ACCEPTED, Disposition.REJECTED, Disposition.ACCEPTED]
    assert [violation.field for violation in outcomes[1].violations] == ["error_message", "token_usage.input_tokens"]
    kept = await one_row(ledger.connection, "SELECT * FROM usage_events_rejected")
    assert (kept["event_id"], kept["disposition"], kept["field"]) == (bad.event_id, "rejected", "error_message")
    assert kept["payload"] == submission(bad).payload


async def test_a_bad_event_that_is_sent_again_is_kept_once(ledger: LedgerUnderTest) -> None:
    bad = reported_event(NOW, event_id="not\x00an id")

    for _ in range(2):
        outcomes = await ledger.recorder.record(batch(bad))

    assert dispositions(outcomes) == [Disposition.REJECTED]
    assert (
        await ledger.connection.fetchval("SELECT string_agg(event_id, ',') FROM usage_events_rejected") == "not\\0an id"
    )


@pytest.mark.parametrize("size", [5, COPY_FROM_ROWS + 20])
async def test_a_row_that_the_database_refuses_is_found_and_the_rest_is_stored(
    ledger: LedgerUnderTest, size: int
) -> None:
    # A cost of 10^15 dollars passes every check of ours and overflows the column.
    await ledger.connection.execute(
        "INSERT INTO model_prices (provider, model_name, input_usd, output_usd, effective_at, source)"
        " VALUES ('groq', 'dear', 999999999, 0, '2020-01-01+00', 'operator')"
    )
    await ledger.pricing.refresh()
    events = [reported_event(NOW) for _ in range(size)]
    events[size // 3] = reported_event(NOW, model="dear", tokens=TokenCounts(input_tokens=10**12))

    outcomes = await ledger.recorder.record(batch(*events))

    assert dispositions(outcomes)[size // 3] is Disposition.REJECTED
    assert Counter(dispositions(outcomes)) == {Disposition.ACCEPTED: size - 1, Disposition.REJECTED: 1}
    assert await ledger.connection.fetchval("SELECT count(*) FROM model_usage_stats") == size - 1
    assert await ledger.connection.fetchval("SELECT sum(attempts) FROM usage_rollup_hour") == size - 1
    kept = await one_row(ledger.connection, "SELECT disposition, reason FROM usage_events_rejected")
    assert kept["disposition"] == "rejected"
    assert "numeric field overflow" in kept["reason"]


async def test_a_model_without_a_price_is_unpriced_and_counted(ledger: LedgerUnderTest) -> None:
    outcomes = await ledger.recorder.record(batch(reported_event(NOW, provider="llm7", model="nobody-prices-this")))

    assert (outcomes[0].cost_usd, outcomes[0].pricing_state) == (None, PricingState.UNPRICED)
    assert await ledger.connection.fetchval("SELECT estimated_cost_usd FROM model_usage_stats") is None
    rollup = await one_row(ledger.connection, "SELECT * FROM usage_rollup_minute")
    assert (rollup["cost_usd"], rollup["unpriced_attempts"], rollup["unpriced_tokens"]) == (0, 1, 1_500)
    assert ledger.metrics.registry.get_sample_value("usage_events_unpriced_total", {"provider": "llm7"}) == 1


async def test_a_model_that_only_its_vendor_prices_gets_an_entry_in_the_price_book(ledger: LedgerUnderTest) -> None:
    event = reported_event(NOW, model="llama-3.1-8b-instant")

    outcomes = await ledger.recorder.record(batch(event))

    entry = await one_row(ledger.connection, "SELECT * FROM model_prices WHERE model_name = 'llama-3.1-8b-instant'")
    assert entry["source"].startswith("genai-prices ")
    row = await one_row(ledger.connection, "SELECT price_id, estimated_cost_usd FROM model_usage_stats")
    assert row["price_id"] == entry["id"]
    assert row["estimated_cost_usd"] == (entry["input_usd"] * 1_000 + entry["output_usd"] * 500) / 1_000_000
    assert outcomes[0].pricing_state is PricingState.PRICED


async def test_an_attempt_without_tokens_costs_nothing_and_asks_for_no_price(ledger: LedgerUnderTest) -> None:
    event = reported_event(
        NOW, provider="turnpike", model="", status=AttemptStatus.RATE_LIMIT, tokens=TokenCounts(), latency_ms=None
    )

    outcomes = await ledger.recorder.record(batch(event))

    assert outcomes[0].pricing_state is PricingState.NOTHING_CONSUMED
    row = await one_row(ledger.connection, "SELECT estimated_cost_usd, latency_ms, price_id FROM model_usage_stats")
    assert tuple(row) == (0, None, None)


async def test_writers_that_send_the_same_events_at_once_count_each_once(ledger: LedgerUnderTest) -> None:
    events = [
        reported_event(NOW - timedelta(minutes=n % 90), tenant_id=(TENANT, OTHER_TENANT)[n % 2]) for n in range(400)
    ]
    shuffled = []
    for seed in range(6):
        order = list(events)
        random.Random(seed).shuffle(order)
        shuffled.append(order)

    answers = await asyncio.gather(
        *(
            ledger.recorder.record(batch(*order[:200])) if number % 2 else ledger.recorder.record(batch(*order))
            for number, order in enumerate(shuffled)
        )
    )

    assert ledger.retries == []
    counted = Counter(disposition for outcomes in answers for disposition in dispositions(outcomes))
    assert counted == {Disposition.ACCEPTED: 400, Disposition.DUPLICATE: 3 * 400 + 3 * 200 - 400}
    for table in TABLES[1:]:
        assert await ledger.connection.fetchval(f"SELECT sum(attempts) FROM {table}") == 400


async def test_a_deadlock_with_another_writer_is_tried_again(ledger: LedgerUnderTest) -> None:
    # Another session holds a rollup row, then asks for a row that our transaction inserted before. Ours, whose
    # deadlock_timeout is shorter, is the one that is broken off.
    await ledger.recorder.record(batch(reported_event(NOW), reported_event(NOW, tenant_id=OTHER_TENANT)))
    await ledger.connection.execute("SET deadlock_timeout = '10s'")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"

    third = reported_event(NOW, tenant_id=OTHER_TENANT)
    transaction = ledger.connection.transaction()
    await transaction.start()
    await ledger.connection.execute(
        "UPDATE usage_rollup_minute SET attempts = attempts WHERE tenant_id = $1", OTHER_TENANT
    )
    ours = asyncio.create_task(ledger.recorder.record(batch(third)))
    while not await ledger.connection.fetchval(waiting):
        await asyncio.sleep(0.005)
    # Our writer has inserted the event and waits for the rollup row; this waits for the event.
    await ledger.connection.execute(
        "INSERT INTO model_usage_stats (id, tenant_id, provider, model_name, timestamp, status, request_id, attempt,"
        " usage_source, pricing_state, router_id, content_hash)"
        " VALUES ($1, $2, 'x', 'x', $3, 'success', $1, 1, 'none', 'priced', 'x', '') ON CONFLICT DO NOTHING",
        third.event_id,
        OTHER_TENANT,
        NOW,
    )
    await transaction.rollback()

    assert dispositions(await ours) == [Disposition.ACCEPTED]
    assert len(ledger.retries) == 1
    assert await ledger.connection.fetchval("SELECT sum(attempts) FROM usage_rollup_day") == 3


async def test_a_transaction_that_cannot_be_serialised_is_tried_again(ledger_database: str) -> None:
    # What an operator may have set for the database: then a row that changed since our snapshot is an error.
    joint = "&" if "?" in ledger_database else "?"
    dsn = f"{ledger_database}{joint}default_transaction_isolation=repeatable%20read"
    async with ledger_on(dsn) as ledger:
        await ledger.recorder.record(batch(reported_event(NOW)))
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        other_writer = ledger.connection.transaction(isolation="read_committed")
        await other_writer.start()
        await ledger.connection.execute("UPDATE usage_rollup_minute SET attempts = attempts")

        ours = asyncio.create_task(ledger.recorder.record(batch(reported_event(NOW))))
        while not await ledger.connection.fetchval(waiting):
            await asyncio.sleep(0.005)
        await other_writer.commit()

        assert dispositions(await ours) == [Disposition.ACCEPTED]
        assert len(ledger.retries) == 1
        assert await ledger.connection.fetchval("SELECT count(*) FROM model_usage_stats") == 2
        for table in ("usage_rollup_minute", "usage_rollup_hour", "usage_rollup_day"):
            assert await ledger.connection.fetchval(f"SELECT sum(attempts) FROM {table}") == 2


async def test_events_of_35_days_find_their_partitions(ledger: LedgerUnderTest) -> None:
    events = [reported_event(NOW - timedelta(days=days)) for days in range(35)]

    outcomes = await ledger.recorder.record(batch(*events))

    assert set(dispositions(outcomes)) == {Disposition.ACCEPTED}


async def test_an_event_whose_partition_was_dropped_in_between_is_to_be_sent_again(ledger: LedgerUnderTest) -> None:
    event = reported_event(NOW)
    await ledger.partitions.cover(NOW, NOW)
    partition = await ledger.connection.fetchval(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'model_usage_stats'::regclass"
    )
    await ledger.connection.execute(f"DROP TABLE {partition}")

    first = await ledger.recorder.record(batch(event))
    second = await ledger.recorder.record(batch(event))

    assert dispositions(first) == [Disposition.RETRY]
    assert dispositions(second) == [Disposition.ACCEPTED]
    assert await ledger.connection.fetchval("SELECT count(*) FROM usage_events_rejected") == 0


async def test_what_became_of_events_can_be_seen_in_the_metrics(ledger: LedgerUnderTest) -> None:
    event = reported_event(NOW)
    other = reported_event(NOW, event_id=event.event_id, tokens=TokenCounts(input_tokens=7))

    await ledger.recorder.record(batch(event, event, reported_event(NOW, model=""), other))

    seen = {
        disposition: ledger.metrics.registry.get_sample_value("usage_events_total", {"disposition": disposition.value})
        for disposition in Disposition
    }
    assert seen == {
        Disposition.ACCEPTED: 1,
        Disposition.DUPLICATE: 1,
        Disposition.REJECTED: 1,
        Disposition.CONFLICT: 1,
        Disposition.RETRY: 0,
    }
    assert ledger.metrics.registry.get_sample_value("usage_ingest_seconds_count") == 1


async def test_the_usage_role_reads_the_ledger_and_nothing_of_the_tenants(ledger: LedgerUnderTest) -> None:
    await ledger.connection.execute("CREATE TABLE tenants (id uuid, llm_tokens jsonb)")

    async with ledger.postgres.acquire() as connection:
        assert await connection.fetchval("SELECT current_user") == "turnpike_usage"
        assert await connection.fetchval("SELECT count(*) FROM model_usage_stats") == 0
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch("SELECT llm_tokens FROM tenants")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch("DROP TABLE model_usage_stats")
