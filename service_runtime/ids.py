"""UUIDv7: ids that sort by the time of their making."""

from __future__ import annotations

import uuid

import uuid_utils
import uuid_utils.compat

_UNIX_MS_SHIFT = 80


def uuid7() -> uuid.UUID:
    """A new id. Within this process each is greater than the one before, also within a millisecond."""
    return uuid_utils.compat.uuid7()


def uuid7_text() -> str:
    """A new id for whoever only writes it down, without the object in between."""
    return str(uuid_utils.uuid7())


def is_uuid7(value: uuid.UUID) -> bool:
    """Whether `value` is of the standard variant and version 7, and so holds a time."""
    return value.variant == uuid.RFC_4122 and value.version == 7


def uuid7_unix_ms(value: uuid.UUID) -> int:
    """The milliseconds since 1970 inside `value`. Raises ValueError when it is not a UUIDv7."""
    if not is_uuid7(value):
        raise ValueError(f"{value} is not a UUIDv7, it holds no time")
    return value.int >> _UNIX_MS_SHIFT
