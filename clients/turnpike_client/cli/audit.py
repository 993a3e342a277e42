"""`turnpike verify`: the ledger's proof of itself."""

from __future__ import annotations

import sys
from datetime import datetime

import click

from turnpike_client.audit import LedgerAudit, LedgerCheckResult
from turnpike_client.cli.options import json_option, tenant_option, window_options
from turnpike_client.cli.output import moment, number, one_line, print_json, print_table
from turnpike_client.cli.session import Session, pass_session

EXIT_WRONG = 1


@click.command()
@tenant_option(required=False)
@window_options("2 days")
@click.option(
    "--show", type=click.IntRange(1, 100), default=10, show_default=True, help="How many wrong keys to name a check."
)
@json_option
@pass_session
def verify(
    session: Session, *, tenant_id: str | None, since: datetime | None, until: datetime | None, show: int, as_json: bool
) -> None:
    """Recount the ledger, and say what does not agree. Exits with 1 when anything is wrong or was left unchecked.

    Whole days in UTC. With --tenant only that tenant's; the journals of the routers are then left out.
    """

    def progress(audit: LedgerAudit) -> None:
        rows = max((result.checked for result in audit.results), default=0)
        click.echo(f"{number(rows)} rows so far", err=True)

    async def read() -> LedgerAudit:
        async with session.usage_client() as client:
            return await client.verify(
                tenant_id=tenant_id or "",
                start=since,
                end=until,
                max_discrepancies=show,
                on_page=progress if sys.stderr.isatty() else None,
            )

    audit = session.run(read())
    if as_json:
        print_json(audit)
    else:
        _print(audit)
    if not audit.is_right:
        raise click.exceptions.Exit(EXIT_WRONG)


def _print(audit: LedgerAudit) -> None:
    print_table(
        ["check", "checked>", "wrong>", ""],
        [(result.check, number(result.checked), number(result.wrong), _verdict(result)) for result in audit.results],
        empty="nothing was checked",
    )
    for result in audit.results:
        for one in result.discrepancies:
            click.echo(one_line(f"{result.check}: {one.subject}: should be {one.expected}; is {one.actual}"))
        for part in result.unchecked:
            click.echo(one_line(f"{result.check}: {part}: not checked, it takes too long"))
    verdict = "the books balance" if audit.is_right else "the books do not balance"
    click.echo(f"{moment(audit.start)} to {moment(audit.end)}: {verdict}")


def _verdict(result: LedgerCheckResult) -> str:
    if result.wrong:
        return "wrong"
    return "unchecked" if result.unchecked else "ok"
