"""A histogram as Postgres sends it: what `numeric_send` documents, digit by digit."""

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from usage_service.storage.packed_histogram import unpacked


def sent(number: int) -> bytes:
    """A whole number in Postgres's binary format: base 10,000, highest digit first, without zeros at either end."""
    digits = []
    power = -1
    while number:
        number, digit = divmod(number, 10_000)
        power += 1
        digits.append(digit)
    while digits and digits[0] == 0:
        digits.pop(0)
    return struct.pack(f">hhHH{len(digits)}H", len(digits), max(power, 0), 0, 0, *reversed(digits))


@given(st.lists(st.integers(0, 9) | st.integers(0, 10**12 - 1), max_size=160))
@example([])
@example([0, 0, 7])
@example([10**12 - 1] * 3)
@example([1, 9_999, 10_000])
@example([1, 0, 10_000_000])
@example([5, 10**8])
def test_the_counts_are_the_digits_in_base_a_million_million(counts: list[int]) -> None:
    found = unpacked(sent(sum(count * 10 ** (12 * bucket) for bucket, count in enumerate(counts))))

    while counts and counts[-1] == 0:
        counts.pop()
    assert found == tuple(counts)


@pytest.mark.parametrize(
    ("header", "digits"),
    [((1, 0, 0x4000, 0), (5,)), ((0, 0, 0xC000, 0), ()), ((2, 0, 0, 4), (5, 5_000))],
    ids=["negative", "no number", "a fraction"],
)
def test_what_is_no_histogram_is_refused(header: tuple[int, int, int, int], digits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no histogram"):
        unpacked(struct.pack(f">hhHH{len(digits)}H", *header, *digits))
