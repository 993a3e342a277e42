"""Each switch breaks the promise that it names: only then does a run that goes red under it prove anything."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import uuid_utils.compat

from router_service.usage.channel import usage_channel
from router_service.usage.journal import SqliteJournal
from router_service.usage.sender import SenderSettings, UsageSender
from service_runtime import faults
from tests.support.attempts import journal_metrics, opened_attempt, settled_attempt
from tests.support.fake_usage_service import FakeUsageService, serving

new_id = uuid_utils.compat.uuid7


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm("")


def journal_in(directory: Path) -> SqliteJournal:
    return SqliteJournal.open(directory, max_bytes=1 << 30, metrics=journal_metrics(), new_epoch=lambda: "epoch-1")


async def waiting_after_a_kill(live: Path, copy: Path) -> int:
    """How many events the files hold at this moment."""
    shutil.copytree(live, copy)
    journal = journal_in(copy)
    count = len(await journal.oldest(1000))
    await journal.close()
    return count


@pytest.mark.parametrize(("switch", "kept"), [("", 2), ("skip_sync", 0)])
async def test_u1_only_a_skipped_sync_loses_acknowledged_records_in_a_kill(
    tmp_path: Path, switch: str, kept: int
) -> None:
    faults.arm(switch)
    journal = journal_in(tmp_path / "live")
    first, second = opened_attempt(new_id()), settled_attempt(new_id())
    await journal.opened(first)
    await journal.opened(second.opened)
    await journal.settled(second)

    assert await waiting_after_a_kill(tmp_path / "live", tmp_path / "copy") == kept

    await journal.close()


async def test_a_skipped_sync_loses_nothing_of_a_journal_that_is_closed(tmp_path: Path) -> None:
    faults.arm("skip_sync")
    journal = journal_in(tmp_path / "live")
    await journal.settled(settled_attempt(new_id()))

    await journal.close()

    assert await waiting_after_a_kill(tmp_path / "live", tmp_path / "copy") == 1


@pytest.mark.parametrize(("switch", "kept"), [("", 3), ("remove_before_acknowledgement", 0)])
async def test_u1_only_a_removal_before_the_acknowledgement_loses_what_the_ledger_did_not_take(
    tmp_path: Path, switch: str, kept: int
) -> None:
    faults.arm(switch)
    journal = journal_in(tmp_path)
    service = FakeUsageService()
    service.failure = grpc.StatusCode.UNAVAILABLE
    for _ in range(3):
        await journal.settled(settled_attempt(new_id()))
    async with serving(service) as target, usage_channel(target) as channel:
        quick = SenderSettings(gather_s=0.0, first_backoff_s=0.01, max_backoff_s=0.05)
        sender = UsageSender(journal, channel, router_id="router-1", metrics=journal_metrics(), settings=quick)
        sender.start()
        async with asyncio.timeout(10):
            while service.refused == 0:
                await asyncio.sleep(0.01)
        await sender.stop(drain_timeout_s=2.0)

    assert service.event_ids == []
    assert len(await journal.oldest(10)) == kept
    await journal.close()
