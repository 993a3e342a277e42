"""Charts of the books: `turnpike series`, `turnpike latency` and `turnpike watch`."""

from __future__ import annotations

import json
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import click

from turnpike_client.accounting import LatencySummary, UsageFilter, UsageStats
from turnpike_client.charts import DurationDistribution, LatencyDistribution, LatencyReport, LiveUsage, UsagePoint
from turnpike_client.cli.options import json_option, one_of, read_moment, report_filter, tenant_option, window_options
from turnpike_client.cli.output import duration, jsonable, moment, number, print_json, print_table, printable
from turnpike_client.cli.reports import cost
from turnpike_client.cli.session import Session, pass_session
from turnpike_client.enums import TimeStep, UsageGrouping

_BAR = 40  # cells of the longest bar


@click.command()
@tenant_option()
@window_options("24 hours")
@report_filter
@click.option(
    "--step", type=one_of(TimeStep), default=TimeStep.AUTO.value, help="Length of a step. Default: as fits the window."
)
@click.option("--steps", "step_count", type=click.IntRange(1, 1440), help="So many of them are one step. Default: 1.")
@click.option(
    "--time-zone", default="", metavar="ZONE", help='Where days begin, such as "Europe/Berlin". Default: UTC.'
)
@click.option(
    "--by", "grouping", type=one_of(UsageGrouping), default=UsageGrouping.NONE.value, help="What to show apart."
)
@json_option
@pass_session
def series(
    session: Session,
    *,
    tenant_id: str,
    since: datetime | None,
    until: datetime | None,
    only: UsageFilter,
    step: str,
    step_count: int | None,
    time_zone: str,
    grouping: str,
    as_json: bool,
) -> None:
    """Show usage step by step, oldest first."""

    async def read() -> list[UsagePoint]:
        async with session.usage_client() as client:
            points = client.series(
                tenant_id,
                start=since,
                end=until,
                step=TimeStep(step),
                step_count=step_count or 0,
                time_zone=time_zone,
                grouping=UsageGrouping(grouping),
                only=only,
                page_size=1000,
            )
            return [point async for point in points]

    points = session.run(read())
    if as_json:
        print_json(points)
        return
    names = _name_columns(grouping)
    print_table(
        ["from", *names, "requests>", "failed>", "limited>", "tokens>", "cost>", "p50>", "p95>"],
        [_point_row(point, len(names)) for point in points],
        empty="no usage",
    )


def _name_columns(grouping: str) -> list[str]:
    return {UsageGrouping.NONE: [], UsageGrouping.PROVIDER: ["provider"]}.get(
        UsageGrouping(grouping), ["provider", "model"]
    )


def _point_row(point: UsagePoint, names: int) -> tuple[str, ...]:
    usage = point.usage
    return (
        moment(point.start),
        *(usage.provider, usage.model)[:names],
        number(usage.requests),
        number(usage.failed),
        number(usage.rate_limited),
        number(usage.total_tokens),
        cost(usage.cost),
        duration(usage.latency.p50 if usage.latency else None),
        duration(usage.latency.p95 if usage.latency else None),
    )


@click.command()
@tenant_option()
@window_options("24 hours")
@report_filter
@click.option(
    "--by", "grouping", type=one_of(UsageGrouping), default=UsageGrouping.MODEL.value, help="What to show apart."
)
@click.option("--buckets", "with_buckets", is_flag=True, help="Also show the distribution of all latencies together.")
@json_option
@pass_session
def latency(
    session: Session,
    *,
    tenant_id: str,
    since: datetime | None,
    until: datetime | None,
    only: UsageFilter,
    grouping: str,
    with_buckets: bool,
    as_json: bool,
) -> None:
    """Show percentiles of latency and of the time to the first token, each within the error that is stated."""

    async def read() -> LatencyReport:
        async with session.usage_client() as client:
            return await client.latency(tenant_id, start=since, end=until, grouping=UsageGrouping(grouping), only=only)

    report = session.run(read())
    if as_json:
        print_json(report)
        return
    names = _name_columns(grouping)
    rows = [row for one in report.distributions for row in _percentile_rows(one, len(names))]
    columns = [*names, "of", "count>", "mean>", "p50>", "p90>", "p95>", "p99>", "error>"]
    print_table(columns, rows, empty=f"nothing was measured from {moment(report.start)} to {moment(report.end)}")
    if with_buckets and report.total.latency.buckets:
        print_table(["latency from>", "to>", "count>", ""], _bucket_rows(report.total.latency), empty="")


def _percentile_rows(one: LatencyDistribution, names: int) -> list[tuple[str, ...]]:
    return [
        (*(one.provider, one.model)[:names], what, *_percentiles(summary))
        for what, summary in (
            ("latency", one.latency.summary),
            ("first token", one.time_to_first_token.summary),
        )
        if summary is not None
    ]


def _percentiles(summary: LatencySummary) -> tuple[str, ...]:
    spans = (summary.average, summary.p50, summary.p90, summary.p95, summary.p99)
    return (number(summary.sample_count), *map(duration, spans), f"{summary.relative_error_bound:.1%}")


def _bucket_rows(distribution: DurationDistribution) -> list[tuple[str, ...]]:
    most = max(bucket.count for bucket in distribution.buckets)
    return [
        (
            duration(bucket.lower_bound),
            duration(bucket.upper_bound),
            number(bucket.count),
            "#" * max(1, round(_BAR * bucket.count / most)),
        )
        for bucket in distribution.buckets
    ]


@click.command()
@tenant_option()
@click.option("--window", default="24h", metavar="AGE", help="How far back, such as 30m, 24h or 7d. Default: 24h.")
@report_filter
@click.option(
    "--by", "grouping", type=one_of(UsageGrouping), default=UsageGrouping.NONE.value, help="What to show apart."
)
@click.option("--every", "interval_s", type=click.FloatRange(0, 60), default=1.0, help="Seconds between two at least.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many. Default: go on until interrupted.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON each.")
@pass_session
def watch(
    session: Session,
    *,
    tenant_id: str,
    window: str,
    only: UsageFilter,
    grouping: str,
    interval_s: float,
    count: int | None,
    as_json: bool,
) -> None:
    """Show live totals, a line whenever they change."""
    now = datetime.now(UTC)
    start = read_moment(window, now)
    if start is None or start >= now:
        raise click.BadParameter(f"{window!r} is no age such as 30m, 24h or 7d", param_hint="--window")

    async def read() -> None:
        shown = 0
        async with session.usage_client() as client:
            stream = client.watch(
                tenant_id,
                window=now - start,
                grouping=UsageGrouping(grouping),
                only=only,
                min_interval=timedelta(seconds=interval_s),
            )
            async with aclosing(stream):
                async for live in stream:
                    if live.is_heartbeat:
                        continue
                    click.echo(json.dumps(jsonable(live), ensure_ascii=False) if as_json else _live_text(live))
                    shown += 1
                    if shown == count:
                        return

    session.run(read())


def _live_text(live: LiveUsage) -> str:
    lines = [_live_line(moment(live.as_of), live.total)]
    lines += [_live_line(f"  {stats.provider} {stats.model}".rstrip(), stats) for stats in live.stats]
    return "\n".join(printable(line) for line in lines)


def _live_line(name: str, stats: UsageStats) -> str:
    p95 = duration(stats.latency.p95 if stats.latency else None)
    counts = f"{number(stats.requests)} requests, {number(stats.failed)} failed, {number(stats.rate_limited)} limited"
    return f"{name}  {counts}, {number(stats.total_tokens)} tokens, {cost(stats.cost)}, p95 {p95}"
