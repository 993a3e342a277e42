"""What to do after a provider fails.

The rule that is easy to get wrong: once the caller has seen content, another attempt would begin the answer again.
From then on a failure is final, unless the caller asked to be told of a restart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import assert_never

from router_service.domain.completion import MidstreamFailurePolicy
from router_service.domain.errors import FailureKind, ProviderError
from router_service.domain.usage import Funding

FIRST_BACKOFF_S = 0.1
LONGEST_WAIT_S = 2.0


class Among(Enum):
    """Which of the remaining candidates may be next."""

    ANY = "any"
    ELSEWHERE = "elsewhere"  # not at the same address: it does not answer, whatever the model
    LARGER_WINDOW = "larger_window"  # only one whose context window is larger helps
    OWN_MONEY = "own_money"  # not one that the operator pays: the tenant's own account is empty


@dataclass(frozen=True, slots=True)
class NextCandidate:
    """Go on with the best remaining candidate that `among` admits; give up if there is none."""

    among: Among = Among.ANY


@dataclass(frozen=True, slots=True)
class RetrySame:
    """Wait `after_s`, then try the same candidate once more."""

    after_s: float


@dataclass(frozen=True, slots=True)
class Restart:
    """Tell the caller to discard what it has, then go on with the best remaining candidate that `among` admits."""

    among: Among = Among.ANY


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Fail the request with this error."""


Decision = NextCandidate | RetrySame | Restart | GiveUp


@dataclass(frozen=True, slots=True)
class Situation:
    """Where a request stands when an attempt has failed.

    `others_left` says whether any other candidate could still be tried, `elsewhere_left` whether one of them is at
    another address; `retried_same` whether this candidate was tried again already; `luck` is a random number from 0 to
    1 that spreads retries.
    """

    content_was_sent: bool
    on_midstream_failure: MidstreamFailurePolicy
    funding: Funding | None
    others_left: bool
    elsewhere_left: bool
    retried_same: bool
    luck: float


def after(error: ProviderError, situation: Situation) -> Decision:
    """Decide whether `error` ends the request or where it goes on."""
    decision = _before_content(error, situation)
    if not situation.content_was_sent or isinstance(decision, GiveUp):
        return decision
    wants_restart = situation.on_midstream_failure is MidstreamFailurePolicy.RESTART
    if not wants_restart or not situation.others_left:
        return GiveUp()
    return Restart(decision.among if isinstance(decision, NextCandidate) else Among.ANY)


def _before_content(error: ProviderError, situation: Situation) -> Decision:  # noqa: C901, PLR0911 - a table, one return a row
    kind = error.kind
    match kind:
        case FailureKind.BAD_REQUEST | FailureKind.CONTENT_REFUSED:
            return GiveUp()
        case FailureKind.KEY_REJECTED:
            # A tenant must learn that its key is bad; going elsewhere would hide it.
            return GiveUp() if situation.funding is Funding.TENANT_KEY else _next(situation)
        case FailureKind.NO_CREDIT:
            own = situation.funding is Funding.TENANT_KEY
            return _next(situation, Among.OWN_MONEY if own else Among.ANY)
        case FailureKind.CONTEXT_TOO_LONG:
            return _next(situation, Among.LARGER_WINDOW)
        case (
            FailureKind.NOT_ALLOWED
            | FailureKind.REQUEST_TOO_LARGE
            | FailureKind.MODEL_GONE
            | FailureKind.TRANSPORT_FAILED  # may have been billed
            | FailureKind.STREAM_BROKEN
            | FailureKind.POLICY_REFUSED
        ):
            return _next(situation)
        case FailureKind.TIMED_OUT:
            # Who was silent once is not asked twice, nor for another model: each try costs the caller a whole clock.
            return _next(situation, Among.ELSEWHERE)
        case FailureKind.MODEL_MISBEHAVED:
            return _next(situation) if situation.retried_same else RetrySame(after_s=0.0)
        case FailureKind.RATE_LIMITED:
            return _next_or_same(situation, wait_s=error.retry_after_s)
        case FailureKind.OVERLOADED | FailureKind.UPSTREAM_BROKEN | FailureKind.PROTOCOL_VIOLATION:
            return _next_or_same(situation, wait_s=_backoff_s(error, situation))
        case FailureKind.CONNECT_FAILED:  # nothing was sent; but another model is at the same closed door
            if situation.elsewhere_left:
                return NextCandidate(Among.ELSEWHERE)
            return _next_or_same(replace(situation, others_left=False), wait_s=_backoff_s(error, situation))
        case _:
            assert_never(kind)


def _next(situation: Situation, among: Among = Among.ANY) -> Decision:
    is_anybody_left = situation.elsewhere_left if among is Among.ELSEWHERE else situation.others_left
    return NextCandidate(among) if is_anybody_left else GiveUp()


def _backoff_s(error: ProviderError, situation: Situation) -> float:
    return FIRST_BACKOFF_S * situation.luck if error.retry_after_s is None else error.retry_after_s


def _next_or_same(situation: Situation, *, wait_s: float | None) -> Decision:
    """The next candidate at once; without one, the same again if the wait is known and short."""
    if situation.others_left:
        return NextCandidate()
    if situation.retried_same or wait_s is None or wait_s > LONGEST_WAIT_S:
        return GiveUp()
    return RetrySame(after_s=max(0.0, wait_s))
