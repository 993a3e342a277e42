"""Prices set, and usage priced anew, in a real ledger: at rest, at its edges, and while others write."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from service_runtime.errors import Category, ServiceError
from tests.support.ledger import LedgerUnderTest, ledger_on
from tests.support.repricing import EVERYTHING, JOB, reprice
from tests.support.usage_events import TENANT, event_id_at, reported_event, submission
from usage_service.domain.pricing import Rates
from usage_service.domain.window import Window
from usage_service.metering.recording import Batch
from usage_service.metering.repricing import AfterAdjustment, RepriceScope
from usage_service.storage.corrections import PostgresBookedRows

NOW = datetime.now(UTC).replace(microsecond=0)
LLAMA = "llama-3.3-70b-versatile"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
GRAINS = ("minute", "hour", "day")


async def record(ledger: LedgerUnderTest, *events: Any) -> None:
    outcomes = await ledger.recorder.record(Batch("router-1", "", [submission(event) for event in events]))
    assert {str(outcome.disposition) for outcome in outcomes} == {"accepted"}


async def set_llama(ledger: LedgerUnderTest, usd: str, *, since: datetime = LONG_AGO) -> int:
    rates = Rates(Decimal(usd), Decimal(usd))
    price_set = await ledger.pricing.set_price(
        "groq", LLAMA, rates, effective_at=since, replace=True, source="operator"
    )
    assert price_set.listed.price.price_id is not None
    return price_set.listed.price.price_id


async def assert_rollups_recount_the_rows(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    for grain in GRAINS:
        assert not await connection.fetch(
            f"""
            WITH recount AS (
                SELECT tenant_id, date_bin('1 {grain}', "timestamp", '2000-01-01+00') AS bucket, provider, model_name,
                    count(*) AS attempts, coalesce(sum(estimated_cost_usd), 0) AS cost_usd,
                    count(*) FILTER (WHERE pricing_state = 'unpriced') AS unpriced_attempts,
                    coalesce(sum(total_tokens) FILTER (WHERE pricing_state = 'unpriced'), 0) AS unpriced_tokens
                FROM model_usage_stats GROUP BY 1, 2, 3, 4
            ),
            told AS (
                SELECT tenant_id, bucket, provider, model_name, sum(attempts) AS attempts, sum(cost_usd) AS cost_usd,
                    sum(unpriced_attempts) AS unpriced_attempts, sum(unpriced_tokens) AS unpriced_tokens
                FROM usage_rollup_{grain} GROUP BY 1, 2, 3, 4
            )
            (SELECT * FROM recount EXCEPT SELECT * FROM told)
            UNION ALL (SELECT * FROM told EXCEPT SELECT * FROM recount)
            """
        )


async def test_the_monitoring_queries_show_the_corrected_cost_and_the_books_keep_the_old_one(
    ledger_database: str,
) -> None:
    async with ledger_on(ledger_database) as ledger:
        event = reported_event(datetime.now(UTC) - timedelta(minutes=5))
        await record(ledger, event)
        price_id = await set_llama(ledger, "1")

        summary = await reprice(ledger)

        daily = await ledger.connection.fetchrow(
            "SELECT DATE(timestamp) AS date, provider, SUM(estimated_cost_usd) AS daily_cost FROM model_usage_stats"
            " WHERE tenant_id = $1 AND timestamp >= NOW() - INTERVAL '30 days'"
            " GROUP BY DATE(timestamp), provider ORDER BY date DESC, daily_cost DESC",
            UUID(TENANT),
        )
        rows = PostgresBookedRows(ledger.postgres, jitter=lambda: 0.5)
        [kept] = await rows.adjustments(UUID(TENANT), EVERYTHING.window, job_id=JOB, after=None, limit=10)
        assert daily is not None
        assert daily["daily_cost"] == summary.new_cost_usd == Decimal("0.0015")
        assert (kept.old_cost_usd, kept.new_cost_usd) == (Decimal("0.000985"), Decimal("0.0015"))
        assert (kept.revision, kept.new_price_id, kept.reason) == (1, price_id, "test")
        assert kept.old_price_id != price_id
        assert await rows.adjustments(UUID(TENANT), EVERYTHING.window, job_id=uuid4(), after=None, limit=10) == []
        after = AfterAdjustment(kept.used_at, kept.event_id, kept.revision)
        assert await rows.adjustments(UUID(TENANT), EVERYTHING.window, job_id=None, after=after, limit=10) == []
        await assert_rollups_recount_the_rows(ledger.connection)


async def test_a_replaced_price_is_kept_for_the_rows_that_refer_to_it(ledger_database: str) -> None:
    async with ledger_on(ledger_database) as ledger:
        await record(ledger, reported_event(NOW))
        await set_llama(ledger, "1")
        await set_llama(ledger, "2", since=NOW + timedelta(days=1))

        history = await ledger.pricing.history("groq", LLAMA)

        referred = await ledger.connection.fetchrow(
            "SELECT price.* FROM model_usage_stats JOIN model_prices_ever AS price ON price.id = price_id"
        )
        assert referred is not None
        assert (referred["input_usd"], referred["source"]) == (Decimal("0.59"), "seed")
        assert [(one.price.rates.input_usd, one.replaced_at is None, one.expires_at) for one in history] == [
            (Decimal(2), True, None),
            (Decimal(1), True, NOW + timedelta(days=1)),
            (Decimal("0.59"), False, NOW + timedelta(days=1)),
        ]


async def test_the_same_price_set_by_many_at_once_is_entered_once(ledger_database: str) -> None:
    async with ledger_on(ledger_database) as ledger:
        outcomes = await asyncio.gather(
            *(
                ledger.pricing.set_price(
                    "groq", LLAMA, Rates(Decimal(usd), Decimal(1)), effective_at=LONG_AGO, replace=True, source="x"
                )
                for usd in ["3", "3", "4", "3", "4"]
            )
        )

        entered = [one for one in outcomes if one.created]
        stored = await ledger.connection.fetch("SELECT * FROM model_prices WHERE model_name = $1", LLAMA)
        replaced = await ledger.connection.fetch("SELECT * FROM model_prices_replaced ORDER BY id")
        assert len(stored) == 1
        assert len(replaced) == len(entered)
        # Each replaced entry names the one that took its place, down to the one that stands.
        assert [one["replaced_by"] for one in replaced] == [*(one["id"] for one in replaced[1:]), stored[0]["id"]]


async def test_a_model_that_only_the_vendor_prices_gets_its_entry_when_it_is_repriced(ledger_database: str) -> None:
    model = "llama-3.1-8b-instant"
    async with ledger_on(ledger_database) as ledger:
        await record(ledger, reported_event(NOW, model=model))
        # As if it had been booked before the vendor's price was known.
        await ledger.connection.execute("DELETE FROM model_prices WHERE model_name = $1", model)
        await ledger.connection.execute(
            "UPDATE model_usage_stats SET estimated_cost_usd = NULL, price_id = NULL, pricing_state = 'unpriced'"
        )
        for grain in GRAINS:
            await ledger.connection.execute(
                f"UPDATE usage_rollup_{grain} SET cost_usd = 0, unpriced_attempts = 1, unpriced_tokens = 1500"
            )

        foretold = await reprice(ledger, apply=False)
        nothing_stored = await ledger.connection.fetchval(
            "SELECT count(*) FROM model_prices WHERE model_name = $1", model
        )
        done = await reprice(ledger)

        source = await ledger.connection.fetchval("SELECT source FROM model_prices WHERE model_name = $1", model)
        assert (nothing_stored, done.newly_priced_rows) == (0, 1)
        assert foretold == done
        assert source.startswith("genai-prices ")
        await assert_rollups_recount_the_rows(ledger.connection)


async def test_a_bucket_whose_rollup_is_gone_is_not_brought_back(ledger_database: str) -> None:
    async with ledger_on(ledger_database) as ledger:
        await record(ledger, reported_event(NOW - timedelta(days=3)), reported_event(NOW))
        await set_llama(ledger, "1")
        await ledger.connection.execute("DELETE FROM usage_rollup_minute WHERE bucket < $1", NOW - timedelta(days=2))

        await reprice(ledger)

        costs = {
            grain: await ledger.connection.fetch(f"SELECT cost_usd FROM usage_rollup_{grain} ORDER BY bucket")
            for grain in GRAINS
        }
        assert {grain: [row["cost_usd"] for row in rows] for grain, rows in costs.items()} == {
            "minute": [Decimal("0.0015")],
            "hour": [Decimal("0.0015")] * 2,
            "day": [Decimal("0.0015")] * 2,
        }


async def test_books_that_do_not_balance_are_not_repriced(ledger_database: str) -> None:
    async with ledger_on(ledger_database) as ledger:
        # Of one day; the day is still found by its other status.
        await record(ledger, reported_event(NOW), reported_event(NOW, error_class="overloaded"))
        await set_llama(ledger, "1")
        await ledger.connection.execute("DELETE FROM usage_rollup_day WHERE error_class = ''")
        before = await ledger.connection.fetch("SELECT * FROM model_usage_stats ORDER BY id")

        with pytest.raises(ServiceError) as refused:
            await reprice(ledger)

        assert (refused.value.category, refused.value.reason) == (Category.FAILED_PRECONDITION, "LEDGER_UNBALANCED")
        assert await ledger.connection.fetch("SELECT * FROM model_usage_stats ORDER BY id") == before
        assert await ledger.connection.fetchval("SELECT count(*) FROM usage_cost_adjustments") == 0


async def test_usage_of_all_tenants_days_and_partitions_is_found_once(ledger_database: str) -> None:
    tenants = [str(UUID(int=number << 64)) for number in range(1, 4)]
    async with ledger_on(ledger_database) as ledger:
        events = [
            reported_event(NOW - timedelta(days=days), tenant_id=tenant)
            for tenant in tenants
            for days in range(0, 30, 3)
        ]
        await record(ledger, *events)
        await set_llama(ledger, "1")
        inside = RepriceScope(Window(NOW - timedelta(days=20), NOW - timedelta(days=10)), UUID(tenants[1]))

        some = await reprice(ledger, inside, max_rows=2, rows_per_transaction=1)
        all_ = await reprice(ledger, max_rows=7, rows_per_transaction=3)

        assert (some.scanned_rows, some.changed_rows) == (3, 3)
        assert (all_.scanned_rows, all_.changed_rows) == (30, 27)
        await assert_rollups_recount_the_rows(ledger.connection)


async def test_ingest_prices_and_runs_at_once_leave_exact_books_without_a_deadlock(ledger_database: str) -> None:
    """Everything meets in the same few rollup rows; locks are taken by key, so nobody waits in a circle."""
    async with ledger_on(ledger_database) as ledger:
        serials = iter(range(1, 100_000))
        tenants = [str(UUID(int=number << 64)) for number in range(1, 4)]

        async def ingest() -> None:
            for _ in range(8):
                at = [NOW - timedelta(minutes=minutes, hours=minutes * 11) for minutes in range(4)]
                events = [
                    reported_event(used_at, event_id=str(event_id_at(used_at, next(serials))), tenant_id=tenant)
                    for tenant in tenants
                    for used_at in at
                    for _ in range(3)
                ]
                await record(ledger, *events)

        async def change_prices() -> None:
            for usd in range(1, 9):
                await set_llama(ledger, str(usd))
                await asyncio.sleep(0.02)

        async def keep_repricing() -> None:
            for _ in range(4):
                await reprice(ledger, rows_per_transaction=40, job_id=uuid4())

        await asyncio.gather(ingest(), ingest(), change_prices(), keep_repricing(), keep_repricing())
        await reprice(ledger)

        rows = await ledger.connection.fetchrow(
            "SELECT count(*) AS number, count(DISTINCT price_id) AS prices, min(estimated_cost_usd) AS least,"
            " max(estimated_cost_usd) AS most FROM model_usage_stats"
        )
        first_booked = await ledger.connection.fetchval(
            "SELECT sum(coalesce(first.old_cost_usd, estimated_cost_usd)) FROM model_usage_stats AS row"
            " LEFT JOIN usage_cost_adjustments AS first ON first.revision = 1 AND first.tenant_id = row.tenant_id"
            ' AND first."timestamp" = row."timestamp" AND first.event_id = row.id'
        )
        adjusted = await ledger.connection.fetchval("SELECT sum(delta_usd) FROM usage_cost_adjustments")
        deadlocks = await ledger.connection.fetchval(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
        assert rows is not None
        assert (rows["number"], rows["prices"], rows["least"]) == (2 * 8 * 36, 1, rows["most"])
        assert first_booked + adjusted == rows["number"] * rows["most"]
        assert (deadlocks, ledger.retries) == (0, [])
        await assert_rollups_recount_the_rows(ledger.connection)


async def test_of_two_runs_that_meet_at_a_row_one_corrects_it_and_the_other_finds_it_right(
    ledger_database: str,
) -> None:
    async with ledger_on(ledger_database) as ledger:
        await record(ledger, reported_event(NOW))
        await set_llama(ledger, "1")
        blocking = ledger.connection.transaction()
        await blocking.start()
        await ledger.connection.execute("SELECT FROM usage_rollup_day FOR UPDATE")

        runs = [asyncio.create_task(reprice(ledger, job_id=uuid4())) for _ in range(2)]
        while await ledger.connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < 2:
            await asyncio.sleep(0.01)
        await blocking.rollback()
        changed = [summary.changed_rows for summary in await asyncio.gather(*runs)]

        assert sorted(changed) == [0, 1]
        assert await ledger.connection.fetchval("SELECT count(*) FROM usage_cost_adjustments") == 1
        await assert_rollups_recount_the_rows(ledger.connection)


@pytest.mark.parametrize("blocked", GRAINS)
async def test_a_correction_takes_its_locks_in_the_order_of_ingest(ledger_database: str, blocked: str) -> None:
    """With one rollup held by somebody else, both wait for it while they hold the same others."""
    async with ledger_on(ledger_database) as ledger:
        await record(ledger, reported_event(NOW))
        await set_llama(ledger, "1")

        async def held_by(work: Coroutine[Any, Any, object]) -> set[str]:
            blocking = ledger.connection.transaction()
            await blocking.start()
            await ledger.connection.execute(f"SELECT FROM usage_rollup_{blocked} FOR UPDATE")
            waiting = asyncio.create_task(work)
            while not await ledger.connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
            held = {
                grain
                for grain in set(GRAINS) - {blocked}
                if not await ledger.connection.fetch(f"SELECT 1 FROM usage_rollup_{grain} FOR UPDATE SKIP LOCKED")
            }
            await blocking.rollback()
            await waiting
            return held

        by_ingest = await held_by(record(ledger, reported_event(NOW)))
        by_correction = await held_by(reprice(ledger))

        assert by_correction == by_ingest
        assert await ledger.connection.fetchval("SELECT count(*) FROM usage_cost_adjustments") == 1


async def test_not_even_the_service_can_rewrite_an_adjustment_or_a_replaced_price(ledger_database: str) -> None:
    async with ledger_on(ledger_database) as ledger:
        for statement in (
            "UPDATE usage_cost_adjustments SET reason = ''",
            "DELETE FROM usage_cost_adjustments",
            "UPDATE model_prices_replaced SET input_usd = 0",
            "DELETE FROM model_prices_replaced",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with ledger.postgres.acquire() as connection:
                    await connection.execute(statement)
