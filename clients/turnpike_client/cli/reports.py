"""The books: `turnpike usage`, `records`, `costs` and `errors`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import TypeVar

import click

from turnpike_client.accounting import (
    CostSummary,
    DailyCost,
    ErrorSummary,
    UsageFilter,
    UsageRecord,
    UsageReport,
    UsageStats,
)
from turnpike_client.cli.decision import difference, left_out, ranking
from turnpike_client.cli.options import (
    json_option,
    report_filter,
    tenant_option,
    window_options,
)
from turnpike_client.cli.output import dollars, duration, moment, number, print_json, print_table
from turnpike_client.cli.session import Session, pass_session
from turnpike_client.enums import PricingState

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
@click.option("--why", is_flag=True, help="Show instead how each attempt's provider was chosen.")
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
    why: bool,
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
    if why:
        columns = ["time", "request", "attempt>", "provider", "ranking", "first before second by", "left out"]
        print_table(columns, [_decision_row(record) for record in found], empty="no records")
        return
    columns = ["time", "request", "attempt>", "provider", "model", "status", "error", "in>", "out>", "cost>"]
    print_table([*columns, "latency>"], [_record_row(record) for record in found], empty="no records")


def _decision_row(record: UsageRecord) -> tuple[str, ...]:
    event = record.event
    told = (ranking(event.decision), difference(event.decision), left_out(event.decision))
    return (moment(record.used_at), event.request_id, str(event.attempt), event.provider, *told)


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


async def _first(items: AsyncIterator[_Item], count: int) -> list[_Item]:
    """The first `count` items; no page is fetched that is not needed."""
    found: list[_Item] = []
    async for item in items:
        found.append(item)
        if len(found) == count:
            break
    return found
