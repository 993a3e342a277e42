"""JSON from strangers: whatever the bytes are, the answer is a value or `NotJson`, and it costs bounded work.

The fast decoder is msgspec. What it refuses but vendors send (NaN, lone surrogates, invalid UTF-8) is read by the
standard library with the harmful parts replaced: what cannot be a number becomes None, what cannot be text becomes "?".
"""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from math import isfinite
from typing import Any, Final

import msgspec

MAX_TOKENS: Final = 1_000_000_000  # a larger count is no count
_MAX_COST_USD: Final = Decimal(1_000_000)
_MAX_NUMBER_CHARACTERS: Final = 32


MAX_ODD_BYTES: Final = 128 << 10  # of what has to be read generously, which takes 2 us for each byte of junk


class NotJson(ValueError):
    """The bytes are no JSON, however generously read."""


def decode_loosely(data: bytes) -> Any:
    """The JSON value in `data`. Raises `NotJson`, without quoting the data, also where that is too long."""
    if len(data) > MAX_ODD_BYTES:
        raise NotJson("too long")
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # a stricter decoder's opinion; the generous one below decides
    try:
        return json.loads(data.decode("utf-8", "replace"), parse_int=_int, parse_float=_float, parse_constant=_nothing)
    except (ValueError, RecursionError):
        raise NotJson("not JSON") from None


def text_of(value: object) -> str:
    """`value` when it is text, made fit for UTF-8; else an empty text."""
    if not isinstance(value, str):
        return ""
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "replace").decode()  # lone surrogates would break every encoder further on
    return value


def label_of(value: object) -> str:
    """`value` when it is text, for a short field of ours: printable characters only, at most 200."""
    text = text_of(value)[:200]
    return text if text.isprintable() else "".join(character for character in text if character.isprintable())


def count_of(value: object) -> int | None:
    """`value` as a number of tokens, also when it came as a float or as text; None when it is no credible count."""
    if value is None:  # as nearly always, unless it is a plain number
        return None
    number = value if type(value) is int else _finite(value)
    return int(number) if number is not None and 0 <= number <= MAX_TOKENS else None


def usd_of(value: object) -> Decimal | None:
    """`value` as an amount in US dollars, or None when it is no credible one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    text = str(value) if not isinstance(value, int) or abs(value) < MAX_TOKENS else ""
    if not text or len(text) > _MAX_NUMBER_CHARACTERS:
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and 0 <= amount <= _MAX_COST_USD else None


def seconds_of(value: object) -> float | None:
    """`value` as a span in seconds, never negative, or None."""
    number = _finite(value)
    return max(0.0, number) if number is not None else None


def _finite(value: object) -> float | None:
    if isinstance(value, str):
        if len(value) > _MAX_NUMBER_CHARACTERS:
            return None
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if isfinite(number) else None


def _int(text: str) -> int | None:
    return int(text) if len(text) <= _MAX_NUMBER_CHARACTERS else None


def _float(text: str) -> float | None:
    return float(text) if len(text) <= 2 * _MAX_NUMBER_CHARACTERS else None


def _nothing(_: str) -> None:
    return None
