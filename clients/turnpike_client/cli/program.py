"""The command's root: addresses, and how failures end."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import click

from turnpike_client.cli.audit import verify
from turnpike_client.cli.charts import latency, series, watch
from turnpike_client.cli.chat import chat
from turnpike_client.cli.limits import limits
from turnpike_client.cli.output import one_line
from turnpike_client.cli.prices import prices
from turnpike_client.cli.reports import costs, errors, records, usage
from turnpike_client.cli.routes import explain, providers
from turnpike_client.cli.session import Session, target
from turnpike_client.cli.tenants import tenants
from turnpike_client.connection import DEFAULT_ROUTER, DEFAULT_USAGE
from turnpike_client.errors import AllTargetsFailed, InvalidRequest, RateLimited, ServerUnreachable, TurnpikeError

EXIT_REFUSED = 1
EXIT_NO_SERVER = 3
EXIT_INTERRUPTED = 130


class Program(click.Group):
    """A group that turns every expected failure into one line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TurnpikeError as error:
            click.echo(f"turnpike: {describe(error)}", err=True)
            code = EXIT_NO_SERVER if isinstance(error, ServerUnreachable) else EXIT_REFUSED
            raise click.exceptions.Exit(code) from error
        except KeyboardInterrupt as error:
            click.echo("", err=True)
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from error


def describe(error: TurnpikeError) -> str:
    """A failure in one line: what is wrong, what was tried, and what to quote when asking for help."""
    parts = [_problem(error)]
    if not isinstance(error, AllTargetsFailed):  # whose message lists them
        parts += [
            f"attempt {attempt.number} {attempt.provider} {attempt.model}: {attempt.error_class or attempt.status}"
            for attempt in error.attempts
        ]
    if isinstance(error, ServerUnreachable):
        parts.append("start it with `make run`, or name another with --router or --usage")
    elif error.request_id:
        parts.append(f"request {error.request_id}")
    return one_line("; ".join(parts))


def _problem(error: TurnpikeError) -> str:
    if isinstance(error, InvalidRequest) and len(error.violations) > 1:
        return "; ".join(f"{violation.field}: {violation.description}" for violation in error.violations)
    if isinstance(error, RateLimited) and error.retry_after is not None:
        return f"{error.message} (try again in {error.retry_after.total_seconds():.0f} s)"
    return error.message


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 refused, failed, or the books do not balance; 2 wrong usage; 3 no server; 130"
    " interrupted.",
)
@click.option(
    "--router",
    envvar="TURNPIKE_ROUTER",
    metavar="HOST:PORT[,…]",
    help="The router; several addresses share the calls. "
    f"Default: $TURNPIKE_ROUTER, 127.0.0.1:$ROUTER_PORT, or {DEFAULT_ROUTER}.",
)
@click.option(
    "--usage",
    envvar="TURNPIKE_USAGE",
    metavar="HOST:PORT[,…]",
    help=f"The usage service; several as above. Default: $TURNPIKE_USAGE, 127.0.0.1:$USAGE_PORT, or {DEFAULT_USAGE}.",
)
@click.version_option(version("turnpike-client"), prog_name="turnpike")
@click.pass_context
def program(ctx: click.Context, router: str | None, usage: str | None) -> None:
    """Route tenants' LLM requests, and read the books on them."""
    ctx.obj = replace(
        ctx.obj or Session(),
        router=target(router, os.environ, "ROUTER_PORT", DEFAULT_ROUTER),
        usage=target(usage, os.environ, "USAGE_PORT", DEFAULT_USAGE),
    )


_READS = (usage, records, limits, costs, errors, series, latency, watch, verify, prices, providers, explain)
for command in (tenants, chat, *_READS):
    program.add_command(command)
