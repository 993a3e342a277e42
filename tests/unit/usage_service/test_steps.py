"""Steps of a time series: they follow one another, cover the window, and begin where the calendar says."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usage_service.domain.steps import (
    MAX_STEPS,
    Step,
    StepTooFine,
    StepUnit,
    TooManySteps,
    default_step,
    steps,
)
from usage_service.domain.window import KeptGrains, RollupRetention, Window, answerable, merged, tiles

NOW = datetime(2026, 3, 18, 10, 41, 7, tzinfo=UTC)
KEPT = RollupRetention().kept_at(NOW)
EVERYTHING = KeptGrains(datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC))
UTC_ZONE = ZoneInfo("UTC")
ZONES = ["UTC", "Europe/Berlin", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia"]

instants = st.integers(0, 500 * 86_400).map(lambda back: NOW - timedelta(seconds=back))
windows = st.tuples(instants, instants).filter(lambda pair: pair[0] != pair[1]).map(lambda pair: Window(*sorted(pair)))
lengths = st.builds(Step, st.sampled_from(StepUnit), st.integers(1, 60))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@settings(deadline=None)
@given(windows, lengths, st.sampled_from(ZONES), st.sampled_from([KEPT, EVERYTHING]))
def test_steps_are_disjoint_cover_the_window_and_can_be_tiled(
    window: Window, step: Step, zone: str, kept: KeptGrains
) -> None:
    answered = answerable(window, kept)
    try:
        cut = steps(answered, step, ZoneInfo(zone), kept)
    except TooManySteps:
        assert answered.length > MAX_STEPS * step.length
        return
    except StepTooFine:
        assert step.unit is not StepUnit.DAY
        assert answered.start < kept.minutes_since
        return

    assert (cut[0].start, cut[-1].end) == (answered.start, answered.end)
    assert all(before.end == after.start for before, after in pairwise(cut))
    covering = merged(tile for one in cut for tile in tiles(one))
    assert (covering[0].start, covering[-1].end) == (answered.start, answered.end)
    assert all(before.end == after.start for before, after in pairwise(covering))


@given(windows, st.sampled_from([StepUnit.MINUTE, StepUnit.HOUR]), st.integers(1, 60))
def test_minutes_and_hours_begin_at_multiples_of_their_length(window: Window, unit: StepUnit, count: int) -> None:
    window = answerable(Window(window.start, min(window.end, window.start + timedelta(days=2))), EVERYTHING)
    step = Step(unit, count)

    for one in steps(window, step, UTC_ZONE, EVERYTHING)[1:]:
        assert one.start.timestamp() % step.length.total_seconds() == 0


@given(windows, st.sampled_from(ZONES), st.integers(1, 40))
def test_days_begin_at_the_midnights_of_their_zone(window: Window, zone: str, count: int) -> None:
    answered = answerable(window, EVERYTHING)
    for one in steps(answered, Step(StepUnit.DAY, count), ZoneInfo(zone), EVERYTHING)[1:]:
        local = one.start.astimezone(ZoneInfo(zone))
        assert (local.hour, local.minute) == (0, 0)
        assert (local.date().toordinal() - 1) % count == 0


def test_seven_days_are_weeks_from_monday_to_monday() -> None:
    cut = steps(Window(at("2026-03-01"), at("2026-03-31")), Step(StepUnit.DAY, 7), UTC_ZONE, KEPT)

    assert [one.start.date() for one in cut] == [date(2026, 3, day) for day in (1, 2, 9, 16, 23, 30)]


def test_a_day_on_which_the_clocks_change_has_its_true_length() -> None:
    zone = ZoneInfo("Europe/Berlin")
    cut = steps(Window(at("2026-03-27T23:00"), at("2026-03-30T22:00")), Step(StepUnit.DAY), zone, EVERYTHING)

    assert [one.length for one in cut] == [timedelta(hours=24), timedelta(hours=23), timedelta(hours=24)]


@pytest.mark.parametrize(("unit", "since"), [(StepUnit.MINUTE, KEPT.minutes_since), (StepUnit.HOUR, KEPT.hours_since)])
def test_steps_that_are_no_longer_kept_are_refused_and_told_since_when_they_are(
    unit: StepUnit, since: datetime
) -> None:
    with pytest.raises(StepTooFine) as refused:
        steps(Window(since - timedelta(days=1), since + timedelta(hours=1)), Step(unit), UTC_ZONE, KEPT)

    assert refused.value.since == since
    assert steps(Window(since, since + timedelta(hours=2)), Step(unit), UTC_ZONE, KEPT)


def test_a_window_of_too_many_steps_is_refused_before_any_is_made() -> None:
    with pytest.raises(TooManySteps, match="more than 10000 steps"):
        steps(Window(at("2025-03-01"), at("2026-03-01")), Step(StepUnit.MINUTE), UTC_ZONE, EVERYTHING)


@pytest.mark.parametrize("count", [0, 1_441])
def test_a_step_of_no_or_absurdly_many_units_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="must be 1 to 1440"):
        Step(StepUnit.MINUTE, count)


@given(windows)
def test_the_default_step_can_always_be_cut_and_gives_few_points(window: Window) -> None:
    answered = answerable(window, KEPT)

    assert len(steps(answered, default_step(answered, KEPT), UTC_ZONE, KEPT)) <= 202


@pytest.mark.parametrize(
    ("hours", "step"),
    [(3, Step(StepUnit.MINUTE)), (24, Step(StepUnit.HOUR)), (24 * 30, Step(StepUnit.DAY))],
)
def test_the_default_step_grows_with_the_window(hours: int, step: Step) -> None:
    assert default_step(answerable(Window(NOW - timedelta(hours=hours), NOW), KEPT), KEPT) == step
