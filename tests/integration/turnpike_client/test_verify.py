"""`turnpike verify` and the client's method: pages add up, and the exit code tells."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest
from click.testing import Result

from turnpike.usage.v1 import audit_service_pb2 as pb
from turnpike_client import LedgerAudit, LedgerCheck, UsageClient
from turnpike_client.testing import FakeTurnpike

TENANT = "5b4c2a10-5f0e-4a53-9d5c-0f3a6f6f2b11"

Run = Callable[..., Awaitable[Result]]


def page(*results: pb.LedgerCheckResult) -> pb.VerifyLedgerResponse:
    return pb.VerifyLedgerResponse(results=results)


WRONG = pb.LedgerCheckResult(
    check=pb.LEDGER_CHECK_COST,
    checked_count=7,
    wrong_count=2,
    discrepancies=[pb.LedgerDiscrepancy(subject="event 018f", expected="0.5", actual="0.6")],
)
RIGHT = pb.LedgerCheckResult(check=pb.LEDGER_CHECK_COST, checked_count=5)
UNCHECKED = pb.LedgerCheckResult(check=pb.LEDGER_CHECK_DUPLICATE_EVENT, unchecked=["2026-11-23 to 2026-11-30"])


async def test_pages_add_up(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    turnpike.audit.pages = [page(RIGHT), page(WRONG, pb.LedgerCheckResult(check=pb.LEDGER_CHECK_MINUTE_ROLLUP)), page()]
    seen: list[LedgerAudit] = []

    audit = await usage.verify(max_discrepancies=3, on_page=seen.append)

    assert not audit.is_right
    assert [(result.check, result.checked, result.wrong) for result in audit.results] == [
        (LedgerCheck.MINUTE_ROLLUP, 0, 0),
        (LedgerCheck.COST, 12, 2),
    ]
    assert audit.results[1].discrepancies[0].subject == "event 018f"
    assert len(seen) == 3
    assert [request.page_token for request in turnpike.audit.requests] == ["", "1", "2"]
    assert {request.max_discrepancies for request in turnpike.audit.requests} == {3}


async def test_balanced_books_exit_with_0(turnpike: FakeTurnpike, run: Run) -> None:
    result = await run("verify", "--since", "2026-11-01", "--tenant", TENANT)

    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].endswith(": the books balance")
    [request] = turnpike.audit.requests
    assert request.start_time.ToDatetime(UTC) == datetime(2026, 11, 1, tzinfo=UTC)
    assert request.tenant_id == TENANT


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (WRONG, "cost: event 018f: should be 0.5; is 0.6"),
        (UNCHECKED, "duplicate_event: 2026-11-23 to 2026-11-30: not checked, it takes too long"),
    ],
    ids=["wrong", "unchecked"],
)
async def test_books_that_do_not_balance_exit_with_1_and_name_what_is_wrong(
    turnpike: FakeTurnpike, run: Run, found: pb.LedgerCheckResult, line: str
) -> None:
    turnpike.audit.pages = [page(found)]

    table = await run("verify")
    as_json = await run("verify", "--json")

    assert table.exit_code == as_json.exit_code == 1
    assert line in table.stdout.splitlines()
    assert table.stdout.splitlines()[-1].endswith(": the books do not balance")
    assert json.loads(as_json.stdout)["results"][0]["wrong"] == found.wrong_count
