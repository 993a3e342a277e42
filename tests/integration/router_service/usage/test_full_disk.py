"""What the journal does when the disk takes nothing more: nobody hangs, running attempts are kept, new ones refused."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uuid_utils.compat

from router_service.usage.group_commit import GroupCommit
from router_service.usage.journal_file import open_journal
from router_service.usage.journal_space import RESERVE_BYTES, JournalSpace
from router_service.usage.metrics import UsageMetrics
from service_runtime.errors import ServiceError
from tests.support.attempts import journal_metrics

new_id = uuid_utils.compat.uuid7


@dataclass
class Disk:
    """Full while `is_full`; the blocks of a deleted reserve can be written again while `reserve_is_enough`."""

    reserve: Path
    is_full: bool = False
    reserve_is_enough: bool = True

    def refuses(self) -> bool:
        return self.is_full and (self.reserve.exists() or not self.reserve_is_enough)


class OnDisk(sqlite3.Connection):
    """A connection that fails to write as SQLite fails on a full disk."""

    disk: Disk

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql.startswith("INSERT") and self.disk.refuses():
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return super().execute(sql, *parameters)


@dataclass
class Journal:
    thread: GroupCommit
    disk: Disk
    clock: list[float]
    space: JournalSpace
    metrics: UsageMetrics

    def refused(self) -> dict[str, float]:
        """Refusals by kind."""
        (family,) = self.metrics.refusals.collect()
        return {sample.labels["kind"]: sample.value for sample in family.samples if sample.name.endswith("_total")}

    async def write(self, *, needs_room: bool, is_kept: bool = False) -> None:
        row = (new_id().bytes, b"payload", 0)
        await self.thread.do(
            lambda db: db.execute("INSERT INTO opened (event_id, payload, crc) VALUES (?, ?, ?)", row) and None,
            needs_room=needs_room,
            is_kept=is_kept,
        )

    async def count(self) -> int:
        rows = await self.thread.do(lambda db: db.execute("SELECT count(*) FROM opened").fetchone())
        return int(rows[0])


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    connection, _ = open_journal(tmp_path, new_epoch=lambda: "epoch", now_s=lambda: 0.0)
    connection.close()
    disk = Disk(tmp_path / "reserve")
    on_disk = sqlite3.connect(
        tmp_path / "journal.sqlite", isolation_level=None, check_same_thread=False, factory=OnDisk
    )
    on_disk.disk = disk
    clock = [0.0]
    metrics = journal_metrics()
    space = JournalSpace(tmp_path, max_bytes=1 << 30, metrics=metrics, now_s=lambda: clock[0])
    thread = GroupCommit(on_disk, space, metrics)
    yield Journal(thread, disk, clock, space, metrics)
    await thread.close()


async def outcomes(*work: Any) -> list[str]:
    """Reason of each refusal, `written` for the others; nothing may hang."""
    async with asyncio.timeout(5):
        results = await asyncio.gather(*work, return_exceptions=True)
    return [result.reason if isinstance(result, ServiceError) else str(result or "written") for result in results]


async def test_u4_a_full_disk_refuses_new_attempts_and_keeps_the_running_ones(journal: Journal) -> None:
    journal.disk.is_full = True

    new, running, another = await outcomes(
        journal.write(needs_room=True), journal.write(needs_room=False), journal.write(needs_room=False)
    )

    assert new == "JOURNAL_FULL"
    assert [running, another] == ["written", "written"]
    assert await journal.count() == 2
    assert journal.refused() == {"new": 1, "running": 0}


async def test_while_the_reserve_is_gone_no_new_attempt_begins(journal: Journal) -> None:
    journal.disk.is_full = True
    await outcomes(journal.write(needs_room=False))

    assert await outcomes(journal.write(needs_room=True)) == ["JOURNAL_FULL"]
    assert journal.refused() == {"new": 1, "running": 0}


async def test_when_even_the_reserve_is_used_up_everybody_is_told_and_nobody_hangs(journal: Journal) -> None:
    journal.disk.is_full, journal.disk.reserve_is_enough = True, False

    first = await outcomes(*(journal.write(needs_room=number % 2 == 0) for number in range(6)))
    second = await outcomes(*(journal.write(needs_room=number % 2 == 0) for number in range(6)))

    assert first == ["JOURNAL_FULL"] * 6
    assert second == ["JOURNAL_FULL"] * 6
    assert await journal.count() == 0
    assert journal.refused() == {"new": 6, "running": 6}


async def test_once_the_disk_has_room_again_new_attempts_begin_without_a_restart(journal: Journal) -> None:
    journal.disk.is_full = True
    await outcomes(journal.write(needs_room=False))
    journal.disk.is_full = False
    journal.clock[0] = 60.0

    assert await outcomes(journal.write(needs_room=True)) == ["written"]
    assert journal.disk.reserve.stat().st_size == RESERVE_BYTES


async def test_what_ended_without_any_room_is_written_once_there_is_some_and_only_once(journal: Journal) -> None:
    journal.disk.is_full, journal.disk.reserve_is_enough = True, False
    told = await outcomes(*(journal.write(needs_room=False, is_kept=number < 3) for number in range(5)))
    journal.disk.is_full = False
    async with asyncio.timeout(20):
        while await journal.count() == 0:
            await asyncio.sleep(0.02)
    await outcomes(journal.write(needs_room=False))

    assert told == ["JOURNAL_FULL"] * 5
    assert await journal.count() == 3 + 1
    assert [sample.value for family in journal.metrics.kept.collect() for sample in family.samples] == [0]


async def test_a_close_tries_once_more_what_found_no_room(journal: Journal, tmp_path: Path) -> None:
    journal.disk.is_full, journal.disk.reserve_is_enough = True, False
    await outcomes(journal.write(needs_room=False, is_kept=True))
    journal.disk.is_full = False
    await journal.thread.close()

    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as file:
        assert file.execute("SELECT count(*) FROM opened").fetchone() == (1,)


async def test_a_fault_that_is_not_sqlites_reaches_those_who_wait_and_the_thread_goes_on(journal: Journal) -> None:
    def broken(_: sqlite3.Connection) -> None:
        raise OSError("the disk went away")

    async with asyncio.timeout(5):
        with pytest.raises(OSError, match="went away"):
            await journal.thread.do(broken)

    assert await outcomes(journal.write(needs_room=True)) == ["written"]


async def test_a_file_that_cannot_be_understood_is_not_taken_for_a_full_disk(journal: Journal) -> None:
    read = journal.thread.do(lambda db: db.execute("SELECT CAST(X'80' AS TEXT)").fetchone())

    assert await outcomes(read) == ["JOURNAL_DAMAGED"]
    assert await outcomes(journal.write(needs_room=True)) == ["written"]
    assert journal.disk.reserve.exists()


async def test_work_whose_waiter_left_is_done_all_the_same_and_its_end_is_told(journal: Journal) -> None:
    told = asyncio.Event()
    row = (new_id().bytes, b"payload", 0)
    waiting = asyncio.create_task(
        journal.thread.do(
            lambda db: db.execute("INSERT INTO opened (event_id, payload, crc) VALUES (?, ?, ?)", row) and None,
            then=told.set,
        )
    )
    await asyncio.sleep(0)
    waiting.cancel()

    async with asyncio.timeout(5):
        await told.wait()

    assert waiting.cancelled() or waiting.cancelling()
    assert await journal.count() == 1


async def test_what_was_asked_for_before_the_close_is_written_and_later_work_is_refused(journal: Journal) -> None:
    early = [asyncio.create_task(journal.write(needs_room=True)) for _ in range(5)]
    await asyncio.sleep(0)
    await journal.thread.close()

    assert await outcomes(*early) == ["written"] * 5
    assert await outcomes(journal.write(needs_room=True)) == ["SHUTTING_DOWN"]
