"""Prices, usage and corrections against a model of them in plain Python: any interleaving, to the last digit (U5)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service_runtime.embedded_postgres import EmbeddedPostgres
from tests.support.ledger import LedgerUnderTest, ledger_on
from tests.support.postgres import dsn_of
from tests.support.repricing import reprice
from tests.support.usage_events import OTHER_TENANT, TENANT, event_id_at, reported_event, submission
from usage_service.domain.pricing import Rates, TokenCounts
from usage_service.domain.usage_event import ReportedEvent
from usage_service.domain.window import Window
from usage_service.metering.recording import Batch
from usage_service.metering.repricing import RepriceScope

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

NOW = datetime.now(UTC).replace(microsecond=0)
MODELS = ("m1", "m2")
GRAINS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}
TABLES = (
    "model_usage_stats", "usage_rollup_minute", "usage_rollup_hour", "usage_rollup_day", "usage_cost_adjustments",
    "model_prices", "model_prices_replaced", "usage_events_rejected",
)  # fmt: skip
AGES = [timedelta(milliseconds=ms) for ms in (0, 1, 60_000, 3_600_000, 86_400_000, 20 * 86_400_000)]


@dataclass(frozen=True)
class Record:
    events: tuple[ReportedEvent, ...]


@dataclass(frozen=True)
class SetPrice:
    model: str
    rates: Rates
    effective_at: datetime


@dataclass(frozen=True)
class Reprice:
    scope: RepriceScope
    rows_per_transaction: int


Step = Record | SetPrice | Reprice

usd = st.decimals(min_value=0, max_value=20, places=9) | st.sampled_from([Decimal(0), Decimal("0.000000001")])


@st.composite
def records(draw: st.DrawFn) -> Record:
    events = []
    for _ in range(draw(st.integers(1, 5))):
        tokens = TokenCounts(*(draw(st.sampled_from([0, 1, 500_001, 10**12])) for _ in range(5)))
        # Few ids on purpose: an event may come again, after its row was corrected.
        used_at, number = NOW - draw(st.sampled_from(AGES)), draw(st.integers(1, 4))
        events.append(
            reported_event(
                used_at,
                event_id=str(event_id_at(used_at, number)),
                tenant_id=TENANT if number % 2 else OTHER_TENANT,
                provider="llm7",
                model=draw(st.sampled_from(MODELS)),
                tokens=tokens,
            )
        )
    return Record(tuple(events))


set_prices = st.builds(
    SetPrice,
    st.sampled_from([*MODELS, "*"]),
    st.builds(Rates, usd, usd, st.none() | usd, st.none() | usd, st.none() | usd, st.sampled_from([None, 10**6])),
    st.sampled_from([NOW - age for age in AGES]),
)


@st.composite
def reprices(draw: st.DrawFn) -> Reprice:
    start, end = sorted(draw(st.lists(st.sampled_from([*AGES, -AGES[2]]), min_size=2, max_size=2, unique=True)))[::-1]
    model = draw(st.sampled_from(["", *MODELS]))
    scope = RepriceScope(Window(NOW - start, NOW - end), provider=draw(st.sampled_from(["", "llm7"])), model=model)
    return Reprice(scope, draw(st.integers(1, 4)))


@dataclass
class Row:
    event: ReportedEvent
    used_at: datetime
    cost: Fraction | None
    adjustments: list[tuple[Fraction | None, Fraction | None]] = field(default_factory=list)


@dataclass
class Model:
    """The books, by the rules in their simplest form; costs as fractions, so that no arithmetic is shared."""

    prices: dict[str, dict[datetime, Rates]] = field(default_factory=lambda: defaultdict(dict))
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)

    def apply(self, step: Step) -> None:
        match step:
            case Record(events):
                for event in events:
                    used_at = datetime.fromtimestamp(int(event.event_id.replace("-", "")[:12], 16) / 1000, tz=UTC)
                    key = (event.tenant_id, event.event_id)
                    if key not in self.rows:
                        self.rows[key] = Row(event, used_at, self.cost(event, used_at))
            case SetPrice(model, rates, effective_at):
                self.prices[model][effective_at] = rates
            case Reprice(scope, _):
                for row in self.rows.values():
                    inside = scope.window.start <= row.used_at < scope.window.end
                    if inside and scope.model in ("", row.event.model):
                        row.cost, before = self.cost(row.event, row.used_at), row.cost
                        row.adjustments += [(before, row.cost)] * (before != row.cost)

    def cost(self, event: ReportedEvent, used_at: datetime) -> Fraction | None:
        tokens = event.tokens
        if not tokens.total_tokens:
            return Fraction(0)
        rates = self._rates(event.model, used_at) or self._rates("*", used_at)
        prompt = tokens.input_tokens + tokens.cached_read_tokens + tokens.cached_write_tokens
        if rates is None or prompt > (rates.max_prompt_tokens or prompt):
            return None
        read = rates.input_usd if rates.cached_read_usd is None else rates.cached_read_usd
        write = rates.input_usd if rates.cached_write_usd is None else rates.cached_write_usd
        reasoning = rates.output_usd if rates.reasoning_usd is None else rates.reasoning_usd
        usd_millionths = (
            tokens.input_tokens * Fraction(rates.input_usd)
            + tokens.cached_read_tokens * Fraction(read)
            + tokens.cached_write_tokens * Fraction(write)
            + tokens.output_tokens * Fraction(rates.output_usd)
            + tokens.reasoning_tokens * Fraction(reasoning)
        )
        return Fraction(round(usd_millionths * 10**6), 10**12)  # round() of a fraction is half to even

    def _rates(self, model: str, used_at: datetime) -> Rates | None:
        started = [start for start in self.prices[model] if start <= used_at]
        return self.prices[model][max(started)] if started else None

    def rollup(self, grain: timedelta) -> dict[tuple[Any, ...], tuple[Any, ...]]:
        sums: dict[tuple[Any, ...], list[Any]] = defaultdict(lambda: [0, Fraction(0), 0, 0])
        epoch = datetime(2000, 1, 1, tzinfo=UTC)
        for row in self.rows.values():
            bucket = epoch + (row.used_at - epoch) // grain * grain
            sum_ = sums[row.event.tenant_id, bucket, row.event.model]
            sum_[0] += 1
            sum_[1] += row.cost or 0
            sum_[2] += row.cost is None
            sum_[3] += row.event.tokens.total_tokens if row.cost is None else 0
        return {key: tuple(sum_) for key, sum_ in sums.items()}


@pytest.fixture(scope="module")
def ledger_dsn(postgres_server: EmbeddedPostgres, ledger_template: str) -> str:
    async def create() -> None:
        connection = await asyncpg.connect(dsn_of(postgres_server, "postgres"))
        await connection.execute(f"CREATE DATABASE reprice_model TEMPLATE {ledger_template}")
        await connection.close()

    asyncio.run(create())
    return dsn_of(postgres_server, "reprice_model")


def test_any_interleaving_of_usage_prices_and_corrections_gives_the_books_of_the_model(ledger_dsn: str) -> None:
    with asyncio.Runner() as runner:
        opened = AsyncExitStack()
        ledger = runner.run(opened.enter_async_context(ledger_on(ledger_dsn, now=lambda: NOW)))

        @settings(max_examples=25, deadline=None)
        @given(st.lists(records() | set_prices | reprices(), min_size=2, max_size=12))
        def holds(steps: list[Step]) -> None:
            runner.run(check(ledger, steps))

        try:
            holds()
        finally:
            runner.run(opened.aclose())


async def check(ledger: LedgerUnderTest, steps: list[Step]) -> None:
    model = Model()
    for table in TABLES:
        await ledger.connection.execute(f"DELETE FROM {table}")
    await ledger.pricing.refresh()
    for step in steps:
        model.apply(step)
        await perform(step, ledger)
    await assert_equal(model, ledger.connection)

    everything = Reprice(RepriceScope(Window(NOW - timedelta(days=30), NOW + timedelta(days=1))), 3)
    model.apply(everything)
    foretold = await reprice(ledger, everything.scope, apply=False)
    done = await reprice(ledger, everything.scope)
    again = await reprice(ledger, everything.scope)
    assert foretold == done
    assert (again.changed_rows, again.old_cost_usd) == (0, done.new_cost_usd)
    assert again.delta_usd == 0
    await assert_equal(model, ledger.connection)


async def perform(step: Step, ledger: LedgerUnderTest) -> None:
    match step:
        case Record(events):
            await ledger.recorder.record(Batch("router-1", "", [submission(event) for event in events]))
        case SetPrice(model, rates, effective_at):
            await ledger.pricing.set_price(
                "llm7", model, rates, effective_at=effective_at, replace=True, source="operator"
            )
        case Reprice(scope, rows_per_transaction):
            await reprice(ledger, scope, max_rows=5, rows_per_transaction=rows_per_transaction)


async def assert_equal(model: Model, connection: Connection) -> None:
    rows = await connection.fetch("SELECT * FROM model_usage_stats")
    assert {(str(row["tenant_id"]), str(row["id"])): exactly(row["estimated_cost_usd"]) for row in rows} == {
        key: row.cost for key, row in model.rows.items()
    }
    for name, grain in GRAINS.items():
        assert await stored_rollup(connection, name) == model.rollup(grain)
    await assert_adjustments_equal(model, connection)
    assert await costs_that_are_not_price_times_tokens(connection) == 0


async def stored_rollup(connection: Connection, name: str) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    rows = await connection.fetch(f"SELECT * FROM usage_rollup_{name}")
    return {
        (str(row["tenant_id"]), row["bucket"], row["model_name"]): (
            row["attempts"],
            Fraction(row["cost_usd"]),
            row["unpriced_attempts"],
            row["unpriced_tokens"],
        )
        for row in rows
    }


async def assert_adjustments_equal(model: Model, connection: Connection) -> None:
    """Every change of a cost stands there; one that only changes the price's id has equal sides, and chains hold."""
    appended = await connection.fetch("SELECT * FROM usage_cost_adjustments ORDER BY tenant_id, event_id, revision")
    chains: dict[tuple[str, str], list[asyncpg.Record]] = defaultdict(list)
    for one in appended:
        chain = chains[str(one["tenant_id"]), str(one["event_id"])]
        assert one["revision"] == len(chain) + 1
        assert not chain or all(
            one[f"old_{side}"] == chain[-1][f"new_{side}"] for side in ("cost_usd", "price_id", "pricing_state")
        )
        chain.append(one)
    for key, row in model.rows.items():
        changes = [(exactly(one["old_cost_usd"]), exactly(one["new_cost_usd"])) for one in chains.pop(key, [])]
        assert [change for change in changes if change[0] != change[1]] == row.adjustments
    assert not chains


async def costs_that_are_not_price_times_tokens(connection: Connection) -> Any:
    """As the migration says that it can be asked, replaced prices included."""
    return await connection.fetchval(
        """
        SELECT count(*)
        FROM model_usage_stats AS row
        LEFT JOIN model_prices_ever AS price ON price.id = row.price_id
        WHERE CASE row.pricing_state
            WHEN 'priced' THEN abs(row.estimated_cost_usd - (
                row.input_tokens * price.input_usd
                + row.cached_read_tokens * coalesce(price.cached_read_usd, price.input_usd)
                + row.cached_write_tokens * coalesce(price.cached_write_usd, price.input_usd)
                + row.output_tokens * price.output_usd
                + row.reasoning_tokens * coalesce(price.reasoning_usd, price.output_usd)) * 0.000001
            ) <= 0.0000000000005
            WHEN 'unpriced' THEN row.estimated_cost_usd IS NULL AND row.price_id IS NULL AND row.total_tokens > 0
            WHEN 'nothing_consumed' THEN row.estimated_cost_usd = 0 AND row.price_id IS NULL AND row.total_tokens = 0
        END IS NOT TRUE
        """
    )


def exactly(cost: Decimal | None) -> Fraction | None:
    return None if cost is None else Fraction(cost)
