"""The running loop's clock in a test's hand: no load can make a timer of it fire."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass(order=True)
class Timer:
    """What `call_at` gives back; of two that are due at once the one that was made first fires first."""

    at_s: float
    number: int
    fire: Callable[[], object] = field(compare=False)
    was_cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.was_cancelled = True


class LoopClock:
    """Stands still until `passes`, which fires the timers of `call_at` that are due. `call_later` keeps real time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now_s = 1_000.0
        self._made = 0
        self._timers: list[Timer] = []
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda: self._now_s)
        monkeypatch.setattr(loop, "call_at", self._call_at)

    def passes(self, seconds: float) -> None:
        """It is `seconds` later, and whatever was due by then has been fired."""
        self._now_s += seconds
        while self._timers and self._timers[0].at_s <= self._now_s:
            timer = heapq.heappop(self._timers)
            if not timer.was_cancelled:
                timer.fire()

    def _call_at(self, when: float, callback: Callable[..., object], *args: Any, context: object = None) -> Timer:
        self._made += 1
        timer = Timer(when, self._made, lambda: callback(*args))
        heapq.heappush(self._timers, timer)
        return timer
