"""S6: retries never multiply load."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router_service.domain.retry_budget import FAILOVER_FLOOR, SAME_ROUTE_FLOOR, RetryBudget


def busy(requests: int, further: int, *, now: float = 0.0) -> RetryBudget:
    budget = RetryBudget()
    for _ in range(requests):
        budget = budget.request_arrived(now)
    for _ in range(further):
        budget = budget.further_attempt_started(now)
    return budget


def test_a_quiet_router_always_retries_and_fails_over() -> None:
    budget = busy(1, SAME_ROUTE_FLOOR - 1)

    assert budget.allows_same_route(0.0)
    assert budget.allows_failover(0.0)


def test_beyond_the_floor_a_tenth_may_be_retried_on_the_same_route() -> None:
    assert busy(1000, 99).allows_same_route(0.0)
    assert not busy(1000, 100).allows_same_route(0.0)


def test_beyond_the_floor_a_fifth_may_go_anywhere() -> None:
    assert busy(1000, 199).allows_failover(0.0)
    assert not busy(1000, 200).allows_failover(0.0)


def test_what_has_ended_gives_its_place_back_but_still_counts_in_the_window() -> None:
    budget = busy(1000, 200)
    for _ in range(200 - FAILOVER_FLOOR + 1):
        budget = budget.further_attempt_ended()

    assert budget.allows_failover(0.0)
    assert not budget.allows_same_route(0.0)


def test_old_windows_are_forgotten() -> None:
    budget = busy(1000, 500)

    assert not budget.allows_failover(10.0)
    assert budget.request_arrived(25.0).requests == 1
    assert budget.request_arrived(25.0).previous_further_attempts == 0
    assert budget.request_arrived(25.0).running == 500


@given(st.lists(st.floats(0, 1), min_size=400, max_size=800), st.integers(0, 1))
def test_load_is_never_multiplied_by_more_than_a_fifth_beyond_the_floor(gaps: list[float], always_fails: int) -> None:
    budget, now, further = RetryBudget(), 0.0, 0
    for gap in gaps:
        now += gap / 1000
        budget = budget.request_arrived(now)
        if always_fails and budget.allows_failover(now):
            budget = budget.further_attempt_started(now)
            further += 1

    assert further <= 0.2 * len(gaps) + FAILOVER_FLOOR
