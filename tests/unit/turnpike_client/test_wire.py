from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnpike_client.wire import (
    instant,
    known_money,
    money,
    new_event_id,
    span,
    to_duration,
    to_timestamp,
    uuid7,
)


def test_an_empty_amount_is_unknown_and_not_zero() -> None:
    assert money("") is None
    assert known_money("") == 0


def test_money_keeps_every_decimal() -> None:
    assert money("0.000000000217") == Decimal("0.000000000217")


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=3650)))
def test_a_span_survives_the_round_trip(value: timedelta) -> None:
    assert span(to_duration(value)) == value


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - hypothesis adds the zone
def test_an_instant_survives_the_round_trip(value: datetime) -> None:
    assert instant(to_timestamp(value)) == value


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        to_timestamp(datetime(2026, 11, 23))  # noqa: DTZ001 - the mistake under test


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**74 - 1))
def test_an_event_id_is_a_version_7_uuid_that_holds_its_millisecond(unix_ms: int, random_bits: int) -> None:
    made = uuid7(unix_ms, random_bits)

    assert made.version == 7
    assert made.variant == "specified in RFC 4122"
    assert made.int >> 80 == unix_ms


@given(st.integers(0, 2**74 - 1), st.integers(0, 2**74 - 1))
def test_event_ids_of_different_randomness_differ(one: int, other: int) -> None:
    assert (uuid7(1, one) == uuid7(1, other)) == (one == other)


def test_new_event_ids_are_distinct() -> None:
    assert len({new_event_id() for _ in range(100)}) == 100
