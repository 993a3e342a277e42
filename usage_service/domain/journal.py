"""What the ledger knows of a router's journal, and which of its events are missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, order=True)
class SequenceRange:
    """Consecutive sequences, both ends included."""

    first: int
    last: int

    @property
    def count(self) -> int:
        """How many they are."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class JournalReport:
    """How a router says that its journal stands; see `ReportJournalStateRequest`. `reported_at` is this service's."""

    reported_at: datetime
    last_sequence: int
    first_waiting_sequence: int
    waiting: int
    opened: int
    held: int
    dead_letters: int
    oldest_waiting_at: datetime | None = None
    oldest_open_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Journal:
    """One epoch of one router. `answered`: the sequences that the ledger stored, knew or kept aside, ascending.

    `report` is None for a router that has sent events and not yet said how it stands.
    """

    router_id: str
    epoch: str
    answered: Sequence[SequenceRange]
    report: JournalReport | None = None

    @property
    def missing(self) -> tuple[SequenceRange, ...]:
        """Sequences that the router no longer holds and the ledger never answered for, ascending: lost events.

        Only what lies below the router's first waiting sequence is judged: above it, events are under way.
        """
        if self.report is None:
            return ()
        waiting_from = self.report.first_waiting_sequence
        settled_to = waiting_from - 1 if waiting_from > 0 else self.report.last_sequence
        return tuple(_gaps(self.answered, settled_to))

    @property
    def missing_count(self) -> int:
        """How many events are lost."""
        return sum(gap.count for gap in self.missing)


def ranges_of(sequences: Sequence[int]) -> list[SequenceRange]:
    """Positive sequences, in any order, as ascending ranges; others, which number nothing, are left out."""
    ranges: list[SequenceRange] = []
    for sequence in sorted({sequence for sequence in sequences if sequence > 0}):
        if ranges and ranges[-1].last == sequence - 1:
            ranges[-1] = SequenceRange(ranges[-1].first, sequence)
        else:
            ranges.append(SequenceRange(sequence, sequence))
    return ranges


def _gaps(answered: Sequence[SequenceRange], to: int) -> Iterator[SequenceRange]:
    expected = 1
    for known in sorted(answered):
        if known.first > to:
            break
        if known.first > expected:
            yield SequenceRange(expected, known.first - 1)
        expected = max(expected, known.last + 1)
    if expected <= to:
        yield SequenceRange(expected, to)
