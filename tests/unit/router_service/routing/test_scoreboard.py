"""What is held against whom: B11, one tenant's bad key trips nobody else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router_service.domain.candidate import Candidate
from router_service.domain.completion import QuotaHeaders
from router_service.domain.errors import FailureKind, ProviderError
from router_service.domain.health import BreakerState
from router_service.routing.scoreboard import Scoreboard
from tests.support.router_fakes import failure, key, spec

GROQ = spec("groq")
OF_ACME = Candidate(GROQ, GROQ.facts("groq-model"), key("acme"))
OF_OTHER = Candidate(GROQ, GROQ.facts("groq-model"), key("other"))
ANOTHER_MODEL = Candidate(GROQ, GROQ.facts("groq-large"), key("acme"))


def is_free(board: Scoreboard, candidate: Candidate, now: float = 1.0, *, only: bool = False) -> bool:
    return board.block(candidate, now, is_only_candidate=only) is None


@pytest.fixture
def board() -> Scoreboard:
    return Scoreboard(max_entries=100)


@pytest.mark.parametrize("kind", [FailureKind.KEY_REJECTED, FailureKind.NO_CREDIT, FailureKind.RATE_LIMITED])
def test_a_keys_failure_is_held_against_that_key_only(board: Scoreboard, kind: FailureKind) -> None:
    for _ in range(1000):
        board.failed(OF_ACME, failure(kind), 0.0, began_at=0.0)

    assert not is_free(board, OF_ACME)
    assert is_free(board, OF_OTHER)
    assert board.health(OF_OTHER).breaker.state(1.0) is BreakerState.CLOSED


def test_a_missing_model_is_held_against_key_and_model(board: Scoreboard) -> None:
    board.failed(OF_ACME, failure(FailureKind.MODEL_GONE), 0.0, began_at=0.0)

    assert not is_free(board, OF_ACME)
    assert is_free(board, ANOTHER_MODEL)


def test_a_broken_route_is_closed_to_every_key(board: Scoreboard) -> None:
    for _ in range(5):
        board.failed(OF_ACME, failure(FailureKind.UPSTREAM_BROKEN), 0.0, began_at=0.0)

    block = board.block(OF_OTHER, 1.0, is_only_candidate=False)

    assert block is not None
    assert (block.exclusion.reason, block.kind) == ("BREAKER_OPEN", None)
    assert block.retry_after_s == pytest.approx(4.0)


@pytest.mark.parametrize("kind", [FailureKind.BAD_REQUEST, FailureKind.CONTENT_REFUSED, FailureKind.POLICY_REFUSED])
def test_a_callers_own_failure_is_held_against_nobody(board: Scoreboard, kind: FailureKind) -> None:
    for _ in range(100):
        board.failed(OF_ACME, failure(kind), 0.0, began_at=0.0)

    assert is_free(board, OF_ACME)


@pytest.mark.parametrize(
    "cause", [FailureKind.MODEL_MISBEHAVED, FailureKind.CONTEXT_TOO_LONG, FailureKind.RATE_LIMITED]
)
def test_a_stream_broken_by_the_callers_or_the_keys_doing_trips_no_breaker(
    board: Scoreboard, cause: FailureKind
) -> None:
    """S2: only who is at fault pays, whether or not content had come before."""
    for _ in range(100):
        board.failed(OF_ACME, ProviderError(FailureKind.STREAM_BROKEN, "broke", cause=cause), 0.0, began_at=0.0)

    assert is_free(board, OF_OTHER)
    assert is_free(board, OF_ACME) is (cause is not FailureKind.RATE_LIMITED)


def test_the_wait_that_an_overloaded_provider_asks_for_is_kept_by_who_was_told(board: Scoreboard) -> None:
    board.failed(OF_ACME, failure(FailureKind.OVERLOADED, retry_after_s=30), 0.0, began_at=0.0)

    block = board.block(OF_ACME, 1.0, is_only_candidate=True)

    assert block is not None
    assert block.kind is FailureKind.OVERLOADED
    assert block.retry_after_s == pytest.approx(29.0)
    assert is_free(board, OF_OTHER)
    assert is_free(board, ANOTHER_MODEL)


def test_five_overloads_open_the_breaker_whatever_wait_they_name(board: Scoreboard) -> None:
    for _ in range(5):
        board.failed(OF_ACME, failure(FailureKind.OVERLOADED, retry_after_s=1), 0.0, began_at=0.0)

    assert not is_free(board, OF_OTHER)


def test_one_probe_goes_through_a_half_open_route(board: Scoreboard) -> None:
    for _ in range(5):
        board.failed(OF_ACME, failure(FailureKind.TIMED_OUT), 0.0, began_at=0.0)

    assert is_free(board, OF_OTHER, 6.0)
    board.started(OF_OTHER, 6.0)
    assert not is_free(board, OF_ACME, 6.0)
    board.succeeded(OF_OTHER, 7.0, began_at=7.0, first_token_s=0.1, tokens_per_s=None)
    assert is_free(board, OF_ACME, 7.0)


def test_a_probe_that_blames_the_key_frees_the_route_for_the_next_probe(board: Scoreboard) -> None:
    for _ in range(5):
        board.failed(OF_ACME, failure(FailureKind.TIMED_OUT), 0.0, began_at=0.0)
    board.started(OF_ACME, 6.0)

    board.failed(OF_ACME, failure(FailureKind.KEY_REJECTED), 6.0, began_at=6.0)

    assert is_free(board, OF_OTHER, 6.0)


def test_a_success_ends_what_was_held_against_the_key(board: Scoreboard) -> None:
    board.failed(OF_ACME, failure(FailureKind.KEY_REJECTED), 0.0, began_at=0.0)

    board.succeeded(OF_ACME, 1.0, began_at=1.0, first_token_s=None, tokens_per_s=None)

    assert is_free(board, OF_ACME)


def test_a_success_that_began_earlier_does_not_cut_what_the_provider_asked_for(board: Scoreboard) -> None:
    board.failed(OF_ACME, failure(FailureKind.RATE_LIMITED, retry_after_s=30), 0.0, began_at=0.0)

    board.succeeded(OF_ACME, 1.0, began_at=1.0, first_token_s=None, tokens_per_s=None)

    assert not is_free(board, OF_ACME, only=True)


def test_the_words_of_a_block_hold_no_key(board: Scoreboard) -> None:
    board.failed(OF_ACME, failure(FailureKind.KEY_REJECTED), 0.0, began_at=0.0)

    assert "canary" not in repr(board.block(OF_ACME, 1.0, is_only_candidate=False))


def test_memory_is_bounded_and_forgets_the_oldest() -> None:
    board = Scoreboard(max_entries=3)
    tenants = [replace(OF_ACME, credential=key(str(number))) for number in range(10)]

    for candidate in tenants:
        board.failed(candidate, failure(FailureKind.KEY_REJECTED), 0.0, began_at=0.0)

    assert [is_free(board, candidate) for candidate in tenants] == [True] * 7 + [False] * 3


def test_models_that_somebody_makes_up_push_no_rest_of_a_key_out() -> None:
    board = Scoreboard(max_entries=3)
    board.failed(OF_ACME, failure(FailureKind.RATE_LIMITED, retry_after_s=60), 0.0, began_at=0.0)

    for number in range(10):
        made_up = Candidate(GROQ, GROQ.facts(f"made-up-{number}"), key("other"))
        board.failed(made_up, failure(FailureKind.MODEL_GONE), 0.0, began_at=0.0)

    assert not is_free(board, OF_ACME)


def test_the_tightest_quota_counts_until_it_is_reset(board: Scoreboard) -> None:
    quota = QuotaHeaders(
        remaining_requests=50, limit_requests=100, remaining_tokens=10, limit_tokens=1000, reset_tokens_s=5.0
    )
    board.failed(OF_ACME, ProviderError(FailureKind.OVERLOADED, "busy", quota=quota), 0.0, began_at=0.0)

    assert board.quota_ratio(OF_ACME, 1.0) == pytest.approx(0.01)
    assert board.quota_ratio(OF_ACME, 5.0) is None
    assert board.quota_ratio(OF_OTHER, 1.0) is None


def test_a_limit_of_zero_says_nothing(board: Scoreboard) -> None:
    board.note_quota(OF_ACME, QuotaHeaders(remaining_requests=0, limit_requests=0), 0.0)

    assert board.quota_ratio(OF_ACME, 1.0) is None


def test_failures_fade_while_nobody_tries_and_old_speeds_are_forgotten(board: Scoreboard) -> None:
    board.succeeded(OF_ACME, 0.0, began_at=0.0, first_token_s=9.0, tokens_per_s=5.0)
    for _ in range(3):
        board.failed(OF_ACME, failure(FailureKind.UPSTREAM_BROKEN), 0.0, began_at=0.0)
    health = board.health(OF_ACME)

    assert health.at(0.0).error_rate == pytest.approx(0.488)
    assert health.at(30.0).error_rate == pytest.approx(0.244)
    assert (health.at(299.0).first_token_s, health.at(299.0).attempts) == (9.0, 4)
    assert (health.at(300.0).first_token_s, health.at(300.0).attempts) == (None, 0)


def test_a_breaker_is_not_forgotten_with_the_speeds(board: Scoreboard) -> None:
    for _ in range(5):
        board.failed(OF_ACME, failure(FailureKind.UPSTREAM_BROKEN), 0.0, began_at=0.0)

    assert board.health(OF_ACME).at(1000.0).breaker.open_since == 0.0


def test_the_trouble_of_a_key_outlives_its_rest_and_concerns_that_key_only(board: Scoreboard) -> None:
    board.failed(OF_ACME, failure(FailureKind.RATE_LIMITED, retry_after_s=1), 0.0, began_at=0.0)

    trouble = board.trouble(OF_ACME, 30.0)

    assert is_free(board, OF_ACME, 30.0)
    assert trouble is not None
    assert (trouble.kind, trouble.recovered) == (FailureKind.RATE_LIMITED, 0.5)
    assert board.trouble(OF_ACME, 60.0) is None
    assert board.trouble(OF_OTHER, 30.0) is None
