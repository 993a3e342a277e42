from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_service.domain.completion import QuotaHeaders
from router_service.providers.quota_headers import parse_go_duration_s, parse_quota, parse_retry_after_s

NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5.289s", 5.289),
        ("1m47.5854s", 107.5854),
        ("6m0s", 360.0),
        ("12ms", 0.012),
        ("0s", 0.0),
        ("2m59.56s", 179.56),
        ("1h0m0s", 3600.0),
        ("", None),
        ("soon", None),
        ("5", None),
        ("-5s", None),
    ],
)
def test_durations_of_go_are_read(text: str, seconds: float | None) -> None:
    assert parse_go_duration_s(text) == (None if seconds is None else pytest.approx(seconds))


def test_the_limits_of_groq_are_read() -> None:
    headers = {
        "x-ratelimit-limit-requests": "14400",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-requests": "14370",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-requests": "2m59.56s",
        "x-ratelimit-reset-tokens": "7.66s",
    }

    quota = parse_quota(headers, now_unix_s=NOW)

    assert quota == QuotaHeaders(14370, 0, 14400, 6000, 179.56, 7.66)


def test_the_reset_of_openrouter_is_a_time_in_milliseconds() -> None:
    headers = {
        "x-ratelimit-limit": "20",
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": str(int((NOW + 30) * 1000)),
    }

    quota = parse_quota(headers, now_unix_s=NOW)

    assert quota == QuotaHeaders(remaining_requests=0, limit_requests=20, reset_requests_s=30.0)


def test_no_limits_are_no_quota() -> None:
    assert parse_quota({"content-type": "x", "x-ratelimit-limit-requests": "many"}, now_unix_s=NOW) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "1000000000"}, 1e9),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Mon, 21 Sep 2026 14:14:40 GMT"}, 80.0),
        ({"retry-after": "Sun, 01 Jan 2006 00:00:00 GMT"}, 0.0),
        ({"retry-after": "1m2s"}, 62.0),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_the_wish_of_the_provider_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert parse_retry_after_s(headers, now_unix_s=NOW) == seconds


@given(st.text(max_size=80))
def test_no_text_in_a_header_breaks_anything(text: str) -> None:
    names = ["retry-after", "retry-after-ms", "x-ratelimit-reset-tokens", "x-ratelimit-remaining-requests"]
    headers = dict.fromkeys(names, text)

    wait_s = parse_retry_after_s(headers, now_unix_s=NOW)
    parse_quota(headers, now_unix_s=NOW)

    assert wait_s is None or wait_s >= 0
