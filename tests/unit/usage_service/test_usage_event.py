"""What the ledger accepts, field by field."""

import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.usage_events import event_id_at, reported_event
from usage_service.domain.pricing import TokenCounts
from usage_service.domain.usage_event import EventRules, UsageEvent, Violation, validate

NOW = datetime(2026, 11, 20, 12, 30, 15, 250_000, tzinfo=UTC)
RULES = EventRules()
ACCEPTED = RULES.at(NOW)


def violated(**overrides: Any) -> list[str]:
    """The fields that are found bad when these are overridden."""
    verdict = validate(reported_event(NOW, **overrides), ACCEPTED)
    assert not isinstance(verdict, UsageEvent)
    return [violation.field for violation in verdict]


def accepted(**overrides: Any) -> UsageEvent:
    verdict = validate(reported_event(NOW, **overrides), ACCEPTED)
    assert isinstance(verdict, UsageEvent), verdict
    return verdict


def test_the_usage_time_is_the_millisecond_in_the_id() -> None:
    event = accepted()

    assert event.used_at == NOW
    assert event.event_id.int >> 80 == round(NOW.timestamp() * 1000)


@pytest.mark.parametrize("age", [timedelta(days=35), timedelta(0), timedelta(minutes=-5)])
def test_an_event_inside_the_window_is_accepted(age: timedelta) -> None:
    assert accepted(event_id=str(event_id_at(NOW - age))).used_at == NOW - age


@pytest.mark.parametrize("age", [timedelta(days=35, milliseconds=1), timedelta(minutes=-5, milliseconds=-1)])
def test_an_event_outside_the_window_is_refused(age: timedelta) -> None:
    assert violated(event_id=str(event_id_at(NOW - age))) == ["event_id"]


def test_the_last_moment_that_48_bits_can_say_is_refused_like_any_other() -> None:
    assert violated(event_id="ffffffff-ffff-7fff-bfff-ffffffffffff") == ["event_id"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "123e4567-e89b-42d3-a456-426614174000",  # version 4
        str(UUID(int=event_id_at(NOW).int & ~(0b11 << 62))),  # variant of another standard
        "{" + str(event_id_at(NOW)) + "}",
        "urn:uuid:" + str(event_id_at(NOW)),
        event_id_at(NOW).hex,
        str(event_id_at(NOW)).replace("-", "_"),
        "0190163d-8694-739b-aea5-966c26f8a_91",  # int() would take the underscore
    ],
)
def test_an_event_id_that_is_not_a_plain_uuid_v7_is_refused(text: str) -> None:
    assert violated(event_id=text) == ["event_id"]


def test_ids_in_capitals_are_the_same_ids() -> None:
    lower = accepted()

    assert accepted(event_id=lower.reported.event_id.upper()).event_id == lower.event_id


@pytest.mark.parametrize("field", ["tenant_id", "request_id"])
def test_other_ids_may_be_any_uuid_and_nothing_else(field: str) -> None:
    assert violated(**{field: "acme"}) == [field]
    accepted(**{field: "123e4567-e89b-42d3-a456-426614174000"})


def test_a_tenants_id_without_an_end_is_refused_and_not_kept() -> None:
    """Thousands of them, each as long as a message may be, would be all the memory there is."""
    endless = "x" * 1_000_000
    event = reported_event(NOW, tenant_id=endless)
    references = sys.getrefcount(endless)

    assert isinstance(validate(event, ACCEPTED), tuple)
    assert sys.getrefcount(endless) == references


@pytest.mark.parametrize(
    "name", ["input_tokens", "output_tokens", "cached_read_tokens", "cached_write_tokens", "reasoning_tokens"]
)
def test_tokens_lie_between_zero_and_a_trillion(name: str) -> None:
    accepted(tokens=TokenCounts(**{name: 10**12}))
    assert violated(tokens=TokenCounts(**{name: 10**12 + 1})) == [f"token_usage.{name}"]
    assert violated(tokens=TokenCounts(**{name: -1})) == [f"token_usage.{name}"]


@pytest.mark.parametrize(
    ("field", "most"),
    [
        ("model", 200),
        ("requested_model", 200),
        ("endpoint", 200),
        ("user_id", 200),
        ("error_class", 200),
        ("error_message", 500),
        ("task_type", 200),
        ("decision", 2000),
    ],
)
def test_texts_have_a_longest_length_and_no_nul(field: str, most: int) -> None:
    accepted(**{field: "ü" * most})
    assert violated(**{field: "x" * (most + 1)}) == [field]
    assert violated(**{field: "a\x00b"}) == [field]


def test_labels_are_bounded_in_number_key_and_value() -> None:
    accepted(labels={f"{n:064}": "v" * 256 for n in range(16)})
    assert violated(labels={str(n): "" for n in range(17)}) == ["labels"]
    assert violated(labels={"k" * 65: ""}) == [f"labels['{'k' * 64}']"]
    assert violated(labels={"k": "v" * 257}) == ["labels['k']"]
    assert violated(labels={"k": "\x00"}) == ["labels['k']"]
    assert violated(labels={"": "v"}) == ["labels"]


def test_a_provider_must_be_known() -> None:
    assert violated(provider="acme") == ["provider"]
    rules = EventRules(providers=RULES.providers | {"acme"})
    assert isinstance(validate(reported_event(NOW, provider="acme"), rules.at(NOW)), UsageEvent)


def test_a_model_is_needed_unless_turnpike_itself_refused() -> None:
    assert violated(model="") == ["model"]
    accepted(model="", provider="turnpike")


@pytest.mark.parametrize("field", ["status", "usage_source", "funding"])
def test_an_enum_value_that_is_missing_or_unknown_is_refused(field: str) -> None:
    assert violated(**{field: None}) == [field]


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0.000217", "0.000217000000"),
        ("0", "0.000000000000"),
        ("1E-7", "0.000000100000"),
        ("0.0000000000005", "0.000000000000"),  # half to even at 12 decimals
        ("999999999999.999999999999", "999999999999.999999999999"),
    ],
)
def test_a_providers_own_cost_is_read_exactly(text: str, amount: str) -> None:
    assert accepted(provider_reported_cost_usd=text).provider_cost_usd == Decimal(amount)


@pytest.mark.parametrize("text", ["-1", "NaN", "Infinity", "1,5", "$1", "1e13", "9" * 31, "٣", " 1", "1e"])
def test_a_providers_own_cost_must_be_a_plain_amount(text: str) -> None:
    assert violated(provider_reported_cost_usd=text) == ["provider_reported_cost_usd"]


def test_no_cost_of_the_providers_own_is_none_and_not_zero() -> None:
    assert accepted(provider_reported_cost_usd="").provider_cost_usd is None


def test_durations_may_be_absent_and_are_bounded() -> None:
    accepted(latency_ms=None, first_token_ms=None)
    assert violated(latency_ms=-1) == ["latency"]
    assert violated(first_token_ms=8 * 24 * 3_600_000) == ["time_to_first_token"]


def test_everything_that_is_wrong_is_named_at_once() -> None:
    assert violated(event_id="", attempt=0, provider="acme", status=None) == [
        "event_id",
        "provider",
        "attempt",
        "status",
    ]


@given(st.text(max_size=300), st.integers(), st.dictionaries(st.text(max_size=80), st.text(max_size=300), max_size=20))
def test_whatever_comes_is_either_accepted_or_explained(text: str, number: int, labels: dict[str, str]) -> None:
    verdict = validate(
        reported_event(
            NOW,
            event_id=text,
            tenant_id=text,
            provider=text,
            model=text,
            attempt=number,
            sequence=number,
            labels=labels,
            provider_reported_cost_usd=text,
        ),
        ACCEPTED,
    )

    assert not isinstance(verdict, UsageEvent)
    assert all(isinstance(violation, Violation) and violation.description for violation in verdict)
