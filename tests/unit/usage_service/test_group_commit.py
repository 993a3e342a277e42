"""Batches that wait together are stored together, and none depends on the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from service_runtime.errors import Category, ServiceError
from tests.support.ledger_rows import ledger_row
from tests.support.usage_events import event_id_at
from usage_service.metering.group_commit import GroupedLedger
from usage_service.metering.ports import AlreadyStored, Inserted, LedgerRow, StoreOutcome

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@dataclass
class GatedLedger:
    """A ledger that writes once it is let, and remembers how many rows it was given at a time."""

    stored: set[UUID] = field(default_factory=set)
    calls: list[int] = field(default_factory=list)
    poison: UUID | None = None
    is_away: bool = False
    open: asyncio.Event = field(default_factory=asyncio.Event)
    writing: int = 0
    most_writing: int = 0

    async def store(self, rows: Sequence[LedgerRow]) -> list[StoreOutcome]:
        ids = [row.event.event_id for row in rows]
        assert len(set(ids)) == len(ids)
        self.calls.append(len(rows))
        self.writing += 1
        self.most_writing = max(self.most_writing, self.writing)
        await self.open.wait()
        self.writing -= 1
        if self.is_away:
            raise ServiceError(Category.UNAVAILABLE, "DATABASE_UNAVAILABLE", "away")
        if self.poison in ids:
            raise OverflowError("a value that nobody foresaw")
        return [self._store(row) for row in rows]

    def _store(self, row: LedgerRow) -> StoreOutcome:
        if row.event.event_id in self.stored:
            return AlreadyStored(row.content_hash, row.priced.cost_usd, row.priced.state)
        self.stored.add(row.event.event_id)
        return Inserted()


def rows(count: int) -> list[LedgerRow]:
    return [ledger_row(NOW) for _ in range(count)]


def begin(ledger: GroupedLedger, batch: Sequence[LedgerRow]) -> asyncio.Task[Sequence[StoreOutcome]]:
    return asyncio.create_task(ledger.store(batch))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_waits_while_one_batch_is_written_is_written_in_one_go() -> None:
    below = GatedLedger()
    ledger = GroupedLedger(below, writers=1)

    tasks = [begin(ledger, rows(1))]
    await settle()
    tasks += [begin(ledger, rows(count)) for count in (2, 3, 4)]
    await settle()
    below.open.set()
    answers = await asyncio.gather(*tasks)

    assert below.calls == [1, 9]
    assert [list(answer) for answer in answers] == [[Inserted()] * count for count in (1, 2, 3, 4)]


async def test_a_group_stays_within_its_rows_and_a_large_batch_goes_alone() -> None:
    below = GatedLedger()
    ledger = GroupedLedger(below, writers=1, max_rows=5)

    tasks = [begin(ledger, rows(count)) for count in (1, 2, 2, 1, 9, 1)]
    below.open.set()
    await asyncio.gather(*tasks)

    assert below.calls == [5, 1, 9, 1]


async def test_a_second_writer_begins_once_a_whole_group_waits_and_a_third_never() -> None:
    below = GatedLedger()
    ledger = GroupedLedger(below, writers=2, max_rows=3)

    tasks = []
    for _ in range(9):
        tasks.append(begin(ledger, rows(1)))
        await settle()
    writing = list(below.calls)
    below.open.set()
    await asyncio.gather(*tasks)

    assert writing == [1, 3]
    assert below.most_writing == 2
    assert sum(below.calls) == 9


async def test_batches_with_the_same_event_follow_each_other() -> None:
    below = GatedLedger()
    below.open.set()
    ledger = GroupedLedger(below, writers=1)
    shared = ledger_row(NOW, event_id=str(event_id_at(NOW)))

    answers = await asyncio.gather(ledger.store([shared]), ledger.store([*rows(1), shared]), ledger.store(rows(1)))

    assert [type(outcome) for answer in answers for outcome in answer] == [
        Inserted,
        Inserted,
        AlreadyStored,
        Inserted,
    ]
    assert below.calls == [1, 3]


async def test_an_unforeseen_error_reaches_only_the_batch_that_caused_it() -> None:
    below = GatedLedger()
    below.open.set()
    ledger = GroupedLedger(below, writers=1)
    good, bad, better = rows(2), rows(2), rows(1)
    below.poison = bad[1].event.event_id

    answers = await asyncio.gather(*(ledger.store(batch) for batch in (good, bad, better)), return_exceptions=True)

    assert list(answers[0]) == [Inserted()] * 2  # type: ignore[arg-type]
    assert isinstance(answers[1], OverflowError)
    assert list(answers[2]) == [Inserted()]  # type: ignore[arg-type]


async def test_a_database_that_is_away_is_told_to_all_and_asked_once() -> None:
    below = GatedLedger(is_away=True)
    below.open.set()
    ledger = GroupedLedger(below, writers=1)

    answers = await asyncio.gather(*(ledger.store(rows(1)) for _ in range(3)), return_exceptions=True)

    assert [type(answer) for answer in answers] == [ServiceError] * 3
    assert below.calls == [3]
    below.is_away = False
    assert list(await ledger.store(rows(1))) == [Inserted()]


async def test_a_caller_that_leaves_takes_nobody_with_it() -> None:
    below = GatedLedger()
    ledger = GroupedLedger(below, writers=1)
    written, waiting, other = begin(ledger, rows(1)), begin(ledger, rows(1)), begin(ledger, rows(1))
    await settle()
    late, later = begin(ledger, rows(7)), begin(ledger, rows(1))
    await settle()

    written.cancel()
    late.cancel()
    below.open.set()

    assert list(await waiting) == list(await other) == list(await later) == [Inserted()]
    assert below.calls == [3, 1]


async def test_nothing_to_store_asks_nobody() -> None:
    below = GatedLedger()

    assert list(await GroupedLedger(below).store([])) == []
    assert below.calls == []


async def test_a_batch_that_comes_as_the_last_writer_ends_is_written() -> None:
    below = GatedLedger()
    below.open.set()
    ledger = GroupedLedger(below, writers=1)

    async def one_after_the_other() -> None:
        # The second begins in the very turn of the loop in which the first is answered and its writer ends.
        await ledger.store(rows(1))
        await ledger.store(rows(1))

    async with asyncio.timeout(5):
        await one_after_the_other()

    assert below.calls == [1, 1]
