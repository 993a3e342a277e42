"""The routers' journals in Postgres; see `metering.journals.Journals`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from service_runtime.postgres import Postgres, load_queries
from usage_service.domain.journal import Journal, JournalReport, SequenceRange
from usage_service.storage.server_faults import SERVER_FAULTS, cannot_write

if TYPE_CHECKING:
    from asyncpg import Record

    from service_runtime.postgres import Connection

_QUERIES = load_queries(Path(__file__).with_name("journals.sql"))


class PostgresJournals:
    """The table `usage_journals`."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def answered(self, router_id: str, epoch: str, ranges: Sequence[SequenceRange]) -> None:
        """Note sequences; see `metering.journals.Journals`."""
        firsts, lasts = [known.first for known in ranges], [known.last for known in ranges]
        try:
            async with self._postgres.acquire() as connection:
                await connection.execute(_QUERIES["note_answered"], router_id, epoch, firsts, lasts)
        except SERVER_FAULTS as error:  # also the statement's time-out, behind others that note for the same journal
            raise cannot_write(error) from error

    async def report(self, router_id: str, epoch: str, report: JournalReport) -> Journal:
        """Keep a report; see `metering.journals.Journals`."""
        async with self._postgres.acquire() as connection:
            record = await connection.fetchrow(
                _QUERIES["keep_report"],
                router_id,
                epoch,
                report.reported_at,
                report.last_sequence,
                report.first_waiting_sequence,
                report.waiting,
                report.opened,
                report.held,
                report.dead_letters,
                report.oldest_waiting_at,
                report.oldest_open_at,
            )
        assert record is not None, "an upsert returns its row"
        return _journal(record)

    async def load(self) -> list[Journal]:
        """Every journal; see `metering.journals.Journals`."""
        async with self._postgres.acquire() as connection:
            return await journals_in(connection)


async def journals_in(connection: Connection) -> list[Journal]:
    """Every journal, as the connection's transaction sees them."""
    return [_journal(record) for record in await connection.fetch(_QUERIES["list_journals"])]


def _journal(record: Record) -> Journal:
    # A range of integers comes back with its lower end included and its upper end not.
    answered = tuple(SequenceRange(known.lower, known.upper - 1) for known in record["answered"])
    report = None
    if record["reported_at"] is not None:
        report = JournalReport(
            reported_at=record["reported_at"],
            last_sequence=record["last_sequence"],
            first_waiting_sequence=record["first_waiting_sequence"],
            waiting=record["waiting_count"],
            opened=record["open_count"],
            held=record["held_count"],
            dead_letters=record["dead_letter_count"],
            oldest_waiting_at=record["oldest_waiting_at"],
            oldest_open_at=record["oldest_open_at"],
        )
    return Journal(record["router_id"], record["epoch"], answered, report)
