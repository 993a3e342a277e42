"""Interrupts a waiting task: when a clock runs out, or when somebody outside asks for it.

`asyncio.timeout` would do, but for a stream that moves its deadline with every delta it cancels and makes a timer each
time. Here moving a deadline is an assignment; the one timer looks at it when it fires and goes back to sleep.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from types import TracebackType


class Reason(Enum):
    """Why a task was interrupted."""

    FIRST_CONTENT = "no content in time"
    CONTENT_GAP = "no further content in time"
    TOTAL = "the answer took too long"
    CALLER_LEFT = "the caller left"
    DEADLINE = "the caller's deadline passed"
    SHUTDOWN = "the router is shutting down"


class Interrupted(Exception):
    """The block was interrupted."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class Watchdog:
    """A reusable context manager around what may be interrupted: `with watchdog: await …` raises `Interrupted`.

    An interruption that comes outside such a block strikes at the beginning of the next one. Only one block at a time.
    """

    __slots__ = (
        "_fires_at",
        "_interruption",
        "_limit",
        "_limit_reason",
        "_loop",
        "_soft",
        "_soft_reason",
        "_task",
        "_timer",
    )

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = 0.0
        self._interruption: Reason | None = None
        self._soft: float | None = None
        self._soft_reason = Reason.TOTAL
        self._limit: float | None = None
        self._limit_reason = Reason.TOTAL

    def limit(self, seconds: float, reason: Reason) -> None:
        """Interrupt after `seconds` from now, whatever the soft clock says."""
        self._limit, self._limit_reason = self._loop.time() + seconds, reason
        if self._timer is None or self._limit < self._fires_at:
            self._arm(self._limit)

    def expect(self, seconds: float, reason: Reason) -> None:
        """Start the soft clock anew: interrupt after `seconds` without another call of this."""
        self._soft, self._soft_reason = self._loop.time() + seconds, reason
        if self._timer is None or self._soft < self._fires_at:
            self._arm(self._soft)

    def expect_nothing(self) -> None:
        """Stop the soft clock."""
        self._soft = None

    def interrupt(self, reason: Reason) -> None:
        """Interrupt now, or the next block at its beginning. The first interruption counts."""
        if self._interruption is None:
            self._interruption = reason
            if self._task is not None:
                self._task.cancel()

    def clear_clocks(self) -> None:
        """Forget both clocks, before another attempt."""
        self._soft = self._limit = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __enter__(self) -> None:
        if self._interruption is not None:
            raise Interrupted(self._interruption)
        self._task = asyncio.current_task()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        self.clear_clocks()
        if self._interruption is None or task is None:
            return
        # Whatever made it out of the block, the cancellation was ours: take it back, unless somebody else cancels too.
        if task.uncancel() == 0 and isinstance(exc, asyncio.CancelledError):
            raise Interrupted(self._take()) from None
        if not isinstance(exc, asyncio.CancelledError):
            self._take()

    def _take(self) -> Reason:
        """The reason. A clock strikes its own block only; every other reason holds for the rest of the task."""
        reason = self._interruption
        assert reason is not None
        if reason in (Reason.FIRST_CONTENT, Reason.CONTENT_GAP, Reason.TOTAL):
            self._interruption = None
        return reason

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires_at = at
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        if self._limit is not None and self._limit <= now:
            self.interrupt(self._limit_reason)
        elif self._soft is not None and self._soft <= now:
            self.interrupt(self._soft_reason)
        else:
            ends = [end for end in (self._limit, self._soft) if end is not None]
            if ends:
                self._arm(min(ends))
