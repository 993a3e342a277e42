from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from click.testing import Result

from turnpike.usage.v1 import pricing_service_pb2
from turnpike_client.testing import FakeTurnpike

TENANT = "5b4c2a10-5f0e-4a53-9d5c-0f3a6f6f2b11"

Run = Callable[..., Awaitable[Result]]


async def test_a_price_is_set_and_its_past_is_shown_to_the_last_digit(run: Run) -> None:
    dollar = ["prices", "set", "groq", "m", "--output", "2.5", "--from", "2026-11-01"]

    first = await run(*dollar, "--input", "0.000000001", "--max-prompt", "8000", "--reasoning", "3")
    refused = await run(*dollar, "--input", "1")
    replaced = await run(*dollar, "--input", "1", "--replace", "--source", "contract 7")
    again = await run(*dollar, "--input", "1", "--replace")
    past = await run("prices", "history", "groq", "m")

    assert "$0.000000001" in first.stdout
    assert "turnpike prices reprice --since 2026-11-01T00:00:00+00:00 --provider groq" in first.stdout
    assert (refused.exit_code, "set replace" in refused.stderr) == (1, True)
    assert "contract 7" in replaced.stdout
    assert "it stood there already" in again.stdout
    assert [line.split()[-2] for line in past.stdout.splitlines()[1:]] == ["contract", "replaced"]


async def test_a_run_is_shown_and_changes_nothing_unless_it_is_told_to(turnpike: FakeTurnpike, run: Run) -> None:
    turnpike.pricing.reprices = [
        pricing_service_pb2.RepriceResponse(
            job_id="job-7", applied=applied, scanned_rows=1000, changed_rows=40, new_cost_usd="1.5", delta_usd="-0.5"
        )
        for applied in (False, True)
    ]

    dry = await run("prices", "reprice", "--since", "7d", "--provider", "groq")
    applied = await run("prices", "reprice", "--since", "7d", "--apply", "--reason", "contract 7", "--json")

    first, second = turnpike.pricing.requests
    assert "nothing was changed; add --apply and --reason" in dry.stdout
    assert dry.stdout.splitlines()[1].split()[:2] == ["1,000", "40"]
    assert (first.apply, first.provider, second.apply, second.reason) == (False, "groq", True, "contract 7")
    assert json.loads(applied.stdout)["delta_usd"] == "-0.5"


async def test_a_run_needs_to_be_told_from_when_on(run: Run) -> None:
    result = await run("prices", "reprice")

    assert result.exit_code == 2
    assert "--since" in result.stderr


async def test_limits_are_set_listed_and_deleted(run: Run) -> None:
    budget = ["--tenant", TENANT, "--provider", "groq", "--of", "cost", "--per", "1mo"]

    first = await run("limits", "set", *budget, "2.50")
    changed = await run("limits", "set", *budget, "5")
    listed = await run("limits", "list")
    as_json = await run("limits", "list", "--tenant", TENANT, "--json")
    removed = await run("limits", "delete", *budget)
    missing = await run("limits", "delete", *budget)

    assert "$2.50" in first.stdout
    assert changed.stdout.splitlines()[-1] == "it was $2.50"
    assert listed.stdout.splitlines()[1].split()[:6] == [TENANT, "groq", "(all)", "$5.00", "cost", "month"]
    assert json.loads(as_json.stdout)[0]["limit"] == "5"
    assert removed.stdout.splitlines()[-1] == "deleted"
    assert (missing.exit_code, "no such limit" in missing.stderr) == (1, True)


async def test_amounts_and_spans_that_are_none_are_refused_before_anything_is_asked(run: Run) -> None:
    limit = ["limits", "set", "--tenant", TENANT, "--provider", "groq", "--of", "requests"]

    for arguments in (
        [*limit, "--per", "1y", "5"],
        [*limit, "--per", "1m", "many"],
        [*limit, "--per", "1m", "--", "-5"],
    ):
        result = await run(*arguments)
        assert result.exit_code == 2, result.output
