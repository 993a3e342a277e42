"""Requests have the right of way: a backlog asks here for its turn, batch by batch, at a pace that they set.

One of these per process, for all that sends in it: its own journal's events and those of orphaned journals share one
event loop, one rate, and one batch at a time. While there are no requests nothing is held back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from router_service.usage import pacing
from router_service.usage.journal import SqliteJournal
from router_service.usage.metrics import SenderMetrics
from router_service.usage.pacing import PaceSettings, Waits, batch_size, first_pace

_REQUESTS_WITHIN_S = 0.5  # since when there are said to be requests
_TICK_S = 0.01
_LISTENS_FOR_S = 2.0  # after the last batch; then nobody drains, and nothing is worth a timer


@dataclass(slots=True)
class Turn:
    """One batch's. `size`: the events that it may have. `sent`: those that it had, for whoever took the turn to say."""

    size: int
    sent: int = 0


@dataclass(frozen=True, slots=True)
class Batches:
    """What a sender says of its batches: the least and the most events, and how many come in each second meanwhile."""

    smallest: int
    largest: int
    arriving_per_s: float = 0.0


class RightOfWay:
    """Holds a backlog back while requests come. `idle_s` tells how long ago the last one was seen, in seconds."""

    def __init__(
        self,
        idle_s: Callable[[], float],
        metrics: SenderMetrics,
        *,
        settings: PaceSettings = pacing.DEFAULT,
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._idle_s = idle_s
        self._metrics = metrics
        self._settings = settings
        self._now_s = now_s
        self._sleep = sleep
        self.pace = first_pace(settings)
        self._one_at_a_time = asyncio.Lock()
        self._next_batch_s = 0.0
        self._last_took_s = 0.0
        self._is_under_way = False
        self._last_batch_s = 0.0  # when one was last under way
        self._loop_waits = Waits()
        self._journal_waits = Waits()
        self._looked_at_s = 0.0
        self._sent_since = 0
        self._listener: asyncio.Task[None] | None = None

    @classmethod
    def beside(
        cls, journal: SqliteJournal, metrics: SenderMetrics, *, settings: PaceSettings = pacing.DEFAULT
    ) -> RightOfWay:
        """Of the requests that a journal records."""
        right_of_way = cls(lambda: journal.idle_s, metrics, settings=settings)
        journal.on_opened(right_of_way.waited_for_journal)
        return right_of_way

    async def close(self) -> None:
        """Listen no more."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)

    @property
    def is_taken(self) -> bool:
        """Whether there are requests."""
        return self._idle_s() < _REQUESTS_WITHIN_S

    def waited_for_journal(self, wait_s: float) -> None:
        """A request waited so long for its record to be on disk, until now. Costs nothing while no backlog goes."""
        if self._is_listening:
            self._journal_waits = self._journal_waits.plus(wait_s, is_calm=self._was_calm(wait_s))

    @asynccontextmanager
    async def turn(self, batches: Batches, wait: Callable[[float], Awaitable[None]]) -> AsyncIterator[Turn]:
        """One batch's turn. `wait` sleeps for so many seconds, or less when there is no time to lose."""
        async with self._one_at_a_time:
            self._listen()
            await wait(self._next_batch_s - self._now_s())
            size = batch_size(
                self._settings,
                smallest=batches.smallest,
                largest=batches.largest,
                arriving_per_s=batches.arriving_per_s,
                last_took_s=self._last_took_s,
            )
            turn, began_s = Turn(size), self._now_s()
            self._is_under_way = True
            try:
                yield turn
            finally:
                self._is_under_way = False
                ended_s = self._last_batch_s = self._now_s()
                self._last_took_s = ended_s - began_s
                self._sent_since += turn.sent
                self._next_batch_s = self.pace.next_batch_s(
                    self._settings,
                    sent=turn.sent,
                    arriving_per_s=batches.arriving_per_s,
                    began_s=began_s,
                    ended_s=ended_s,
                )

    def _was_calm(self, wait_s: float) -> bool:
        return not self._is_under_way and self._now_s() - wait_s > self._last_batch_s

    @property
    def _is_listening(self) -> bool:
        return self._listener is not None and not self._listener.done()

    def _listen(self) -> None:
        if not self._is_listening:
            self._looked_at_s, self._sent_since = self._now_s(), 0
            self._loop_waits = self._journal_waits = Waits()
            self._last_batch_s = self._now_s()
            self._listener = asyncio.create_task(self._feel_the_loop(), name="usage right of way")

    async def _feel_the_loop(self) -> None:
        """Stand in line on the event loop as a request does, again and again while a backlog goes."""
        while self._is_under_way or self._now_s() - self._last_batch_s < _LISTENS_FOR_S:
            due_s = self._now_s() + _TICK_S
            await self._sleep(_TICK_S)
            late_s = self._now_s() - due_s
            self._loop_waits = self._loop_waits.plus(late_s, is_calm=self._was_calm(late_s + _TICK_S))
            self._look()
        self._metrics.backlog_pace.set(0)

    def _look(self) -> None:
        passed_s = self._now_s() - self._looked_at_s
        if passed_s < self._settings.looks_every_s:
            return
        self.pace = self.pace.judged(
            self._settings, self._loop_waits, self._journal_waits, sent_per_s=self._sent_since / passed_s
        )
        self._looked_at_s, self._sent_since = self._now_s(), 0
        self._loop_waits = self._loop_waits.faded(passed_s)
        self._journal_waits = self._journal_waits.faded(passed_s)
        self._metrics.backlog_pace.set(self.pace.per_s)
        if self.pace.strain is not None:
            self._metrics.backlog_strain.set(self.pace.strain)
