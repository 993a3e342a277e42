"""What a provider's response headers say of the key's own limits, and of when to come back.

Three dialects: Groq's and OpenAI's `x-ratelimit-*-requests` and `-tokens` with Go durations ("1m47.5854s"), and
OpenRouter's bare `x-ratelimit-*` whose reset is a Unix time in milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Final

from router_service.domain.completion import QuotaHeaders

_DURATION: Final = re.compile(
    r"(?:(\d{1,9})h)?(?:(\d{1,9})m(?!s))?(?:(\d{1,9}(?:\.\d{1,9})?)s)?(?:(\d{1,9}(?:\.\d{1,9})?)ms)?"
)
_MAX_COUNT: Final = 1 << 53


def parse_quota(headers: Mapping[str, str], *, now_unix_s: float) -> QuotaHeaders | None:
    """The limits that `headers` state, or None when they state none. Header names are matched in lower case."""
    if not any(name.startswith("x-ratelimit-") for name in headers):
        return None
    quota = QuotaHeaders(
        remaining_requests=_count(headers, "x-ratelimit-remaining-requests", "x-ratelimit-remaining"),
        remaining_tokens=_count(headers, "x-ratelimit-remaining-tokens"),
        limit_requests=_count(headers, "x-ratelimit-limit-requests", "x-ratelimit-limit"),
        limit_tokens=_count(headers, "x-ratelimit-limit-tokens"),
        reset_requests_s=_reset_s(
            headers.get("x-ratelimit-reset-requests") or headers.get("x-ratelimit-reset"), now_unix_s
        ),
        reset_tokens_s=_reset_s(headers.get("x-ratelimit-reset-tokens"), now_unix_s),
    )
    return None if quota == QuotaHeaders() else quota


def parse_retry_after_s(headers: Mapping[str, str], *, now_unix_s: float) -> float | None:
    """The wait that the provider asks for in seconds, never negative and not capped; None when it asks for none."""
    in_ms = _number(headers.get("retry-after-ms"))
    if in_ms is not None:
        return max(0.0, in_ms / 1000)
    text = headers.get("retry-after")
    if text is None:
        return None
    in_s = _number(text)
    if in_s is not None:
        return max(0.0, in_s)
    try:
        at = parsedate_to_datetime(text[:100])
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)  # HTTP dates are UTC even if they do not say so
        return max(0.0, at.timestamp() - now_unix_s)
    except (ValueError, OverflowError, OSError):
        return parse_go_duration_s(text)


def parse_go_duration_s(text: str) -> float | None:
    """Seconds of a duration as Go prints it: "2m59.56s", "12ms", "1h0m0s", "0s". None when it is none."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        return None
    hours, minutes, seconds, milliseconds = (float(group) if group else 0.0 for group in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def _reset_s(text: str | None, now_unix_s: float) -> float | None:
    if text is None:
        return None
    number = _number(text)
    if number is None:
        return parse_go_duration_s(text)
    if number > 1e12:  # a Unix time in milliseconds
        return max(0.0, number / 1000 - now_unix_s)
    if number > 1e9:  # a Unix time in seconds
        return max(0.0, number - now_unix_s)
    return max(0.0, number)


def _count(headers: Mapping[str, str], *names: str) -> int | None:
    for name in names:
        number = _number(headers.get(name))
        if number is not None and 0 <= number <= _MAX_COUNT:
            return int(number)
    return None


def _number(text: str | None) -> float | None:
    if text is None or len(text) > 32:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None
