from __future__ import annotations

import pytest

from router_service.domain.errors import FailureKind
from usage_service.domain.failure_cause import FailureCause, cause_of
from usage_service.domain.report import FailureKey
from usage_service.domain.usage_event import AttemptStatus


@pytest.mark.parametrize("kind", FailureKind)
def test_every_class_of_the_router_has_a_cause(kind: FailureKind) -> None:
    assert cause_of(FailureKey("groq", "m", AttemptStatus.ERROR, kind.value)) is not FailureCause.UNKNOWN


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (AttemptStatus.RATE_LIMIT, FailureCause.LIMIT),
        (AttemptStatus.CANCELLED, FailureCause.CALLER),
        (AttemptStatus.INTERRUPTED, FailureCause.TURNPIKE),
    ],
)
def test_the_way_an_attempt_ended_tells_more_than_its_class(status: AttemptStatus, cause: FailureCause) -> None:
    assert cause_of(FailureKey("groq", "m", status, "timed_out")) is cause


def test_what_turnpike_refused_for_another_reason_than_a_limit_is_its_own() -> None:
    assert cause_of(FailureKey("turnpike", "m", AttemptStatus.ERROR, "journal_full")) is FailureCause.TURNPIKE


def test_a_class_of_tomorrow_is_not_guessed_at() -> None:
    assert cause_of(FailureKey("groq", "m", AttemptStatus.ERROR, "bored")) is FailureCause.UNKNOWN
