"""The routers' journals in a real Postgres (U4: a loss is seen from outside)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import pytest

from service_runtime.errors import Category, ServiceError
from service_runtime.postgres import Postgres
from usage_service.domain.journal import JournalReport, SequenceRange, ranges_of
from usage_service.storage.journals import PostgresJournals

NOW = datetime.now(UTC)


@pytest.fixture
async def journals(ledger_database: str) -> AsyncIterator[PostgresJournals]:
    postgres = await Postgres.connect(ledger_database, min_size=1, max_size=2, role="turnpike_usage")
    yield PostgresJournals(postgres)
    await postgres.close()


async def test_sequences_add_up_in_any_order_and_however_often_they_come(journals: PostgresJournals) -> None:
    for sequences in ([5, 6], [1, 2], [6, 5], [3], [9]):
        await journals.answered("router-1", "epoch-1", ranges_of(sequences))
    await journals.answered("router-1", "epoch-2", ranges_of([1]))

    first, second = await journals.load()

    assert (first.router_id, first.epoch, first.report) == ("router-1", "epoch-1", None)
    assert first.answered == (SequenceRange(1, 3), SequenceRange(5, 6), SequenceRange(9, 9))
    assert second.answered == (SequenceRange(1, 1),)


async def test_a_journal_with_many_gaps_is_kept_as_it_is_for_to_compress_it_would_take_longer_than_all_else(
    journals: PostgresJournals, ledger_database: str
) -> None:
    await journals.answered("router-1", "epoch-1", ranges_of(range(1, 20_000, 2)))
    await journals.answered("router-1", "epoch-1", ranges_of([2]))

    (journal,) = await journals.load()
    connection = await asyncpg.connect(ledger_database)
    compression = await connection.fetchval("SELECT pg_column_compression(answered) FROM usage_journals")
    await connection.close()

    assert len(journal.answered) == 9_999
    assert compression is None


async def test_who_cannot_note_in_time_is_asked_to_come_again(journals: PostgresJournals, ledger_database: str) -> None:
    # Only one of the two has little time: on a busy machine the other's statements may take longer than that.
    patient = await Postgres.connect(ledger_database, min_size=1, max_size=1)
    hurried = await Postgres.connect(ledger_database, min_size=1, max_size=1, statement_timeout_s=1.0)
    await journals.answered("router-1", "epoch-1", ranges_of([1]))

    async with patient.transaction() as another:
        await another.execute("SELECT FROM usage_journals FOR UPDATE")
        with pytest.raises(ServiceError) as refused:
            await PostgresJournals(hurried).answered("router-1", "epoch-1", ranges_of([2]))

    assert (refused.value.category, refused.value.reason) == (Category.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    await journals.answered("router-1", "epoch-1", ranges_of([2]))
    await patient.close()
    await hurried.close()


async def test_the_latest_report_is_kept_and_shows_what_is_missing(journals: PostgresJournals) -> None:
    await journals.answered("router-1", "epoch-1", ranges_of([1, 2, 4]))
    early = JournalReport(NOW, 3, 3, 1, opened=2, held=1, dead_letters=0, oldest_waiting_at=NOW, oldest_open_at=NOW)
    late = JournalReport(NOW, 5, 5, 1, opened=0, held=0, dead_letters=3)

    reported = [await journals.report("router-1", "epoch-1", report) for report in (early, late)]

    assert [journal.report for journal in reported] == [early, late]
    assert [journal.missing for journal in reported] == [(), (SequenceRange(3, 3),)]
    assert await journals.load() == reported[1:]


async def test_a_router_may_report_before_it_has_sent_anything(journals: PostgresJournals) -> None:
    journal = await journals.report("router-1", "epoch-1", JournalReport(NOW, 0, 0, 0, 0, 0, 0))

    assert (journal.answered, journal.missing) == ((), ())
