"""A histogram as the database sends it.

In the rollups it is one number whose digits in base 10^12 are the counts (domain/histogram.py). Postgres keeps numbers
in base 10^4, and `numeric_send` gives just these digits, three to a count: nothing is turned into text or a Decimal on
the way, which takes half the time.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from usage_service.domain.histogram import BUCKET_COUNT

# How many digits, the power of 10^4 of the first of them, the sign, and decimals for display; all big-endian.
_HEADER = struct.Struct(">hhHH")
_PLUS = 0
_BASE = 10_000
_DIGIT = 2  # bytes


def unpacked(sent: bytes) -> tuple[int, ...]:
    """The counts from bucket 0 on, of a histogram that `numeric_send` made. Raises ValueError for what is none."""
    digit_count, first_power, sign, _ = _HEADER.unpack_from(sent)
    if digit_count == 0 and sign == _PLUS:
        return ()
    zeros = first_power + 1 - digit_count  # at the end; they are not sent
    if sign != _PLUS or zeros < 0:
        raise ValueError(
            f"no histogram: a number with sign {sign:#x} and {digit_count} digits from 10^{4 * first_power}"
        )
    missing = -(first_power + 1) % 3  # of the highest count
    digits = bytes(_DIGIT * missing) + sent[_HEADER.size :] + bytes(_DIGIT * zeros)
    size = len(digits) // (3 * _DIGIT)
    upper = digits[0::6] + digits[1::6] + digits[2::6] + digits[3::6]  # bytes of the upper two of three digits
    if upper.count(0) == len(upper):
        return _ones(size).unpack(digits)[::-1]  # no bucket holds 10,000: nearly always
    numbers = struct.unpack(f">{3 * size}H", digits)
    return tuple(
        _BASE * (_BASE * hundreds + tens) + ones
        for hundreds, tens, ones in zip(numbers[-3::-3], numbers[-2::-3], numbers[::-3], strict=True)
    )


@lru_cache(maxsize=BUCKET_COUNT)
def _ones(size: int) -> struct.Struct:
    """Reads the lowest digits of `size` counts."""
    return struct.Struct(">" + "4xH" * size)
