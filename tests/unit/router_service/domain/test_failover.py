"""The failover table, row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_service.domain.completion import MidstreamFailurePolicy
from router_service.domain.errors import FailureKind, ProviderError
from router_service.domain.failover import Among, Decision, GiveUp, NextCandidate, Restart, RetrySame, Situation, after
from router_service.domain.usage import Funding

OPEN = Situation(
    content_was_sent=False,
    on_midstream_failure=MidstreamFailurePolicy.FAIL,
    funding=Funding.TENANT_KEY,
    others_left=True,
    elsewhere_left=True,
    retried_same=False,
    luck=0.5,
)
SAME_ADDRESS = replace(OPEN, elsewhere_left=False)
ALONE = replace(SAME_ADDRESS, others_left=False)
NEXT = NextCandidate()
ELSEWHERE = NextCandidate(Among.ELSEWHERE)

# kind: with others left, as the only candidate, as the only candidate once more
TABLE: dict[FailureKind, tuple[Decision, Decision, Decision]] = {
    FailureKind.KEY_REJECTED: (GiveUp(), GiveUp(), GiveUp()),
    FailureKind.NO_CREDIT: (NextCandidate(Among.OWN_MONEY), GiveUp(), GiveUp()),
    FailureKind.BAD_REQUEST: (GiveUp(), GiveUp(), GiveUp()),
    FailureKind.CONTENT_REFUSED: (GiveUp(), GiveUp(), GiveUp()),
    FailureKind.NOT_ALLOWED: (NEXT, GiveUp(), GiveUp()),
    FailureKind.CONTEXT_TOO_LONG: (NextCandidate(Among.LARGER_WINDOW), GiveUp(), GiveUp()),
    FailureKind.REQUEST_TOO_LARGE: (NEXT, GiveUp(), GiveUp()),
    FailureKind.MODEL_GONE: (NEXT, GiveUp(), GiveUp()),
    FailureKind.MODEL_MISBEHAVED: (RetrySame(0.0), RetrySame(0.0), GiveUp()),
    FailureKind.RATE_LIMITED: (NEXT, GiveUp(), GiveUp()),  # without Retry-After
    FailureKind.OVERLOADED: (NEXT, RetrySame(0.05), GiveUp()),
    FailureKind.UPSTREAM_BROKEN: (NEXT, RetrySame(0.05), GiveUp()),
    FailureKind.PROTOCOL_VIOLATION: (NEXT, RetrySame(0.05), GiveUp()),
    FailureKind.CONNECT_FAILED: (ELSEWHERE, RetrySame(0.05), GiveUp()),
    FailureKind.TRANSPORT_FAILED: (NEXT, GiveUp(), GiveUp()),
    FailureKind.TIMED_OUT: (ELSEWHERE, GiveUp(), GiveUp()),
    FailureKind.STREAM_BROKEN: (NEXT, GiveUp(), GiveUp()),
    FailureKind.POLICY_REFUSED: (NEXT, GiveUp(), GiveUp()),
}


@pytest.mark.parametrize("kind", FailureKind)
def test_every_kind_has_its_row(kind: FailureKind) -> None:
    error = ProviderError(kind, "gone")

    decisions = (after(error, OPEN), after(error, ALONE), after(error, replace(ALONE, retried_same=True)))

    assert decisions == TABLE[kind]


@pytest.mark.parametrize("funding", [Funding.SYSTEM_KEY, None])
@pytest.mark.parametrize("kind", [FailureKind.KEY_REJECTED, FailureKind.NO_CREDIT])
def test_a_key_that_is_not_the_tenants_is_the_operators_affair(kind: FailureKind, funding: Funding | None) -> None:
    assert after(ProviderError(kind, "no"), replace(OPEN, funding=funding)) == NEXT


def test_a_short_retry_after_is_waited_out_by_an_only_candidate() -> None:
    assert after(ProviderError(FailureKind.RATE_LIMITED, "wait", retry_after_s=1.5), ALONE) == RetrySame(1.5)


def test_no_wait_stands_before_another_candidate() -> None:
    assert after(ProviderError(FailureKind.RATE_LIMITED, "wait", retry_after_s=1.5), OPEN) == NEXT


def test_a_long_retry_after_is_not_slept_through() -> None:
    assert after(ProviderError(FailureKind.OVERLOADED, "wait", retry_after_s=2.1), ALONE) == GiveUp()


def test_a_misbehaving_model_is_asked_once_more_and_then_left() -> None:
    again = replace(OPEN, retried_same=True)

    assert after(ProviderError(FailureKind.MODEL_MISBEHAVED, "bad call"), again) == NEXT


def test_a_silent_provider_is_left_for_good_even_if_it_has_another_model() -> None:
    assert after(ProviderError(FailureKind.TIMED_OUT, "silent"), SAME_ADDRESS) == GiveUp()


def test_a_closed_door_is_knocked_at_once_more_rather_than_tried_for_another_model() -> None:
    assert after(ProviderError(FailureKind.CONNECT_FAILED, "closed"), SAME_ADDRESS) == RetrySame(0.05)


def test_a_restart_after_silence_goes_elsewhere_too() -> None:
    wants_restart = replace(OPEN, content_was_sent=True, on_midstream_failure=MidstreamFailurePolicy.RESTART)

    assert after(ProviderError(FailureKind.TIMED_OUT, "silent"), wants_restart) == Restart(Among.ELSEWHERE)


situations = st.builds(
    Situation,
    content_was_sent=st.booleans(),
    on_midstream_failure=st.sampled_from(MidstreamFailurePolicy),
    funding=st.sampled_from([None, *Funding]),
    others_left=st.booleans(),
    elsewhere_left=st.booleans(),
    retried_same=st.booleans(),
    luck=st.floats(0, 1),
)
errors = st.builds(
    ProviderError,
    st.sampled_from(FailureKind),
    st.just("gone"),
    retry_after_s=st.none() | st.floats(-10, 1e9),
)


situations = situations.map(lambda s: replace(s, elsewhere_left=s.elsewhere_left and s.others_left))


@given(errors, situations)
def test_after_content_nothing_goes_on_in_silence(error: ProviderError, situation: Situation) -> None:
    decision = after(error, replace(situation, content_was_sent=True))

    assert isinstance(decision, GiveUp | Restart)
    if isinstance(decision, Restart):
        assert situation.on_midstream_failure is MidstreamFailurePolicy.RESTART
        assert situation.others_left


@given(errors, situations)
def test_no_wait_is_negative_or_long_and_no_retry_is_the_second(error: ProviderError, situation: Situation) -> None:
    decision = after(error, situation)

    if isinstance(decision, RetrySame):
        assert 0 <= decision.after_s <= 2
        assert not situation.retried_same
    if isinstance(decision, NextCandidate):
        assert situation.others_left
