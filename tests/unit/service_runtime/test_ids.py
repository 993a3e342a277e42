from __future__ import annotations

import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service_runtime.ids import is_uuid7, quick, uuid7, uuid7_unix_ms


def test_ids_are_of_version_7_and_each_is_greater_than_the_one_before() -> None:
    ids = [uuid7() for _ in range(5000)]

    assert all(is_uuid7(value) for value in ids)
    assert ids == sorted(set(ids))


def test_an_id_holds_the_time_of_its_making() -> None:
    before_ms = time.time_ns() // 1_000_000
    made_ms = uuid7_unix_ms(uuid7())
    after_ms = time.time_ns() // 1_000_000

    assert before_ms <= made_ms <= after_ms


@given(
    unix_ms=st.integers(min_value=0, max_value=(1 << 48) - 1), rest=st.integers(min_value=0, max_value=(1 << 62) - 1)
)
def test_the_time_inside_any_version_7_id_is_read(unix_ms: int, rest: int) -> None:
    value = uuid.UUID(int=unix_ms << 80 | 7 << 76 | 0b10 << 62 | rest)

    assert uuid7_unix_ms(value) == unix_ms


@pytest.mark.parametrize("value", [uuid.UUID(int=0), uuid.uuid4(), uuid.UUID(int=7 << 76)])
def test_other_ids_hold_no_time(value: uuid.UUID) -> None:
    with pytest.raises(ValueError, match="is not a UUIDv7"):
        uuid7_unix_ms(value)


@given(st.uuids())
def test_a_quick_id_is_equal_to_the_id_it_was_made_of_in_every_way(value: uuid.UUID) -> None:
    same = quick(value)

    assert isinstance(same, uuid.UUID)
    assert same == value
    assert value == same
    assert {value: "found"}[same] == "found"
    assert (str(same), repr(same), same.bytes, same.int) == (str(value), repr(value), value.bytes, value.int)
