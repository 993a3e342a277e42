"""How close usage is to a limit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_service.domain.rate_limit import (
    DEFAULT_LIMITS,
    MONTH_S,
    Consumption,
    LevelThresholds,
    LimitLevel,
    LimitMetric,
    LimitPosition,
    LimitRule,
    ToldLevel,
    applicable,
    current_window,
    level,
    parse_limits,
    position,
    valid_for,
    worst_first,
)
from usage_service.domain.window import Window

MIDNIGHT = datetime(2026, 3, 18, tzinfo=UTC)
PER_MINUTE = LimitRule("groq", LimitMetric.REQUESTS, 60, Decimal(100))
PER_DAY = LimitRule("groq", LimitMetric.TOKENS, 86_400, Decimal(1000))


def requests(number: int) -> Consumption:
    return Consumption(requests=number, tokens=number * 10, cost_usd=Decimal(number) / 100)


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        (0, LimitLevel.HEALTHY),
        (59, LimitLevel.HEALTHY),
        (60, LimitLevel.NORMAL),
        (79, LimitLevel.NORMAL),
        (80, LimitLevel.WARNING),
        (94, LimitLevel.WARNING),
        (95, LimitLevel.CRITICAL),
        (250, LimitLevel.CRITICAL),
    ],
)
def test_the_level_follows_the_used_share_at_the_end_of_the_window(used: int, expected: LimitLevel) -> None:
    found = position(PER_MINUTE, requests(used), MIDNIGHT + timedelta(seconds=59.999))

    assert found.level is expected
    assert found.should_failover == (expected is LimitLevel.CRITICAL)


def test_a_pace_that_exhausts_the_limit_before_the_reset_is_critical_at_a_low_share() -> None:
    found = position(PER_MINUTE, requests(40), MIDNIGHT + timedelta(seconds=20))

    assert found.usage_ratio == 0.4
    assert found.level is LimitLevel.CRITICAL


def test_a_pace_that_reaches_the_limit_only_at_the_reset_is_not_critical() -> None:
    assert position(PER_MINUTE, requests(50), MIDNIGHT + timedelta(seconds=30)).level is LimitLevel.HEALTHY


def test_a_burst_in_the_first_fifth_of_the_window_is_no_pace() -> None:
    assert position(PER_MINUTE, requests(50), MIDNIGHT + timedelta(seconds=11.9)).level is LimitLevel.HEALTHY
    assert position(PER_MINUTE, requests(50), MIDNIGHT + timedelta(seconds=12)).level is LimitLevel.CRITICAL


def test_fewer_than_five_requests_are_no_pace() -> None:
    few, enough = (Consumption(requests=number, tokens=500) for number in (4, 5))
    quarter_past = MIDNIGHT + timedelta(hours=6)

    assert position(PER_DAY, few, quarter_past).level is LimitLevel.HEALTHY
    assert position(PER_DAY, enough, quarter_past).level is LimitLevel.CRITICAL


@pytest.mark.parametrize("used", [0, 1])
def test_a_limit_of_zero_is_always_used_up(used: int) -> None:
    nothing_allowed = LimitRule("groq", LimitMetric.REQUESTS, 60, Decimal(0))

    found = position(nothing_allowed, requests(used), MIDNIGHT)

    assert (found.usage_ratio, found.level, found.remaining) == (1.0, LimitLevel.CRITICAL, Decimal(0))


def test_what_remains_is_never_negative() -> None:
    assert position(PER_MINUTE, requests(130), MIDNIGHT).remaining == 0
    assert position(PER_MINUTE, requests(130), MIDNIGHT).usage_ratio == 1.3


@pytest.mark.parametrize(
    ("metric", "used"),
    [(LimitMetric.REQUESTS, 7), (LimitMetric.TOKENS, 70), (LimitMetric.COST, Decimal("0.07"))],
)
def test_each_metric_counts_its_own(metric: LimitMetric, used: Decimal) -> None:
    rule = LimitRule("groq", metric, 60, Decimal(1000))

    assert position(rule, requests(7), MIDNIGHT).used == used


@pytest.mark.parametrize(
    ("window_s", "start", "end"),
    [
        (60, "2026-03-18T10:41", "2026-03-18T10:42"),
        (3600, "2026-03-18T10:00", "2026-03-18T11:00"),
        (86_400, "2026-03-18T00:00", "2026-03-19T00:00"),
        (7 * 86_400, "2026-03-16T00:00", "2026-03-23T00:00"),
        (10, "2026-03-18T10:41:00", "2026-03-18T10:41:10"),
        (MONTH_S, "2026-03-01T00:00", "2026-04-01T00:00"),
    ],
)
def test_windows_are_aligned_to_utc(window_s: int, start: str, end: str) -> None:
    now = datetime(2026, 3, 18, 10, 41, 7, tzinfo=UTC)

    assert current_window(window_s, now) == Window(
        datetime.fromisoformat(start).replace(tzinfo=UTC), datetime.fromisoformat(end).replace(tzinfo=UTC)
    )


@given(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)), st.integers(1, 43_200))  # noqa: DTZ001 - hypothesis adds the zone
def test_now_is_always_in_its_window_and_windows_do_not_depend_on_when_they_are_asked_for(
    now: datetime, minutes: int
) -> None:
    window = current_window(minutes * 60, now)

    assert window.start <= now < window.end
    assert window.length == timedelta(minutes=minutes)
    assert current_window(minutes * 60, window.start) == window


@pytest.mark.parametrize(
    ("day", "days"), [("2026-02-28", 28), ("2028-02-29", 29), ("2026-12-31", 31), ("2026-04-01", 30)]
)
def test_a_month_is_as_long_as_the_calendar_says(day: str, days: int) -> None:
    window = current_window(MONTH_S, datetime.fromisoformat(f"{day}T23:59:59.999999+00:00"))

    assert (window.start.day, window.end.day, window.length) == (1, 1, timedelta(days=days))


@given(st.floats(0, 3), st.floats(0, 3), st.floats(0, 3), st.sampled_from(LimitLevel))
def test_more_usage_is_never_a_better_level(one: float, other: float, pace: float, last: LimitLevel) -> None:
    less, more = sorted((one, other))

    assert level(less, pace=pace, last=last) <= level(more, pace=pace, last=last)


@pytest.mark.parametrize(
    ("ratio", "last", "expected"),
    [
        (0.76, LimitLevel.WARNING, LimitLevel.WARNING),
        (0.74, LimitLevel.WARNING, LimitLevel.NORMAL),
        (0.56, LimitLevel.CRITICAL, LimitLevel.NORMAL),
        (0.54, LimitLevel.CRITICAL, LimitLevel.HEALTHY),
        (0.91, LimitLevel.CRITICAL, LimitLevel.CRITICAL),
        (0.91, LimitLevel.NORMAL, LimitLevel.WARNING),
        (0.91, LimitLevel.HEALTHY, LimitLevel.WARNING),
        (0.99, LimitLevel.HEALTHY, LimitLevel.CRITICAL),
    ],
)
def test_a_level_is_left_only_the_margin_below_where_it_begins(
    ratio: float, last: LimitLevel, expected: LimitLevel
) -> None:
    assert level(ratio, pace=0.0, last=last) is expected


def test_a_pace_that_was_critical_stays_so_until_it_is_clearly_slower() -> None:
    told = ToldLevel(MIDNIGHT, LimitLevel.CRITICAL)
    used, half_past = requests(49), MIDNIGHT + timedelta(seconds=30)  # 98 at the end, of 100

    assert position(PER_MINUTE, used, half_past).level is LimitLevel.HEALTHY
    assert position(PER_MINUTE, used, half_past, told=told).level is LimitLevel.CRITICAL
    assert position(PER_MINUTE, requests(47), half_past, told=told).level is LimitLevel.HEALTHY


def test_what_was_told_of_another_window_says_nothing() -> None:
    told = ToldLevel(MIDNIGHT - timedelta(minutes=1), LimitLevel.CRITICAL)

    assert position(PER_MINUTE, requests(91), MIDNIGHT, told=told).level is LimitLevel.WARNING


@given(st.lists(st.floats(0, 1.2), min_size=1, max_size=20), st.floats(0, 0.2))
def test_a_level_that_is_told_again_and_again_changes_only_where_a_threshold_or_its_margin_was_crossed(
    ratios: list[float], margin: float
) -> None:
    thresholds = LevelThresholds(margin=margin)
    begins = {LimitLevel.HEALTHY: 0.0, LimitLevel.NORMAL: 0.6, LimitLevel.WARNING: 0.8, LimitLevel.CRITICAL: 0.95}
    last = LimitLevel.HEALTHY
    for ratio in ratios:
        found = level(ratio, pace=0.0, thresholds=thresholds, last=last)
        if found > last:
            assert ratio >= begins[found]
        if found < last:
            assert ratio < begins[LimitLevel(found + 1)] - margin
        # Told once more, nothing moves: two replicas that ask one after the other say the same.
        assert level(ratio, pace=0.0, thresholds=thresholds, last=found) is found
        last = found


@pytest.mark.parametrize(
    "thresholds",
    [
        {"normal": 0.0},
        {"normal": 0.8},
        {"warning": 0.95},
        {"critical": 1.01},
        {"margin": -0.01},
        {"margin": 0.6},
        {"pace_after": 0.0},
        {"normal": float("nan")},
    ],
)
def test_thresholds_that_make_no_sense_are_refused(thresholds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        LevelThresholds(**thresholds)


@pytest.mark.parametrize("window_s", [61, 90, 0, -60, 30 * 86_400 + 60, 32 * 86_400])
def test_windows_that_the_rollups_cannot_answer_are_refused(window_s: int) -> None:
    with pytest.raises(ValueError, match="whole minutes"):
        LimitRule("groq", LimitMetric.REQUESTS, window_s, Decimal(1))


@pytest.mark.parametrize("limit", ["-1", "NaN", "Infinity"])
def test_limits_that_are_no_amount_are_refused(limit: str) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        LimitRule("groq", LimitMetric.REQUESTS, 60, Decimal(limit))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30 requests per 1m", LimitRule("groq", LimitMetric.REQUESTS, 60, Decimal(30))),
        ("100_000 tokens per 1d", LimitRule("groq", LimitMetric.TOKENS, 86_400, Decimal(100_000))),
        (" 2.50 cost per 2h ", LimitRule("groq", LimitMetric.COST, 7200, Decimal("2.50"))),
        ("5 requests per 120s", LimitRule("groq", LimitMetric.REQUESTS, 120, Decimal(5))),
        ("5 requests per 1s", LimitRule("groq", LimitMetric.REQUESTS, 1, Decimal(5))),
        ("100 cost per 1mo", LimitRule("groq", LimitMetric.COST, MONTH_S, Decimal(100))),
    ],
)
def test_limits_are_read_from_words(text: str, expected: LimitRule) -> None:
    assert LimitRule.parse("groq", text) == expected


@pytest.mark.parametrize(
    "text", ["", "30", "30 requests", "many requests per 1m", "30 calls per 1m", "-1 tokens per 1m"]
)
def test_words_that_are_no_limit_are_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="30 requests per 1m"):
        LimitRule.parse("groq", text)


def test_the_default_limits_can_be_read() -> None:
    rules = parse_limits(DEFAULT_LIMITS)

    assert {rule.provider for rule in rules} == {"groq", "openrouter", "llm7"}
    assert LimitRule("groq", LimitMetric.TOKENS, 60, Decimal(12_000)) in rules


def test_a_provider_with_limits_of_the_tenants_own_has_no_defaults() -> None:
    own = LimitRule("groq", LimitMetric.REQUESTS, 60, Decimal(1000), is_override=True)
    other = LimitRule("llm7", LimitMetric.REQUESTS, 60, Decimal(60))

    assert applicable([PER_MINUTE, PER_DAY, other], [own], provider="", model="") == (own, other)


def test_only_limits_on_the_asked_provider_and_model_apply() -> None:
    on_model = LimitRule("groq", LimitMetric.TOKENS, 60, Decimal(10), model="a")
    on_other = LimitRule("groq", LimitMetric.TOKENS, 60, Decimal(10), model="b")
    elsewhere = LimitRule("llm7", LimitMetric.TOKENS, 60, Decimal(10))
    rules = [PER_MINUTE, on_model, on_other, elsewhere]

    assert applicable(rules, [], provider="groq", model="a") == (PER_MINUTE, on_model)
    assert applicable(rules, [], provider="groq", model="") == (PER_MINUTE, on_model, on_other)
    assert applicable(rules, [], provider="", model="a") == (PER_MINUTE, on_model, elsewhere)
    assert applicable(rules, [], provider="local", model="") == ()


def at(used_level: LimitLevel, ratio: float, reset_in_s: float = 3600) -> LimitPosition:
    return LimitPosition(
        PER_MINUTE,
        Decimal(0),
        ratio,
        used_level,
        Window(MIDNIGHT - timedelta(days=1), MIDNIGHT + timedelta(seconds=reset_in_s)),
    )


def test_the_worst_position_comes_first() -> None:
    projected = at(LimitLevel.CRITICAL, 0.3)
    exhausted = at(LimitLevel.CRITICAL, 1.0)
    warning = at(LimitLevel.WARNING, 0.9)

    assert worst_first([warning, projected, exhausted]) == (exhausted, projected, warning)


def test_an_answer_is_valid_for_less_time_the_closer_a_limit_is_and_never_past_a_reset() -> None:
    healthy, normal, critical = (at(one, 0.5) for one in (LimitLevel.HEALTHY, LimitLevel.NORMAL, LimitLevel.CRITICAL))

    assert valid_for([], MIDNIGHT) == timedelta(seconds=30)
    assert valid_for([healthy], MIDNIGHT) == timedelta(seconds=30)
    assert valid_for([healthy, normal], MIDNIGHT) == timedelta(seconds=15)
    assert valid_for([healthy, critical], MIDNIGHT) == timedelta(seconds=5)
    assert valid_for([at(LimitLevel.HEALTHY, 0.1, reset_in_s=4)], MIDNIGHT) == timedelta(seconds=4)
    assert valid_for([at(LimitLevel.HEALTHY, 0.1, reset_in_s=0.2)], MIDNIGHT) == timedelta(seconds=1)
