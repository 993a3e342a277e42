"""U5 by property: whatever window, zone, step and filter is asked for, tiles say what a recount of the rows says."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service_runtime.embedded_postgres import EmbeddedPostgres
from service_runtime.postgres import Postgres
from tests.support.ledger_rows import by, cost_of, outcomes_of, random_rows, store, total_tokens_of, within
from tests.support.postgres import dsn_of
from tests.support.usage_events import TENANT
from usage_service.domain.report import DailyCost, Grouping, UsageFilter
from usage_service.domain.steps import Step, StepUnit
from usage_service.domain.usage_event import Funding
from usage_service.domain.window import RollupRetention, Window, answerable
from usage_service.metering.ports import LedgerRow
from usage_service.metering.reporting import Reporting
from usage_service.storage.records import PostgresRecords
from usage_service.storage.rollups import PostgresRollups

NOW = datetime(2026, 10, 27, 10, 41, 7, 123_000, tzinfo=UTC)  # the clocks of Europe changed two days ago
SPAN = Window(NOW - timedelta(days=8), NOW)
EVERYTHING = RollupRetention(timedelta(days=10), timedelta(days=10))

instants = st.integers(0, SPAN.length // timedelta(milliseconds=1)).map(
    lambda ms: SPAN.start + timedelta(milliseconds=ms)
)
windows = st.tuples(instants, instants).filter(lambda pair: pair[0] != pair[1]).map(lambda pair: Window(*sorted(pair)))
zones = st.sampled_from(sorted(available_timezones())).map(ZoneInfo)
step_lengths = st.builds(Step, st.sampled_from([StepUnit.HOUR, StepUnit.DAY]), st.integers(1, 9)) | st.builds(
    Step, st.just(StepUnit.MINUTE), st.integers(15, 200)
)
filters = st.builds(
    UsageFilter,
    provider=st.sampled_from(["", "groq", "llm7"]),
    absorbed=st.none() | st.booleans(),
    funding=st.sampled_from(list(Funding)),
)


@dataclass
class Books:
    reports: Reporting
    rows: list[LedgerRow]
    runner: asyncio.Runner

    def matching(self, window: Window, only: UsageFilter) -> list[LedgerRow]:
        return [
            row
            for row in within(self.rows, window)
            if only.provider in ("", row.event.reported.provider)
            and only.absorbed in (None, row.event.reported.absorbed)
            and only.funding in (Funding.NO_KEY, row.event.funding)
        ]


@pytest.fixture(scope="module")
def books(postgres_server: EmbeddedPostgres, ledger_template: str) -> Iterator[Books]:
    rows = random_rows(random.Random(31), 400, SPAN)

    async def fill() -> Postgres:
        connection = await asyncpg.connect(dsn_of(postgres_server, "postgres"))
        await connection.execute(f"CREATE DATABASE windows_property TEMPLATE {ledger_template}")
        await connection.close()
        postgres = await Postgres.connect(dsn_of(postgres_server, "windows_property"), min_size=1, max_size=2)
        await store(postgres, rows)
        return postgres

    with asyncio.Runner() as runner:
        postgres = runner.run(fill())
        reports = Reporting(
            rollups=PostgresRollups(postgres),
            records=PostgresRecords(postgres),
            retention=EVERYTHING,
            now=lambda: NOW,
        )
        yield Books(reports, rows, runner)
        runner.run(postgres.close())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(window=windows, zone=zones, step=step_lengths, only=filters)
def test_tiles_equal_a_recount(books: Books, window: Window, zone: ZoneInfo, step: Step, only: UsageFilter) -> None:
    tenant, kept = UUID(TENANT), EVERYTHING.kept_at(NOW)

    usage = books.runner.run(books.reports.usage(tenant, window, only))
    costs = books.runner.run(
        books.reports.daily_costs(tenant, window, only, zone=zone, after=None, page_size=1_000)
    ).entries
    series = books.runner.run(
        books.reports.series(
            tenant, window, only, step=step, zone=zone, grouping=Grouping.NONE, after=None, page_size=1_000
        )
    )

    held = books.matching(answerable(window, kept), only)
    assert usage.total.outcomes == outcomes_of(held)
    assert usage.total.cost == cost_of(held)
    days = by(held, lambda row: (row.event.used_at.astimezone(zone).date(), row.event.reported.provider))
    assert {(one.day, one.provider): one for one in costs} == {
        (day, provider): DailyCost(day, provider, outcomes_of(group).requests, total_tokens_of(group), cost_of(group))
        for (day, provider), group in days.items()
    }
    assert sum(point.usage.outcomes.attempts for point in series.points) == len(held)
    for point in series.points:
        group = books.matching(point.window, only)
        assert point.usage.outcomes == outcomes_of(group)
        assert point.usage.cost == cost_of(group)
        if step.unit is StepUnit.DAY:
            days_of_step = {row.event.used_at.astimezone(zone).date().toordinal() - 1 for row in group}
            assert len({day // step.count for day in days_of_step}) <= 1
