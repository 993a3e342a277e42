"""How fast a backlog may go while there are requests. A backlog is never urgent; whoever waits for an answer is.

What counts is what requests feel, and only that part of it that the backlog is to blame for. So it is noted
how long they wait for their turn on the event loop, and for the journal. Between two batches they wait as they would
without a backlog, on the same machine and in the same minute; over all the time, as they do with it. The one over the
other is the strain. Where usage_service has machines of its own a backlog is hardly felt, and goes fast; where it
shares the cores with the router, the rate comes down by itself. Never below a floor: a backlog that does not shrink is
a loss that has not happened yet.

Pure: times and waits come from whoever calls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import msgspec

_HALF_LIFE_S = 1.0
_LEAST_SAMPLES = 10.0  # of either kind, as they fade; fewer say nothing
_LONGEST_COUNTED_S = 0.05  # one stall of the whole machine shall not outweigh a hundred other waits
_UNFELT_S = 0.001  # added to both sides: nobody feels the difference between a tenth of a millisecond and a third


@dataclass(frozen=True, slots=True)
class PaceSettings:
    """Rates are events a second, beside requests, on top of the events that the requests themselves make."""

    floor_per_s: float = 1_000.0
    ceiling_per_s: float = 20_000.0
    first_per_s: float = 2_000.0
    tolerated_strain: float = 1.25  # of the mean; a p99 twice as long comes with a mean that is a third longer
    crowded_s: float = 0.02  # the event loop's lateness, in the mean, above which there is no room for a backlog at all
    looks_every_s: float = 1.0
    cut: float = 0.7
    growth: float = 1.2
    least_step_per_s: float = 300.0
    share_of_time: float = 0.75  # that batches may take; in the rest it is seen how requests wait without them

    def __post_init__(self) -> None:
        if not 0 < self.floor_per_s <= self.ceiling_per_s:
            raise ValueError(
                f"a backlog's floor of {self.floor_per_s:g} events/s must be above 0 and not above its ceiling of "
                f"{self.ceiling_per_s:g}; lower the one or raise the other"
            )


DEFAULT: Final = PaceSettings()


class Waits(msgspec.Struct, frozen=True):
    """What requests waited of late for one thing: sums that fade, over all the time and between batches, seconds."""

    count: float = 0.0
    total_s: float = 0.0
    calm_count: float = 0.0
    calm_total_s: float = 0.0

    def plus(self, wait_s: float, *, is_calm: bool) -> Waits:
        """With one more wait. `is_calm`: no batch was under way at any time of it."""
        counted_s = min(max(wait_s, 0.0), _LONGEST_COUNTED_S)
        calm = int(is_calm)
        return Waits(
            self.count + 1, self.total_s + counted_s, self.calm_count + calm, self.calm_total_s + calm * counted_s
        )

    def faded(self, passed_s: float) -> Waits:
        """The same, so many seconds later."""
        kept = 0.5 ** (passed_s / _HALF_LIFE_S)
        return Waits(self.count * kept, self.total_s * kept, self.calm_count * kept, self.calm_total_s * kept)

    @property
    def mean_s(self) -> float:
        """How long a wait is; 0 when none is known."""
        return self.total_s / self.count if self.count else 0.0

    @property
    def strain(self) -> float | None:
        """How many times as long waits are as between batches; None while too little is known."""
        if self.count - self.calm_count < _LEAST_SAMPLES or self.calm_count < _LEAST_SAMPLES:
            return None
        return (self.total_s / self.count + _UNFELT_S) / (self.calm_total_s / self.calm_count + _UNFELT_S)


@dataclass(frozen=True, slots=True)
class Pace:
    """The rate at present, and the strain that it was last judged by; None while nothing is known."""

    per_s: float
    strain: float | None = None

    def judged(self, settings: PaceSettings, loop: Waits, journal: Waits, *, sent_per_s: float) -> Pace:
        """The next one. `sent_per_s` is what really went: what is not used is not raised.

        Where the loop is crowded, what a batch holds up is still waiting when the next one comes, so that the times
        between them are no better and strain tells nothing.
        """
        strain = strain_of(loop, journal)
        is_too_much = strain is not None and strain > settings.tolerated_strain
        if is_too_much or loop.mean_s > settings.crowded_s:
            return Pace(max(settings.floor_per_s, self.per_s * settings.cut), strain)
        if sent_per_s < self.per_s / 2:
            return replace(self, strain=strain)
        raised = max(self.per_s * settings.growth, self.per_s + settings.least_step_per_s)
        # Without a word from requests it stays: they may be too few to tell.
        return Pace(self.per_s if strain is None else min(settings.ceiling_per_s, raised), strain)

    def next_batch_s(
        self, settings: PaceSettings, *, sent: int, arriving_per_s: float, began_s: float, ended_s: float
    ) -> float:
        """When the next batch may go, after one of `sent` events that took from `began_s` to `ended_s`."""
        arriving_per_s = max(0.0, arriving_per_s)
        by_rate_s = began_s + sent / (self.per_s + arriving_per_s)
        by_share_s = ended_s + (ended_s - began_s) * (1 / settings.share_of_time - 1)
        by_floor_s = began_s + sent / (settings.floor_per_s + arriving_per_s)
        return max(by_rate_s, min(by_share_s, by_floor_s))


def batch_size(
    settings: PaceSettings, *, smallest: int, largest: int, arriving_per_s: float, last_took_s: float
) -> int:
    """How many events the next batch should have: few, unless even the floor needs more, where each takes so long."""
    needed = (settings.floor_per_s + max(0.0, arriving_per_s)) * last_took_s
    return round(max(min(smallest, largest), min(largest, needed)))


def first_pace(settings: PaceSettings) -> Pace:
    """Where to begin, when nothing is known of what requests feel."""
    return Pace(min(max(settings.first_per_s, settings.floor_per_s), settings.ceiling_per_s))


def strain_of(*waits: Waits) -> float | None:
    """The largest of those that are known."""
    return max((each.strain for each in waits if each.strain is not None), default=None)
