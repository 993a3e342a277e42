"""Journals of workers that are no more: carried to the ledger by somebody else, once, and never under a live owner."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import uuid_utils.compat

from router_service.usage.channel import usage_channel
from router_service.usage.journal import SqliteJournal
from router_service.usage.orphans import OrphanDrain, orphaned
from router_service.usage.pacing import PaceSettings
from router_service.usage.right_of_way import RightOfWay
from router_service.usage.sender import SenderSettings
from tests.support.attempts import journal_metrics, opened_attempt, settled_attempt
from tests.support.fake_usage_service import FakeUsageService, serving

new_id = uuid_utils.compat.uuid7


def journal_in(directory: Path) -> SqliteJournal:
    return SqliteJournal.open(directory, max_bytes=1 << 30, metrics=journal_metrics(), new_epoch=lambda: "epoch-1")


async def leave_behind(directory: Path) -> list[str]:
    """A journal with two settled attempts and one that ran when its worker was killed."""
    journal = journal_in(directory)
    ids = [new_id() for _ in range(3)]
    for event_id in ids[:2]:
        await journal.settled(settled_attempt(event_id))
    await journal.opened(opened_attempt(ids[2]))
    await journal.close()
    return sorted(str(event_id) for event_id in ids)


def drain(base: Path, channel: grpc.aio.Channel, *, workers: int) -> OrphanDrain:
    return OrphanDrain(base, channel, workers=workers, max_bytes=1 << 30, new_name=lambda: "name-1")


async def test_only_journals_of_workers_that_do_not_run_are_orphans(tmp_path: Path) -> None:
    for name in ("worker-1", "worker-2", "worker-12", "worker-x", "corrupt-1"):
        await leave_behind(tmp_path / name)
    (tmp_path / "worker-3").mkdir()

    assert [path.name for path in orphaned(tmp_path, workers=2)] == ["worker-12", "worker-2"]
    assert list(orphaned(tmp_path / "nowhere", workers=1)) == []


async def test_u1_u2_everything_that_a_worker_left_behind_reaches_the_ledger_once(tmp_path: Path) -> None:
    ids = await leave_behind(tmp_path / "worker-1")
    service = FakeUsageService()
    async with serving(service) as target, usage_channel(target) as channel:
        orphans = drain(tmp_path, channel, workers=1)
        first, second = await orphans.run(), await orphans.run()

    assert (first, second) == (3, 0)
    assert sorted(service.event_ids) == ids
    assert {batch.router_id for batch in service.batches} == {"name-1"}
    (state,) = service.journal_states
    assert (state.epoch, state.last_sequence, state.waiting_count) == ("epoch-1", 3, 0)


async def test_an_orphans_backlog_gives_way_to_this_processs_requests_and_goes_all_the_same(tmp_path: Path) -> None:
    journal = journal_in(tmp_path / "worker-1")
    await asyncio.gather(*(journal.settled(settled_attempt(new_id())) for _ in range(1_200)))
    await journal.close()
    service = FakeUsageService()
    quick = PaceSettings(floor_per_s=1.0, ceiling_per_s=1e6, first_per_s=1e6)
    way = RightOfWay(lambda: 0.0, journal_metrics(), settings=quick)  # there is a request all the time
    async with serving(service) as target, usage_channel(target) as channel:
        orphans = OrphanDrain(
            tmp_path, channel, workers=1, max_bytes=1 << 30, new_name=lambda: "name-1", right_of_way=way
        )
        carried = await orphans.run()
    await way.close()

    beside = SenderSettings().batch_size_beside_requests
    assert carried == 1_200
    assert [len(batch.events) for batch in service.batches[:3]] == [beside] * 3


async def test_while_the_ledger_is_away_nothing_is_lost_and_the_next_pass_tries_again(tmp_path: Path) -> None:
    ids = await leave_behind(tmp_path / "worker-1")
    service = FakeUsageService()
    service.failure = grpc.StatusCode.UNAVAILABLE
    async with serving(service) as target, usage_channel(target) as channel:
        orphans = drain(tmp_path, channel, workers=1)
        assert await orphans.run() == 0
        service.failure = None
        assert await orphans.run() == 3

    assert sorted(service.event_ids) == ids


async def test_a_journal_whose_owner_runs_after_all_is_left_alone(tmp_path: Path) -> None:
    owned = journal_in(tmp_path / "worker-1")
    await owned.settled(settled_attempt(new_id()))
    service = FakeUsageService()
    async with serving(service) as target, usage_channel(target) as channel:
        assert await drain(tmp_path, channel, workers=1).run() == 0

    assert service.event_ids == []
    assert len(await owned.oldest(10)) == 1
    await owned.close()
