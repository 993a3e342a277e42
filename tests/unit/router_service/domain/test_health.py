"""Breakers and rests as state machines."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router_service.domain.errors import FailureKind, ProviderError
from router_service.domain.health import (
    KEY_REST_S,
    MAX_OPEN_S,
    PROBE_INTERVAL_S,
    PROBE_LEASE_S,
    UNOBSERVED,
    Breaker,
    BreakerState,
    Culprit,
    Rest,
    average,
    culprit,
    rest_after,
)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(5):
        breaker = breaker.failed(now)
    return breaker


def test_five_failures_in_a_row_open_a_breaker() -> None:
    breaker = opened()

    assert breaker.state(0.0) is BreakerState.OPEN
    assert not breaker.admits(4.9, is_only_candidate=False)
    assert breaker.admits(5.0, is_only_candidate=False)
    assert breaker.state(5.0) is BreakerState.HALF_OPEN


def test_a_success_between_failures_keeps_it_closed() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker = breaker.failed(0.0)

    breaker = breaker.succeeded(0.0).failed(0.0)

    assert breaker.state(0.0) is BreakerState.CLOSED


def test_half_of_twenty_within_the_window_opens_it() -> None:
    breaker = Breaker()
    for _ in range(10):
        breaker = breaker.failed(1.0).succeeded(1.0)

    assert breaker.failed(1.0).state(1.0) is BreakerState.OPEN


def test_failures_spread_over_windows_do_not_add_up() -> None:
    breaker = Breaker()
    for second in range(0, 1000, 11):
        breaker = breaker.failed(float(second)).succeeded(float(second))

    assert breaker.state(1000.0) is BreakerState.CLOSED


def test_one_probe_at_a_time() -> None:
    probing = opened().started(5.0)

    assert not probing.admits(6.0, is_only_candidate=False)
    assert not probing.admits(6.0, is_only_candidate=True)
    assert probing.state(6.0) is BreakerState.HALF_OPEN


def test_a_failed_probe_doubles_the_wait_and_a_good_one_ends_it() -> None:
    twice = opened().started(5.0).failed(5.0)

    assert not twice.admits(14.9, is_only_candidate=False)
    assert twice.admits(15.0, is_only_candidate=False)
    assert twice.started(15.0).succeeded(15.0) == Breaker()


def test_an_only_candidate_is_probed_every_interval_however_long_the_wait() -> None:
    breaker = opened()
    for at in (5.0, 15.0, 35.0):
        breaker = breaker.started(at).failed(at)

    assert not breaker.admits(40.0, is_only_candidate=False)
    assert breaker.admits(40.0, is_only_candidate=True)


def test_an_abandoned_probe_lets_the_next_one_go() -> None:
    assert opened().started(5.0).abandoned().admits(5.1, is_only_candidate=False)


def test_a_lost_probe_is_given_up() -> None:
    assert opened().started(5.0).admits(5.0 + PROBE_LEASE_S, is_only_candidate=False)


def test_late_failures_of_before_do_not_lengthen_the_wait() -> None:
    assert opened().failed(4.0) == opened()


class BreakerMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, at most one probe runs and the wait stays within its bounds."""

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.breaker = Breaker()
        self.running = 0

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.breaker.admits(self.now, is_only_candidate=False))
    @rule()
    def begin(self) -> None:
        was_open = self.breaker.open_since is not None
        self.breaker = self.breaker.started(self.now)
        self.running += 1
        if was_open:
            assert not self.breaker.admits(self.now, is_only_candidate=False)
            assert not self.breaker.admits(self.now, is_only_candidate=True)

    @precondition(lambda self: self.running > 0)
    @rule(outcome=st.sampled_from(["succeeded", "failed", "abandoned"]))
    def end(self, outcome: str) -> None:
        self.running -= 1
        if outcome == "succeeded":
            self.breaker = self.breaker.succeeded(self.now)
            assert self.breaker.open_since is None
        elif outcome == "failed":
            self.breaker = self.breaker.failed(self.now)
        else:
            self.breaker = self.breaker.abandoned()

    @invariant()
    def nobody_is_kept_out_for_ever(self) -> None:
        later = self.now + max(MAX_OPEN_S, PROBE_LEASE_S)
        assert self.breaker.admits(later, is_only_candidate=False)
        if self.breaker.probe_since is None:
            assert self.breaker.admits(self.now + PROBE_INTERVAL_S, is_only_candidate=True)

    @invariant()
    def the_wait_is_bounded(self) -> None:
        assert 0 <= self.breaker.open_for_s <= MAX_OPEN_S
        assert 0 <= self.breaker.retry_after_s(self.now) <= PROBE_INTERVAL_S


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("kind", FailureKind)
def test_every_kind_is_held_against_somebody_or_nobody(kind: FailureKind) -> None:
    assert culprit(kind) in Culprit


def test_a_key_is_at_fault_for_the_keys_failures_only() -> None:
    of_key = {kind for kind in FailureKind if culprit(kind) is Culprit.KEY}

    assert of_key == {FailureKind.KEY_REJECTED, FailureKind.NO_CREDIT, FailureKind.RATE_LIMITED}


@given(st.floats(-1e9, 1e9))
def test_what_a_provider_asks_for_is_capped(retry_after_s: float) -> None:
    rest = rest_after(ProviderError(FailureKind.RATE_LIMITED, "wait", retry_after_s=retry_after_s), 100.0)

    assert 100.0 <= rest.until <= 160.0
    assert rest.is_asked_for


def test_what_the_provider_asked_for_is_kept_by_an_only_candidate_too() -> None:
    rest = rest_after(ProviderError(FailureKind.RATE_LIMITED, "wait", retry_after_s=30), 0.0)

    assert not rest.admits(29.0, is_only_candidate=True)
    assert rest.admits(30.0, is_only_candidate=True)


def test_a_rejected_key_that_is_the_only_one_is_tried_at_intervals() -> None:
    rest = rest_after(ProviderError(FailureKind.KEY_REJECTED, "no"), 0.0)

    assert rest.until == KEY_REST_S
    assert not rest.admits(10.0, is_only_candidate=False)
    assert rest.admits(PROBE_INTERVAL_S, is_only_candidate=True)
    assert not rest.tried_again(PROBE_INTERVAL_S).admits(PROBE_INTERVAL_S + 1, is_only_candidate=True)


def test_a_short_rest_never_cuts_a_long_one() -> None:
    long = Rest(FailureKind.NO_CREDIT, 0.0, 60.0)
    short = Rest(FailureKind.RATE_LIMITED, 1.0, 6.0)

    assert long.joined_by(short) is long
    assert short.joined_by(long) is long


@given(st.lists(st.floats(0, 100), min_size=1))
def test_an_average_stays_within_what_was_observed(observed: list[float]) -> None:
    current: float | None = None
    for value in observed:
        current = average(current, value)

    assert current is not None
    assert min(observed) - 1e-6 <= current <= max(observed) + 1e-6


def test_health_keeps_what_an_attempt_could_not_measure() -> None:
    measured = UNOBSERVED.succeeded(0.0, first_token_s=0.4, tokens_per_s=50.0)

    unmeasured = measured.succeeded(1.0, first_token_s=None, tokens_per_s=None)

    assert (unmeasured.first_token_s, unmeasured.tokens_per_s, unmeasured.attempts) == (0.4, 50.0, 2)
