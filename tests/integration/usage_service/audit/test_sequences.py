"""VerifyLedger finds what is missing or doubled in a journal, and calls nothing a gap that is only under way."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from tests.integration.usage_service.audit.books import NOW, TODAY, Books, attempt
from usage_service.domain.audit import LedgerCheck
from usage_service.domain.journal import JournalReport
from usage_service.domain.window import Window
from usage_service.metering.recording import Disposition
from usage_service.storage import journal_audit


async def test_a_deleted_row_is_missing_in_every_rollup_and_in_its_journal(kept: Books) -> None:
    await kept.damage("DELETE FROM model_usage_stats WHERE router_sequence = 17")

    results = await kept.verify()

    assert {check: result.wrong for check, result in results.items() if result.wrong} == {
        LedgerCheck.MINUTE_ROLLUP: 1,
        LedgerCheck.HOUR_ROLLUP: 1,
        LedgerCheck.DAY_ROLLUP: 1,
        LedgerCheck.SEQUENCE_GAP: 1,
    }
    assert results[LedgerCheck.SEQUENCE_GAP].discrepancies[0].key == "router router-1 epoch epoch-1 sequence 17"


async def test_the_first_and_the_last_of_a_journal_are_missed_too(kept: Books) -> None:
    await kept.damage("DELETE FROM model_usage_stats WHERE router_sequence IN (1, 40)")

    assert (await kept.wrong())[LedgerCheck.SEQUENCE_GAP] == 2


async def test_a_sequence_that_two_events_have_is_found_with_both(kept: Books) -> None:
    await kept.damage("UPDATE model_usage_stats SET router_sequence = 21 WHERE router_sequence = 20")

    results = await kept.verify()

    assert {check: result.wrong for check, result in results.items() if result.wrong} == {
        LedgerCheck.DUPLICATE_SEQUENCE: 1,
        LedgerCheck.SEQUENCE_GAP: 1,
    }
    (found,) = results[LedgerCheck.DUPLICATE_SEQUENCE].discrepancies
    assert found.key == "router router-1 epoch epoch-1 sequence 21"
    assert len(found.actual.split(", ")) == 2


async def test_a_sequence_that_events_of_different_weeks_have_is_found(books: Books) -> None:
    await books.send(attempt(1), attempt(2, NOW - timedelta(days=20)), attempt(3))
    await books.damage("UPDATE model_usage_stats SET router_sequence = 1 WHERE router_sequence = 2")

    assert await books.wrong() == {LedgerCheck.DUPLICATE_SEQUENCE: 1, LedgerCheck.SEQUENCE_GAP: 1}


async def test_rejected_and_conflicting_events_leave_no_gap(books: Books) -> None:
    first, bad, third = attempt(1), attempt(2, provider="acme"), attempt(3)
    conflicting = attempt(4, event_id=first.event_id, tenant_id=first.tenant_id)

    assert await books.send(first, bad, third, conflicting, attempt(5)) == [
        Disposition.ACCEPTED,
        Disposition.REJECTED,
        Disposition.ACCEPTED,
        Disposition.CONFLICT,
        Disposition.ACCEPTED,
    ]

    assert await books.wrong() == {}
    await books.damage("DELETE FROM usage_events_rejected WHERE router_sequence = 2")
    assert await books.wrong() == {LedgerCheck.SEQUENCE_GAP: 1}


async def test_what_a_router_sends_again_from_a_new_journal_leaves_no_gap(books: Books) -> None:
    events = [attempt(1), attempt(2)]
    await books.send(*events)

    # The old journal was damaged after the events were sent and before the answer was noted.
    assert await books.send(*events, attempt(3), epoch="epoch-2") == [
        Disposition.DUPLICATE,
        Disposition.DUPLICATE,
        Disposition.ACCEPTED,
    ]
    await books.send(*events, epoch="epoch-2")

    assert await books.wrong() == {}
    assert await books.ledger.connection.fetchval("SELECT count(*) FROM usage_events_rejected") == 2


async def test_what_is_under_way_is_no_gap_until_its_router_says_that_it_was_sent(books: Books) -> None:
    await books.send(attempt(1), attempt(3))
    assert await books.wrong() == {}

    report = JournalReport(NOW, last_sequence=3, first_waiting_sequence=2, waiting=1, opened=0, held=0, dead_letters=0)
    await books.journals.report("router-1", "epoch-1", report)
    assert await books.wrong() == {}

    report = JournalReport(NOW, last_sequence=4, first_waiting_sequence=0, waiting=0, opened=0, held=0, dead_letters=0)
    await books.journals.report("router-1", "epoch-1", report)
    assert await books.wrong() == {LedgerCheck.SEQUENCE_GAP: 2}


async def test_a_gap_that_no_router_reports_on_shows_after_ten_minutes(books: Books) -> None:
    await books.send(attempt(1), attempt(3))

    books.now = datetime.now(UTC) + timedelta(minutes=11)

    assert await books.wrong() == {LedgerCheck.SEQUENCE_GAP: 1}


async def test_an_attempt_that_its_router_calls_open_for_hours_is_found(books: Books) -> None:
    for opened_at, wrong in ((NOW - timedelta(minutes=59), 0), (NOW - timedelta(minutes=61), 1)):
        report = JournalReport(NOW, 0, 0, waiting=0, opened=1, held=0, dead_letters=0, oldest_open_at=opened_at)
        await books.journals.report("router-1", "epoch-1", report)

        result = (await books.verify())[LedgerCheck.OPEN_ATTEMPT]

        assert (result.checked, result.wrong, len(result.discrepancies)) == (1, wrong, wrong)


async def test_a_window_looks_past_its_edges_for_what_is_no_gap(books: Books) -> None:
    # Sequences are given at the end of an attempt, usage times are those of its beginning.
    await books.send(
        attempt(1, TODAY - timedelta(days=1) + timedelta(hours=1)),
        attempt(2, TODAY - timedelta(days=9)),
        attempt(3, TODAY - timedelta(days=1) + timedelta(hours=2)),
    )

    assert await books.wrong(window=Window(TODAY - timedelta(days=1), TODAY)) == {}


async def test_nothing_looks_wrong_while_events_arrive(books: Books) -> None:
    stop = asyncio.Event()

    async def ingest() -> None:
        sequence = 0
        while not stop.is_set():
            events = [attempt(sequence + number) for number in range(1, 26)]
            sequence += 25
            await books.send(*events)
            await books.send(*events)

    writer = asyncio.create_task(ingest())
    try:
        for _ in range(5):
            assert await books.wrong() == {}
    finally:
        stop.set()
        await writer
    assert (await books.verify())[LedgerCheck.COST].checked > 100
    assert await books.wrong() == {}


async def test_journals_in_pieces_past_counting_are_not_called_right(
    kept: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_audit, "_MAX_RUNS", 1)

    results = await kept.verify()

    assert results[LedgerCheck.DUPLICATE_SEQUENCE].unchecked
    assert results[LedgerCheck.SEQUENCE_GAP].unchecked == results[LedgerCheck.DUPLICATE_SEQUENCE].unchecked
