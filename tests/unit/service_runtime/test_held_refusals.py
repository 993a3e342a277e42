"""How long a refusal is to wait: never beyond the deadline, and not at all while there is time to spare."""

from __future__ import annotations

import pytest

from service_runtime.errors import Category, ServiceError
from service_runtime.held_refusals import BEFORE_DEADLINE_S, HeldRefusals
from service_runtime.metrics import Metrics
from service_runtime.overload import WINDOW_S, Saturation
from service_runtime.refusal_turns import TurnRules

REFUSED = ServiceError(Category.FAILED_PRECONDITION, "NOT_YOURS", "nothing here")
RULES = TurnRules(longest_wait_s=8.0, busy_ratio=0.5, most_waiting=4, at_once=1)  # a turn each 2 s


class Caller:
    """The context of a call, as far as it is looked at."""

    def peer(self) -> str:
        return "ipv4:127.0.0.1:4000"


class Loop:
    """An event loop's clocks."""

    def __init__(self, *, busy: float) -> None:
        self.now_s, self.busy_s = 100.0, 0.0
        saturation = Saturation(now_s=lambda: self.now_s, busy_s=lambda: self.busy_s)
        self.held = HeldRefusals(
            RULES, Metrics(), service="test.v1.Echo", saturation=saturation, now_s=lambda: self.now_s
        )
        self.held.used(Caller(), "a")
        self.passes(WINDOW_S, busy=busy)

    def passes(self, length_s: float, *, busy: float) -> None:
        self.now_s += length_s
        self.busy_s += length_s * busy

    def waits_s(self, count: int, *, remaining_s: float = 600.0) -> list[float]:
        return [self.held.wait_s(Caller(), REFUSED, remaining_s) for _ in range(count)]


def test_nobody_waits_while_the_event_loop_has_time_to_spare() -> None:
    assert set(Loop(busy=0.49).waits_s(20)) == {0.0}


def test_in_a_busy_one_turns_are_at_their_pace_and_who_would_wait_too_long_does_not() -> None:
    assert Loop(busy=0.51).waits_s(7) == [0.0, 2.0, 4.0, 6.0, 8.0, 0.0, 0.0]


@pytest.mark.parametrize("remaining_s", [1.0, 0.5, 0.2])
def test_a_refusal_comes_before_its_callers_deadline(remaining_s: float) -> None:
    assert Loop(busy=1.0).waits_s(3, remaining_s=remaining_s)[1:] == [remaining_s - BEFORE_DEADLINE_S] * 2


def test_who_has_hardly_any_time_left_is_told_at_once() -> None:
    assert set(Loop(busy=1.0).waits_s(3, remaining_s=BEFORE_DEADLINE_S)) == {0.0}


def test_once_the_loop_has_time_again_who_has_stopped_asking_is_free() -> None:
    loop = Loop(busy=1.0)
    loop.waits_s(4)
    loop.passes(6.0, busy=0.1)

    assert set(loop.waits_s(20)) == {0.0}


def test_and_who_has_not_stopped_is_not() -> None:
    loop = Loop(busy=1.0)
    loop.waits_s(4)
    loop.passes(5.0, busy=0.1)

    assert loop.waits_s(1) == [3.0]
