"""Durations as histograms on a fixed base-2 scale: merging is addition, so rollups of any grain agree exactly.

Each doubling is cut into 8 buckets, so that a bucket is 2^(1/8) = 1.09 times as wide as the one before and the middle
of a bucket is at most 4.4 % off. 160 buckets reach from 1 ms to 2^20 ms, about 17 minutes; what is outside is counted
in the first or the last bucket. A histogram is a sequence of counts by bucket; trailing zeros are left out.

The database counts in the same buckets (`hist_bucket`) and keeps a histogram as one number, see `unpacked`.
"""

from __future__ import annotations

import math
import operator
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import accumulate

BUCKETS_PER_DOUBLING = 8
BUCKET_COUNT = 160
_DIGITS_PER_BUCKET = 12
# The value that is equally far off, in percent, from both bounds l and u = 2^(1/8) l is 2lu / (l + u); its error
# is (u - l) / (u + l).
_GROWTH = math.pow(2.0, 1 / BUCKETS_PER_DOUBLING)
RELATIVE_ERROR_BOUND = (_GROWTH - 1) / (_GROWTH + 1)

# Durations are whole milliseconds, so the lower bound of a bucket is exact as the smallest integer in it or above it.
# The database holds the same integers: no logarithm, whose last digit could differ, decides a bucket.
LOWER_BOUNDS_MS = tuple(math.ceil(2.0 ** (bucket / BUCKETS_PER_DOUBLING)) for bucket in range(1, BUCKET_COUNT))


def bucket_of(duration_ms: int) -> int:
    """The bucket, 0 to 159, of a duration in whole milliseconds."""
    return bisect_right(LOWER_BOUNDS_MS, duration_ms)


def bounds_ms(bucket: int) -> tuple[int, int | None]:
    """The durations in whole milliseconds that a bucket holds: from the first on, below the second; None has no end."""
    lower = LOWER_BOUNDS_MS[bucket - 1] if bucket else 0
    return lower, LOWER_BOUNDS_MS[bucket] if bucket < len(LOWER_BOUNDS_MS) else None


def count(durations_ms: Iterable[int | None]) -> tuple[int, ...]:
    """The histogram of durations; None, an absent duration, is not counted."""
    counts = [0] * BUCKET_COUNT
    for duration_ms in durations_ms:
        if duration_ms is not None:
            counts[bucket_of(duration_ms)] += 1
    while counts and counts[-1] == 0:
        counts.pop()
    return tuple(counts)


def add(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """The histogram of both together."""
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    return (*map(operator.add, longer, shorter), *longer[len(shorter) :])


def unpacked(packed: Decimal) -> tuple[int, ...]:
    """The histogram that the database keeps as one number: its digits in base 10^12 are the counts, lowest first."""
    if not packed:
        return ()
    digits = format(packed, "f").encode()
    # Nothing lasts no time at all: the buckets below the first count are half of them, and need not be read.
    empty = (len(digits) - len(digits.rstrip(b"0"))) // _DIGITS_PER_BUCKET
    filled = -(-len(digits) // _DIGITS_PER_BUCKET) - empty
    # Cut in one call, they take half the time that slices do.
    counts = struct.unpack_from(f"{_DIGITS_PER_BUCKET}s" * filled, digits.zfill((filled + empty) * _DIGITS_PER_BUCKET))
    return (*[0] * empty, *map(int, reversed(counts)))


def percentiles_ms(histogram: Sequence[int], ratios: Sequence[float]) -> tuple[float, ...]:
    """For each of `ratios` (0 to 1) the duration in ms below or at which that part of all counts lies.

    Within `RELATIVE_ERROR_BOUND` of the exact one. Empty for an empty histogram, whatever the ratios.
    """
    for ratio in ratios:
        if not 0.0 <= ratio <= 1.0:
            raise ValueError(f"ratio {ratio} is not between 0 and 1")
    seen = list(accumulate(histogram))
    if not seen or seen[-1] == 0:
        return ()
    return tuple([_MIDDLES_MS[bisect_left(seen, max(1, math.ceil(ratio * seen[-1])))] for ratio in ratios])


def _middle_ms(bucket: int) -> float:
    lower = math.pow(2.0, bucket / BUCKETS_PER_DOUBLING)
    upper = lower * _GROWTH
    return 2 * lower * upper / (lower + upper)


_MIDDLES_MS = tuple(_middle_ms(bucket) for bucket in range(BUCKET_COUNT))
