"""The tile planner: whatever is asked, every bucket counts exactly once."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_service.domain.window import (
    Grain,
    KeptGrains,
    RollupRetention,
    Tile,
    Window,
    answerable,
    local_days,
    tiles,
)

NOW = datetime(2026, 3, 18, 10, 41, 7, tzinfo=UTC)
KEPT = RollupRetention().kept_at(NOW)
ZONES = ["UTC", "Europe/Berlin", "America/Los_Angeles", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe"]

instants = st.integers(0, 500 * 86_400).map(lambda back: NOW - timedelta(seconds=back))
windows = st.tuples(instants, instants).filter(lambda pair: pair[0] != pair[1]).map(lambda pair: Window(*sorted(pair)))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize("end", [NOW, NOW - timedelta(seconds=1)])
def test_a_window_that_does_not_end_after_its_start_is_refused(end: datetime) -> None:
    with pytest.raises(ValueError, match="must end after its start"):
        Window(NOW, end)


def test_a_window_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="with a zone"):
        Window(datetime(2026, 1, 1), datetime(2026, 1, 2))  # noqa: DTZ001 - that is what is refused


def test_thirty_days_are_days_with_hours_and_minutes_at_the_edges() -> None:
    window = Window(at("2026-02-16T10:41"), at("2026-03-18T10:41"))

    assert tiles(window) == (
        Tile(Grain.MINUTE, at("2026-02-16T10:41"), at("2026-02-16T11:00")),
        Tile(Grain.HOUR, at("2026-02-16T11:00"), at("2026-02-17")),
        Tile(Grain.DAY, at("2026-02-17"), at("2026-03-18")),
        Tile(Grain.HOUR, at("2026-03-18"), at("2026-03-18T10:00")),
        Tile(Grain.MINUTE, at("2026-03-18T10:00"), at("2026-03-18T10:41")),
    )


def test_an_hour_on_the_hour_is_one_bucket() -> None:
    assert tiles(Window(at("2026-03-18T09:00"), at("2026-03-18T10:00"))) == (
        Tile(Grain.HOUR, at("2026-03-18T09:00"), at("2026-03-18T10:00")),
    )


def test_seconds_cannot_be_tiled() -> None:
    with pytest.raises(ValueError, match="only whole minutes"):
        tiles(Window(NOW, NOW + timedelta(minutes=1)))


def test_edges_within_a_minute_are_widened_to_the_minute() -> None:
    window = Window(at("2026-03-18T10:00:59.999999"), at("2026-03-18T10:40:00.000001"))

    assert answerable(window, KEPT) == Window(at("2026-03-18T10:00"), at("2026-03-18T10:41"))


def test_edges_older_than_the_minutes_are_widened_to_the_hour() -> None:
    window = Window(at("2026-03-01T10:20"), at("2026-03-02T10:20"))

    assert answerable(window, KEPT) == Window(at("2026-03-01T10:00"), at("2026-03-02T11:00"))


def test_edges_older_than_the_hours_are_widened_to_the_day() -> None:
    window = Window(at("2025-02-01T10:20"), at("2025-02-02T10:20"))

    assert answerable(window, KEPT) == Window(at("2025-02-01"), at("2025-02-03"))


@given(windows)
def test_tiles_are_disjoint_and_cover_the_window_exactly(window: Window) -> None:
    answered = answerable(window, KEPT)
    cover = tiles(answered)

    assert cover[0].start == answered.start
    assert cover[-1].end == answered.end
    assert all(before.end == after.start for before, after in pairwise(cover))
    for tile in cover:
        assert tile.grain.floor(tile.start) == tile.start < tile.end == tile.grain.floor(tile.end)
        assert tile.grain is not Grain.MINUTE or tile.start >= KEPT.minutes_since
        assert tile.grain is not Grain.HOUR or tile.start >= KEPT.hours_since


@given(windows)
def test_tiles_read_no_more_buckets_than_two_partial_hours_and_days_have(window: Window) -> None:
    cover = tiles(answerable(window, KEPT))
    buckets = {
        grain: sum((tile.end - tile.start) // grain.value for tile in cover if tile.grain is grain) for grain in Grain
    }

    assert len(cover) <= 5
    assert buckets[Grain.MINUTE] <= 59 * 2
    assert buckets[Grain.HOUR] <= 23 * 2


@given(windows)
def test_an_answered_window_holds_the_asked_one_and_is_widened_by_less_than_a_bucket_at_each_edge(
    window: Window,
) -> None:
    answered = answerable(window, KEPT)

    assert answered.start <= window.start
    assert answered.end >= window.end
    assert window.start - answered.start < KEPT.finest_at(window.start).value
    assert answered.end - window.end < KEPT.finest_at(window.end).value


@given(windows)
def test_widening_twice_changes_nothing_more(window: Window) -> None:
    once = answerable(window, KEPT)

    assert answerable(once, KEPT) == once


@given(windows, st.sampled_from(ZONES))
def test_local_days_are_disjoint_cover_the_window_and_can_be_tiled(window: Window, zone: str) -> None:
    answered = answerable(window, KEPT)
    days = local_days(answered, ZoneInfo(zone), KEPT)

    assert days[0].window.start == answered.start
    assert days[-1].window.end == answered.end
    assert all(before.window.end == after.window.start and before.day < after.day for before, after in pairwise(days))
    assert all(answerable(day.window, KEPT) == day.window for day in days)
    assert all(tiles(day.window) for day in days)


@given(st.sampled_from(ZONES))
def test_a_local_day_that_the_minutes_still_cover_begins_at_its_own_midnight(zone: str) -> None:
    days = local_days(Window(at("2026-03-16T13:00"), at("2026-03-18T10:00")), ZoneInfo(zone), KEPT)

    for day in days[1:]:
        local = day.window.start.astimezone(ZoneInfo(zone))
        assert (local.date(), local.hour, local.minute) == (day.day, 0, 0)


def test_a_half_hour_zone_falls_back_to_whole_hours_when_the_minutes_are_gone() -> None:
    days = local_days(Window(at("2026-03-01T12:00"), at("2026-03-02T12:00")), ZoneInfo("Asia/Kolkata"), KEPT)

    assert [(day.day, day.window.end) for day in days] == [
        (date(2026, 3, 1), at("2026-03-01T18:00")),  # midnight there is 18:30 here
        (date(2026, 3, 2), at("2026-03-02T12:00")),
    ]


def test_every_zone_falls_back_to_its_nearest_utc_day_when_the_hours_are_gone() -> None:
    days = local_days(Window(at("2025-01-10"), at("2025-01-12")), ZoneInfo("Europe/Berlin"), KEPT)

    assert [(day.day, day.window.start) for day in days] == [
        (date(2025, 1, 10), at("2025-01-10")),
        (date(2025, 1, 11), at("2025-01-11")),
    ]


@pytest.mark.parametrize(
    ("zone", "start", "hours"),
    [("Europe/Berlin", "2026-03-28T23:00", 23), ("Europe/Berlin", "2025-10-25T22:00", 25)],
)
def test_days_on_which_the_clocks_change_have_their_true_length(zone: str, start: str, hours: int) -> None:
    everything = KeptGrains(datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC))
    first, _ = local_days(Window(at(start), at(start) + timedelta(hours=30)), ZoneInfo(zone), everything)

    assert first.window.length == timedelta(hours=hours)


def test_a_day_that_its_zone_skipped_does_not_appear() -> None:
    everything = KeptGrains(datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC))
    days = local_days(Window(at("2011-12-29T12:00"), at("2011-12-31T12:00")), ZoneInfo("Pacific/Apia"), everything)

    assert [day.day for day in days] == [date(2011, 12, 29), date(2011, 12, 31), date(2012, 1, 1)]


@given(instants, st.integers(0, 3599))
def test_a_purge_within_the_hour_removes_nothing_that_a_reader_relies_on(now: datetime, later_s: int) -> None:
    retention = RollupRetention()
    relied_on = retention.kept_at(now)
    left = retention.purgeable_at(now + timedelta(seconds=later_s))

    assert left.minutes_since <= relied_on.minutes_since
    assert left.hours_since <= relied_on.hours_since


def test_minutes_kept_longer_than_hours_are_refused() -> None:
    with pytest.raises(ValueError, match="no longer than hours"):
        RollupRetention(minutes=timedelta(days=3), hours=timedelta(days=2))
