from __future__ import annotations

from enum import StrEnum

import pytest

from turnpike.router.v1 import completion_pb2
from turnpike.usage.v1 import quota_service_pb2, token_usage_pb2
from turnpike_client.enums import (
    FinishReason,
    Funding,
    LimitLevel,
    PricingState,
    RecordDisposition,
    Role,
    UsageSource,
    choice_types,
    from_wire,
    numbers_of,
    to_wire,
)

ANSWERED = [
    choices
    for choices in choice_types()
    if choices.__name__ not in {"Role", "TaskType", "ToolChoiceMode", "ResponseKind", "MidstreamFailure"}
]


@pytest.mark.parametrize("choices", choice_types())
def test_every_number_of_the_contract_has_a_choice_and_survives_the_round_trip(choices: type[StrEnum]) -> None:
    numbers = {number for number in numbers_of(choices).values() if number != 0}

    assert {to_wire(from_wire(choices, number)) for number in numbers} == numbers


@pytest.mark.parametrize("choices", ANSWERED)
def test_a_number_that_a_newer_service_invented_does_not_break_the_client(choices: type[StrEnum]) -> None:
    assert from_wire(choices, 99) in choices


def test_what_is_unknown_is_taken_for_the_worst() -> None:
    assert from_wire(LimitLevel, quota_service_pb2.LIMIT_LEVEL_UNSPECIFIED) is LimitLevel.CRITICAL
    assert from_wire(PricingState, token_usage_pb2.PRICING_STATE_UNSPECIFIED) is PricingState.UNPRICED
    assert from_wire(UsageSource, token_usage_pb2.TOKEN_USAGE_SOURCE_UNSPECIFIED) is UsageSource.NONE
    assert from_wire(RecordDisposition, 0) is RecordDisposition.RETRY
    assert from_wire(FinishReason, completion_pb2.FINISH_REASON_UNSPECIFIED) is FinishReason.UNKNOWN
    assert from_wire(Funding, 0) is Funding.NONE


def test_a_choice_that_only_callers_make_has_no_fallback() -> None:
    with pytest.raises(ValueError, match="99 is no Role"):
        from_wire(Role, 99)
