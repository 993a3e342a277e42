"""Which pieces of which rollup answer a question about a span of time.

A report never scans raw rows: it covers its window with tiles, whole UTC days from the day rollup, whole hours beside
them from the hour rollup, and minutes at the edges. So a report costs as many rows as it has buckets, whatever the
traffic was. An edge that the kept rollups cannot cut exactly is moved outward to where they can, and the answer says
which window it really covers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from zoneinfo import ZoneInfo

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open span of time: an event at `start` is inside, one at `end` is not. Both are aware datetimes."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start.tzinfo is None or self.end.tzinfo is None:
            raise ValueError(f"a window needs times with a zone, not {self.start} and {self.end}")
        if self.end <= self.start:
            raise ValueError(f"a window must end after its start {self.start.isoformat()}, not {self.end.isoformat()}")

    @property
    def length(self) -> timedelta:
        return self.end - self.start


class Grain(Enum):
    """How long a rollup's buckets are. Buckets are aligned to UTC."""

    MINUTE = timedelta(minutes=1)
    HOUR = timedelta(hours=1)
    DAY = timedelta(days=1)

    @property
    def label(self) -> str:
        """The grain's name in the ledger: minute, hour, day."""
        return self.name.lower()

    def floor(self, instant: datetime) -> datetime:
        """The start of the bucket that holds `instant`."""
        return instant - (instant - _EPOCH) % self.value

    def ceil(self, instant: datetime) -> datetime:
        """`instant` when it is a bucket's start, else the start of the next bucket."""
        return instant + (_EPOCH - instant) % self.value


@dataclass(frozen=True, slots=True)
class KeptGrains:
    """Since when each rollup is whole. Days are kept for good.

    `minutes_since` lies on an hour and `hours_since` on a day, so that an hour has all of its minutes or is answered
    as a whole, and a day likewise.
    """

    minutes_since: datetime
    hours_since: datetime

    def __post_init__(self) -> None:
        if Grain.HOUR.ceil(self.minutes_since) != self.minutes_since:
            raise ValueError(f"minutes must be kept since a whole hour, not since {self.minutes_since.isoformat()}")
        if Grain.DAY.ceil(self.hours_since) != self.hours_since:
            raise ValueError(f"hours must be kept since a whole UTC day, not since {self.hours_since.isoformat()}")

    def finest_at(self, instant: datetime) -> Grain:
        """The finest grain that can cut at `instant`."""
        if instant < self.hours_since:
            return Grain.DAY
        if instant < self.minutes_since:
            return Grain.HOUR
        return Grain.MINUTE

    def earlier(self, instant: datetime) -> datetime:
        """The last possible cut at or before `instant`."""
        return self.finest_at(instant).floor(instant)

    def later(self, instant: datetime) -> datetime:
        """The first possible cut at or after `instant`."""
        return self.finest_at(instant).ceil(instant)

    def nearest(self, instant: datetime) -> datetime:
        """The possible cut that is nearest to `instant`; the earlier one of two equally near."""
        earlier, later = self.earlier(instant), self.later(instant)
        return earlier if instant - earlier <= later - instant else later


@dataclass(frozen=True, slots=True)
class RollupRetention:
    """How long the finer rollups are kept. Readers and the purge agree on it."""

    minutes: timedelta = timedelta(hours=48)
    hours: timedelta = timedelta(days=366)

    def __post_init__(self) -> None:
        if not timedelta(hours=1) <= self.minutes <= self.hours:
            raise ValueError(
                f"minutes must be kept for at least an hour and no longer than hours: {self.minutes}, {self.hours}"
            )

    def kept_at(self, now: datetime) -> KeptGrains:
        """What a reader may rely on. Rounded up, so that a purge up to an hour later removes none of it."""
        return KeptGrains(Grain.HOUR.ceil(now - self.minutes), Grain.DAY.ceil(now - self.hours))

    def purgeable_at(self, now: datetime) -> KeptGrains:
        """What the purge leaves. Rounded down, whole hours of minutes and whole days of hours."""
        return KeptGrains(Grain.HOUR.floor(now - self.minutes), Grain.DAY.floor(now - self.hours))


@dataclass(frozen=True, slots=True)
class Tile:
    """A run of whole buckets of one rollup: those that start in [start, end)."""

    grain: Grain
    start: datetime
    end: datetime


def answerable(window: Window, kept: KeptGrains) -> Window:
    """The smallest window around `window` whose edges the kept rollups can cut."""
    return Window(kept.earlier(window.start.astimezone(UTC)), kept.later(window.end.astimezone(UTC)))


def tiles(window: Window) -> tuple[Tile, ...]:
    """Cover `window` exactly, in order, by as few tiles of as coarse a grain as possible: never more than five.

    Both edges must lie on whole minutes; `answerable` sees to that, and to it that the tiles' rollups are kept.
    """
    if answerable(window, _EVERYTHING_KEPT) != window:
        raise ValueError(f"only whole minutes can be tiled, not {window.start.isoformat()} to {window.end.isoformat()}")
    return tuple(_cover(window.start, window.end, (Grain.DAY, Grain.HOUR, Grain.MINUTE)))


def _cover(start: datetime, end: datetime, grains: Sequence[Grain]) -> Iterator[Tile]:
    if start >= end:
        return
    grain, finer = grains[0], grains[1:]
    whole_start, whole_end = grain.ceil(start), grain.floor(end)
    if whole_start < whole_end:
        yield from _cover(start, whole_start, finer)
        yield Tile(grain, whole_start, whole_end)
        yield from _cover(whole_end, end, finer)
    else:
        yield from _cover(start, end, finer)


def merged(covering: Iterable[Tile]) -> tuple[Tile, ...]:
    """The same buckets in fewer tiles: neighbours of one grain become one."""
    found: list[Tile] = []
    for tile in covering:
        if found and (found[-1].grain, found[-1].end) == (tile.grain, tile.start):
            found[-1] = Tile(tile.grain, found[-1].start, tile.end)
        else:
            found.append(tile)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class LocalDay:
    """One day of a calendar, or the part of it that lies in the asked window."""

    day: date
    window: Window


def local_days(window: Window, zone: ZoneInfo, kept: KeptGrains) -> tuple[LocalDay, ...]:
    """Cut an answerable `window` at every midnight of `zone`, oldest day first.

    The days are disjoint and cover the window. A midnight that the kept rollups cannot cut (a half-hour zone after the
    minutes are gone, any zone but UTC after the hours are gone) is moved to the nearest cut, so that every bucket still
    counts once. A day that the zone skipped, as Samoa did in 2011, does not appear.
    """
    days: list[LocalDay] = []
    day = window.start.astimezone(zone).date()
    start = window.start
    while start < window.end:
        following = day + timedelta(days=1)
        midnight = datetime(following.year, following.month, following.day, tzinfo=zone).astimezone(UTC)
        end = min(kept.nearest(midnight), window.end)
        if end > start:
            days.append(LocalDay(day, Window(start, end)))
            start = end
        day = following
    return tuple(days)


_EVERYTHING_KEPT = KeptGrains(minutes_since=_EPOCH, hours_since=_EPOCH)
