"""Histograms of durations: exact where they are exact, and never further off than they say."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_service.domain.histogram import (
    BUCKET_COUNT,
    LOWER_BOUNDS_MS,
    RELATIVE_ERROR_BOUND,
    add,
    bucket_of,
    count,
    percentiles_ms,
    unpacked,
)

DURATIONS_MS = st.integers(min_value=0, max_value=2**22)
MEASURED_MS = st.integers(min_value=1, max_value=2**20 - 1)


def test_a_bucket_is_an_eighth_of_a_doubling() -> None:
    assert [bucket_of(ms) for ms in (0, 1, 2, 4, 1024, 2**19, 2**20, 2**31 - 1)] == [0, 0, 8, 16, 80, 152, 159, 159]


@given(st.integers(min_value=1, max_value=2**20 - 1))
def test_a_bucket_holds_exactly_the_durations_between_its_bounds(duration_ms: int) -> None:
    bucket = bucket_of(duration_ms)

    # 2^(b/8) <= d < 2^((b+1)/8), in integers so that nothing is rounded
    assert 2**bucket <= duration_ms**8 < 2 ** (bucket + 1)


def test_the_lower_bounds_are_the_smallest_whole_milliseconds_of_their_buckets() -> None:
    for bucket, bound in enumerate(LOWER_BOUNDS_MS, start=1):
        assert bound**8 >= 2**bucket
        assert (bound - 1) ** 8 < 2**bucket


def test_absent_durations_are_not_counted_and_trailing_zeros_are_left_out() -> None:
    assert count([None, 1, None, 2]) == (1, 0, 0, 0, 0, 0, 0, 0, 1)
    assert count([None]) == ()


@given(st.lists(DURATIONS_MS), st.lists(DURATIONS_MS))
def test_the_histogram_of_two_lots_is_the_sum_of_their_histograms(one: list[int], other: list[int]) -> None:
    assert add(count(one), count(other)) == count(one + other)


@given(st.lists(MEASURED_MS, min_size=1), st.lists(st.floats(min_value=0, max_value=1), max_size=4))
def test_percentiles_are_within_the_stated_error(durations_ms: list[int], ratios: list[float]) -> None:
    exact = [sorted(durations_ms)[max(1, math.ceil(ratio * len(durations_ms))) - 1] for ratio in ratios]

    answers = percentiles_ms(count(durations_ms), ratios)

    for answer, value in zip(answers, exact, strict=True):
        assert abs(answer - value) <= RELATIVE_ERROR_BOUND * value * (1 + 1e-9)


def test_the_stated_error_is_below_the_target() -> None:
    assert RELATIVE_ERROR_BOUND < 0.044
    assert len(LOWER_BOUNDS_MS) + 1 == BUCKET_COUNT


def test_an_empty_histogram_has_no_percentiles() -> None:
    assert percentiles_ms((), (0.5, 0.99)) == percentiles_ms((0, 0), (0.5,)) == ()


def test_a_ratio_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"99\.0 is not between"):
        percentiles_ms((1,), (0.5, 99.0))


@given(st.lists(st.integers(0, 2_000_000), max_size=30))
def test_a_packed_histogram_is_its_counts_in_base_a_million_million(durations_ms: list[int]) -> None:
    packed = sum(10 ** (12 * bucket_of(duration_ms)) for duration_ms in durations_ms)

    assert unpacked(Decimal(packed)) == count(durations_ms)
