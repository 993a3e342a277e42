"""S6: retries never multiply load."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from router_service.domain.retry_budget import (
    FURTHER_FLOOR,
    FURTHER_RATIO,
    RETRY_FLOOR,
    RETRY_RATIO,
    WINDOW_S,
    RetryBudget,
)


def busy(requests: int, *, retries: int = 0, failovers: int = 0, now: float = 0.0) -> RetryBudget:
    budget = RetryBudget()
    for _ in range(requests):
        budget = budget.request_arrived(now)
    for _ in range(retries):
        budget = budget.retried(now)
    for _ in range(failovers):
        budget = budget.failed_over(now)
    return budget


def test_a_quiet_router_may_retry_thrice() -> None:
    assert busy(1, retries=2).allows_retry(0.0)
    assert not busy(1, retries=3).allows_retry(0.0)


def test_beyond_the_floor_a_tenth_may_be_retried() -> None:
    assert busy(1000, retries=99).allows_retry(0.0)
    assert not busy(1000, retries=100).allows_retry(0.0)


def test_beyond_the_floor_a_fifth_may_go_elsewhere_retries_included() -> None:
    assert busy(1000, retries=100, failovers=99).allows_failover(0.0)
    assert not busy(1000, retries=100, failovers=100).allows_failover(0.0)


def test_failovers_to_what_is_well_take_nothing_from_the_retries() -> None:
    assert busy(1000, failovers=200).allows_retry(0.0)


@pytest.mark.parametrize(("later_s", "is_forgotten"), [(9.9, False), (19.9, False), (20.0, True), (1e9, True)])
def test_a_window_counts_until_the_end_of_the_next_one(later_s: float, is_forgotten: bool) -> None:
    assert busy(1000, failovers=500).allows_failover(later_s) is is_forgotten


class BudgetMachine(RuleBasedStateMachine):
    """Whatever is asked for in whatever order and at whatever time, no two windows hold more than is allowed."""

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.budget = RetryBudget()
        self.events: list[tuple[float, str]] = []

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.1, 1.0, 5.0, 9.999, 10.0, 20.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(count=st.integers(1, 60))
    def requests_arrive(self, count: int) -> None:
        for _ in range(count):
            self.budget = self.budget.request_arrived(self.now)
            self.events.append((self.now, "request"))

    @rule(count=st.integers(1, 60))
    def all_want_to_retry(self, count: int) -> None:
        for _ in range(count):
            if self.budget.allows_retry(self.now):
                self.budget = self.budget.retried(self.now)
                self.events.append((self.now, "retry"))

    @rule(count=st.integers(1, 60))
    def all_want_to_fail_over(self, count: int) -> None:
        for _ in range(count):
            if self.budget.allows_failover(self.now):
                self.budget = self.budget.failed_over(self.now)
                self.events.append((self.now, "failover"))

    @invariant()
    def within_any_ten_seconds_further_attempts_are_bounded(self) -> None:
        # Requests may have come up to one window earlier than the attempts that they paid for.
        recent = [what for at, what in self.events if at > self.now - WINDOW_S]
        requests = sum(what == "request" for at, what in self.events if at > self.now - 3 * WINDOW_S)
        retries, failovers = recent.count("retry"), recent.count("failover")
        assert retries <= max(RETRY_FLOOR, RETRY_RATIO * requests)
        assert failovers <= max(FURTHER_FLOOR, FURTHER_RATIO * requests)

    @invariant()
    def a_router_that_rested_has_its_floors_back(self) -> None:
        later = self.now + 2 * WINDOW_S + 0.001  # sums of floats are not exact
        assert self.budget.allows_retry(later)
        assert self.budget.allows_failover(later)

    @invariant()
    def nobody_is_refused_below_the_floors(self) -> None:
        recent = [what for at, what in self.events if at > self.now - 3 * WINDOW_S]
        if recent.count("retry") < RETRY_FLOOR:
            assert self.budget.allows_retry(self.now)
        if recent.count("retry") + recent.count("failover") < FURTHER_FLOOR:
            assert self.budget.allows_failover(self.now)


TestBudgetMachine = BudgetMachine.TestCase
TestBudgetMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
