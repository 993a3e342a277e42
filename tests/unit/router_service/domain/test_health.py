"""Breakers and rests as state machines."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from router_service.domain.errors import FailureKind, ProviderError
from router_service.domain.health import (
    KEY_REST_S,
    MAX_OPEN_S,
    MAX_RETRY_AFTER_S,
    OUT_OF_TURN,
    OUT_OF_TURN_PER_SUCCESS,
    PROBE_INTERVAL_S,
    PROBE_LEASE_S,
    UNOBSERVED,
    WINDOW_S,
    Breaker,
    BreakerState,
    Culprit,
    Rest,
    average,
    culprit,
    rest_after,
)

ROUNDING_S = 1e-6  # sums of floats are not exact


def failed(breaker: Breaker, at: float, *, began_at: float | None = None) -> Breaker:
    return breaker.failed(at, began_at=at if began_at is None else began_at)


def succeeded(breaker: Breaker, at: float, *, began_at: float | None = None) -> Breaker:
    return breaker.succeeded(at, began_at=at if began_at is None else began_at)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(5):
        breaker = failed(breaker, now)
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
        breaker = failed(breaker, 0.0)

    breaker = failed(succeeded(breaker, 0.0), 0.0)

    assert breaker.state(0.0) is BreakerState.CLOSED


def test_half_of_twenty_within_the_window_opens_it() -> None:
    breaker = Breaker()
    for _ in range(10):
        breaker = succeeded(failed(breaker, 1.0), 1.0)

    assert failed(breaker, 1.0).state(1.0) is BreakerState.OPEN


def test_failures_spread_over_windows_do_not_add_up() -> None:
    breaker = Breaker()
    for second in range(0, 1000, 11):
        breaker = succeeded(failed(breaker, float(second)), float(second))

    assert breaker.state(1000.0) is BreakerState.CLOSED


def test_one_probe_at_a_time() -> None:
    probing = opened().started(5.0)

    assert not probing.admits(6.0, is_only_candidate=False)
    assert not probing.admits(6.0, is_only_candidate=True)
    assert probing.state(6.0) is BreakerState.HALF_OPEN


def test_a_failed_probe_doubles_the_wait_and_a_good_one_ends_it() -> None:
    twice = failed(opened().started(5.0), 5.0)

    assert not twice.admits(14.9, is_only_candidate=False)
    assert twice.admits(15.0, is_only_candidate=False)
    assert succeeded(twice.started(15.0), 15.0) == Breaker(last_success_at=15.0)


def test_an_only_candidate_is_probed_every_interval_however_long_the_wait() -> None:
    breaker = opened()
    for at in (5.0, 15.0, 35.0):
        breaker = failed(breaker.started(at), at)

    assert not breaker.admits(40.0, is_only_candidate=False)
    assert breaker.admits(40.0, is_only_candidate=True)


def test_an_abandoned_probe_lets_the_next_one_go() -> None:
    assert opened().started(5.0).abandoned(began_at=5.0).admits(5.1, is_only_candidate=False)


def test_a_lost_probe_is_given_up() -> None:
    assert opened().started(5.0).admits(5.0 + PROBE_LEASE_S, is_only_candidate=False)


def test_a_long_probe_keeps_an_only_candidate_out_for_one_interval_only() -> None:
    probing = opened().started(5.0)

    assert not probing.admits(9.9, is_only_candidate=True)
    assert probing.admits(10.0, is_only_candidate=True)
    assert not probing.admits(10.0, is_only_candidate=False)


def test_attempts_of_before_the_opening_change_nothing() -> None:
    probing = opened(1.0).started(6.0)

    assert failed(opened(1.0), 4.0, began_at=0.0) == opened(1.0)
    assert failed(probing, 7.0, began_at=0.0) == probing
    assert succeeded(probing, 7.0, began_at=0.0).probe_since == probing.probe_since
    assert probing.abandoned(began_at=0.0) == probing


def sick(now: float = 0.0) -> Breaker:
    """Open, and the route answered a moment before."""
    breaker = succeeded(Breaker(), now)
    for _ in range(5):
        breaker = failed(breaker, now)
    return breaker


def test_a_route_that_answered_a_moment_ago_takes_some_who_have_nowhere_else_to_go_out_of_turn() -> None:
    breaker, admitted = sick(), 0
    while breaker.admits(1.0, is_only_candidate=True):
        assert not breaker.admits(1.0, is_only_candidate=False)
        breaker = failed(breaker.started(1.0), 1.0)
        admitted += 1

    assert admitted == OUT_OF_TURN
    assert breaker.retry_after_s(1.0) == sick().retry_after_s(1.0)


@pytest.mark.parametrize("last_success_at", [None, -WINDOW_S])
def test_a_route_that_has_not_answered_lately_takes_nobody_out_of_turn(last_success_at: float | None) -> None:
    breaker = Breaker(last_success_at=last_success_at)
    for _ in range(5):
        breaker = failed(breaker, 0.0)

    assert not breaker.admits(1.0, is_only_candidate=True)


def test_an_attempt_out_of_turn_that_succeeds_closes_the_breaker() -> None:
    assert succeeded(sick().started(1.0), 2.0, began_at=1.0).state(2.0) is BreakerState.CLOSED


def test_an_attempt_out_of_turn_is_no_probe() -> None:
    breaker = failed(sick().started(1.0), 1.0)

    assert (breaker.probe_since, breaker.open_for_s) == (None, sick().open_for_s)
    assert breaker.admits(PROBE_INTERVAL_S, is_only_candidate=False)


def test_what_began_before_the_opening_and_succeeds_lets_two_more_go_out_of_turn() -> None:
    breaker = succeeded(opened(1.0), 2.0, began_at=0.0)

    assert breaker.out_of_turn == 2
    assert breaker.state(2.0) is not BreakerState.CLOSED


class BreakerMachine(RuleBasedStateMachine):
    """Attempts begin and end in any order, some of them where there is no other candidate."""

    attempts: Bundle[float] = Bundle("attempts")

    @initialize()
    def start(self) -> None:
        self.now = 1.0
        self.breaker = Breaker()
        self.earned = self.spent = 0  # attempts out of turn

    @rule(seconds=st.floats(0.001, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.breaker.admits(self.now, is_only_candidate=False))
    @rule(target=attempts)
    def begin(self) -> float:
        self.breaker = self.breaker.started(self.now)
        if self.breaker.open_since is not None:
            assert not self.breaker.admits(self.now, is_only_candidate=False)
            assert self.breaker.admits(self.now, is_only_candidate=True) == (self.breaker.out_of_turn > 0)
        return self._moment()

    @precondition(lambda self: self.breaker.admits(self.now, is_only_candidate=True))
    @rule(target=attempts)
    def begin_as_the_only_candidate(self) -> float:
        before, probe_since = self.breaker, self.breaker.probe_since
        self.breaker = before.started(self.now)
        if self.breaker.out_of_turn < before.out_of_turn:
            self.spent += 1
            assert self.breaker.probe_since == probe_since
        elif probe_since is not None and self.now < probe_since + PROBE_LEASE_S:
            assert self.now >= probe_since + PROBE_INTERVAL_S - ROUNDING_S
        return self._moment()

    @rule(began_at=consumes(attempts))
    def succeed(self, began_at: float) -> None:
        opened_at = self.breaker.open_since
        self.breaker = self.breaker.succeeded(self.now, began_at=began_at)
        assert (self.breaker.open_since is None) == (opened_at is None or began_at >= opened_at)
        if self.breaker.open_since is not None:
            self.earned += OUT_OF_TURN_PER_SUCCESS

    @rule(began_at=consumes(attempts))
    def fail(self, began_at: float) -> None:
        before = self.breaker
        self.breaker = self.breaker.failed(self.now, began_at=began_at)
        if before.open_since is None and self.breaker.open_since is not None and before.last_success_at is not None:
            self.earned += OUT_OF_TURN
        if before.open_since is not None:
            assert self.breaker.out_of_turn == before.out_of_turn
            assert self.breaker.open_for_s >= before.open_for_s
            is_stale = began_at < before.open_since
            assert not is_stale or self.breaker == before

    @rule(began_at=consumes(attempts))
    def abandon(self, began_at: float) -> None:
        before = self.breaker
        self.breaker = self.breaker.abandoned(began_at=began_at)
        assert self.breaker.open_since == before.open_since

    @invariant()
    def nobody_is_kept_out_for_ever(self) -> None:
        assert self.breaker.admits(self.now + max(MAX_OPEN_S, PROBE_LEASE_S) + ROUNDING_S, is_only_candidate=False)

    @invariant()
    def an_only_candidate_is_kept_out_for_one_interval_at_most(self) -> None:
        assert self.breaker.admits(self.now + PROBE_INTERVAL_S + ROUNDING_S, is_only_candidate=True)
        assert self.breaker.admits(self.now, is_only_candidate=True) or not self.breaker.admits(
            self.now, is_only_candidate=False
        )

    @invariant()
    def nobody_goes_out_of_turn_for_whom_no_success_has_paid(self) -> None:
        assert 0 <= self.breaker.out_of_turn <= OUT_OF_TURN
        assert self.spent <= self.earned
        assert self.breaker.open_since is not None or self.breaker.out_of_turn == 0

    @invariant()
    def the_wait_is_bounded_and_told_truly(self) -> None:
        assert 0 <= self.breaker.open_for_s <= MAX_OPEN_S
        wait_s = self.breaker.retry_after_s(self.now)
        assert 0 <= wait_s <= PROBE_INTERVAL_S + ROUNDING_S
        assert self.breaker.admits(self.now + wait_s + ROUNDING_S, is_only_candidate=True)

    @invariant()
    def the_state_says_whether_anybody_is_let_through(self) -> None:
        state = self.breaker.state(self.now)
        if state is BreakerState.OPEN:
            assert not self.breaker.admits(self.now, is_only_candidate=False)
        if state is BreakerState.CLOSED:
            assert self.breaker.admits(self.now, is_only_candidate=False)

    def _moment(self) -> float:
        """Now; and time goes on, as it does between two events."""
        self.now += 1e-6
        return self.now - 1e-6


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

    assert 100.0 <= rest.until == rest.asked_until <= 160.0


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

    assert long.joined_by(short) == long
    assert short.joined_by(long) == long


def test_a_longer_rest_for_another_reason_does_not_void_what_the_provider_asked_for() -> None:
    asked = rest_after(ProviderError(FailureKind.RATE_LIMITED, "wait", retry_after_s=6), 0.0)

    both = asked.joined_by(rest_after(ProviderError(FailureKind.KEY_REJECTED, "no"), 0.0))

    assert not both.admits(PROBE_INTERVAL_S, is_only_candidate=True)
    assert both.admits(6.0, is_only_candidate=True)
    assert both.after_success(1.0) == Rest(FailureKind.KEY_REJECTED, 0.0, 6.0, asked_until=6.0)


@given(st.lists(st.floats(0, 100), min_size=1))
def test_an_average_stays_within_what_was_observed(observed: list[float]) -> None:
    current: float | None = None
    for value in observed:
        current = average(current, value)

    assert current is not None
    assert min(observed) - 1e-6 <= current <= max(observed) + 1e-6


def test_health_keeps_what_an_attempt_could_not_measure() -> None:
    measured = UNOBSERVED.succeeded(0.0, began_at=0.0, first_token_s=0.4, tokens_per_s=50.0)

    unmeasured = measured.succeeded(1.0, began_at=1.0, first_token_s=None, tokens_per_s=None)

    assert (unmeasured.first_token_s, unmeasured.tokens_per_s, unmeasured.attempts) == (0.4, 50.0, 2)


def test_errors_are_forgotten_with_time_so_that_a_route_passed_over_comes_back() -> None:
    health = UNOBSERVED
    for _ in range(3):
        health = health.failed(0.0, began_at=0.0)

    assert not health.is_well(1.0)
    assert health.at(30.0).error_rate == pytest.approx(health.error_rate / 2)
    assert health.is_well(60.0)


def test_a_route_with_an_open_breaker_is_not_well_however_long_ago_it_opened() -> None:
    health = UNOBSERVED
    for _ in range(5):
        health = health.failed(0.0, began_at=0.0)

    assert not health.is_well(1e6)


@pytest.mark.parametrize("kind", [FailureKind.OVERLOADED, FailureKind.UPSTREAM_BROKEN])
def test_an_ailing_provider_that_names_a_time_is_left_alone_by_who_was_told(kind: FailureKind) -> None:
    rest = rest_after(ProviderError(kind, "busy", retry_after_s=30), 0.0)

    assert not rest.admits(29.9, is_only_candidate=True)
    assert rest.admits(30.0, is_only_candidate=False)


class RestMachine(RuleBasedStateMachine):
    """A key whose failures come in any order: what a provider asked for is kept, and nothing rests for ever."""

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.rest = Rest(FailureKind.RATE_LIMITED, 0.0, 0.0)
        self.promised_until = 0.0

    @rule(seconds=st.floats(0.001, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(kind=st.sampled_from(FailureKind), retry_after_s=st.none() | st.floats(-5, 1e9))
    def fail(self, kind: FailureKind, retry_after_s: float | None) -> None:
        newer = rest_after(ProviderError(kind, "no", retry_after_s=retry_after_s), self.now)
        self.rest = self.rest.joined_by(newer)
        self.promised_until = max(self.promised_until, newer.asked_until)

    @rule()
    def succeed(self) -> None:
        remaining = self.rest.after_success(self.now)
        assert (remaining is None) == (self.now >= self.promised_until)
        if remaining is not None:
            self.rest = remaining

    @precondition(lambda self: self.rest.admits(self.now, is_only_candidate=True))
    @rule()
    def try_as_the_only_candidate(self) -> None:
        assert self.now >= self.promised_until, "what the provider asked for was not kept"
        self.rest = self.rest.tried_again(self.now)

    @invariant()
    def whoever_may_go_with_others_may_go_alone(self) -> None:
        if self.rest.admits(self.now, is_only_candidate=False):
            assert self.rest.admits(self.now, is_only_candidate=True)
            assert self.now >= self.promised_until

    @invariant()
    def nothing_rests_for_ever(self) -> None:
        assert self.rest.admits(self.now + MAX_RETRY_AFTER_S + ROUNDING_S, is_only_candidate=False)
        assert self.rest.retry_after_s(self.now) <= MAX_RETRY_AFTER_S + ROUNDING_S


TestRestMachine = RestMachine.TestCase
TestRestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
