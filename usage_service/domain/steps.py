"""Cutting a window into the equal steps of a time series."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from zoneinfo import ZoneInfo

from usage_service.domain.window import KeptGrains, Window

MAX_STEPS = 10_000
MAX_STEP_COUNT = 1_440
_MOST_BY_DEFAULT = 200

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class StepUnit(Enum):
    """What steps are counted in. A day is as long as the calendar says."""

    MINUTE = timedelta(minutes=1)
    HOUR = timedelta(hours=1)
    DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Step:
    """The length of the steps: so many of a unit."""

    unit: StepUnit
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_STEP_COUNT:
            raise ValueError(f"must be 1 to {MAX_STEP_COUNT}, not {self.count}")

    @property
    def length(self) -> timedelta:
        """In hours of 60 minutes and days of 24 hours."""
        return self.unit.value * self.count


class StepTooFine(Exception):
    """The kept rollups cannot cut the window at these steps; `since` is from when on they can."""

    def __init__(self, since: datetime) -> None:
        super().__init__(since)
        self.since = since


class TooManySteps(ValueError):
    """The window has more steps than anybody can look at."""


def default_step(window: Window, kept: KeptGrains) -> Step:
    """The shortest of minute, hour, day and week that gives at most 200 steps and can be cut throughout."""
    for step, since in (
        (Step(StepUnit.MINUTE), kept.minutes_since),
        (Step(StepUnit.HOUR), kept.hours_since),
        (Step(StepUnit.DAY), window.start),
    ):
        if window.start >= since and window.length <= _MOST_BY_DEFAULT * step.length:
            return step
    return Step(StepUnit.DAY, 7)


def steps(window: Window, step: Step, zone: ZoneInfo, kept: KeptGrains) -> tuple[Window, ...]:
    """Cut an answerable `window` at every multiple of `step`, oldest first.

    The steps are disjoint and cover the window; the first and the last may be shorter. Minutes and hours are counted
    from 1970 on in UTC, days from a Monday on in the calendar of `zone`. A midnight that the kept rollups cannot cut is
    moved to the nearest cut, as in `local_days`. Raises TooManySteps, and StepTooFine for minutes and hours that are no
    longer kept.
    """
    if window.length > MAX_STEPS * step.length:
        raise TooManySteps(
            f"a window of {window.length} has more than {MAX_STEPS} steps of this length; take longer ones"
        )
    starts = [window.start]
    for cut in _midnights(window, step.count, zone, kept) if step.unit is StepUnit.DAY else _multiples(window, step):
        if cut < kept.minutes_since and kept.earlier(cut) != cut:
            raise StepTooFine(kept.hours_since if cut < kept.hours_since else kept.minutes_since)
        starts.append(cut)
    return tuple(Window(start, end) for start, end in zip(starts, [*starts[1:], window.end], strict=True))


def _multiples(window: Window, step: Step) -> Iterator[datetime]:
    """Every multiple of the step's length inside the window."""
    cut = window.start - (window.start - _EPOCH) % step.length + step.length
    while cut < window.end:
        yield cut
        cut += step.length


def _midnights(window: Window, count: int, zone: ZoneInfo, kept: KeptGrains) -> Iterator[datetime]:
    """The midnights of `zone` that begin a step of `count` days, inside the window and rising."""
    latest = window.start
    # The day with the ordinal 1 was a Monday.
    ordinal = window.start.astimezone(zone).date().toordinal()
    while True:
        ordinal += count - (ordinal - 1) % count
        day = date.fromordinal(ordinal)
        cut = kept.nearest(datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC))
        if cut >= window.end:
            return
        if cut > latest:
            yield cut
            latest = cut
