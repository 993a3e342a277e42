"""Batches that wait at the same time are stored together: a rollup row that many of them touch is then written once.

Nobody depends on whom it shared a transaction with: every batch gets its own rows' outcomes, and where the whole group
fails for a reason that is not the database's absence, each batch is tried alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from service_runtime.errors import ServiceError
from usage_service.metering.ports import Ledger, LedgerRow, StoreOutcome


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A batch's rows and who waits for their outcomes."""

    rows: Sequence[LedgerRow]
    outcomes: asyncio.Future[Sequence[StoreOutcome]]


@dataclass(slots=True)
class GroupedLedger:
    """A `metering.ports.Ledger` over another one, which sees at most `writers` calls at once, of up to `max_rows` rows.

    It adds no wait: a writer that is free takes whatever is there. But while one writes, another begins only once a
    whole group waits: two with half of the rows each cost the database a quarter more than one with all of them.
    """

    ledger: Ledger
    writers: int = 2
    max_rows: int = 4_000  # a tenth to a quarter of a second of the database's time; a statement has five seconds
    _queue: deque[_Waiting] = field(default_factory=deque)
    _waiting_rows: int = 0
    # Writers that will still look into the queue. Not the number of tasks: one that has found the queue empty is among
    # those until the loop comes round, and whoever came meanwhile would wait for ever.
    _writing: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def store(self, rows: Sequence[LedgerRow]) -> Sequence[StoreOutcome]:
        """Store rows with distinct keys; see `metering.ports.Ledger`.

        A caller that leaves before its rows were taken has stored nothing; later, what becomes of them is unknown.
        """
        if not rows:
            return []
        waiting = _Waiting(rows, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._waiting_rows += len(rows)
        if self._writing == 0 or (self._waiting_rows >= self.max_rows and self._writing < self.writers):
            self._writing += 1
            # A task of its own: a caller that leaves must not take the others' transaction with it.
            task = asyncio.create_task(self._write(), name="ledger writer")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await waiting.outcomes

    async def _write(self) -> None:
        try:
            while group := self._next_group():
                try:
                    await self._store(group)
                finally:
                    for each in group:
                        each.outcomes.cancel()  # does nothing to those that have their answer
        finally:
            self._writing -= 1

    def _next_group(self) -> list[_Waiting]:
        """The longest waiting batches that may share a transaction: few enough, and no event twice."""
        group: list[_Waiting] = []
        keys: set[int] = set()
        while self._queue:
            first = self._queue[0]
            if not first.outcomes.done():
                its_keys = {row.event.key for row in first.rows}
                if group and (len(keys) + len(its_keys) > self.max_rows or not keys.isdisjoint(its_keys)):
                    break
                keys |= its_keys
                group.append(first)
            self._queue.popleft()
            self._waiting_rows -= len(first.rows)
        return group

    async def _store(self, group: Sequence[_Waiting]) -> None:
        try:
            outcomes = await self.ledger.store([row for each in group for row in each.rows])
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait
            if len(group) > 1 and not isinstance(error, ServiceError):
                for each in group:
                    await self._store([each])
                return
            for each in group:
                if not each.outcomes.done():
                    each.outcomes.set_exception(error)
            return
        start = 0
        for each in group:
            end = start + len(each.rows)
            if not each.outcomes.done():
                each.outcomes.set_result(outcomes[start:end])
            start = end
