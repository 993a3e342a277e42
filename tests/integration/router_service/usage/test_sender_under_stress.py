"""What can make a sender stop, or send for ever: missed wake-ups, batches too large, answers it does not know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import uuid_utils.compat
from msgspec import structs

from router_service.usage.channel import usage_channel
from router_service.usage.journal import NONE, JournalledEvent, SqliteJournal
from router_service.usage.journal_file import checksum
from router_service.usage.sender import MAX_BATCH_BYTES, SenderSettings, UsageSender
from tests.support.attempts import journal_metrics, settled_attempt
from tests.support.fake_usage_service import FakeUsageService, serving
from turnpike.usage.v1 import usage_service_pb2

QUICK = SenderSettings(batch_size=10, gather_s=0.0, call_timeout_s=2.0, first_backoff_s=0.01, max_backoff_s=0.05)
new_id = uuid_utils.compat.uuid7


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    opened = SqliteJournal.open(tmp_path, max_bytes=1 << 30, metrics=journal_metrics(), new_epoch=lambda: "epoch-1")
    yield opened
    await opened.close()


@asynccontextmanager
async def sending(journal: SqliteJournal, target: str, settings: SenderSettings = QUICK) -> AsyncIterator[UsageSender]:
    async with usage_channel(target) as channel:
        sender = UsageSender(
            journal, channel, router_id="router-1", metrics=journal_metrics(), settings=settings, jitter=lambda: 1.0
        )
        sender.start()
        yield sender
        await sender.stop(drain_timeout_s=2.0)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.01)


async def is_empty(journal: SqliteJournal) -> bool:
    return await SqliteJournal.oldest(journal, 1) == []


class SettlesWhileItIsRead(SqliteJournal):
    """Settles one more attempt just after the sender has read that there is nothing."""

    late: asyncio.Event | None = None

    async def oldest(self, limit: int, *, but: tuple[int, int] = NONE) -> list[JournalledEvent]:
        found = await super().oldest(limit, but=but)
        if not found and self.late is not None and not self.late.is_set():
            self.late.set()
            await self.settled(settled_attempt(new_id()))
        return found


async def test_an_attempt_settled_while_the_journal_was_read_as_empty_is_sent(tmp_path: Path) -> None:
    service = FakeUsageService()
    journal = SettlesWhileItIsRead.open(
        tmp_path, max_bytes=1 << 30, metrics=journal_metrics(), new_epoch=lambda: "epoch-1"
    )
    assert isinstance(journal, SettlesWhileItIsRead)
    journal.late = asyncio.Event()
    async with serving(service) as target, sending(journal, target):
        async with asyncio.timeout(3):
            await journal.late.wait()
        await until(lambda: is_empty(journal))
    await journal.close()

    assert len(service.event_ids) == 1


async def test_a_batch_stays_far_below_what_usage_service_takes_in_one_message(journal: SqliteJournal) -> None:
    ids = []
    for _ in range(80):
        attempt = settled_attempt(new_id())
        labels = {f"label-{number:02}": "x" * 250 for number in range(16)}
        opened = structs.replace(attempt.opened, labels=labels, decision="d" * 2000)
        ids.append(str(opened.event_id))
        await journal.settled(structs.replace(attempt, opened=opened))
    await pad_to_large(journal)
    service = FakeUsageService()
    async with serving(service) as target, sending(journal, target, replace(QUICK, batch_size=500)):
        await until(lambda: is_empty(journal))

    assert sorted(service.event_ids) == sorted(ids)
    assert len(service.batches) > 1
    assert max(batch.ByteSize() for batch in service.batches) < 2 * MAX_BATCH_BYTES


async def pad_to_large(journal: SqliteJournal) -> None:
    """Make each waiting event some 30 kB large, by a field that this version does not know."""
    unknown = b"\xfa\x3f" + b"\x80\xea\x01" + b"p" * 30_000  # field 1023, 30,000 bytes

    def pad(db: Any) -> None:
        for sequence, payload in db.execute("SELECT sequence, payload FROM outbox").fetchall():
            padded = payload + unknown
            db.execute(
                "UPDATE outbox SET payload = ?, crc = ? WHERE sequence = ?", (padded, checksum(padded), sequence)
            )

    await journal._thread.do(pad)


async def test_a_field_that_this_version_does_not_know_travels_unchanged(journal: SqliteJournal) -> None:
    await journal.settled(settled_attempt(new_id()))
    (before,) = await journal.oldest(1)
    await pad_to_large(journal)
    (padded,) = await journal.oldest(1)
    service = FakeUsageService()
    async with serving(service) as target, sending(journal, target):
        await until(lambda: is_empty(journal))

    (event,) = service.batches[0].events
    event.ClearField("sequence")
    assert event.SerializeToString(deterministic=True).count(b"p" * 30_000) == 1
    assert len(padded.payload) > len(before.payload) + 30_000


@pytest.mark.parametrize("unknown", [0, 99])
async def test_a_disposition_it_does_not_know_is_resent_and_holds_up_nothing_else(
    journal: SqliteJournal, unknown: int
) -> None:
    service = FakeUsageService()

    def answer(event: Any) -> Any:
        is_odd = event.sequence == 1 and len(service.batches) < 3
        return unknown if is_odd else usage_service_pb2.RECORD_DISPOSITION_ACCEPTED

    service.dispose = answer
    for _ in range(3):
        await journal.settled(settled_attempt(new_id()))
    async with serving(service) as target, sending(journal, target):
        await until(lambda: is_empty(journal))

    sequences = [[event.sequence for event in batch.events] for batch in service.batches]
    assert sequences == [[1, 2, 3], [1], [1]]


async def test_while_usage_service_asks_for_a_pause_nothing_more_is_sent(journal: SqliteJournal) -> None:
    service = FakeUsageService()
    original = service.RecordUsage

    async def pausing(request: usage_service_pb2.RecordUsageRequest, context: Any) -> Any:
        response = await original(request, context)
        response.min_send_interval.FromTimedelta(timedelta(hours=1))
        return response

    service.RecordUsage = pausing  # type: ignore[method-assign]
    for _ in range(50):
        await journal.settled(settled_attempt(new_id()))
    async with serving(service) as target, sending(journal, target):
        await until(lambda: has_fewer_than(journal, 50))
        await asyncio.sleep(0.1)
        sent_before_the_pause = len(service.event_ids)

    assert 10 <= sent_before_the_pause <= 20  # one batch, or one of each lane
    assert len(service.event_ids) == 50  # a stop sends the rest without waiting


async def has_fewer_than(journal: SqliteJournal, count: int) -> bool:
    return len(await journal.oldest(count)) < count


async def test_stopping_while_usage_service_is_away_tries_once_more_and_does_not_wait_out_the_pause(
    journal: SqliteJournal,
) -> None:
    service = FakeUsageService()
    service.failure = grpc.StatusCode.UNAVAILABLE
    slow = replace(QUICK, first_backoff_s=60.0, max_backoff_s=60.0)
    async with serving(service) as target, usage_channel(target) as channel:
        metrics = journal_metrics()
        sender = UsageSender(journal, channel, router_id="r", metrics=metrics, settings=slow, jitter=lambda: 1.0)
        sender.start()
        await journal.settled(settled_attempt(new_id()))
        async with asyncio.timeout(5):
            while not failures(metrics):
                await asyncio.sleep(0.01)
        service.failure = None
        async with asyncio.timeout(5):
            await sender.stop(drain_timeout_s=60.0)

    assert await is_empty(journal)
    assert len(service.event_ids) == 1


def failures(metrics: Any) -> Sequence[float]:
    return [sample.value for family in metrics.send_failures.collect() for sample in family.samples if sample.value]


async def test_what_the_lane_of_the_newest_could_not_send_is_sent_by_the_other(journal: SqliteJournal) -> None:
    service = FakeUsageService()
    refused: set[int] = set()

    def refuse_the_newest_once(event: Any) -> Any:
        if event.sequence > 35 and event.sequence not in refused:
            refused.add(event.sequence)
            return usage_service_pb2.RECORD_DISPOSITION_RETRY
        return usage_service_pb2.RECORD_DISPOSITION_ACCEPTED

    service.dispose = refuse_the_newest_once
    for _ in range(45):
        await journal.settled(settled_attempt(new_id()))
    async with serving(service) as target, sending(journal, target):
        await until(lambda: is_empty(journal))

    assert refused == set(range(36, 46))


async def test_the_gauge_of_waiting_events_counts_only_what_really_left(tmp_path: Path) -> None:
    metrics = journal_metrics()
    journal = SqliteJournal.open(tmp_path, max_bytes=1 << 30, metrics=metrics, new_epoch=lambda: "e")
    for _ in range(3):
        await journal.settled(settled_attempt(new_id()))
    await journal.remove([1, 2])
    await journal.remove([1, 2])
    await journal.bury([(2, "rejected")])
    await journal.close()

    (family,) = metrics.waiting.collect()
    assert [sample.value for sample in family.samples] == [1.0]
