"""The books: `turnpike usage`, `records`, `costs`, `errors`, `limits` and `prices`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import TypeVar

import click

from turnpike_client.accounting import (
    CostSummary,
    DailyCost,
    ErrorSummary,
    LimitReport,
    LimitStatus,
    Price,
    UsageFilter,
    UsageRecord,
    UsageReport,
    UsageStats,
)
from turnpike_client.cli.options import (
    Moment,
    filter_options,
    json_option,
    report_filter,
    tenant_option,
    window_options,
)
from turnpike_client.cli.output import dollars, duration, moment, number, print_json, print_table, yes_no
from turnpike_client.cli.session import Session, pass_session
from turnpike_client.enums import LimitMetric, PricingState

_Item = TypeVar("_Item")


@click.command()
@tenant_option()
@window_options("24 hours")
@report_filter
@json_option
@pass_session
def usage(
    session: Session,
    *,
    tenant_id: str,
    since: datetime | None,
    until: datetime | None,
    only: UsageFilter,
    as_json: bool,
) -> None:
    """Show what was used, by provider and model.

    in, out: tokens. failed and limited count attempts, also those that failover hid. p50, p95: latency; first: median
    time to the first token.
    """

    async def read() -> UsageReport:
        async with session.usage_client() as client:
            return await client.stats(tenant_id, start=since, end=until, only=only)

    report = session.run(read())
    if as_json:
        print_json(report)
        return
    rows = [_stats_row(stats, stats.provider, stats.model) for stats in report.stats]
    if len(rows) > 1:
        rows.append(_stats_row(report.total, "total", ""))
    print_table(
        ["provider", "model", "requests>", "failed>", "limited>", "in>", "out>", "cost>", "p50>", "p95>", "first>"],
        rows,
        empty=f"no usage from {moment(report.start)} to {moment(report.end)}",
    )


def _stats_row(stats: UsageStats, provider: str, model: str) -> tuple[str, ...]:
    latency, first = stats.latency, stats.time_to_first_token
    return (
        provider,
        model,
        number(stats.requests),
        number(stats.failed),
        number(stats.rate_limited),
        number(stats.tokens.prompt),
        number(stats.tokens.completion),
        cost(stats.cost),
        duration(latency.p50 if latency else None),
        duration(latency.p95 if latency else None),
        duration(first.p50 if first else None),
    )


def cost(summary: CostSummary) -> str:
    """A cost with everything that makes it less than certain."""
    if summary.unpriced_attempts and not summary.cost_usd:
        return "unpriced"
    doubts = []
    if summary.estimated_usd:
        doubts.append(f"{dollars(summary.estimated_usd)} estimated")
    if summary.unpriced_attempts:
        doubts.append(f"{number(summary.unpriced_attempts)} unpriced")
    return dollars(summary.cost_usd) + (f" ({', '.join(doubts)})" if doubts else "")


@click.command()
@tenant_option()
@window_options("24 hours")
@report_filter
@click.option("--request", "request_id", default="", metavar="UUID", help="Only the attempts of this request.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many to show.")
@json_option
@pass_session
def records(
    session: Session,
    *,
    tenant_id: str,
    since: datetime | None,
    until: datetime | None,
    only: UsageFilter,
    request_id: str,
    limit: int,
    as_json: bool,
) -> None:
    """List single attempts, newest first."""

    async def read() -> list[UsageRecord]:
        async with session.usage_client() as client:
            found = client.records(
                tenant_id,
                start=since,
                end=until,
                request_id=request_id,
                only=only,
                page_size=min(limit, 1000),
            )
            return await _first(found, limit)

    found = session.run(read())
    if as_json:
        print_json(found)
        return
    columns = ["time", "request", "attempt>", "provider", "model", "status", "error", "in>", "out>", "cost>"]
    print_table([*columns, "latency>"], [_record_row(record) for record in found], empty="no records")


def _record_row(record: UsageRecord) -> tuple[str, ...]:
    event = record.event
    is_free = record.pricing_state is PricingState.NOTHING_CONSUMED
    return (
        moment(record.used_at),
        event.request_id,
        str(event.attempt),
        event.provider,
        event.model,
        event.status,
        event.error_class or "-",
        number(event.tokens.prompt) if event.tokens else "-",
        number(event.tokens.completion) if event.tokens else "-",
        "$0.00" if is_free else dollars(record.cost_usd),
        duration(event.latency),
    )


@click.command()
@tenant_option()
@window_options("30 days")
@report_filter
@click.option(
    "--time-zone", default="", metavar="ZONE", help='Where days begin, such as "Europe/Berlin". Default: UTC.'
)
@json_option
@pass_session
def costs(
    session: Session,
    *,
    tenant_id: str,
    since: datetime | None,
    until: datetime | None,
    only: UsageFilter,
    time_zone: str,
    as_json: bool,
) -> None:
    """Show the cost per day and provider, newest day first."""

    async def read() -> list[DailyCost]:
        async with session.usage_client() as client:
            found = client.daily_costs(tenant_id, start=since, end=until, time_zone=time_zone, only=only)
            return [day async for day in found]

    found = session.run(read())
    if as_json:
        print_json(found)
        return
    print_table(
        ["day", "provider", "requests>", "tokens>", "cost>"],
        [(day.date, day.provider, number(day.requests), number(day.total_tokens), cost(day.cost)) for day in found],
        empty="no costs",
    )


@click.command()
@tenant_option()
@window_options("24 hours")
@report_filter
@json_option
@pass_session
def errors(
    session: Session,
    *,
    tenant_id: str,
    since: datetime | None,
    until: datetime | None,
    only: UsageFilter,
    as_json: bool,
) -> None:
    """Show what failed, most frequent first."""

    async def read() -> list[ErrorSummary]:
        async with session.usage_client() as client:
            return [error async for error in client.errors(tenant_id, start=since, end=until, only=only)]

    found = session.run(read())
    if as_json:
        print_json(found)
        return
    columns = ["times>", "hidden by failover>", "provider", "model", "status", "class", "blame", "last seen", "cost>"]
    print_table(
        [*columns, "for example"],
        [
            (
                number(error.occurrences),
                number(error.absorbed),
                error.provider,
                error.model,
                error.status,
                error.error_class or "-",
                error.cause,
                moment(error.last_seen),
                cost(error.cost),
                error.sample_message,
            )
            for error in found
        ],
        empty="no errors",
    )


@click.command()
@tenant_option()
@filter_options
@json_option
@pass_session
def limits(session: Session, *, tenant_id: str, provider: str, model: str, as_json: bool) -> None:
    """Show how near the tenant is to its limits, worst first."""

    async def read() -> LimitReport:
        async with session.usage_client() as client:
            return await client.limits(tenant_id, provider=provider, model=model)

    report = session.run(read())
    if as_json:
        print_json(report)
        return
    columns = ["level", "used %>", "used>", "limit>", "per", "of", "provider", "model", "resets", "fail over"]
    print_table([*columns, "set by"], [_limit_row(status) for status in report.statuses], empty="no limits apply")


def _limit_row(status: LimitStatus) -> tuple[str, ...]:
    amount = dollars if status.metric is LimitMetric.COST else number
    return (
        status.level,
        f"{status.usage_percent:.1f}",
        amount(status.used),
        amount(status.limit),
        duration(status.window),
        status.metric,
        status.provider,
        status.model or "(all)",
        moment(status.resets_at),
        yes_no(status.should_failover),
        "tenant" if status.is_override else "default",
    )


@click.command()
@click.option("--provider", default="", help="Only this provider.")
@click.option("--at", "as_of", type=Moment(), help="As of then: 7d or a time. Default: now.")
@json_option
@pass_session
def prices(session: Session, *, provider: str, as_of: datetime | None, as_json: bool) -> None:
    """Show the price book, in US dollars per million tokens."""

    async def read() -> list[Price]:
        async with session.usage_client() as client:
            return [price async for price in client.prices(provider=provider, as_of=as_of, page_size=1000)]

    found = session.run(read())
    if as_json:
        print_json(found)
        return
    print_table(
        ["provider", "model", "in>", "out>", "cache read>", "cache write>", "reasoning>", "since", "source"],
        [
            (
                price.provider,
                price.model,
                dollars(price.input_usd_per_million),
                dollars(price.output_usd_per_million),
                "as in" if price.cached_read_usd_per_million is None else dollars(price.cached_read_usd_per_million),
                "as in" if price.cached_write_usd_per_million is None else dollars(price.cached_write_usd_per_million),
                "as out" if price.reasoning_usd_per_million is None else dollars(price.reasoning_usd_per_million),
                moment(price.effective_at),
                price.source,
            )
            for price in found
        ],
        empty="no prices",
    )


async def _first(items: AsyncIterator[_Item], count: int) -> list[_Item]:
    """The first `count` items; no page is fetched that is not needed."""
    found: list[_Item] = []
    async for item in items:
        found.append(item)
        if len(found) == count:
            break
    return found
