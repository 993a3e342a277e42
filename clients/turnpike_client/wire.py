"""Scalars of the contract in Python's own terms: money as Decimal, spans as timedelta, instants as aware datetimes."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


def money(text: str) -> Decimal | None:
    """US dollars; None for the empty text, which means that the amount is unknown."""
    return Decimal(text) if text else None


def known_money(text: str) -> Decimal:
    """US dollars of a sum, where the empty text means that nothing was summed."""
    return Decimal(text) if text else Decimal(0)


def span(message: Duration) -> timedelta:
    """A duration to the microsecond."""
    return timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)


def to_duration(value: timedelta) -> Duration:
    """A duration for the wire."""
    message = Duration()
    message.FromTimedelta(value)
    return message


def instant(message: Timestamp) -> datetime:
    """A point in time, in UTC, to the microsecond."""
    return datetime.fromtimestamp(message.seconds, UTC) + timedelta(microseconds=message.nanos // 1000)


def to_timestamp(value: datetime) -> Timestamp:
    """A point in time for the wire. ValueError for a time without zone: elsewhere it would be another instant."""
    if value.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone; add one, such as datetime.UTC")
    message = Timestamp()
    message.FromDatetime(value)
    return message


def uuid7(unix_ms: int, random_bits: int) -> UUID:
    """A version 7 UUID: 48 bits of milliseconds, then 74 of the given random bits."""
    rand_a = (random_bits >> 62) & 0xFFF
    rand_b = random_bits & ((1 << 62) - 1)
    return UUID(int=(unix_ms & ((1 << 48) - 1)) << 80 | 0x7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b)


def new_event_id() -> UUID:
    """A fresh id for a usage event of this moment."""
    return uuid7(time.time_ns() // 1_000_000, secrets.randbits(74))
