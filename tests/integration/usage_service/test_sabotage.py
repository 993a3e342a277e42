"""Each switch breaks the promise that it names: only then does a run that goes red under it prove anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import pytest

from service_runtime import faults
from tests.support.ledger import LedgerUnderTest, ledger_on
from tests.support.usage_events import reported_event, submission
from usage_service.metering.recording import Batch, Disposition

NOW = datetime.now(UTC).replace(microsecond=0)
COUNT = "SELECT count(*) FROM model_usage_stats"


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm("")


@pytest.fixture
async def ledger(ledger_database: str) -> AsyncIterator[LedgerUnderTest]:
    async with ledger_on(ledger_database) as ledger:
        yield ledger


async def dispositions(ledger: LedgerUnderTest, batch: Batch) -> list[Disposition]:
    return [outcome.disposition for outcome in await ledger.recorder.record(batch)]


@pytest.mark.parametrize(("switch", "rows"), [("", 2), ("no_dedupe", 4)])
async def test_u3_only_without_dedupe_is_a_resent_event_stored_twice(
    ledger: LedgerUnderTest, switch: str, rows: int
) -> None:
    faults.arm(switch)
    batch = Batch("router-1", "epoch-1", [submission(reported_event(NOW)) for _ in range(2)])

    first = await dispositions(ledger, batch)
    second = await dispositions(ledger, batch)

    assert first == [Disposition.ACCEPTED] * 2
    assert second == [Disposition.ACCEPTED if switch else Disposition.DUPLICATE] * 2
    assert await ledger.connection.fetchval(COUNT) == rows
    assert await ledger.connection.fetchval("SELECT sum(attempts) FROM usage_rollup_day") == rows


@pytest.mark.parametrize(("switch", "rows_when_answered"), [("", 1), ("acknowledge_before_commit", 0)])
async def test_u1_only_an_early_acknowledgement_answers_for_what_is_not_stored_yet(
    ledger: LedgerUnderTest, switch: str, rows_when_answered: int
) -> None:
    faults.arm(switch)

    answer = await dispositions(ledger, Batch("router-1", "epoch-1", [submission(reported_event(NOW))]))

    assert answer == [Disposition.ACCEPTED]
    assert await ledger.connection.fetchval(COUNT) == rows_when_answered
    async with asyncio.timeout(10):
        while await ledger.connection.fetchval(COUNT) == 0:
            await asyncio.sleep(0.05)
