"""Deadline-aware admission: whether a call that arrives now can still be served in its caller's time.

When a process has more to do than it can, the queue stands inside gRPC's core, where nobody sees it, and every answer
comes when its caller has given up: all work is done and none of it is of use. So, while the event loop is busy nearly
all of the time, a call is refused at its entry when its deadline is sooner than calls take now. By Little's law that
is the calls in progress over the calls ended per second, whatever the calls spend it on.

Each method is judged by itself, since a stream takes longer than a single answer. Nothing is refused while the loop has
time to spare: then a slow provider is what takes the time, and other clocks watch that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from service_runtime.errors import Category, ServiceError

PRIORITY_KEY = "x-turnpike-priority"

SATURATED = 0.85  # of the time; below it a call hardly waits for others
WINDOW_S = 0.25
ALWAYS_ADMITTED = 8  # calls of a method in progress: with so few, no estimate is worth a refusal
LONGEST_WINDOW_S = 4 * WINDOW_S  # a longer one had next to no arrivals: few ended because few were asked for
LEAST_ENDED = 10  # calls ended in a window; fewer say nothing of how many end per second
MIN_RETRY_S, MAX_RETRY_S = 0.1, 5.0


class Priority(StrEnum):
    """How much a call matters to its caller, by the metadata `x-turnpike-priority`; anything else is normal."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


_PRIORITIES = {priority.value: priority for priority in Priority}
# How many times the usual duration a call's remaining time must be.
_SHARES = {Priority.HIGH: 0.5, Priority.NORMAL: 1.0, Priority.LOW: 2.0}


@dataclass(frozen=True, slots=True)
class Load:
    """What a process is doing: `busy_ratio` of the event loop's thread, and a method's calls."""

    busy_ratio: float = 0.0
    in_progress: int = 0
    ended_per_s: float = 0.0

    @property
    def usual_s(self) -> float:
        """How long a call takes now; 0 when nothing is known."""
        return self.in_progress / self.ended_per_s if self.ended_per_s > 0 else 0.0


def refusal(load: Load, remaining_s: float, priority: Priority) -> ServiceError | None:
    """The error of a call that would be too late; None for one that is let in."""
    needed_s = load.usual_s * _SHARES[priority]
    if load.busy_ratio < SATURATED or load.in_progress <= ALWAYS_ADMITTED or remaining_s >= needed_s:
        return None
    return ServiceError(
        Category.RESOURCE_EXHAUSTED,
        "OVERLOADED",
        f"{max(0.0, remaining_s):.3g} s are left and calls take {load.usual_s:.3g} s at present; retry later, "
        "or allow more time",
        retry_after_s=min(MAX_RETRY_S, max(MIN_RETRY_S, load.usual_s)),
    )


class Saturation:
    """How busy this thread is, by windows of a quarter of a second. `busy_s`: it worked or waited for a core."""

    def __init__(
        self, *, now_s: Callable[[], float] = time.monotonic, busy_s: Callable[[], float] | None = None
    ) -> None:
        self._now_s = now_s
        self._busy_s = busy_s or _thread_busy_s
        self._began_s = now_s()
        self._busy_at_start_s = self._busy_s()
        self.ratio = 0.0

    def look(self) -> float | None:
        """The length of the window that has just ended, None while it goes on. Call from the thread in question."""
        now_s = self._now_s()
        length_s = now_s - self._began_s
        if length_s < WINDOW_S:
            return None
        busy_s = self._busy_s()
        self.ratio = (busy_s - self._busy_at_start_s) / length_s
        self._began_s, self._busy_at_start_s = now_s, busy_s
        return length_s


class Gate:
    """One method's calls. `saturation` is its own: every gate has windows of its own."""

    def __init__(self, saturation: Saturation) -> None:
        self._saturation = saturation
        self._in_progress = 0
        self._ended = 0
        self._ended_per_s = 0.0

    def enter(self, remaining_s: float, priority: str) -> None:
        """Let a call in, which then must `leave`. Raises the `refusal`."""
        window_s = self._saturation.look()
        if window_s is not None:
            is_known = self._ended >= LEAST_ENDED and window_s <= LONGEST_WINDOW_S
            self._ended_per_s, self._ended = (self._ended / window_s if is_known else 0.0), 0
        load = Load(self._saturation.ratio, self._in_progress, self._ended_per_s)
        error = refusal(load, remaining_s, _priority(priority))
        if error is not None:
            raise error
        self._in_progress += 1

    def leave(self) -> None:
        """A call that was let in has ended, in whichever way."""
        self._in_progress -= 1
        self._ended += 1


GateOf = Callable[[str], Gate | None]
"""The gate of a method, by its full name; None for one that is never refused, as health and administration."""


def no_gates(_method: str) -> Gate | None:
    """Nothing is refused for want of time."""
    return None


def gates_for(*methods: str) -> GateOf:
    """A gate for each of `methods`, such as `/turnpike.router.v1.RouterService/Complete`."""
    return lambda method: Gate(Saturation()) if method in methods else None


def _priority(text: str) -> Priority:
    return _PRIORITIES.get(text, Priority.NORMAL)


def _thread_busy_s() -> float:
    """Seconds that this thread has worked or stood ready without a core: on a shared machine both mean saturation."""
    try:
        on_core_ns, waiting_ns, _ = Path("/proc/thread-self/schedstat").read_bytes().split()
    except (OSError, ValueError):
        return time.thread_time()  # no Linux
    return (int(on_core_ns) + int(waiting_ns)) / 1e9
