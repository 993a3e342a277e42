"""`turnpike prices …`: the price book, and correcting what was booked with other prices."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal

import click

from turnpike_client.accounting import CostAdjustment, Price, PriceChange, RepriceReport
from turnpike_client.cli.options import Amount, Moment, json_option, tenant_option, window_options
from turnpike_client.cli.output import dollars, moment, number, print_json, print_table
from turnpike_client.cli.session import Session, pass_session


@click.group()
def prices() -> None:
    """List and set prices, in US dollars per million tokens; correct what was booked with others."""


@prices.command("list")
@click.option("--provider", default="", help="Only this provider.")
@click.option("--at", "as_of", type=Moment(), help="As of then: 7d or a time. Default: now.")
@json_option
@pass_session
def list_(session: Session, *, provider: str, as_of: datetime | None, as_json: bool) -> None:
    """Show the price book."""

    async def read() -> list[Price]:
        async with session.usage_client() as client:
            return [price async for price in client.prices(provider=provider, as_of=as_of, page_size=1000)]

    found = session.run(read())
    if as_json:
        print_json(found)
        return
    _print_prices(found)


@prices.command()
@click.argument("provider")
@click.argument("model")
@json_option
@pass_session
def history(session: Session, *, provider: str, model: str, as_json: bool) -> None:
    """Show every price that MODEL of PROVIDER ever had or will have, latest first."""

    async def read() -> list[Price]:
        async with session.usage_client() as client:
            return [price async for price in client.price_book.history(provider, model, page_size=1000)]

    found = session.run(read())
    if as_json:
        print_json(found)
        return
    _print_prices(found)


@prices.command("set")
@click.argument("provider")
@click.argument("model")
@click.option("--input", "input_usd", type=Amount(), required=True, help="Prompt tokens.")
@click.option("--output", "output_usd", type=Amount(), required=True, help="Completion tokens.")
@click.option("--cached-read", "cached_read_usd", type=Amount(), help="Read from the cache. Default: as input.")
@click.option("--cached-write", "cached_write_usd", type=Amount(), help="Written to the cache. Default: as input.")
@click.option("--reasoning", "reasoning_usd", type=Amount(), help="Reasoning tokens. Default: as output.")
@click.option("--max-prompt", type=click.IntRange(min=1), metavar="TOKENS", help="Only for prompts up to this length.")
@click.option("--from", "effective_at", type=Moment(), help="Holds from then on: 7d (ago) or a time. Default: now.")
@click.option("--replace", is_flag=True, help="Replace another price with the same start.")
@click.option("--source", default="", help="Where it is from. Default: operator.")
@json_option
@pass_session
def set_(
    session: Session,
    *,
    provider: str,
    model: str,
    input_usd: Decimal,
    output_usd: Decimal,
    cached_read_usd: Decimal | None,
    cached_write_usd: Decimal | None,
    reasoning_usd: Decimal | None,
    max_prompt: int | None,
    effective_at: datetime | None,
    replace: bool,
    source: str,
    as_json: bool,
) -> None:
    """Set the price of MODEL ("*": all without their own) of PROVIDER."""

    async def work() -> PriceChange:
        async with session.usage_client() as client:
            return await client.price_book.set(
                provider,
                model,
                input_usd_per_million=input_usd,
                output_usd_per_million=output_usd,
                cached_read_usd_per_million=cached_read_usd,
                cached_write_usd_per_million=cached_write_usd,
                reasoning_usd_per_million=reasoning_usd,
                max_prompt_tokens=max_prompt,
                effective_at=effective_at,
                replace=replace,
                source=source,
            )

    change = session.run(work())
    if as_json:
        print_json(change)
        return
    _print_prices([change.price])
    if not change.created:
        click.echo("it stood there already")
    if change.reprice_needed:
        start = change.price.effective_at.isoformat()
        click.echo(
            f"usage since then may have been booked otherwise; see: turnpike prices reprice --since {start} "
            f"--provider {change.price.provider}"
        )


@prices.command()
@click.option("--since", type=Moment(), required=True, help="Usage from then on: 30m, 24h, 7d or a time.")
@click.option("--until", type=Moment(), help="Usage before then. Default: all.")
@tenant_option(required=False)
@click.option("--provider", default="", help="Only this provider.")
@click.option("--model", default="", help="Only this model.")
@click.option("--apply", is_flag=True, help="Change the books; without it only what would change is shown.")
@click.option("--reason", default="", help="Why; stands in every adjustment. Needed with --apply.")
@json_option
@pass_session
def reprice(
    session: Session,
    *,
    since: datetime,
    until: datetime | None,
    tenant_id: str | None,
    provider: str,
    model: str,
    apply: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Price stored usage anew, by the price book as it is now."""

    async def work() -> RepriceReport:
        async with session.usage_client() as client:
            return await client.price_book.reprice(
                since,
                end=until,
                tenant_id=tenant_id or "",
                provider=provider,
                model=model,
                apply=apply,
                reason=reason,
            )

    report = session.run(work())
    if as_json:
        print_json(report)
        return
    print_table(
        ["looked at>", "changed>", "now priced>", "now unpriced>", "unpriced>", "cost was>", "cost is>", "difference>"],
        [
            (
                number(report.scanned_rows),
                number(report.changed_rows),
                number(report.newly_priced_rows),
                number(report.newly_unpriced_rows),
                number(report.unpriced_rows),
                dollars(report.old_cost_usd),
                dollars(report.new_cost_usd),
                dollars(report.delta_usd),
            )
        ],
        empty="",
    )
    done = f"the books were changed by run {report.job_id}"
    click.echo(done if report.applied else "nothing was changed; add --apply and --reason to change the books")


@prices.command()
@tenant_option()
@window_options("30 days")
@click.option("--job", "job_id", default="", metavar="ID", help="Only those of this run.")
@json_option
@pass_session
def adjustments(
    session: Session,
    *,
    tenant_id: str,
    since: datetime | None,
    until: datetime | None,
    job_id: str,
    as_json: bool,
) -> None:
    """Show what was corrected of the tenant's usage, newest usage first."""

    async def read() -> list[CostAdjustment]:
        async with session.usage_client() as client:
            found = client.price_book.adjustments(tenant_id, job_id=job_id, start=since, end=until, page_size=1000)
            return [adjustment async for adjustment in found]

    found = session.run(read())
    if as_json:
        print_json(found)
        return
    print_table(
        ["used", "event", "provider", "model", "cost was>", "cost is>", "difference>", "corrected", "why"],
        [
            (
                moment(one.used_at),
                one.event_id,
                one.provider,
                one.model,
                dollars(one.old_cost_usd),
                dollars(one.new_cost_usd),
                dollars(one.delta_usd),
                moment(one.created_at),
                one.reason,
            )
            for one in found
        ],
        empty="no adjustments",
    )


def _print_prices(found: Iterable[Price]) -> None:
    print_table(
        ["provider", "model", "in>", "out>", "cache read>", "cache write>", "reasoning>", "since", "until", "source"],
        [
            (
                price.provider,
                price.model,
                _per_million(price.input_usd_per_million),
                _per_million(price.output_usd_per_million),
                _own(price.cached_read_usd_per_million, "as in"),
                _own(price.cached_write_usd_per_million, "as in"),
                _own(price.reasoning_usd_per_million, "as out"),
                moment(price.effective_at),
                _end(price),
                price.source,
            )
            for price in found
        ],
        empty="no prices",
    )


def _own(usd: Decimal | None, otherwise: str) -> str:
    return otherwise if usd is None else _per_million(usd)


def _per_million(usd: Decimal) -> str:
    """A price to its last digit, with at least two decimals."""
    whole, _, decimals = f"{usd:f}".partition(".")
    return f"${whole}.{decimals.rstrip('0').ljust(2, '0')}"


def _end(price: Price) -> str:
    if price.replaced_at is not None:
        return "replaced"
    return "-" if price.expires_at is None else moment(price.expires_at)
