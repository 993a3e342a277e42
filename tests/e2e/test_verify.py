"""`turnpike verify` against real processes: sound books balance, and each of three kinds of damage is found."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service_runtime.embedded_postgres import EmbeddedPostgres
from tests.support.stack import Stack
from turnpike_client import RouterClient, UsageClient

TURNPIKE = str(Path(sys.executable).with_name("turnpike"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A Turnpike of its own: its ledger is going to be damaged. It audits itself every second."""
    running = Stack(tmp_path_factory.mktemp("verify") / "data", environment={"USAGE_VERIFY_INTERVAL_S": "1"}).start()
    yield running
    assert running.stop() == 0, running.output()


def turnpike(stack: Stack, *arguments: str, code: int = 0) -> Any:
    done = subprocess.run(
        [TURNPIKE, "--router", stack.router, "--usage", stack.usage, *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def damage(stack: Stack, *statements: str) -> list[str]:
    """Alter the ledger behind the service's back."""

    async def execute() -> list[str]:
        connection = await asyncpg.connect(EmbeddedPostgres(stack.data_dir / "postgres").dsn)
        try:
            return [await connection.execute(statement) for statement in statements]
        finally:
            await connection.close()

    return asyncio.run(execute())


async def used(stack: Stack, name: str, requests: int) -> str:
    """A tenant with so many requests in the ledger."""
    async with RouterClient(stack.router) as router, UsageClient(stack.usage) as usage:
        tenant = await router.tenants.create(name)
        for _ in range(requests):
            await router.complete(tenant.id, "hello", provider="sandbox")
        async with asyncio.timeout(20):
            while (await usage.stats(tenant.id)).total.requests < requests:
                await asyncio.sleep(0.05)
        return tenant.id


def test_verify_passes_sound_books_and_finds_an_altered_rollup_a_deleted_row_and_a_duplicated_sequence(
    stack: Stack,
) -> None:
    altered, deleted = asyncio.run(used(stack, "altered", 3)), asyncio.run(used(stack, "deleted", 3))

    sound = turnpike(stack, "verify", code=0)["results"]
    assert len(sound) == 11
    assert {result["check"]: result["checked"] for result in sound}["cost"] == 6
    assert {result["check"]: result["checked"] for result in sound}["sequence_gap"] == 6

    assert damage(
        stack,
        f"UPDATE usage_rollup_hour SET cost_usd = cost_usd + 0.000000000001 WHERE tenant_id = '{altered}'",
        f"DELETE FROM model_usage_stats WHERE tenant_id = '{deleted}' AND router_sequence = 5",
        f"UPDATE model_usage_stats SET router_sequence = 3 WHERE tenant_id = '{altered}' AND router_sequence = 2",
    ) == ["UPDATE 1", "DELETE 1", "UPDATE 1"]

    found = {result["check"]: result for result in turnpike(stack, "verify", code=1)["results"]}

    assert {check: result["wrong"] for check, result in found.items() if result["wrong"]} == {
        "minute_rollup": 1,
        "hour_rollup": 2,
        "day_rollup": 1,
        "duplicate_sequence": 1,
        "sequence_gap": 2,
    }
    hours = {one["subject"].split()[1]: one for one in found["hour_rollup"]["discrepancies"]}
    assert hours[altered]["expected"].startswith("cost_usd=")
    assert "attempts=2" in hours[deleted]["expected"]
    assert [one["subject"].split()[-1] for one in found["sequence_gap"]["discrepancies"]] == ["2", "5"]
    assert found["duplicate_sequence"]["discrepancies"][0]["subject"].endswith(" sequence 3")

    # Nobody has to ask: the service finds it by itself and says so.
    deadline = time.monotonic() + 20
    while "ledger.does_not_agree" not in stack.output():
        assert time.monotonic() < deadline, stack.output()
        time.sleep(0.1)
