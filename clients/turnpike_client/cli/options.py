"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from functools import wraps
from typing import Any, TypeVar

import click

from turnpike_client.accounting import UsageFilter
from turnpike_client.enums import AttemptFilter, Funding
from turnpike_client.limit_client import CALENDAR_MONTH

_Command = TypeVar("_Command", bound=Callable[..., Any])

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Moment(click.ParamType[datetime]):
    """A point in time: an age such as `24h` or `7d`, or a time as in ISO 8601 (UTC unless it says otherwise)."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        moment = read_moment(value, datetime.now(UTC))
        if moment is None:
            self.fail(
                f"{value!r} is neither an age such as 30m, 24h or 7d nor a time such as 2026-11-23T10:00", param, ctx
            )
        return moment


def read_moment(text: str, now: datetime) -> datetime | None:
    """The point in time that `text` means, or None when it means none."""
    age = re.fullmatch(r"(\d{1,6})([smhdw])", text.strip())
    try:
        if age:
            return now - timedelta(**{_UNITS[age[2]]: int(age[1])})
        moment = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Span(click.ParamType[timedelta]):
    """A length of time such as `10s`, `1m`, `1h` or `7d`; `1mo` is the calendar month."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        length = re.fullmatch(r"(\d{1,6})([smhdw])", value.strip())
        if value.strip() == "1mo":
            return CALENDAR_MONTH
        if length is None:
            self.fail(f"{value!r} is no length of time such as 10s, 1m, 1h, 7d or 1mo", param, ctx)
        return timedelta(**{_UNITS[length[2]]: int(length[1])})


class Amount(click.ParamType[Decimal]):
    """A decimal number of at least 0, such as `1000` or `2.50`."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        if isinstance(value, Decimal):
            return value
        if re.fullmatch(r"\d{1,18}(\.\d{1,18})?", value.strip(), re.ASCII) is None:
            self.fail(f"{value!r} is no decimal number of at least 0, such as 1000 or 2.50", param, ctx)
        return Decimal(value.strip())


class Pair(click.ParamType[tuple[str, str]]):
    """`NAME=VALUE`, such as `groq=llama-3.3-70b-versatile`."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, separator, rest = value.partition("=")
        if not separator or not name.strip():
            self.fail(f"{value!r} must be NAME=VALUE", param, ctx)
        return name.strip(), rest.strip()


def one_of(choices: type[StrEnum]) -> click.Choice[str]:
    """A choice by its value, such as `code`; click on its own would ask for the name of the member."""
    return click.Choice([choice.value for choice in choices])


def tenant_option(*, required: bool = True) -> Callable[[_Command], _Command]:
    """`--tenant ID`, also from the environment."""
    return click.option(
        "--tenant", "tenant_id", envvar="TURNPIKE_TENANT", required=required, metavar="ID", help="The tenant's UUID."
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def window_options(default: str) -> Callable[[_Command], _Command]:
    """`--since` and `--until`; the default window is the server's."""

    def decorate(command: _Command) -> _Command:
        since = click.option("--since", type=Moment(), help=f"Start: 30m, 24h, 7d or a time. Default: {default} ago.")
        until = click.option("--until", type=Moment(), help="End, not included. Default: now.")
        return since(until(command))

    return decorate


def report_filter(command: Callable[..., Any]) -> Callable[..., Any]:
    """What a report counts: `--provider`, `--model`, `--attempts` and `--funding`, given to the command as `only`."""

    @wraps(command)
    def read(*arguments: Any, provider: str, model: str, attempts: str, funding: str, **others: Any) -> Any:
        only = UsageFilter(provider, model, AttemptFilter(attempts), Funding(funding))
        return command(*arguments, only=only, **others)

    attempts = click.option(
        "--attempts",
        type=one_of(AttemptFilter),
        default=AttemptFilter.ALL.value,
        help="Only attempts whose outcome the caller saw, or only those that failover absorbed.",
    )
    funding = click.option(
        "--funding", type=one_of(Funding), default=Funding.NONE.value, help="Only what this key paid. Default: either."
    )
    return filter_options(attempts(funding(read)))


def filter_options(command: _Command) -> _Command:
    """`--provider` and `--model`."""
    provider = click.option("--provider", default="", help="Only this provider.")
    model = click.option("--model", default="", help="Only this model.")
    return provider(model(command))
