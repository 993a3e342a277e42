from __future__ import annotations

from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from router_service.domain.usage import AttemptOpened, AttemptSettled, AttemptStatus, Funding, TokenUsage, UsageSource
from router_service.usage.encode import interrupted_event, opened_fields, record_usage_request, settled_event
from tests.support.attempts import opened_attempt, settled_attempt
from turnpike.usage.v1 import token_usage_pb2, usage_event_pb2, usage_service_pb2

EVENT_ID = UUID("018f3f2e-0000-7000-8000-000000000001")


def interrupted(opened: AttemptOpened) -> usage_event_pb2.UsageEvent:
    """What the ledger reads of an attempt that died with the router."""
    return usage_event_pb2.UsageEvent.FromString(
        interrupted_event(opened_fields(opened), opened.estimated_input_tokens)
    )


def ended(settled: AttemptSettled) -> usage_event_pb2.UsageEvent:
    """What the ledger reads of an attempt that ended."""
    return usage_event_pb2.UsageEvent.FromString(settled_event(opened_fields(settled.opened), settled))


texts = st.text(st.characters(codec="utf-8"), max_size=40)


@pytest.mark.parametrize("status", AttemptStatus)
def test_every_status_of_an_attempt_has_a_name_on_the_wire(status: AttemptStatus) -> None:
    event = ended(replace(settled_attempt(EVENT_ID), status=status))

    assert usage_event_pb2.UsageStatus.Name(event.status) == f"USAGE_STATUS_{status.name}"


@pytest.mark.parametrize("source", UsageSource)
def test_every_source_of_counts_has_a_name_on_the_wire(source: UsageSource) -> None:
    event = ended(replace(settled_attempt(EVENT_ID), usage_source=source))

    assert token_usage_pb2.TokenUsageSource.Name(event.usage_source) == f"TOKEN_USAGE_SOURCE_{source.name}"


@pytest.mark.parametrize("funding", Funding)
def test_who_paid_has_a_name_on_the_wire(funding: Funding) -> None:
    event = interrupted(replace(opened_attempt(EVENT_ID), funding=funding))

    assert token_usage_pb2.Funding.Name(event.funding) == f"FUNDING_{funding.name}"


def test_a_settled_attempt_keeps_everything_that_is_known_of_it() -> None:
    attempt = replace(
        settled_attempt(EVENT_ID),
        model="groq-model-v2",
        usage=TokenUsage(1, 2, 3, 4, 5),
        latency_s=1.25,
        time_to_first_token_s=0.5,
        error_class="overloaded",
        error_message="the provider is overloaded",
        absorbed=True,
        reported_cost_usd=Decimal("1E-7"),
    )

    event = ended(attempt)

    assert (event.model, event.requested_model) == ("groq-model-v2", "groq-model")
    assert event.token_usage == token_usage_pb2.TokenUsage(
        input_tokens=1, output_tokens=2, cached_read_tokens=3, cached_write_tokens=4, reasoning_tokens=5
    )
    assert event.latency.ToMilliseconds() == 1250
    assert event.time_to_first_token.ToMilliseconds() == 500
    assert (event.error_class, event.absorbed) == ("overloaded", True)
    assert event.provider_reported_cost_usd == "0.000000100000"
    assert dict(event.labels) == {"team": "red"}


def test_what_is_not_known_is_absent_and_not_zero() -> None:
    event = ended(replace(settled_attempt(EVENT_ID), usage=None, time_to_first_token_s=None))

    assert not event.HasField("token_usage")
    assert not event.HasField("time_to_first_token")
    assert event.provider_reported_cost_usd == ""
    assert event.requested_model == ""


def test_what_is_known_to_be_zero_is_not_absent() -> None:
    event = ended(replace(settled_attempt(EVENT_ID), usage=TokenUsage(), latency_s=0.0, time_to_first_token_s=0.0))

    assert event.HasField("token_usage")
    assert event.HasField("latency")
    assert event.HasField("time_to_first_token")


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "-1", "1E12"])
def test_what_is_no_amount_of_money_is_not_passed_on(amount: str) -> None:
    event = ended(replace(settled_attempt(EVENT_ID), reported_cost_usd=Decimal(amount)))

    assert event.provider_reported_cost_usd == ""


@given(model=st.text(max_size=400), message=st.text(max_size=900), decision=texts)
def test_u2_no_text_of_a_provider_makes_an_event_that_the_ledger_refuses(
    model: str, message: str, decision: str
) -> None:
    parsed = ended(
        replace(
            settled_attempt(EVENT_ID),
            opened=replace(opened_attempt(EVENT_ID), decision=decision),
            model=model,
            error_message=message,
        )
    )

    assert "\x00" not in parsed.model + parsed.error_message
    assert len(parsed.model) <= 200
    assert len(parsed.error_message) <= 500
    assert parsed.model != ""


def test_what_a_caller_sent_is_cut_to_what_the_ledger_takes() -> None:
    opened = replace(
        opened_attempt(EVENT_ID),
        user_id="u\x00" * 300,
        endpoint="e" * 300,
        labels={f"{number:02}" + "k" * 70: "v" * 300 for number in range(20)},
        decision="d" * 2001,
    )

    event = interrupted(opened)

    assert (len(event.user_id), len(event.endpoint)) == (200, 200)
    assert "\x00" not in event.user_id
    assert len(event.labels) == 16
    assert {len(key) for key in event.labels} == {64}
    assert {len(value) for value in event.labels.values()} == {256}
    assert event.decision == ""


@given(
    router_id=texts,
    epoch=texts,
    sequences=st.lists(st.integers(1, 2**63 - 1), max_size=5),
    estimated_input_tokens=st.integers(0, 2**40),
)
def test_a_request_made_of_bytes_is_the_request_made_of_messages(
    router_id: str, epoch: str, sequences: list[int], estimated_input_tokens: int
) -> None:
    frozen = interrupted_event(opened_fields(opened_attempt(EVENT_ID)), estimated_input_tokens)
    event = usage_event_pb2.UsageEvent.FromString(frozen)

    content = record_usage_request(router_id, epoch, [(frozen, sequence) for sequence in sequences])

    expected = usage_service_pb2.RecordUsageRequest(router_id=router_id, epoch=epoch)
    for sequence in sequences:
        numbered = expected.events.add()
        numbered.CopyFrom(event)
        numbered.sequence = sequence
    assert usage_service_pb2.RecordUsageRequest.FromString(content) == expected
