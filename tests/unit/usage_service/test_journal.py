"""Which of a router's events are missing, judged from outside."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from service_runtime.metrics import Metrics
from usage_service.api.journal_metrics import PrometheusJournalMetrics
from usage_service.domain.journal import Journal, JournalReport, SequenceRange, ranges_of

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def report(last: int, *, first_waiting: int = 0, reported_at: datetime = NOW, waiting: int = 0) -> JournalReport:
    return JournalReport(reported_at, last, first_waiting, waiting, opened=0, held=0, dead_letters=0)


def journal(answered: list[int], stated: JournalReport | None) -> Journal:
    return Journal("router-1", "epoch-1", ranges_of(answered), stated)


def test_a_journal_of_which_everything_was_answered_misses_nothing() -> None:
    assert journal([3, 1, 2], report(3)).missing == ()
    assert journal([], report(0)).missing == ()


def test_what_the_router_no_longer_holds_and_the_ledger_never_saw_is_missing() -> None:
    assert journal([1, 2, 5, 8], report(9)).missing == (SequenceRange(3, 4), SequenceRange(6, 7), SequenceRange(9, 9))
    assert journal([1, 2, 5, 8], report(9)).missing_count == 5


def test_what_still_waits_is_not_missing_and_neither_is_what_came_after_the_report() -> None:
    assert journal([1, 2], report(9, first_waiting=3)).missing == ()
    assert journal([1, 9, 12], report(9, first_waiting=3)).missing == (SequenceRange(2, 2),)


def test_nothing_is_said_of_a_router_that_has_not_reported() -> None:
    assert journal([1, 7], None).missing == ()


def test_sequences_that_number_nothing_are_left_out() -> None:
    assert ranges_of([0, -4, 2, 2, 1, 7]) == [SequenceRange(1, 2), SequenceRange(7, 7)]


@given(st.sets(st.integers(1, 60)), st.integers(0, 60))
def test_the_gaps_are_what_a_count_by_hand_finds(answered: set[int], last: int) -> None:
    missing = journal(sorted(answered), report(last)).missing

    by_hand = [number for number in range(1, last + 1) if number not in answered]
    assert [number for gap in missing for number in range(gap.first, gap.last + 1)] == by_hand


def test_the_metrics_tell_losses_backlogs_and_routers_that_fell_silent() -> None:
    metrics = Metrics()
    long_ago = NOW - timedelta(hours=1)
    PrometheusJournalMetrics(metrics, now=lambda: NOW).journals_known(
        [
            journal([1, 3], report(3)),
            journal([1], report(5, first_waiting=2, waiting=4, reported_at=long_ago)),
            journal([1], report(1, reported_at=long_ago)),
            journal([1], None),
        ]
    )

    def value(name: str) -> float | None:
        return metrics.registry.get_sample_value(name)

    assert value("usage_journal_missing_events") == 1
    assert value("usage_journal_waiting_events") == 4
    assert value("usage_journals_reporting") == 1
    assert value("usage_journals_silent") == 1
