"""How reports and ingest cost more, or do not, as the ledger grows: the same calls on ledgers side by side."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from google.protobuf.message import Message

from service_runtime.embedded_postgres import EmbeddedPostgres
from service_runtime.postgres import Postgres
from tests.bench.figures import Figure, Target, percentile
from tests.bench.ledger_events import TENANTS, Traffic, tenant_id
from tests.bench.ledger_history import DAYS, FIXED_TENANT, FIXED_TENANT_MODELS, FIXED_TENANT_ROWS, History
from tests.bench.ledger_ingest import BATCH_EVENTS, IN_FLIGHT, through_rpc
from tests.bench.ledger_site import LedgerService, create_ledger, running_service
from tests.bench.processes import BenchFailed, Tree
from tests.support.postgres import dsn_of
from turnpike.usage.v1 import quota_service_pb2, usage_service_pb2
from usage_service.domain.histogram import RELATIVE_ERROR_BOUND, percentiles_ms
from usage_service.domain.report import ModelUsage, UsageFilter
from usage_service.domain.window import RollupRetention, Window
from usage_service.metering.reporting import Reporting
from usage_service.storage.records import PostgresRecords
from usage_service.storage.rollups import CONNECTION_SETTINGS, PostgresRollups

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

_MONTH: Final = timedelta(days=DAYS)
_DAY: Final = timedelta(days=1)
_USAGE: Final = "/turnpike.usage.v1.UsageService/"
_TIMEOUT_S: Final = 60.0
STATS: Final = "GetTenantUsageStats, 30 days"
INGEST: Final = "RecordUsage, events/s"
# Smaller and larger ledger of the target.
_BASE_ROWS, _GROWN_ROWS = 1_000_000, 10_000_000

_RequestOf = Callable[[str, datetime], Message]


def _over(kind: type[Any], length: timedelta) -> _RequestOf:
    """A request for a window of `length` that ends now, not on any bucket's edge."""

    def request(tenant: str, now: datetime) -> Message:
        message: Message = kind(tenant_id=tenant, start_time=now - length, end_time=now)
        return message

    return request


REPORTS: Final[Mapping[str, tuple[str, _RequestOf]]] = {
    STATS: (f"{_USAGE}GetTenantUsageStats", _over(usage_service_pb2.GetTenantUsageStatsRequest, _MONTH)),
    "GetTenantUsageStats, 24 h": (
        f"{_USAGE}GetTenantUsageStats",
        _over(usage_service_pb2.GetTenantUsageStatsRequest, _DAY),
    ),
    "ListDailyCosts, 30 days": (f"{_USAGE}ListDailyCosts", _over(usage_service_pb2.ListDailyCostsRequest, _MONTH)),
    "ListErrors, 24 h": (f"{_USAGE}ListErrors", _over(usage_service_pb2.ListErrorsRequest, _DAY)),
    "QueryUsageTimeSeries, 30 days": (
        f"{_USAGE}QueryUsageTimeSeries",
        _over(usage_service_pb2.QueryUsageTimeSeriesRequest, _MONTH),
    ),
    "GetLatencyDistribution, 30 days": (
        f"{_USAGE}GetLatencyDistribution",
        _over(usage_service_pb2.GetLatencyDistributionRequest, _MONTH),
    ),
    "ListUsageRecords, first page": (
        f"{_USAGE}ListUsageRecords",
        _over(usage_service_pb2.ListUsageRecordsRequest, _MONTH),
    ),
    "CheckRateLimitStatus": (
        "/turnpike.usage.v1.QuotaService/CheckRateLimitStatus",
        lambda tenant, _: quota_service_pb2.CheckRateLimitStatusRequest(tenant_id=tenant),
    ),
}

_RAW: Final = """
    SELECT provider, model_name, count(*) FILTER (WHERE NOT absorbed) AS requests, count(*) AS attempts,
        count(*) FILTER (WHERE status = 'success') AS succeeded,
        count(*) FILTER (WHERE status IN ('error', 'interrupted')) AS failed,
        count(*) FILTER (WHERE status = 'rate_limit') AS rate_limited,
        count(*) FILTER (WHERE status = 'cancelled') AS cancelled, count(*) FILTER (WHERE absorbed) AS absorbed,
        sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
        sum(cached_read_tokens) AS cached_read_tokens, sum(cached_write_tokens) AS cached_write_tokens,
        sum(reasoning_tokens) AS reasoning_tokens,
        coalesce(sum(estimated_cost_usd) FILTER (WHERE usage_source <> 'estimated'), 0) AS exact_usd,
        coalesce(sum(estimated_cost_usd) FILTER (WHERE usage_source = 'estimated'), 0) AS estimated_usd,
        count(*) FILTER (WHERE pricing_state = 'unpriced') AS unpriced_attempts,
        coalesce(sum(total_tokens) FILTER (WHERE pricing_state = 'unpriced'), 0) AS unpriced_tokens,
        avg(latency_ms) AS latency_ms, avg(first_token_ms) AS first_token_ms,
        percentile_disc(ARRAY[0.5, 0.9, 0.95, 0.99]) WITHIN GROUP (ORDER BY latency_ms) AS latencies_ms,
        percentile_disc(ARRAY[0.5, 0.9, 0.95, 0.99]) WITHIN GROUP (ORDER BY first_token_ms) AS first_tokens_ms
    FROM model_usage_stats
    WHERE tenant_id = $1 AND "timestamp" >= $2 AND "timestamp" < $3
    GROUP BY provider, model_name
    ORDER BY requests DESC
"""


_RATIOS: Final = (0.5, 0.9, 0.95, 0.99)  # as above
Percentiles = tuple[float, ...]


@dataclass(slots=True)
class Growth:
    """What was measured, by name and rows in the ledger; latencies in ms and CPU in us, one value per round."""

    sizes: Sequence[int]
    p50_ms: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    p99_ms: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    ingest: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    raw_ms: list[float] = field(default_factory=list)
    rollup_ms: list[float] = field(default_factory=list)
    calls: int = 0

    def figures(self) -> list[Figure]:
        """Every figure, those with a target first."""
        found = []
        if _BASE_ROWS in self.sizes and _GROWN_ROWS in self.sizes:
            ratios = [
                grown / base
                for grown, base in zip(self.p99_ms[STATS, _GROWN_ROWS], self.p99_ms[STATS, _BASE_ROWS], strict=True)
            ]
            found.append(
                Figure(
                    "30-day stats, 10 M over 1 M rows",
                    "x",
                    ratios,
                    f"p99 of {self.calls} calls in turns on both, in each round; {len(ratios)} rounds; "
                    f"every fifth of {TENANTS} tenants",
                    Target(1.5),
                )
            )
        if self.raw_ms:
            found.append(
                Figure(
                    "30-day stats, raw rows over rollups",
                    "x",
                    [raw / rollup for raw, rollup in zip(self.raw_ms, self.rollup_ms, strict=True)],
                    f"the same answer with percentiles for a tenant of {FIXED_TENANT_ROWS} rows and "
                    f"{FIXED_TENANT_MODELS} models, over one connection without gRPC; medians of 5 and 50, "
                    f"{len(self.raw_ms)} rounds",
                    Target(100.0, is_at_most=False),
                )
            )
            found.append(
                Figure("30-day stats from raw rows", "ms", self.raw_ms, f"{FIXED_TENANT_ROWS} rows of a tenant")
            )
            found.append(Figure("30-day stats from rollups", "ms", self.rollup_ms, "the same tenant and window"))
        for (name, size), samples in self.p50_ms.items():
            conditions = f"{size} rows over {DAYS} days, {TENANTS} tenants; one call at a time, {self.calls} a round"
            found.append(Figure(f"{name}, p50 at {size} rows", "ms", samples, conditions))
            found.append(Figure(f"{name}, p99 at {size} rows", "ms", self.p99_ms[name, size], conditions))
        for (name, size), samples in self.ingest.items():
            conditions = f"{size} rows there; batches of {BATCH_EVENTS}, {IN_FLIGHT} in flight"
            unit = "events/s" if name == INGEST else "us"
            found.append(Figure(f"{name} at {size} rows", unit, samples, conditions))
        return found


async def measure(
    server: EmbeddedPostgres, *, sizes: Sequence[int], rounds: int, calls: int, batches: int, say: Callable[[str], None]
) -> Growth:
    """Fill a ledger step by step, keep a copy of each size, and ask all of them the same in turns."""
    names = await _ledgers(server, sizes, say)
    growth = Growth(sizes, calls=calls)
    assert server.process_id is not None
    postgres = Tree(server.process_id)
    async with AsyncExitStack() as opened:
        services = {
            size: await opened.enter_async_context(running_service(dsn_of(server, name)))
            for size, name in names.items()
        }
        for report in REPORTS:  # connections, plans and pages that a first call needs
            for size, service in services.items():
                await _latencies_ms(service, report, range(10), size)
        for number in range(rounds):
            for report in REPORTS:
                await _ask(services, report, growth, number)
            say(f"round {number + 1} of {rounds}: reports asked")
        fixed_at = min((size for size in sizes if size >= 2 * FIXED_TENANT_ROWS), default=None)
        if fixed_at is not None:
            await _raw_against_rollups(dsn_of(server, names[fixed_at]), growth, rounds)
        for number in range(rounds):
            # In turns again, and only now: what is written changes what reports read.
            start = datetime.now(UTC) - timedelta(hours=20) + timedelta(minutes=5) * number
            requests, _ = Traffic(seed=900 + number, start=start).requests(batches, BATCH_EVENTS)
            for size, service in services.items():
                cost = await through_rpc(service, postgres, requests)
                growth.ingest[INGEST, size].append(cost.events_per_s)
                growth.ingest["RecordUsage, Postgres CPU per event", size].append(cost.postgres_us)
                growth.ingest["RecordUsage, usage_service CPU per event", size].append(cost.service_us)
    return growth


async def _ledgers(server: EmbeddedPostgres, sizes: Sequence[int], say: Callable[[str], None]) -> dict[int, str]:
    """A database for each size, by name; the last is the one that grew."""
    name = "history"
    history = await History.on(await create_ledger(server, name))
    owner = await asyncpg.connect(dsn_of(server, "postgres"))
    names: dict[int, str] = {}
    for size in sizes:
        started_s = time.monotonic()
        await history.grow_to(size)
        await history.finish()
        say(f"{size} rows after {time.monotonic() - started_s:.0f} s")
        names[size] = name
        if size != sizes[-1]:
            names[size] = f"history_{size}"
            await history.close()  # a database in use cannot be copied
            await owner.execute(f"CREATE DATABASE {names[size]} TEMPLATE {name} STRATEGY file_copy", timeout=600)
            await history.open()
    await history.close()
    await owner.execute("CHECKPOINT", timeout=600)
    await owner.close()
    return names


async def _ask(services: Mapping[int, LedgerService], report: str, growth: Growth, number: int) -> None:
    """One round of a report: a block of calls to each ledger in turns, so that a neighbour's noise falls on all."""
    found: dict[int, list[float]] = defaultdict(list)
    block = max(1, growth.calls // 8)
    for start in range(0, growth.calls, block):
        for size, service in services.items():
            found[size] += await _latencies_ms(service, report, range(start, start + block), number)
    for size, latencies in found.items():
        latencies.sort()
        growth.p50_ms[report, size].append(percentile(latencies, 0.5))
        growth.p99_ms[report, size].append(percentile(latencies, 0.99))


async def _latencies_ms(service: LedgerService, report: str, numbers: range, salt: int) -> list[float]:
    path, request_of = REPORTS[report]
    method = service.method(path)
    latencies = []
    for number in numbers:
        request = request_of(str(tenant_id((number * 5 + salt) % TENANTS)), datetime.now(UTC)).SerializeToString()
        started_s = time.perf_counter()
        await method(request, timeout=_TIMEOUT_S)
        latencies.append((time.perf_counter() - started_s) * 1e3)
    return latencies


async def _raw_against_rollups(dsn: str, growth: Growth, rounds: int) -> None:
    """The same answer both ways; what they say is compared first."""
    tenant = tenant_id(FIXED_TENANT)
    # Whole days, which both can cut exactly. Yesterday's rows are all there.
    end = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    window = Window(end - _MONTH, end)
    postgres = await Postgres.connect(dsn, min_size=1, max_size=1, settings=CONNECTION_SETTINGS)
    connection = await asyncpg.connect(dsn)
    reporting = Reporting(
        rollups=PostgresRollups(postgres),
        records=PostgresRecords(postgres),
        retention=RollupRetention(),
        now=lambda: datetime.now(UTC),
    )

    async def from_rows() -> list[asyncpg.Record]:
        return await connection.fetch(_RAW, tenant, window.start, window.end)

    async def from_rollups() -> list[tuple[ModelUsage, Percentiles, Percentiles]]:
        report = await reporting.usage(tenant, window, UsageFilter())
        return [
            (
                usage,
                percentiles_ms(usage.latency.histogram, _RATIOS),
                percentiles_ms(usage.first_token.histogram, _RATIOS),
            )
            for usage in report.models
        ]

    try:
        _check_same(await from_rows(), await from_rollups())
        for _ in range(rounds):
            growth.raw_ms.append(await _median_ms(5, from_rows))
            growth.rollup_ms.append(await _median_ms(50, from_rollups))
    finally:
        await connection.close()
        await postgres.close()


async def _median_ms(times: int, ask: Callable[[], Any]) -> float:
    taken = []
    for _ in range(times):
        started_s = time.perf_counter()
        await ask()
        taken.append((time.perf_counter() - started_s) * 1e3)
    return sorted(taken)[times // 2]


def _check_same(raw: Sequence[asyncpg.Record], answers: Sequence[tuple[ModelUsage, Percentiles, Percentiles]]) -> None:
    """Raises BenchFailed unless both answers hold the same sums, and percentiles within the histogram's error."""
    by_model = {(answer[0].provider, answer[0].model): answer for answer in answers}
    for row in raw:
        answer = by_model.pop((row["provider"], row["model_name"]), None)
        if answer is None or _sums(answer[0]) != tuple(row)[2 : 2 + len(_sums(answer[0]))]:
            raise BenchFailed(f"the rows say {row}, the rollups {answer}")
        for exact_ms, told_ms in zip(
            (*row["latencies_ms"], *row["first_tokens_ms"]), (*answer[1], *answer[2]), strict=True
        ):
            if abs(exact_ms - told_ms) > max(1.0, RELATIVE_ERROR_BOUND * exact_ms * 1.000001):
                raise BenchFailed(f"a percentile of {row} is {exact_ms} ms in the rows, {told_ms} in the rollups")
    if by_model:
        raise BenchFailed(f"the rollups hold {sorted(by_model)} more than the rows")


def _sums(usage: ModelUsage) -> tuple[object, ...]:
    """As `_RAW` has them after provider and model."""
    outcomes, tokens, cost = usage.outcomes, usage.tokens, usage.cost
    return (
        outcomes.requests,
        outcomes.attempts,
        outcomes.succeeded,
        outcomes.failed,
        outcomes.rate_limited,
        outcomes.cancelled,
        outcomes.absorbed,
        tokens.input_tokens,
        tokens.output_tokens,
        tokens.cached_read_tokens,
        tokens.cached_write_tokens,
        tokens.reasoning_tokens,
        cost.exact_usd,
        cost.estimated_usd,
        cost.unpriced_attempts,
        cost.unpriced_tokens,
    )
