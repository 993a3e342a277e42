"""The other threads yield to the event loop while it is saturated, and only then."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest

from service_runtime.loop_goes_first import LoopGoesFirst, let_other_threads_yield
from service_runtime.overload import SATURATED, WINDOW_S, Saturation


class Loop:
    """A loop whose time passes as a test says, and what its other threads were told."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.busy_s = 0.0
        self.told: list[bool] = []
        self.first = LoopGoesFirst(
            saturation=Saturation(now_s=lambda: self.now_s, busy_s=lambda: self.busy_s), let_others=self.told.append
        )

    def runs(self, *, busy: float, for_s: float = WINDOW_S) -> None:
        self.now_s += for_s
        self.busy_s += busy * for_s
        self.first.look()


def test_the_others_yield_while_the_loop_is_saturated_and_no_longer() -> None:
    loop = Loop()

    for busy in (0.1, 1.0, 0.9, SATURATED + 0.01, 0.5, 0.1):
        loop.runs(busy=busy)

    assert loop.told == [True, False]


def test_a_moment_of_work_is_no_saturation() -> None:
    loop = Loop()

    loop.runs(busy=1.0, for_s=WINDOW_S / 10)

    assert loop.told == []


def test_who_stops_leaves_the_others_as_they_were() -> None:
    loop = Loop()
    loop.runs(busy=1.0)

    loop.first.stop()
    loop.first.stop()

    assert loop.told == [True, False]


def test_who_was_never_saturated_leaves_the_others_alone() -> None:
    loop = Loop()

    loop.first.stop()

    assert loop.told == []


@pytest.fixture
def other_thread() -> Iterator[int]:
    """One that waits, by its number."""
    may_end = threading.Event()
    thread = threading.Thread(target=may_end.wait)
    thread.start()
    assert thread.native_id is not None
    yield thread.native_id
    may_end.set()
    thread.join()
    let_other_threads_yield(False)


@pytest.mark.skipif(sys.platform != "linux", reason="the class is Linux's")
def test_only_the_other_threads_change_their_class_and_they_change_it_back(other_thread: int) -> None:
    let_other_threads_yield(True)
    assert (os.sched_getscheduler(other_thread), os.sched_getscheduler(0)) == (os.SCHED_BATCH, os.SCHED_OTHER)

    let_other_threads_yield(False)
    assert (os.sched_getscheduler(other_thread), os.sched_getscheduler(0)) == (os.SCHED_OTHER, os.SCHED_OTHER)


async def test_a_loop_that_works_on_and_on_goes_first(other_thread: int) -> None:
    """With its own clock, and the threads of this process."""
    now_s = 0.0
    first = LoopGoesFirst(saturation=Saturation(now_s=lambda: now_s))
    busy_until = 3_000_000
    while not first.others_yield and busy_until < 3_000_000_000:
        sum(range(busy_until))
        now_s += WINDOW_S
        first.look()
        busy_until *= 2
    try:
        assert os.sched_getscheduler(other_thread) == os.SCHED_BATCH
    finally:
        first.stop()
    assert os.sched_getscheduler(other_thread) == os.SCHED_OTHER
