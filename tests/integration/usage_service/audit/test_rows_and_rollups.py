"""VerifyLedger finds what was done to rows, rollups and costs, and misses nothing that retention took."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from tests.integration.usage_service.audit.books import NOW, TODAY, Books, attempt
from tests.support.repricing import reprice
from tests.support.usage_events import TENANT
from usage_service.domain.audit import CheckResult, LedgerCheck
from usage_service.domain.pricing import Rates, TokenCounts
from usage_service.domain.window import RollupRetention
from usage_service.storage.rollups import purge_rollups

ROLLUP_COLUMNS = [
    "attempts", "input_tokens", "output_tokens", "cached_read_tokens", "cached_write_tokens", "reasoning_tokens",
    "cost_usd", "provider_cost_usd", "unpriced_attempts", "unpriced_tokens", "latency_count", "latency_sum_ms",
    "first_token_count", "first_token_sum_ms",
]  # fmt: skip


COPY_OF_5 = (
    "INSERT INTO model_usage_stats SELECT (jsonb_populate_record(kept, $1::jsonb)).* FROM model_usage_stats AS kept"
    " WHERE router_sequence = 5"
)


@pytest.mark.parametrize("grain", ["minute", "hour", "day"])
async def test_an_altered_bucket_is_found_in_whichever_column(kept: Books, grain: str) -> None:
    check = LedgerCheck(f"{grain}_rollup")
    one = (
        f"(tenant_id, bucket, provider, model_name, status) = (SELECT tenant_id, bucket, provider, model_name, status \
FROM usage_rollup_{grain} WHERE latency_count > 0 ORDER BY bucket DESC, tenant_id LIMIT 1)"
    )
    histograms = [f"{name} = {name} + 1000000000000" for name in ("latency_histogram", "first_token_histogram")]
    for change in [f"{column} = {column} + 1" for column in ROLLUP_COLUMNS] + histograms:
        transaction = kept.ledger.connection.transaction()
        await transaction.start()
        await kept.damage(f"CREATE TABLE kept AS SELECT * FROM usage_rollup_{grain}")
        await kept.damage(f"UPDATE usage_rollup_{grain} SET {change} WHERE {one}")
        await transaction.commit()
        results = await kept.verify()

        column = change.partition(" ")[0]
        assert {name: result.wrong for name, result in results.items() if result.wrong} == {check: 1}, change
        (found,) = results[check].discrepancies
        assert f"{grain} bucket=" in found.key
        assert f"{column}=" in found.expected
        assert f"{column}=" in found.actual
        await kept.damage(f"TRUNCATE usage_rollup_{grain}")
        await kept.damage(f"INSERT INTO usage_rollup_{grain} SELECT * FROM kept")
        await kept.damage("DROP TABLE kept")


async def test_a_bucket_that_is_missing_or_has_no_row_is_found(kept: Books) -> None:
    await kept.damage("DELETE FROM usage_rollup_day WHERE tenant_id = $1", UUID(TENANT))
    await kept.damage(
        "INSERT INTO usage_rollup_hour SELECT '33333333-3333-4333-8333-333333333333', bucket, provider, model_name,"
        " status, error_class, funding, absorbed, usage_source, attempts, input_tokens, output_tokens,"
        " cached_read_tokens, cached_write_tokens, reasoning_tokens, cost_usd, provider_cost_usd, unpriced_attempts,"
        " unpriced_tokens, latency_count, latency_sum_ms, latency_histogram, first_token_count, first_token_sum_ms,"
        " first_token_histogram FROM usage_rollup_hour WHERE tenant_id = $1 ORDER BY bucket LIMIT 1",
        UUID(TENANT),
    )

    results = await kept.verify()

    assert results[LedgerCheck.HOUR_ROLLUP].wrong == 1
    assert results[LedgerCheck.HOUR_ROLLUP].discrepancies[0].expected == "no bucket: it has no row"
    assert results[LedgerCheck.DAY_ROLLUP].wrong > 1
    assert {one.actual for one in results[LedgerCheck.DAY_ROLLUP].discrepancies} == {"no bucket"}


@pytest.mark.parametrize(
    ("change", "also"),
    [
        ('{"tenant_id": "33333333-3333-4333-8333-333333333333"}', set()),
        (json.dumps({"timestamp": (NOW - timedelta(days=20)).isoformat()}), {LedgerCheck.ROW}),
    ],
    ids=["under another tenant", "in another week"],
)
async def test_an_event_that_stands_twice_in_the_ledger_is_found(
    kept: Books, change: str, also: set[LedgerCheck]
) -> None:
    await kept.damage(COPY_OF_5, change)

    wrong = await kept.wrong()

    rollups = {LedgerCheck.HOUR_ROLLUP, LedgerCheck.DAY_ROLLUP}
    assert also | rollups <= set(wrong)
    assert wrong[LedgerCheck.DUPLICATE_SEQUENCE] == 1
    assert wrong.get(LedgerCheck.DUPLICATE_EVENT, 0) == (0 if also else 1)


async def test_a_request_with_two_final_attempts_is_found_also_across_midnight(books: Books) -> None:
    request_id = str(uuid4())
    await books.send(
        attempt(1, TODAY - timedelta(seconds=3), tenant_id=TENANT, request_id=request_id),
        attempt(2, TODAY + timedelta(seconds=3), tenant_id=TENANT, request_id=request_id),
        attempt(3, TODAY - timedelta(seconds=2), tenant_id=TENANT, request_id=str(uuid4()), absorbed=True),
    )

    results = await books.verify()

    assert {check: result.wrong for check, result in results.items() if result.wrong} == {LedgerCheck.FINAL_ATTEMPT: 1}
    assert request_id in results[LedgerCheck.FINAL_ATTEMPT].discrepancies[0].key


async def test_a_cost_that_is_not_price_times_tokens_is_found(books: Books) -> None:
    await books.send(attempt(1), attempt(2))
    sound = await books.ledger.connection.fetchrow("SELECT * FROM model_usage_stats WHERE router_sequence = 1")
    assert sound is not None
    for change, check in (
        ("estimated_cost_usd = estimated_cost_usd + 0.000000000001", LedgerCheck.COST),
        ("price_id = (SELECT id FROM model_prices WHERE provider = 'local')", LedgerCheck.COST),
        ("price_id = NULL", LedgerCheck.COST),
        ("pricing_state = 'unpriced'", LedgerCheck.COST),
        ("pricing_state = 'nothing_consumed'", LedgerCheck.COST),
        ("pricing_state = 'free'", LedgerCheck.COST),
        ("total_tokens = total_tokens + 1", LedgerCheck.ROW),
    ):
        await books.damage(f"UPDATE model_usage_stats SET {change} WHERE router_sequence = 1")
        assert (await books.wrong())[check] == 1, change
        await books.damage(
            "UPDATE model_usage_stats SET estimated_cost_usd = $1, price_id = $2, pricing_state = $3, total_tokens = $4"
            " WHERE router_sequence = 1",
            *(sound[name] for name in ("estimated_cost_usd", "price_id", "pricing_state", "total_tokens")),
        )
    assert await books.wrong() == {}


async def test_a_cost_at_the_thirteenth_decimal_is_rounded_half_to_even(books: Books) -> None:
    # Half of the last digit: once above an even one, once above an odd one.
    await books.damage(
        "INSERT INTO model_prices (provider, model_name, input_usd, output_usd, effective_at, source)"
        " VALUES ('groq', 'odd', 0.590500500, 0, '2020-01-01+00', 'test')"
    )
    await books.ledger.pricing.refresh()
    await books.send(*(attempt(tokens, model="odd", tokens=TokenCounts(input_tokens=tokens)) for tokens in (1, 3)))

    costs = await books.ledger.connection.fetch("SELECT estimated_cost_usd AS usd FROM model_usage_stats ORDER BY 1")
    assert [cost["usd"] for cost in costs] == [Decimal("0.000000590500"), Decimal("0.000001771502")]
    assert await books.wrong() == {}


async def test_corrections_that_do_not_follow_from_one_another_are_found(books: Books) -> None:
    await books.send(attempt(1, tenant_id=TENANT), attempt(2, tenant_id=TENANT))
    for revision, old, new in ((1, "price_id - 1", "price_id - 2"), (2, "price_id - 2", "price_id")):
        await books.damage(
            "INSERT INTO usage_cost_adjustments SELECT tenant_id, timestamp, id, $1, provider, model_name, 'priced',"
            f" {old}, estimated_cost_usd, 'priced', {new}, estimated_cost_usd, 0, 'test', id FROM model_usage_stats",
            revision,
        )
    assert (await books.verify())[LedgerCheck.ADJUSTMENTS] == CheckResult(checked=4)

    await books.damage("UPDATE usage_cost_adjustments SET old_price_id = 99 WHERE revision = 2")
    assert await books.wrong() == {LedgerCheck.ADJUSTMENTS: 2}
    await books.damage("DELETE FROM usage_cost_adjustments WHERE revision = 2")
    assert await books.wrong() == {LedgerCheck.ADJUSTMENTS: 2}  # the row holds something else than the last one


async def test_a_repriced_ledger_passes_and_a_lost_correction_is_found(books: Books) -> None:
    await books.send(*(attempt(sequence) for sequence in range(1, 6)))
    for input_usd in ("1.1", "1.3"):
        await books.ledger.pricing.set_price(
            "groq",
            "llama-3.3-70b-versatile",
            Rates(Decimal(input_usd), Decimal("2.2"), cached_read_usd=Decimal("0.3")),
            effective_at=datetime(2020, 1, 1, tzinfo=UTC),
            replace=True,
            source="operator",
        )
        await reprice(books.ledger, job_id=uuid4())
        assert await books.wrong() == {}
    assert (await books.verify())[LedgerCheck.ADJUSTMENTS].checked == 10

    await books.damage("DELETE FROM usage_cost_adjustments WHERE revision = 1")
    assert await books.wrong() == {LedgerCheck.ADJUSTMENTS: 5}


async def test_what_retention_dropped_is_neither_missing_nor_without_rows(books: Books) -> None:
    old = [attempt(sequence, NOW - timedelta(days=30, minutes=100 - sequence)) for sequence in range(1, 5)]
    # An event of the dropped week that was sent when the router came back.
    late = attempt(6, NOW - timedelta(days=30))
    await books.send(*old, attempt(5), late, attempt(7))
    await books.ledger.partitions.drop_before(NOW - timedelta(days=20))
    books.raw_retention = timedelta(days=20)

    results = await books.verify()

    assert {check: result.wrong for check, result in results.items() if result.wrong} == {}
    assert results[LedgerCheck.COST].checked == 2


async def test_purged_minutes_and_hours_are_not_missed(books: Books) -> None:
    books.retention = RollupRetention(timedelta(hours=2), timedelta(days=2))
    await books.send(*[attempt(sequence, NOW - timedelta(hours=5 * sequence)) for sequence in range(1, 15)])
    await purge_rollups(books.ledger.owner, books.retention, NOW)

    results = await books.verify()

    assert {check: result.wrong for check, result in results.items() if result.wrong} == {}
    assert results[LedgerCheck.HOUR_ROLLUP].checked < results[LedgerCheck.COST].checked == 14
