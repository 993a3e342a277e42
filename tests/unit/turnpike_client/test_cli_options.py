from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest

from turnpike_client.cli.options import Pair, read_moment
from turnpike_client.cli.session import target

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("24h", timedelta(hours=24)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(weeks=2)),
    ],
)
def test_an_age_counts_back_from_now(text: str, age: timedelta) -> None:
    assert read_moment(text, NOW) == NOW - age


def test_a_time_without_zone_is_in_utc() -> None:
    assert read_moment("2026-11-01", NOW) == datetime(2026, 11, 1, tzinfo=UTC)
    assert read_moment("2026-11-01T10:00+02:00", NOW) == datetime(2026, 11, 1, 8, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "yesterday", "-5h", "5", "5y", "9999999d"])
def test_what_means_no_time_is_none(text: str) -> None:
    assert read_moment(text, NOW) is None


def test_an_age_before_the_beginning_of_time_is_none() -> None:
    assert read_moment("999999w", NOW) is None


def test_a_pair_may_have_an_empty_value_but_no_empty_name() -> None:
    assert Pair().convert("groq=", None, None) == ("groq", "")
    assert Pair().convert("a = b=c", None, None) == ("a", "b=c")
    for text in ("groq", "=x"):
        with pytest.raises(click.BadParameter, match="must be NAME=VALUE"):
            Pair().convert(text, None, None)


@pytest.mark.parametrize(
    ("explicit", "environ", "expected"),
    [
        ("host:1", {"ROUTER_PORT": "7"}, "host:1"),
        (None, {"ROUTER_PORT": "7"}, "127.0.0.1:7"),
        (None, {"ROUTER_PORT": ""}, "fallback:9"),
        (None, {}, "fallback:9"),
    ],
)
def test_the_nearest_word_decides_where_a_service_is(
    explicit: str | None, environ: dict[str, str], expected: str
) -> None:
    assert target(explicit, environ, "ROUTER_PORT", "fallback:9") == expected


@pytest.mark.parametrize("port", ["x", "0", "70000", "-1"])
def test_a_port_that_is_none_is_a_usage_error(port: str) -> None:
    with pytest.raises(click.UsageError, match="ROUTER_PORT"):
        target(None, {"ROUTER_PORT": port}, "ROUTER_PORT", "fallback:9")
