"""What becomes of calls when a process has more to do than it can: two lines of defence.

**The gate** refuses a call at its entry when its deadline is sooner than calls take now; by Little's law that is the
calls in progress over the calls ended per second, whatever they spend it on. It knows deadlines and priorities and
says when to come back. Nothing is refused while the event loop has time to spare: then a slow provider is what takes
the time, and other clocks watch that.

**The bound on waiting calls** is kept by gRPC's core, in C and on its own threads. Where more calls come than can even
be refused, they queue there, by method, seen by nobody, first come first served. Each is taken up when its caller has
given up: all work is done and none of it is of use. Core refuses what comes on top of so many with CANCELLED and not a
word, so it is for floods only; and it is blind to priorities.

docs/decisions/0011 has the measurements.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from service_runtime.errors import Category, ServiceError

PRIORITY_KEY = "x-turnpike-priority"

MAX_WAITING = 250  # as many as one connection may have open: one client alone never meets the bound

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


def waiting_options(max_waiting: int) -> list[tuple[str, int]]:
    """What tells gRPC's core how many calls may wait in a queue to be taken up.

    From `max_waiting` on it refuses some at random, the more the more wait, and from twice as many on all.
    """
    return [
        ("grpc.server.max_pending_requests", max_waiting),
        ("grpc.server.max_pending_requests_hard_limit", 2 * max_waiting),
    ]


def refusal(load: Load, remaining_s: float, priority: Priority) -> ServiceError | None:
    """The error of a call that would be too late; None for one that is let in."""
    needed_s = load.usual_s * _SHARES[priority]
    if load.busy_ratio < SATURATED or load.in_progress <= ALWAYS_ADMITTED or remaining_s >= needed_s:
        return None
    return ServiceError(
        Category.RESOURCE_EXHAUSTED,
        "OVERLOADED",
        f"calls take {load.usual_s:.3g} s at present and this one has less; retry later, or allow more time",
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
        self.in_progress = 0
        self._ended = 0
        self._ended_per_s = 0.0
        self._told: dict[Priority, ServiceError] = {}

    def enter(self, remaining_s: float, priority: str) -> ServiceError | None:
        """Let a call in, which then must `leave`, and return None; or its `refusal`, which is the same for a while.

        Returned and not raised, and the same, since in a flood nearly everybody gets one: it is rendered once.
        """
        window_s = self._saturation.look()
        if window_s is not None:
            is_known = self._ended >= LEAST_ENDED and window_s <= LONGEST_WINDOW_S
            self._ended_per_s, self._ended = (self._ended / window_s if is_known else 0.0), 0
            self._told.clear()
        if self._saturation.ratio >= SATURATED:
            load = Load(self._saturation.ratio, self.in_progress, self._ended_per_s)
            known = _priority(priority)
            error = refusal(load, remaining_s, known)
            if error is not None:
                return self._told.setdefault(known, error)
        self.in_progress += 1
        return None

    def leave(self) -> None:
        """A call that was let in has ended, in whichever way."""
        self.in_progress -= 1
        self._ended += 1

    def step_aside(self) -> None:
        """A call that was let in only waits from now on: nobody is later for it."""
        self.in_progress -= 1

    def step_back(self) -> None:
        """It goes on."""
        self.in_progress += 1


class OpenGate:
    """The gate of a method that has none: lets everybody in."""

    def enter(self, _remaining_s: float, _priority: str) -> None:
        """Let a call in."""

    def leave(self) -> None:
        """Nobody counts."""

    step_aside = step_back = leave


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
