from __future__ import annotations

import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service_runtime.ids import quick, uuid7


def unix_ms(value: uuid.UUID) -> int:
    return value.int >> 80


def test_ids_are_of_version_7_and_each_is_greater_than_the_one_before() -> None:
    ids = [uuid7() for _ in range(5000)]

    assert {(value.version, value.variant) for value in ids} == {(7, uuid.RFC_4122)}
    assert ids == sorted(set(ids))


def test_an_id_holds_the_time_of_its_making() -> None:
    before_ms = time.time_ns() // 1_000_000
    made_ms = unix_ms(uuid7())
    after_ms = time.time_ns() // 1_000_000

    assert before_ms <= made_ms <= after_ms


@pytest.mark.parametrize("back_s", [2, 3600, 86_400])
def test_an_id_follows_a_clock_that_was_put_back(back_s: int) -> None:
    uuid7()

    def put_back() -> int:
        return time.time_ns() - back_s * 1_000_000_000

    before_ms = put_back() // 1_000_000
    ids = [uuid7(put_back) for _ in range(1000)]
    after_ms = put_back() // 1_000_000

    assert len(set(ids)) == 1000
    assert {value.version for value in ids} == {7}
    assert all(before_ms <= unix_ms(value) <= after_ms for value in ids)


@given(st.uuids())
def test_a_quick_id_is_equal_to_the_id_it_was_made_of_in_every_way(value: uuid.UUID) -> None:
    same = quick(value)

    assert isinstance(same, uuid.UUID)
    assert same == value
    assert value == same
    assert {value: "found"}[same] == "found"
    assert (str(same), repr(same), same.bytes, same.int) == (str(value), repr(value), value.bytes, value.int)
