from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
import uuid_utils.compat

from router_service.usage.channel import usage_channel
from router_service.usage.journal import SqliteJournal
from router_service.usage.sender import SenderSettings, UsageSender
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
async def sending(journal: SqliteJournal, target: str) -> AsyncIterator[UsageSender]:
    async with usage_channel(target) as channel:
        sender = UsageSender(
            journal,
            channel,
            router_id="router-1",
            metrics=journal_metrics(),
            settings=QUICK,
            jitter=lambda: 1.0,
        )
        sender.start()
        yield sender
        await sender.stop(drain_timeout_s=2.0)


async def settle(journal: SqliteJournal, count: int) -> list[str]:
    ids = [new_id() for _ in range(count)]
    for event_id in ids:
        await journal.settled(settled_attempt(event_id))
    return [str(event_id) for event_id in ids]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_every_settled_attempt_arrives_once_and_leaves_the_journal(journal: SqliteJournal) -> None:
    service = FakeUsageService()
    async with serving(service) as target, sending(journal, target):
        ids = await settle(journal, 35)
        await until(lambda: is_empty(journal))

    assert sorted(service.event_ids) == sorted(ids)
    assert {batch.router_id for batch in service.batches} == {"router-1"}
    assert {batch.epoch for batch in service.batches} == {"epoch-1"}
    assert {event.sequence for batch in service.batches for event in batch.events} == set(range(1, 36))


async def test_what_an_earlier_run_left_behind_is_sent_at_start(journal: SqliteJournal) -> None:
    ids = await settle(journal, 3)
    service = FakeUsageService()
    async with serving(service) as target, sending(journal, target):
        await until(lambda: is_empty(journal))

    assert service.event_ids == ids


@pytest.mark.parametrize("failure", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
async def test_while_the_ledger_fails_everything_is_kept_and_then_sent(
    journal: SqliteJournal, failure: grpc.StatusCode
) -> None:
    service = FakeUsageService()
    service.failure = failure
    async with serving(service) as target, sending(journal, target):
        ids = await settle(journal, 12)
        await asyncio.sleep(0.1)
        kept = await journal.oldest(100)
        service.failure = None
        await until(lambda: is_empty(journal))

    assert len(kept) == 12
    assert sorted(service.event_ids) == sorted(ids)


async def test_a_ledger_that_is_not_there_at_all_is_waited_for(journal: SqliteJournal) -> None:
    service = FakeUsageService()
    async with serving(service) as target:
        pass
    async with sending(journal, target):
        await settle(journal, 2)
        async with serving(service, int(target.rpartition(":")[2])):
            await until(lambda: is_empty(journal))

    assert len(service.event_ids) == 2


async def test_events_to_be_resent_are_resent_with_the_same_bytes(journal: SqliteJournal) -> None:
    service = FakeUsageService()
    service.dispose = lambda event: (
        usage_service_pb2.RECORD_DISPOSITION_RETRY
        if len(service.batches) < 3
        else usage_service_pb2.RECORD_DISPOSITION_DUPLICATE
    )
    async with serving(service) as target, sending(journal, target):
        await settle(journal, 1)
        await until(lambda: is_empty(journal))

    sent = {batch.events[0].SerializeToString(deterministic=True) for batch in service.batches}
    assert len(service.batches) == 3
    assert len(sent) == 1


@pytest.mark.parametrize(
    "disposition",
    [usage_service_pb2.RECORD_DISPOSITION_REJECTED, usage_service_pb2.RECORD_DISPOSITION_CONFLICT],
)
async def test_a_refused_event_is_buried_and_the_others_go_on(
    journal: SqliteJournal, disposition: usage_service_pb2.RecordDisposition.ValueType
) -> None:
    service = FakeUsageService()
    service.dispose = lambda event: (
        disposition if event.sequence == 2 else usage_service_pb2.RECORD_DISPOSITION_ACCEPTED
    )
    async with serving(service) as target, sending(journal, target):
        await settle(journal, 3)
        await until(lambda: is_empty(journal))

    assert sorted(event.sequence for batch in service.batches for event in batch.events) == [1, 2, 3]


async def test_behind_a_backlog_the_newest_events_do_not_wait(journal: SqliteJournal) -> None:
    await settle(journal, 95)
    service = FakeUsageService()
    async with serving(service) as target, sending(journal, target):
        await until(lambda: is_empty(journal))

    first_batches = {event.sequence for batch in service.batches[:2] for event in batch.events}
    assert {1, 95} <= first_batches
    assert sorted(service.event_ids) == sorted(set(service.event_ids))


async def is_empty(journal: SqliteJournal) -> bool:
    return await journal.oldest(1) == []
