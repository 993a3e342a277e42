"""A backlog gives way to requests: in the journal's thread, and in what the sender sends beside them."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import uuid_utils.compat

from router_service.usage.channel import usage_channel
from router_service.usage.group_commit import GroupCommit, Row, RowWriter
from router_service.usage.journal import SqliteJournal
from router_service.usage.journal_file import open_journal
from router_service.usage.journal_space import JournalSpace
from router_service.usage.pacing import PaceSettings
from router_service.usage.sender import SenderSettings, UsageSender
from tests.support.attempts import journal_metrics, opened_attempt, settled_attempt
from tests.support.fake_usage_service import FakeUsageService, serving
from turnpike.usage.v1 import usage_service_pb2

new_id = uuid_utils.compat.uuid7

SETTINGS = SenderSettings(
    batch_size=40,
    batch_size_beside_requests=10,
    beside_requests=PaceSettings(floor_per_s=100.0, ceiling_per_s=100.0),
    gather_s=0.0,
    call_timeout_s=5.0,
)


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    opened = SqliteJournal.open(tmp_path, max_bytes=1 << 30, metrics=journal_metrics(), new_epoch=lambda: "epoch-1")
    yield opened
    await opened.close()


@dataclass
class Thread:
    """The journal's thread, held up until `go` is set, and the order in which it did what it was asked for."""

    commit: GroupCommit
    go: threading.Event = field(default_factory=threading.Event)
    done: list[str] = field(default_factory=list)

    def step(self, name: str) -> Callable[[sqlite3.Connection], None]:
        return lambda db: self.done.append(f"{name}, {'in' if db.in_transaction else 'without'} a transaction")

    async def hold_up(self) -> asyncio.Task[None]:
        """Something that the thread is busy with."""
        began = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wait(_: sqlite3.Connection) -> None:
            loop.call_soon_threadsafe(began.set)
            self.go.wait(30)

        task = asyncio.create_task(self.commit.do(wait))
        await began.wait()
        return task


@pytest.fixture
async def thread(tmp_path: Path) -> AsyncIterator[Thread]:
    connection, _ = open_journal(tmp_path, new_epoch=lambda: "epoch", now_s=lambda: 0.0)
    metrics = journal_metrics()
    thread = Thread(GroupCommit(connection, JournalSpace(tmp_path, max_bytes=1 << 30, metrics=metrics), metrics))
    yield thread
    thread.go.set()
    await thread.commit.close()


async def test_requests_go_before_a_backlog_and_one_piece_of_it_rides_along(thread: Thread) -> None:
    busy = await thread.hold_up()
    work = [
        asyncio.create_task(thread.commit.do_in_time(thread.step("first piece"))),
        asyncio.create_task(thread.commit.do_in_time(thread.step("second piece"))),
        asyncio.create_task(thread.commit.do(thread.step("request"))),
    ]
    await asyncio.sleep(0)
    thread.go.set()
    async with asyncio.timeout(10):
        await asyncio.gather(busy, *work)

    assert [name.partition(",")[0] for name in thread.done] == ["request", "first piece", "second piece"]
    assert all(name.endswith("in a transaction") for name in thread.done)


async def test_the_rows_of_all_who_wait_are_written_at_once_and_counted_at_once(thread: Thread) -> None:
    written: list[list[Row]] = []
    counted: list[int] = []
    writer = RowWriter(lambda _, rows: written.append(rows), counted.append)
    busy = await thread.hold_up()
    work = [thread.commit.write((number,), writer) for number in range(5)]
    thread.go.set()
    async with asyncio.timeout(10):
        await asyncio.gather(busy, *work)

    assert written == [[(0,), (1,), (2,), (3,), (4,)]]
    assert counted == [5]


async def test_a_row_counts_as_written_although_whoever_gave_it_waits_no_more(thread: Thread) -> None:
    counted: list[int] = []
    writer = RowWriter(lambda _, rows: None, counted.append)
    busy = await thread.hold_up()
    given_up, waited_for = (thread.commit.write((name,), writer) for name in ("given up", "waited for"))
    given_up.cancel()
    thread.go.set()
    async with asyncio.timeout(10):
        await asyncio.gather(busy, waited_for)

    assert sum(counted) == 2


async def test_what_only_reads_waits_for_requests_and_for_no_commit(thread: Thread) -> None:
    busy = await thread.hold_up()
    work = [
        asyncio.create_task(thread.commit.do_in_time(thread.step("piece"), is_reading=True)),
        asyncio.create_task(thread.commit.do(thread.step("request"))),
    ]
    await asyncio.sleep(0)
    thread.go.set()
    async with asyncio.timeout(10):
        await asyncio.gather(busy, *work)

    assert thread.done == ["request, in a transaction", "piece, without a transaction"]


async def test_work_that_has_time_is_finished_before_the_journal_closes(thread: Thread) -> None:
    busy = await thread.hold_up()
    work = [asyncio.create_task(thread.commit.do_in_time(thread.step("write"))) for _ in range(3)]
    work += [asyncio.create_task(thread.commit.do_in_time(thread.step("read"), is_reading=True)) for _ in range(3)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(thread.commit.close())
    thread.go.set()
    async with asyncio.timeout(10):
        await asyncio.gather(busy, closing, *work)

    assert [name[:4] for name in thread.done] == ["writ"] * 3 + ["read"] * 3


async def test_a_reading_that_fails_is_told_and_the_thread_goes_on(thread: Thread) -> None:
    with pytest.raises(Exception, match="cannot be read"):
        await thread.commit.do_in_time(lambda db: db.execute("SELECT * FROM nowhere"), is_reading=True)

    await thread.commit.do_in_time(thread.step("next"), is_reading=True)


async def test_many_events_are_read_and_removed_piece_by_piece_with_none_left_out(journal: SqliteJournal) -> None:
    await asyncio.gather(*(journal.settled(settled_attempt(new_id())) for _ in range(700)))

    oldest = [event.sequence for event in await journal.oldest(650)]
    newest = [event.sequence for event in await journal.newest(650)]
    between = [event.sequence for event in await journal.oldest(650, but=(11, 600))]
    await journal.remove([*range(1, 301), *range(302, 500, 2), 700])
    left = [event.sequence for event in await journal.oldest(1_000)]

    assert oldest == list(range(1, 651))
    assert newest == list(range(700, 50, -1))
    assert between == [*range(1, 11), *range(601, 701)]
    assert left == [301, *range(303, 500, 2), *range(500, 700)]
    assert journal.waiting == len(left)


async def test_events_whose_removal_was_asked_for_by_somebody_who_left_are_counted_out(journal: SqliteJournal) -> None:
    await asyncio.gather(*(journal.settled(settled_attempt(new_id())) for _ in range(20)))
    removing = asyncio.create_task(journal.remove(range(1, 11)))
    await asyncio.sleep(0)
    removing.cancel()
    await until(lambda: journal.waiting != 20)

    assert journal.waiting == len(await journal.oldest(100)) == 10


@asynccontextmanager
async def sending(journal: SqliteJournal, target: str, settings: SenderSettings) -> AsyncIterator[None]:
    async with usage_channel(target) as channel:
        sender = UsageSender(journal, channel, router_id="router-1", metrics=journal_metrics(), settings=settings)
        sender.start()
        yield
        await sender.stop(drain_timeout_s=10.0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def requests(journal: SqliteJournal, *, at_once: int = 1) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Attempts that come and go all the time, and what ends them: a sender that stops drains what there is."""

    async def attempts() -> None:
        while True:
            event_id = new_id()
            await journal.opened(opened_attempt(event_id))
            await journal.settled(settled_attempt(event_id))
            await asyncio.sleep(0.002)

    async def end() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    tasks = [asyncio.create_task(attempts()) for _ in range(at_once)]
    yield end
    await end()


async def test_beside_requests_a_backlog_goes_out_in_small_batches(journal: SqliteJournal) -> None:
    await asyncio.gather(*(journal.settled(settled_attempt(new_id())) for _ in range(500)))
    service = FakeUsageService()
    # The backlog's own pace is far above what the requests add, so that it shrinks however slow the machine is.
    quick = replace(SETTINGS, beside_requests=PaceSettings(floor_per_s=1.0, ceiling_per_s=1e6, first_per_s=1e6))
    async with requests(journal) as no_more, serving(service) as target, sending(journal, target, quick):
        await until(lambda: len(service.batches) >= 2)
        # Later ones may be larger: where a batch takes long, the floor and the requests' own events need them to be.
        beside = [len(batch.events) for batch in service.batches[:2]]
        await no_more()

    assert max(beside) <= SETTINGS.batch_size_beside_requests


async def test_a_router_without_requests_sends_its_backlog_in_large_batches(tmp_path: Path) -> None:
    earlier = SqliteJournal.open(tmp_path, max_bytes=1 << 30, metrics=journal_metrics(), new_epoch=lambda: "epoch-1")
    await asyncio.gather(*(earlier.settled(settled_attempt(new_id())) for _ in range(200)))
    await earlier.close()
    journal = SqliteJournal.open(tmp_path, max_bytes=1 << 30, metrics=journal_metrics(), new_epoch=lambda: "epoch-1")
    service = FakeUsageService()
    async with serving(service) as target, sending(journal, target, SETTINGS):
        await until(lambda: journal.waiting == 0)
    await journal.close()

    assert len(service.batches[0].events) == SETTINGS.batch_size
    assert sorted(set(service.event_ids)) == sorted(service.event_ids)


async def test_a_backlog_that_would_grow_beside_requests_is_sent_as_fast_as_it_goes(journal: SqliteJournal) -> None:
    await asyncio.gather(*(journal.settled(settled_attempt(new_id())) for _ in range(500)))
    service = SlowUsageService()
    # One batch at a time is eighty events a second, and more than that come in.
    async with requests(journal, at_once=8) as no_more, serving(service) as target, sending(journal, target, SETTINGS):
        await until(lambda: service.most_at_once == 2)
        await no_more()
        service.takes_s = 0.0


class SlowUsageService(FakeUsageService):
    def __init__(self) -> None:
        super().__init__()
        self.at_once = self.most_at_once = 0
        self.takes_s = 0.5

    async def RecordUsage(
        self, request: usage_service_pb2.RecordUsageRequest, context: Any
    ) -> usage_service_pb2.RecordUsageResponse:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.takes_s)
        self.at_once -= 1
        return await super().RecordUsage(request, context)


async def test_a_sender_that_is_asked_to_stop_gives_way_to_nobody(journal: SqliteJournal) -> None:
    await asyncio.gather(*(journal.settled(settled_attempt(new_id())) for _ in range(300)))
    service = FakeUsageService()
    slow = replace(SETTINGS, beside_requests=PaceSettings(floor_per_s=1.0, ceiling_per_s=1.0))
    # The requests that were a moment ago still count as there.
    async with serving(service) as target, sending(journal, target, slow):
        await until(lambda: len(service.batches) >= 1)

    assert journal.waiting == 0
