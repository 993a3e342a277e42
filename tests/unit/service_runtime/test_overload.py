"""Who is refused when there is more to do than can be done, and that nobody is refused otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service_runtime.errors import Category
from service_runtime.overload import (
    ALWAYS_ADMITTED,
    LEAST_ENDED,
    MAX_RETRY_S,
    MIN_RETRY_S,
    SATURATED,
    WINDOW_S,
    Gate,
    Load,
    Priority,
    Saturation,
    refusal,
)

seconds = st.floats(0, 1e4)
loads = st.builds(Load, st.floats(0, 1.5), st.integers(0, 10_000), st.floats(0, 1e5))
FULL = Load(busy_ratio=1.0, in_progress=400, ended_per_s=200.0)  # so that a call takes two seconds


class Clock:
    """Both clocks of a gate: what a test makes pass, and how much of it the thread was busy."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.busy_s = 0.0

    def passes(self, length_s: float, *, busy: float) -> None:
        self.now_s += length_s
        self.busy_s += length_s * busy

    def gate(self, *, entered: int, left: int, deadline_s: float = 10.0) -> Gate:
        """A gate that so many calls with that deadline have come through, and so many of them have ended."""
        gate = Gate(Saturation(now_s=lambda: self.now_s, busy_s=lambda: self.busy_s))
        for _ in range(entered):
            assert gate.enter(deadline_s, "") is None
        for _ in range(left):
            gate.leave()
        return gate


def test_a_call_that_would_be_too_late_is_told_so_at_once_and_when_to_come_back() -> None:
    error = refusal(FULL, 0.5, Priority.NORMAL)

    assert error is not None
    assert (error.category, error.reason, error.retry_after_s) == (Category.RESOURCE_EXHAUSTED, "OVERLOADED", 2.0)
    assert "take 2 s" in error.message


@pytest.mark.parametrize(("priority", "least_s"), [(Priority.HIGH, 1.0), (Priority.NORMAL, 2.0), (Priority.LOW, 4.0)])
def test_the_less_a_call_matters_the_more_time_it_must_have(priority: Priority, least_s: float) -> None:
    assert refusal(FULL, least_s, priority) is None
    assert refusal(FULL, least_s - 0.01, priority) is not None


@given(loads, seconds, st.sampled_from(Priority))
def test_nobody_is_refused_while_there_is_time_to_spare_or_little_in_progress(
    load: Load, remaining_s: float, priority: Priority
) -> None:
    error = refusal(load, remaining_s, priority)

    if load.busy_ratio < SATURATED or load.in_progress <= ALWAYS_ADMITTED or load.ended_per_s == 0:
        assert error is None
    if error is not None:
        assert error.retry_after_s is not None
        assert MIN_RETRY_S <= error.retry_after_s <= MAX_RETRY_S


@given(loads, seconds, seconds)
def test_who_has_more_time_or_matters_more_is_never_refused_before_others(
    load: Load, one_s: float, other_s: float
) -> None:
    for less, more in ((Priority.LOW, Priority.NORMAL), (Priority.NORMAL, Priority.HIGH)):
        if refusal(load, min(one_s, other_s), less) is None:
            assert refusal(load, max(one_s, other_s), less) is None
            assert refusal(load, min(one_s, other_s), more) is None


def test_a_saturated_gate_refuses_short_deadlines_and_recovers_when_the_load_ends() -> None:
    clock = Clock()
    gate = clock.gate(entered=100, left=20, deadline_s=0.1)
    clock.passes(WINDOW_S, busy=1.0)  # 80 a second end, 80 are in progress: a call takes a second

    refused = gate.enter(0.9, "")
    assert refused is not None
    assert "calls take 1 s" in refused.message
    assert gate.enter(1.2, "") is None
    assert gate.enter(0.9, "high") is None
    assert gate.enter(1.5, "low") is not None

    clock.passes(WINDOW_S, busy=0.2)
    assert gate.enter(0.01, "") is None


def test_a_refused_call_counts_neither_as_in_progress_nor_as_ended() -> None:
    clock = Clock()
    gate = clock.gate(entered=30, left=15)
    clock.passes(WINDOW_S, busy=1.0)

    for _ in range(50):
        refused = gate.enter(0.1, "whatever")
        assert refused is not None
        assert "calls take 0.25 s" in refused.message


def test_all_who_are_refused_in_a_window_get_the_same_error_so_that_it_is_rendered_once() -> None:
    clock = Clock()
    gate = clock.gate(entered=30, left=15)
    clock.passes(WINDOW_S, busy=1.0)

    first, second, low = gate.enter(0.1, ""), gate.enter(0.01, ""), gate.enter(0.1, "low")

    assert first is not None
    assert first is second
    assert low is not first


def test_a_few_ended_calls_are_no_estimate() -> None:
    clock = Clock()
    gate = clock.gate(entered=100, left=LEAST_ENDED - 1)
    clock.passes(WINDOW_S, busy=1.0)

    assert gate.enter(0.01, "low") is None


def test_the_busy_clock_of_the_process_moves_with_work() -> None:
    now = [0.0]
    saturation = Saturation(now_s=lambda: now[0])
    sum(range(2_000_000))
    now[0] = 1.0

    assert saturation.look() == 1.0
    assert saturation.ratio > 0


def test_a_window_in_which_hardly_anybody_came_is_no_estimate() -> None:
    """The loop was busy with other methods, so that few calls of this one ended, over long."""
    clock = Clock()
    gate = clock.gate(entered=LEAST_ENDED + ALWAYS_ADMITTED + 1, left=LEAST_ENDED, deadline_s=30.0)

    clock.passes(60.0, busy=1.0)

    assert gate.enter(30.0, "") is None  # though only a sixth of a call a second ended
