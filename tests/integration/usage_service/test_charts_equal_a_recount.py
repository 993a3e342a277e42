"""U5 on charts: a time series and a distribution say what counting the rows says, whatever window, step and zone."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from service_runtime.embedded_postgres import EmbeddedPostgres
from service_runtime.errors import Category, InvalidRequest, ServiceError
from service_runtime.postgres import Postgres
from tests.support.ledger_rows import books_of, by, cost_of, outcomes_of, random_rows, total_tokens_of, within
from tests.support.postgres import copy_of
from tests.support.usage_events import OTHER_TENANT, TENANT
from turnpike.usage.v1 import usage_service_pb2 as pb
from usage_service.api.convert_reports import instant_from_proto, timestamp_to_proto
from usage_service.api.reports import ReportHandlers
from usage_service.domain import histogram
from usage_service.domain.report import Grouping, UsageFilter
from usage_service.domain.steps import Step, StepUnit, steps
from usage_service.domain.window import RollupRetention, Window, answerable
from usage_service.metering import reporting as reporting_module
from usage_service.metering.ports import LedgerRow
from usage_service.metering.reporting import Reporting
from usage_service.storage.records import PostgresRecords
from usage_service.storage.rollups import PostgresRollups

NOW = datetime(2026, 3, 31, 10, 41, 7, 123_000, tzinfo=UTC)  # the clocks of Europe changed two days ago
SPAN = Window(NOW - timedelta(days=9), NOW)
RETENTION = RollupRetention(minutes=timedelta(days=12), hours=timedelta(days=12))
KEPT = RETENTION.kept_at(NOW)
STEPS = [
    Step(StepUnit.MINUTE, 7),
    Step(StepUnit.MINUTE, 90),
    Step(StepUnit.HOUR),
    Step(StepUnit.HOUR, 5),
    Step(StepUnit.DAY),
    Step(StepUnit.DAY, 3),
]
ZONES = ["UTC", "Europe/Berlin", "Asia/Kathmandu"]


@pytest.fixture(scope="module")
def rows() -> list[LedgerRow]:
    rng = random.Random(2027)
    return random_rows(rng, 700, SPAN) + random_rows(rng, 50, SPAN, tenant_id=OTHER_TENANT)


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


def reporting(postgres: Postgres, retention: RollupRetention = RETENTION) -> Reporting:
    return Reporting(
        rollups=PostgresRollups(postgres), records=PostgresRecords(postgres), retention=retention, now=lambda: NOW
    )


def random_window(rng: random.Random, longest: timedelta) -> Window:
    length_ms = longest // timedelta(milliseconds=1)
    start, end = sorted(rng.sample(range(length_ms), 2))
    first = NOW - longest
    return Window(first + timedelta(milliseconds=start), first + timedelta(milliseconds=end))


def by_names(rows: list[LedgerRow], grouping: Grouping) -> dict[tuple[str, str], list[LedgerRow]]:
    def names(row: LedgerRow) -> tuple[str, str]:
        reported = row.event.reported
        return reported.provider if grouping.by_provider else "", reported.model if grouping.by_model else ""

    return by(rows, names)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step.count} {step.unit.name}")
async def test_a_time_series_of_any_window_equals_a_recount(
    postgres: Postgres, rows: list[LedgerRow], step: Step
) -> None:
    reports, rng = reporting(postgres), random.Random(str(step))
    for grouping in Grouping:
        zone = ZoneInfo(rng.choice(ZONES))
        window = random_window(rng, timedelta(hours=20) if step.unit is StepUnit.MINUTE else SPAN.length)
        series = await reports.series(
            UUID(TENANT), window, UsageFilter(), step=step, zone=zone, grouping=grouping, after=None, page_size=1_000
        )

        cut = steps(answerable(window, KEPT), step, zone, KEPT)
        expected = {(one, *key): group for one in cut for key, group in by_names(within(rows, one), grouping).items()}
        if grouping is Grouping.NONE:
            expected |= {(one, "", ""): [] for one in cut if (one, "", "") not in expected}
        assert [(point.window, point.usage.provider, point.usage.model) for point in series.points] == sorted(
            expected, key=lambda key: (key[0].start, key[1], key[2])
        )
        for point in series.points:
            group = expected[point.window, point.usage.provider, point.usage.model]
            assert point.usage.outcomes == outcomes_of(group)
            assert point.usage.cost == cost_of(group)
            assert point.usage.tokens.total_tokens == total_tokens_of(group)
            assert tuple(point.usage.latency.histogram) == histogram.count(
                row.event.reported.latency_ms for row in group
            )
        assert (series.window, series.resume_at) == (answerable(window, KEPT), None)


@pytest.mark.parametrize("grouping", Grouping)
async def test_distributions_of_any_window_equal_a_recount(
    postgres: Postgres, rows: list[LedgerRow], grouping: Grouping
) -> None:
    handlers, rng = ReportHandlers(reporting(postgres)), random.Random(grouping.value)
    for _ in range(3):
        window = random_window(rng, SPAN.length)
        answer = await handlers.get_latency_distribution(
            pb.GetLatencyDistributionRequest(
                tenant_id=TENANT,
                start_time=timestamp_to_proto(window.start),
                end_time=timestamp_to_proto(window.end),
                grouping=pb.UsageGrouping.Value(f"USAGE_GROUPING_{grouping.name}"),
            )
        )

        answered = Window(instant_from_proto(answer.start_time), instant_from_proto(answer.end_time))
        held = within(rows, answered)
        groups = by_names(held, grouping)
        assert {(one.provider, one.model) for one in answer.distributions} == set(groups)
        for one, group in [
            *((one, groups[one.provider, one.model]) for one in answer.distributions),
            (answer.total, held),
        ]:
            for distribution, values in (
                (one.latency, [row.event.reported.latency_ms for row in group]),
                (one.time_to_first_token, [row.event.reported.first_token_ms for row in group]),
            ):
                assert_is_the_distribution_of(distribution, sorted(ms for ms in values if ms is not None))


def assert_is_the_distribution_of(distribution: pb.DurationDistribution, values_ms: list[int]) -> None:
    summary, bound = distribution.summary, distribution.summary.relative_error_bound
    assert 0 < bound < 0.044
    assert summary.sample_count == len(values_ms)
    for bucket in distribution.buckets:
        lower_ms, upper_ms = bucket.lower_bound.ToMilliseconds(), bucket.upper_bound.ToMilliseconds()
        assert bucket.count == len([ms for ms in values_ms if lower_ms <= ms < upper_ms]) > 0
    assert sum(bucket.count for bucket in distribution.buckets) == len(values_ms)
    for percentile, ratio in ((summary.p50, 0.5), (summary.p90, 0.9), (summary.p95, 0.95), (summary.p99, 0.99)):
        if values_ms:
            exact_ms = values_ms[max(0, -(-int(ratio * 100) * len(values_ms) // 100) - 1)]
            # Of durations below 1 ms nothing but that can be told.
            assert percentile.ToNanoseconds() / 1e6 == pytest.approx(exact_ms, rel=bound * 1.05, abs=1.05)
        else:
            assert percentile.ToNanoseconds() == 0


async def test_pages_of_every_chart_put_together_are_the_whole(postgres: Postgres, rows: list[LedgerRow]) -> None:
    handlers = ReportHandlers(reporting(postgres))
    start = timestamp_to_proto(SPAN.start)
    series = pb.QueryUsageTimeSeriesRequest(
        tenant_id=TENANT, start_time=start, step=pb.TIME_STEP_DAY, grouping=pb.USAGE_GROUPING_MODEL
    )
    stats = pb.GetTenantUsageStatsRequest(tenant_id=TENANT, start_time=start)
    latency = pb.GetLatencyDistributionRequest(tenant_id=TENANT, start_time=start)
    reports: list[tuple[Any, Any, str]] = [
        (handlers.query_usage_time_series, series, "points"),
        (handlers.get_tenant_usage_stats, stats, "stats"),
        (handlers.get_latency_distribution, latency, "distributions"),
    ]
    for method, request, entries in reports:
        whole = await method(request)
        request.page_size = 2
        turned, answer = [], None
        while answer is None or answer.next_page_token:
            answer = await method(request)
            turned += getattr(answer, entries)
            request.page_token = answer.next_page_token
            if entries != "points":
                assert answer.total == whole.total

        assert len(whole_entries := list(getattr(whole, entries))) >= 4
        assert turned == whole_entries


async def test_the_service_chooses_steps_and_says_which(empty_books: Postgres) -> None:
    answer = await ReportHandlers(reporting(empty_books)).query_usage_time_series(
        pb.QueryUsageTimeSeriesRequest(tenant_id=TENANT)
    )

    assert (answer.step, answer.step_count) == (pb.TIME_STEP_HOUR, 1)
    assert len(answer.points) == 25
    assert all(point.usage.attempts == 0 for point in answer.points)
    assert answer.points[0].usage.cost.cost_usd == "0.000000000000"


async def test_steps_that_are_no_longer_kept_are_refused_with_the_remedy(postgres: Postgres) -> None:
    reports = reporting(postgres, RollupRetention(timedelta(hours=30), timedelta(days=6)))
    with pytest.raises(ServiceError, match="can be told since 2026-03-30T05:00:00") as refused:
        await reports.series(
            UUID(TENANT),
            Window(NOW - timedelta(hours=40), NOW),
            UsageFilter(),
            step=Step(StepUnit.MINUTE),
            zone=ZoneInfo("UTC"),
            grouping=Grouping.NONE,
            after=None,
            page_size=10,
        )

    assert (refused.value.category, refused.value.reason) == (Category.FAILED_PRECONDITION, "STEP_TOO_FINE")


async def test_a_page_of_too_many_points_is_refused(
    postgres: Postgres, rows: list[LedgerRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting_module, "MAX_POINTS", 3)
    with pytest.raises(ServiceError, match="lower page_size") as refused:
        await ReportHandlers(reporting(postgres)).query_usage_time_series(
            pb.QueryUsageTimeSeriesRequest(tenant_id=TENANT, grouping=pb.USAGE_GROUPING_MODEL)
        )

    assert refused.value.reason == "REPORT_TOO_LARGE"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tenant_id": "x", "step_count": -1}, ["tenant_id", "step_count"]),
        ({"step": 9, "grouping": 7, "time_zone": "Mars"}, ["step", "time_zone", "grouping"]),
        ({"step_count": 5}, ["step"]),
        ({"step": pb.TIME_STEP_DAY, "page_size": 1_001, "page_token": "x"}, ["page_size", "page_token"]),
    ],
)
async def test_every_bad_field_of_a_time_series_is_named(
    postgres: Postgres, fields: dict[str, object], named: list[str]
) -> None:
    request = pb.QueryUsageTimeSeriesRequest(**({"tenant_id": TENANT} | fields))  # type: ignore[arg-type]

    with pytest.raises(InvalidRequest) as refused:
        await ReportHandlers(reporting(postgres)).query_usage_time_series(request)

    assert [violation.field for violation in refused.value.violations] == named


async def test_a_window_of_too_many_steps_is_refused(postgres: Postgres) -> None:
    request = pb.QueryUsageTimeSeriesRequest(
        tenant_id=TENANT, start_time=timestamp_to_proto(NOW - timedelta(days=8)), step=pb.TIME_STEP_MINUTE
    )

    with pytest.raises(InvalidRequest, match="more than 10000 steps"):
        await ReportHandlers(reporting(postgres)).query_usage_time_series(request)
