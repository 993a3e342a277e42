"""Lets nobody cut the event loop's turns short while it is what all wait for.

What a process can serve is the time of one thread, its event loop's. The library's threads wake up thousands of times
a second, and Linux lets who has slept go before who has long run, on the same core and at once: in a flood of calls
that gRPC's core refuses, the loop stood ready without a core for a sixth of the time, though a third of one was idle.
A thread of the class "batch" has the same share of the cores, but takes an idle one when it wakes up, or waits until a
turn, of some milliseconds, is over. So the others are of that class, as long as the loop is saturated. Otherwise they
are not: where other processes keep the cores busy, they would wait for each of their turns.

docs/decisions/0015 has the measurements.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from service_runtime.overload import SATURATED, Saturation

_LOOK_EVERY_S: Final = 0.5


class LoopGoesFirst:
    """Belongs to the thread of the event loop; every method is to be called from it."""

    def __init__(
        self, *, saturation: Saturation | None = None, let_others: Callable[[bool], None] | None = None
    ) -> None:
        """`let_others` is told True when the other threads are to yield from now on, False when no longer."""
        self._saturation = saturation or Saturation()
        self._let_others = let_others or let_other_threads_yield
        self._timer: asyncio.TimerHandle | None = None
        self.others_yield = False

    def start(self) -> None:
        """Look twice a second from now on. Needs a running event loop."""
        self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look_again)

    def stop(self) -> None:
        """Look no more, and let the others be as they were."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._set(others_yield=False)

    def look(self) -> None:
        """Do what the window asks for that has just ended; nothing while it goes on."""
        if self._saturation.look() is not None:
            self._set(others_yield=self._saturation.ratio >= SATURATED)

    def _look_again(self) -> None:
        self.look()
        self.start()

    def _set(self, *, others_yield: bool) -> None:
        if others_yield is not self.others_yield:
            self.others_yield = others_yield
            self._let_others(others_yield)


def let_other_threads_yield(they_do: bool) -> None:
    """Put all threads but this one into the class "batch", or back. Threads that they start are of the same class.

    Does nothing where the system has no such class (it is no Linux), or does not let us choose.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return
    ours, wanted = threading.get_native_id(), os.SCHED_BATCH if they_do else os.SCHED_OTHER
    with contextlib.suppress(OSError):
        for entry in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # a thread that has ended meanwhile
                if (thread := int(entry.name)) != ours:
                    os.sched_setscheduler(thread, wanted, os.sched_param(0))
