"""What an audit makes of sequences and of days, against sets counted one by one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from usage_service.domain.audit import (
    CheckResult,
    Discrepancy,
    JournalTrace,
    LedgerCheck,
    Scope,
    added,
    clipped,
    day_runs,
    merged_ranges,
    sequence_gaps,
    subtracted,
)
from usage_service.domain.journal import Journal, JournalReport, SequenceRange, ranges_of
from usage_service.domain.window import Window

DAY = timedelta(days=1)
START = datetime(2026, 3, 1, tzinfo=UTC)

sequences = st.sets(st.integers(1, 40))
ranges = st.lists(st.builds(SequenceRange, st.integers(1, 40), st.integers(1, 40)), max_size=8)


def members(found: list[SequenceRange]) -> list[int]:
    return [sequence for one in found for sequence in range(one.first, one.last + 1)]


@given(ranges)
def test_merged_ranges_hold_the_same_sequences_in_as_few_ranges_as_possible(found: list[SequenceRange]) -> None:
    assert merged_ranges(found) == ranges_of(members(found))


@given(ranges, ranges)
def test_what_is_subtracted_is_gone_and_the_rest_stays(one: list[SequenceRange], other: list[SequenceRange]) -> None:
    assert members(subtracted(one, other)) == sorted(set(members(one)) - set(members(other)))


@given(ranges, st.integers(1, 40), st.none() | st.integers(1, 40))
def test_what_is_clipped_lies_within(found: list[SequenceRange], first: int, last: int | None) -> None:
    within = {sequence for sequence in members(found) if first <= sequence and (last is None or sequence <= last)}

    assert set(members(clipped(found, first, last))) == within


@given(
    present=sequences,
    aside=sequences,
    answered=sequences,
    settled_to=st.integers(0, 40),
    reported=st.none() | st.tuples(st.integers(0, 40), st.integers(0, 40)),
    oldest=st.booleans(),
    newest=st.booleans(),
)
def test_gaps_are_what_must_be_there_without_what_is(
    present: set[int],
    aside: set[int],
    answered: set[int],
    *,
    settled_to: int,
    reported: tuple[int, int] | None,
    oldest: bool,
    newest: bool,
) -> None:
    report = None
    if reported is not None:
        report = JournalReport(START, reported[0], reported[1], waiting=0, opened=0, held=0, dead_letters=0)
    trace = JournalTrace(
        "router",
        "epoch",
        present=ranges_of(list(present)),
        settled_to=settled_to,
        kept_aside=ranges_of(list(aside)),
        journal=Journal("router", "epoch", ranges_of(list(answered)), report),
    )

    found = members(sequence_gaps(trace, Scope(oldest, newest)))

    if reported is None:
        settled = set(range(min(present, default=1), settled_to + 1))
    else:
        last, first_waiting = reported
        settled = set(range(1, first_waiting or last + 1))
    expected = (settled | answered) - present - aside
    if not oldest:
        expected = {sequence for sequence in expected if present and sequence > min(present)}
    if not newest:
        expected = {sequence for sequence in expected if present and sequence < max(present)}
    assert found == sorted(expected)


def test_of_an_epoch_that_retention_may_have_cut_nothing_is_judged() -> None:
    trace = JournalTrace("router", "epoch", present=[SequenceRange(1, 2), SequenceRange(5, 9)], settled_to=9)

    assert sequence_gaps(trace, Scope(True, True, judged_from={})) == []
    assert sequence_gaps(trace, Scope(True, True, judged_from={("router", "epoch"): 4})) == [SequenceRange(4, 4)]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30))
def test_runs_of_days_cover_the_window_and_are_small_unless_one_day_is_not(rows: list[int]) -> None:
    window = Window(START, START + len(rows) * DAY)
    by_day = {START + number * DAY: count for number, count in enumerate(rows)}

    runs = day_runs(window, by_day, most_rows=50)

    assert (runs[0].start, runs[-1].end) == (window.start, window.end)
    assert all(before.end == after.start for before, after in pairwise(runs))
    for run in runs:
        counts = [count for day, count in by_day.items() if run.start <= day < run.end and count]
        assert sum(counts) <= 50 or len(counts) == 1


def test_results_add_up_and_name_only_the_first() -> None:
    one = {LedgerCheck.COST: CheckResult(3, 2, (Discrepancy("a", "1", "2"), Discrepancy("b", "1", "2")))}
    other = {
        LedgerCheck.COST: CheckResult(4, 1, (Discrepancy("c", "1", "2"),), ("part",)),
        LedgerCheck.ROW: CheckResult(5),
    }

    assert added(one, other, most=2) == {
        LedgerCheck.COST: CheckResult(7, 3, one[LedgerCheck.COST].discrepancies, ("part",)),
        LedgerCheck.ROW: CheckResult(5),
    }
