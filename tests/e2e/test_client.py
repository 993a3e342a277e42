"""The typed client and the command line against real processes: the README's first minute."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

from tests.support.stack import Stack
from turnpike_client import Completion, RouterClient, UsageClient

TURNPIKE = str(Path(sys.executable).with_name("turnpike"))


def turnpike(stack: Stack, *arguments: str, code: int = 0) -> str:
    """Run the command; what it prints, both ways."""
    done = subprocess.run(
        [TURNPIKE, "--router", stack.router, "--usage", stack.usage, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def usage_of(stack: Stack, tenant_id: str) -> dict[str, object]:
    """The tenant's report once its one request has arrived in the ledger."""
    deadline = time.monotonic() + 10
    while True:
        report: dict[str, object] = json.loads(turnpike(stack, "usage", "--tenant", tenant_id, "--json"))
        total = report["total"]
        assert isinstance(total, dict)
        if total["requests"] or time.monotonic() > deadline:
            return total
        time.sleep(0.1)


def test_the_first_minute_of_the_readme(stack: Stack) -> None:
    tenant_id = json.loads(turnpike(stack, "tenants", "create", "Acme", "--json"))["id"]

    answer = turnpike(stack, "chat", "--tenant", tenant_id, "--provider", "sandbox", "hello there")
    total = usage_of(stack, tenant_id)

    text, summary = answer.strip().splitlines()
    assert text.startswith("[sandbox]")
    assert summary.startswith("sandbox | sandbox-small | ")
    assert " tokens in, " in summary
    assert "$0.0000" in summary
    assert total["requests"] == total["attempts"] == 1
    assert Decimal(total["cost"]["cost_usd"]) > 0  # type: ignore[index]


async def test_the_typed_client_streams_completes_and_reads_the_books(stack: Stack) -> None:
    async with RouterClient(stack.router) as router, UsageClient(stack.usage) as usage:
        tenant = await router.tenants.create("Acme")
        events = [event async for event in router.stream(tenant.id, "hello", provider="sandbox")]
        whole = await router.complete(tenant.id, "hello", provider="sandbox")
        text = await router.complete_for_tenant(tenant.id, "hello", provider="sandbox")
        async with asyncio.timeout(10):
            while (report := await usage.stats(tenant.id)).total.requests < 3:
                await asyncio.sleep(0.05)
        records = [record async for record in usage.records(tenant.id)]

    assert isinstance(events[-1], Completion)
    assert whole.content == text
    assert report.total.attempts == len(records) == 3
    assert report.total.cost.cost_usd == sum(record.cost_usd or Decimal(0) for record in records)


def test_without_a_server_the_chat_says_so_in_one_line(stack: Stack) -> None:
    done = subprocess.run(
        [TURNPIKE, "--router", "127.0.0.1:1", "chat", "--tenant", "018f0000-0000-7000-8000-000000000001", "hi"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 3
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "no server at 127.0.0.1:1" in done.stderr
