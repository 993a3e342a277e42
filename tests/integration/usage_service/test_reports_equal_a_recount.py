"""U5 as a reader sees it: whatever window is asked, a report says what counting the rows says."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from service_runtime.embedded_postgres import EmbeddedPostgres
from service_runtime.postgres import Postgres
from tests.support.ledger_rows import (
    books_of,
    by,
    cost_of,
    ledger_row,
    outcomes_of,
    random_rows,
    store,
    total_tokens_of,
    within,
)
from tests.support.postgres import copy_of
from tests.support.usage_events import OTHER_TENANT, TENANT
from usage_service.domain import histogram
from usage_service.domain.report import DailyCost, UsageFilter
from usage_service.domain.usage_event import AttemptStatus, Funding, UsageEvent
from usage_service.domain.window import Grain, RollupRetention, Window
from usage_service.metering.ports import LedgerRow
from usage_service.metering.reporting import Reporting
from usage_service.storage.records import PostgresRecords
from usage_service.storage.rollups import PostgresRollups, purge_rollups

NOW = datetime(2026, 3, 18, 10, 41, 7, 123_000, tzinfo=UTC)
SPAN = Window(NOW - timedelta(days=12), NOW)
SHORT = RollupRetention(minutes=timedelta(hours=30), hours=timedelta(days=6))
RETENTIONS = {"all grains everywhere": RollupRetention(timedelta(days=20), timedelta(days=20)), "short": SHORT}
NO_FILTER = UsageFilter()


@pytest.fixture(scope="module")
def rows() -> list[LedgerRow]:
    rng = random.Random(2026)
    return random_rows(rng, 1_500, SPAN) + random_rows(rng, 100, SPAN, tenant_id=OTHER_TENANT)


@pytest.fixture(scope="module")
def books_of_the_rows(postgres_server: EmbeddedPostgres, ledger_template: str, rows: list[LedgerRow]) -> Iterator[str]:
    with books_of(postgres_server, ledger_template, rows) as name:
        yield name


@pytest.fixture
async def postgres(postgres_server: EmbeddedPostgres, books_of_the_rows: str) -> AsyncIterator[Postgres]:
    """The books of the `rows`."""
    async with copy_of(postgres_server, books_of_the_rows) as dsn:
        pool = await Postgres.connect(dsn, min_size=1, max_size=2)
        yield pool
        await pool.close()


@pytest.fixture
async def empty_books(ledger_database: str) -> AsyncIterator[Postgres]:
    pool = await Postgres.connect(ledger_database, min_size=1, max_size=2)
    yield pool
    await pool.close()


def reporting(postgres: Postgres, retention: RollupRetention) -> Reporting:
    return Reporting(
        rollups=PostgresRollups(postgres), records=PostgresRecords(postgres), retention=retention, now=lambda: NOW
    )


def random_windows(seed: int, number: int) -> list[Window]:
    rng = random.Random(seed)
    length_ms = SPAN.length // timedelta(milliseconds=1)
    edges = [sorted(rng.sample(range(length_ms), 2)) for _ in range(number)]
    return [
        Window(SPAN.start + timedelta(milliseconds=start), SPAN.start + timedelta(milliseconds=end))
        for start, end in edges
    ]


@pytest.mark.parametrize("retention", RETENTIONS.values(), ids=RETENTIONS.keys())
async def test_usage_of_any_window_equals_a_recount(
    postgres: Postgres, rows: list[LedgerRow], retention: RollupRetention
) -> None:
    reports = reporting(postgres, retention)
    for window in random_windows(1, 15):
        report = await reports.usage(UUID(TENANT), window, NO_FILTER)

        groups = by(within(rows, report.window), lambda row: (row.event.reported.provider, row.event.reported.model))
        assert {(one.provider, one.model) for one in report.models} == set(groups)
        assert [one.outcomes.requests for one in report.models] == sorted(
            (outcomes_of(group).requests for group in groups.values()), reverse=True
        )
        for one in report.models:
            group = groups[one.provider, one.model]
            assert one.outcomes == outcomes_of(group)
            assert one.cost == cost_of(group)
            assert one.tokens.total_tokens == total_tokens_of(group)
            assert one.tokens.reasoning_tokens == sum(row.event.tokens.reasoning_tokens for row in group)
            latencies = [row.event.reported.latency_ms for row in group]
            assert one.latency.count == len([ms for ms in latencies if ms is not None])
            assert one.latency.sum_ms == sum(ms for ms in latencies if ms is not None)
            assert one.latency.histogram == histogram.count(latencies)
            assert one.first_token.histogram == histogram.count(row.event.reported.first_token_ms for row in group)
        everything = within(rows, report.window)
        assert report.total.outcomes == outcomes_of(everything)
        assert report.total.cost == cost_of(everything)
        assert report.total.latency.histogram == histogram.count(row.event.reported.latency_ms for row in everything)


@pytest.mark.parametrize(
    ("only", "matches"),
    [
        (UsageFilter(provider="groq"), lambda event: event.reported.provider == "groq"),
        (UsageFilter(model="gpt-4o"), lambda event: event.reported.model == "gpt-4o"),
        (UsageFilter(absorbed=True), lambda event: event.reported.absorbed),
        (UsageFilter(absorbed=False), lambda event: not event.reported.absorbed),
        (UsageFilter(funding=Funding.SYSTEM_KEY), lambda event: event.funding is Funding.SYSTEM_KEY),
    ],
)
async def test_every_filter_counts_what_matches_in_every_report(
    postgres: Postgres, rows: list[LedgerRow], only: UsageFilter, matches: Callable[[UsageEvent], bool]
) -> None:
    reports = reporting(postgres, RETENTIONS["short"])
    matching = [row for row in within(rows, SPAN) if matches(row.event)]
    failing = [row for row in matching if row.event.status is not AttemptStatus.SUCCESS]

    usage = await reports.usage(UUID(TENANT), SPAN, only)
    costs = await reports.daily_costs(UUID(TENANT), SPAN, only, zone=ZoneInfo("UTC"), after=None, page_size=1000)
    failures = await reports.failures(UUID(TENANT), SPAN, only, after=None, page_size=1000)
    records = await reports.records(UUID(TENANT), SPAN, only, request_id=None, after=None, page_size=5000)

    assert usage.total.outcomes == outcomes_of(matching)
    assert sum(day.cost.usd for day in costs.entries) == cost_of(matching).usd
    assert sum(failure.occurrences for failure in failures.entries) == len(failing)
    assert {record.event_id for record in records.entries} == {row.event.event_id for row in matching}


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kolkata", "Asia/Kathmandu", "America/Los_Angeles"])
async def test_daily_costs_of_any_window_in_any_zone_equal_a_recount(
    postgres: Postgres, rows: list[LedgerRow], zone: str
) -> None:
    reports = reporting(postgres, RETENTIONS["all grains everywhere"])
    for window in random_windows(2, 4):
        page = await reports.daily_costs(
            UUID(TENANT), window, NO_FILTER, zone=ZoneInfo(zone), after=None, page_size=1000
        )

        widened = Window(Grain.MINUTE.floor(window.start), Grain.MINUTE.ceil(window.end))
        groups = by(
            within(rows, widened),
            lambda row: (row.event.used_at.astimezone(ZoneInfo(zone)).date(), row.event.reported.provider),
        )
        expected = [
            DailyCost(day, provider, outcomes_of(group).requests, total_tokens_of(group), cost_of(group))
            for (day, provider), group in groups.items()
        ]
        expected.sort(key=lambda one: (-one.day.toordinal(), -one.cost.usd, one.provider))
        assert list(page.entries) == expected


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Asia/Kolkata"])
async def test_a_zone_that_the_kept_rollups_cannot_cut_still_counts_everything_once(
    postgres: Postgres, rows: list[LedgerRow], zone: str
) -> None:
    page = await reporting(postgres, SHORT).daily_costs(
        UUID(TENANT), SPAN, NO_FILTER, zone=ZoneInfo(zone), after=None, page_size=1000
    )

    assert sum(one.requests for one in page.entries) == outcomes_of(within(rows, SPAN)).requests
    assert sum(one.cost.usd for one in page.entries) == cost_of(within(rows, SPAN)).usd


async def test_failures_of_any_window_equal_a_recount(postgres: Postgres, rows: list[LedgerRow]) -> None:
    reports = reporting(postgres, RETENTIONS["all grains everywhere"])
    for window in random_windows(3, 6):
        page = await reports.failures(UUID(TENANT), window, NO_FILTER, after=None, page_size=1000)

        widened = Window(Grain.MINUTE.floor(window.start), Grain.MINUTE.ceil(window.end))
        failing = [row for row in within(rows, widened) if row.event.status is not AttemptStatus.SUCCESS]
        groups = by(
            failing,
            lambda row: (
                row.event.reported.provider,
                row.event.reported.model,
                row.event.status,
                row.event.reported.error_class,
            ),
        )
        assert len(page.entries) == len(groups)
        for failure in page.entries:
            key = failure.key
            group = groups[key.provider, key.model, key.status, key.error_class]
            newest = max(group, key=lambda row: row.event.event_id)
            assert failure.occurrences == len(group)
            assert failure.absorbed == outcomes_of(group).absorbed
            assert failure.cost == cost_of(group)
            assert failure.first_seen == Grain.MINUTE.floor(min(row.event.used_at for row in group))
            assert failure.last_seen == Grain.MINUTE.floor(newest.event.used_at)
            assert failure.sample_message == newest.event.reported.error_message
        counts = [failure.occurrences for failure in page.entries]
        assert counts == sorted(counts, reverse=True)


async def test_a_purge_changes_no_report(postgres: Postgres, rows: list[LedgerRow]) -> None:
    reports = reporting(postgres, SHORT)
    windows = random_windows(4, 8)

    async def everything() -> list[object]:
        answers: list[object] = []
        for window in windows:
            answers.append(await reports.usage(UUID(TENANT), window, NO_FILTER))
            answers.append(
                await reports.daily_costs(
                    UUID(TENANT), window, NO_FILTER, zone=ZoneInfo("Asia/Kolkata"), after=None, page_size=1000
                )
            )
            answers.append(await reports.failures(UUID(TENANT), window, NO_FILTER, after=None, page_size=1000))
        return answers

    before = await everything()
    first = await purge_rollups(postgres, SHORT, NOW + timedelta(minutes=59))
    second = await purge_rollups(postgres, SHORT, NOW + timedelta(minutes=59))

    assert first.minutes > 0
    assert first.hours > 0
    assert (second.minutes, second.hours) == (0, 0)
    assert await everything() == before


async def test_a_late_event_after_the_purge_does_not_pass_for_the_first_of_its_hour(empty_books: Postgres) -> None:
    early, late = (NOW.replace(minute=minute) - timedelta(days=3) for minute in (10, 50))
    failing: dict[str, Any] = {"status": AttemptStatus.ERROR, "error_class": "timeout"}
    await store(empty_books, [ledger_row(early, **failing)])
    await purge_rollups(empty_books, SHORT, NOW)
    await store(empty_books, [ledger_row(late, **failing)])

    page = await reporting(empty_books, SHORT).failures(UUID(TENANT), SPAN, NO_FILTER, after=None, page_size=10)

    assert [(one.occurrences, one.first_seen, one.last_seen) for one in page.entries] == [
        (2, Grain.HOUR.floor(early), Grain.HOUR.floor(late))
    ]


async def test_a_purge_leaves_what_is_kept_of_every_tenant(postgres: Postgres, rows: list[LedgerRow]) -> None:
    left = SHORT.purgeable_at(NOW)

    await purge_rollups(postgres, SHORT, NOW)

    async with postgres.acquire() as connection:
        minutes = await connection.fetch("SELECT tenant_id, bucket FROM usage_rollup_minute")
        hours = await connection.fetch("SELECT tenant_id, bucket FROM usage_rollup_hour")
        days = await connection.fetchval("SELECT sum(attempts)::bigint FROM usage_rollup_day")
    for found, grain, since in ((minutes, Grain.MINUTE, left.minutes_since), (hours, Grain.HOUR, left.hours_since)):
        assert {(record["tenant_id"], record["bucket"]) for record in found} == {
            (row.event.tenant_id, grain.floor(row.event.used_at)) for row in rows if row.event.used_at >= since
        }
    assert days == len(rows)
