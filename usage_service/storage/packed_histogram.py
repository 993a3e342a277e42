"""A histogram as the database sends it.

In the rollups it is one number whose digits in base 10^12 are the counts (domain/histogram.py). Postgres keeps numbers
in base 10^4, and `numeric_send` gives just these digits, three to a count: nothing is turned into text or a Decimal on
the way, which takes half the time.
"""

from __future__ import annotations

import struct

# How many digits, the power of 10^4 of the first of them, the sign, and decimals for display; all big-endian.
_HEADER = struct.Struct(">hhHH")
_PLUS = 0
_BASE = 10_000


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
    digits = (*[0] * missing, *struct.unpack_from(f">{digit_count}H", sent, _HEADER.size), *[0] * zeros)
    if not any(digits[0::3]) and not any(digits[1::3]):
        return digits[::-3]  # no bucket holds 10,000: nearly always
    return tuple(
        _BASE * (_BASE * hundreds + tens) + ones
        for hundreds, tens, ones in zip(digits[-3::-3], digits[-2::-3], digits[::-3], strict=True)
    )
