"""`turnpike limits …`: how near a tenant is to its limits, and the limits of its own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeVar

import click

from turnpike_client.accounting import LimitChange, LimitReport, LimitStatus, UsageLimit
from turnpike_client.cli.options import Amount, Span, filter_options, json_option, one_of, tenant_option
from turnpike_client.cli.output import dollars, duration, moment, number, print_json, print_table, yes_no
from turnpike_client.cli.session import Session, pass_session
from turnpike_client.enums import LimitMetric
from turnpike_client.limit_client import CALENDAR_MONTH

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _key_options(command: _Command) -> _Command:
    """What names a limit."""
    provider = click.option("--provider", required=True, help="The provider.")
    model = click.option("--model", default="", help="The model. Default: all together.")
    metric = click.option("--of", "metric", type=one_of(LimitMetric), required=True, help="What is counted.")
    window = click.option("--per", "window", type=Span(), required=True, help="The window: 10s, 1m, 1h, 1d, 7d or 1mo.")
    return tenant_option()(provider(model(metric(window(command)))))


@click.group()
def limits() -> None:
    """Show how near a tenant is to its limits; list, set and delete limits."""


@limits.command()
@tenant_option()
@filter_options
@json_option
@pass_session
def status(session: Session, *, tenant_id: str, provider: str, model: str, as_json: bool) -> None:
    """Show how near the tenant is to its limits, worst first."""

    async def read() -> LimitReport:
        async with session.usage_client() as client:
            return await client.limits(tenant_id, provider=provider, model=model)

    report = session.run(read())
    if as_json:
        print_json(report)
        return
    columns = ["level", "used %>", "used>", "limit>", "per", "of", "provider", "model", "resets", "fail over"]
    print_table([*columns, "set by"], [_status_row(one) for one in report.statuses], empty="no limits apply")


@limits.command("list")
@tenant_option(required=False)
@click.option("--provider", default="", help="Only this provider.")
@json_option
@pass_session
def list_(session: Session, *, tenant_id: str | None, provider: str, as_json: bool) -> None:
    """List the limits of a tenant's own, or those of all tenants."""

    async def read() -> list[UsageLimit]:
        async with session.usage_client() as client:
            found = client.own_limits.list(tenant_id=tenant_id or "", provider=provider, page_size=1000)
            return [limit async for limit in found]

    found = session.run(read())
    if as_json:
        print_json(found)
        return
    _print_limits(found)


@limits.command("set")
@_key_options
@click.argument("amount", type=Amount())
@json_option
@pass_session
def set_(
    session: Session,
    *,
    tenant_id: str,
    provider: str,
    model: str,
    metric: str,
    window: timedelta,
    amount: Decimal,
    as_json: bool,
) -> None:
    """Let the tenant use at most AMOUNT (a count, or US dollars) per window.

    With its first limit at a provider none of that provider's defaults apply to it.
    """

    async def work() -> LimitChange:
        async with session.usage_client() as client:
            return await client.own_limits.set(tenant_id, provider, LimitMetric(metric), window, amount, model=model)

    change = session.run(work())
    if as_json:
        print_json(change)
        return
    _print_limits([change.limit])
    if change.previous is not None:
        click.echo(f"it was {_amount(change.limit.metric, change.previous)}")


@limits.command()
@_key_options
@json_option
@pass_session
def delete(
    session: Session,
    *,
    tenant_id: str,
    provider: str,
    model: str,
    metric: str,
    window: timedelta,
    as_json: bool,
) -> None:
    """Delete a limit; with the last one at a provider its defaults apply again."""

    async def work() -> UsageLimit:
        async with session.usage_client() as client:
            return await client.own_limits.delete(tenant_id, provider, LimitMetric(metric), window, model=model)

    removed = session.run(work())
    if as_json:
        print_json(removed)
        return
    _print_limits([removed])
    click.echo("deleted")


def _print_limits(found: list[UsageLimit]) -> None:
    print_table(
        ["tenant", "provider", "model", "limit>", "of", "per", "since"],
        [
            (
                limit.tenant_id,
                limit.provider,
                limit.model or "(all)",
                _amount(limit.metric, limit.limit),
                limit.metric,
                _window(limit.window),
                moment(limit.updated_at),
            )
            for limit in found
        ],
        empty="no limits of a tenant's own",
    )


def _status_row(status: LimitStatus) -> tuple[str, ...]:
    return (
        status.level,
        f"{status.usage_percent:.1f}",
        _amount(status.metric, status.used),
        _amount(status.metric, status.limit),
        _window(status.window),
        status.metric,
        status.provider,
        status.model or "(all)",
        moment(status.resets_at),
        yes_no(status.should_failover),
        "tenant" if status.is_override else "default",
    )


def _amount(metric: LimitMetric, amount: Decimal) -> str:
    return dollars(amount) if metric is LimitMetric.COST else number(amount)


def _window(window: timedelta) -> str:
    return "month" if window == CALENDAR_MONTH else duration(window)
