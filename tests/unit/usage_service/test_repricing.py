"""Runs of Reprice over rows in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest

from tests.support.booked_rows import RowsInMemory, booked_usage
from tests.support.prices import EARLY, PublishedPrices, StoredPrices, price_of
from tests.support.usage_events import OTHER_TENANT, TENANT
from usage_service.domain.pricing import PricedUsage, PricingState, Rates, TokenCounts
from usage_service.domain.repricing import Correction, RepriceSummary, corrections_of, rollup_changes
from usage_service.domain.window import Grain, Window
from usage_service.metering.pricing import Pricing
from usage_service.metering.repricing import RepriceJob, RepriceScope, Repricing

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
JOB = UUID(int=7)
LAST_WEEK = RepriceScope(Window(NOW - timedelta(days=7), NOW))
PRICED = PricedUsage(PricingState.PRICED, Decimal("0.000500000000"), 1)


class Books:
    """A price book, rows, and runs over them."""

    def __init__(self, *prices: tuple[str, str, str], published: dict[tuple[str, str], Rates] | None = None) -> None:
        self.store = StoredPrices()
        self._prices = [price_of("groq", model, input_usd, output_usd) for model, input_usd, output_usd in prices]
        self.rows = RowsInMemory()
        self.pricing = Pricing(store=self.store, vendors=PublishedPrices(published or {}), now=lambda: NOW)
        self.seconds: Iterator[float] = itertools.repeat(0.0)

    async def run(
        self, scope: RepriceScope = LAST_WEEK, *, apply: bool = True, max_rows: int = 1_000
    ) -> list[RepriceSummary]:
        """Every call of one run."""
        await self.store.add(self._prices)
        repricing = Repricing(
            rows=self.rows, pricing=self.pricing, monotonic_s=lambda: next(self.seconds), rows_per_transaction=3
        )
        calls, rest = [], None
        while True:
            progress = await repricing.run(RepriceJob(scope, JOB, "test", apply), rest, max_rows=max_rows)
            calls.append(progress.summary)
            rest = progress.rest
            if rest is None:
                return calls


def total(calls: list[RepriceSummary]) -> RepriceSummary:
    return sum(calls, start=RepriceSummary())


async def test_a_row_that_has_the_right_price_stays_and_another_is_corrected() -> None:
    books = Books(("llama", "0.50", "1"), ("mixtral", "2", "2"))
    right = booked_usage(NOW - timedelta(hours=1), priced=PRICED)
    wrong = booked_usage(NOW - timedelta(hours=2), model="mixtral", priced=PRICED)
    books.rows.rows = [right, wrong]

    summary = total(await books.run())

    corrected = PricedUsage(PricingState.PRICED, Decimal("0.002000000000"), 2)
    assert [row.priced for row in books.rows.rows] == [PRICED, corrected]
    assert books.rows.appended == [(RepriceJob(LAST_WEEK, JOB, "test", apply=True), Correction(wrong, corrected))]
    assert (summary.scanned_rows, summary.changed_rows) == (2, 1)
    assert (summary.old_cost_usd, summary.new_cost_usd) == (Decimal("0.001"), Decimal("0.0025"))
    assert summary.delta_usd == Decimal("0.0015")


async def test_a_second_run_changes_nothing() -> None:
    books = Books(("llama", "1", "1"))
    books.rows.rows = [booked_usage(NOW - timedelta(hours=hours), priced=PRICED) for hours in range(1, 9)]

    first, second = total(await books.run()), total(await books.run())

    assert (first.changed_rows, second.changed_rows) == (8, 0)
    assert first.new_cost_usd == second.old_cost_usd == second.new_cost_usd
    assert len(books.rows.appended) == 8


async def test_a_dry_run_tells_what_a_run_then_does_and_changes_nothing() -> None:
    books = Books(("llama", "1", "1"), published={("groq", "published"): Rates(Decimal(3), Decimal(4))})
    before = [
        booked_usage(NOW - timedelta(hours=1), priced=PRICED),
        booked_usage(NOW - timedelta(hours=2), model="published"),
        booked_usage(NOW - timedelta(hours=3), model="unheard-of"),
    ]
    books.rows.rows = list(before)

    foretold = total(await books.run(apply=False))

    assert books.rows.rows == before
    assert books.rows.transactions == []
    assert [entry.model for entry in books.store.entries] == ["llama"]
    assert (foretold.newly_priced_rows, foretold.unpriced_rows) == (1, 1)
    assert foretold == total(await books.run())
    assert [entry.model for entry in books.store.entries] == ["llama", "published"]


async def test_a_price_that_no_longer_holds_leaves_the_row_unpriced() -> None:
    books = Books()
    books.rows.rows = [booked_usage(NOW - timedelta(hours=1), priced=PRICED)]

    summary = total(await books.run())

    assert books.rows.rows[0].priced == PricedUsage(PricingState.UNPRICED, None, None)
    assert (summary.newly_unpriced_rows, summary.unpriced_rows) == (1, 1)
    assert summary.new_cost_usd == 0


async def test_a_row_without_tokens_has_no_price_to_correct() -> None:
    books = Books(("llama", "1", "1"))
    nothing = PricedUsage(PricingState.NOTHING_CONSUMED, Decimal(0), None)
    books.rows.rows = [booked_usage(NOW - timedelta(hours=1), tokens=TokenCounts(), priced=nothing)]

    assert total(await books.run()) == RepriceSummary(scanned_rows=1)


@pytest.mark.parametrize("max_rows", [1, 2, 3, 4, 7, 100])
async def test_a_run_in_calls_of_any_length_looks_at_every_row_once(max_rows: int) -> None:
    books = Books(("llama", "1", "1"))
    midnight = NOW.replace(hour=0)
    books.rows.rows = [
        booked_usage(at, tenant_id=tenant)
        for tenant in (TENANT, OTHER_TENANT)
        for day in range(3)
        for at in (midnight - timedelta(days=day), midnight - timedelta(days=day, milliseconds=1), midnight)
    ]

    calls = await books.run(max_rows=max_rows)

    assert total(calls).scanned_rows == total(calls).changed_rows == len(books.rows.appended) == 18
    assert max(call.scanned_rows for call in calls) <= max_rows
    assert max(books.rows.transactions) <= 3


async def test_a_call_that_takes_long_ends_and_the_next_goes_on() -> None:
    books = Books(("llama", "1", "1"))
    books.rows.rows = [booked_usage(NOW - timedelta(hours=hours)) for hours in range(1, 9)]
    books.seconds = itertools.count(0.0, 6.0)

    calls = await books.run()

    assert len(calls) > 3
    assert total(calls).changed_rows == 8


async def test_only_the_window_the_tenant_and_the_model_that_were_asked_for_are_touched() -> None:
    books = Books(("llama", "1", "1"), ("mixtral", "1", "1"))
    inside = booked_usage(LAST_WEEK.window.start, priced=PRICED)
    others = [
        booked_usage(LAST_WEEK.window.end, priced=PRICED),
        booked_usage(LAST_WEEK.window.start - timedelta(milliseconds=1), priced=PRICED),
        booked_usage(NOW - timedelta(hours=1), tenant_id=OTHER_TENANT, priced=PRICED),
        booked_usage(NOW - timedelta(hours=1), model="mixtral", priced=PRICED),
    ]
    books.rows.rows = [inside, *others]

    await books.run(RepriceScope(LAST_WEEK.window, UUID(TENANT), "groq", "llama"))

    assert [correction.usage for _, correction in books.rows.appended] == [inside]


async def test_each_row_is_priced_by_what_held_when_it_was_used() -> None:
    books = Books()
    await books.store.add(
        [price_of("groq", "llama", "1", "1"), price_of("groq", "llama", "2", "2", since=NOW - timedelta(hours=2))]
    )
    books.rows.rows = [booked_usage(NOW - timedelta(hours=hours)) for hours in (3, 2, 1)]

    await books.run()

    assert [row.priced.price_id for row in books.rows.rows] == [1, 2, 2]
    assert books.store.entries[0].effective_at == EARLY


async def test_corrections_of_one_rollup_row_are_added_up() -> None:
    books = Books()
    await books.store.add([price_of("groq", "llama", "1", "1")])
    await books.pricing.refresh()
    unpriced = [booked_usage(NOW + timedelta(seconds=second)) for second in (0, 1, 61)]

    corrections = corrections_of(unpriced, books.pricing.book)

    minutes = rollup_changes(corrections, Grain.MINUTE)
    [day] = rollup_changes(corrections, Grain.DAY).values()
    assert [(key.bucket, one.cost_usd, one.unpriced_attempts, one.unpriced_tokens) for key, one in minutes.items()] == [
        (NOW, Decimal("0.002"), -2, -2_000),
        (NOW + timedelta(minutes=1), Decimal("0.001"), -1, -1_000),
    ]
    assert (day.cost_usd, day.unpriced_attempts, day.unpriced_tokens) == (Decimal("0.003"), -3, -3_000)
