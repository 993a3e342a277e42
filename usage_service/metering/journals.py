"""Keeps account of the routers' journals: what was answered for, how they say they stand, and what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from usage_service.domain.journal import Journal, JournalReport, SequenceRange, ranges_of
from usage_service.metering.recording import Batch, Disposition, Outcome


class Journals(Protocol):
    """Where the account is kept. Every method raises `ServiceError` UNAVAILABLE when the database is away."""

    async def answered(self, router_id: str, epoch: str, ranges: Sequence[SequenceRange]) -> None:
        """Note that these sequences need not be sent again, durably; noting one twice changes nothing."""
        ...

    async def report(self, router_id: str, epoch: str, report: JournalReport) -> Journal:
        """Keep a router's latest report, and give what is known of its journal."""
        ...

    async def load(self) -> Sequence[Journal]:
        """Every journal that was ever heard of, by router and epoch."""
        ...


class JournalMetrics(Protocol):
    """What can be seen of the routers' journals from outside."""

    def journals_known(self, journals: Sequence[Journal]) -> None:
        """All journals, as they stand."""
        ...


@dataclass(slots=True, eq=False)
class _Note:
    """Sequences that are written together, and whether they are."""

    sequences: list[int] = field(default_factory=list)
    is_written: bool = False


@dataclass(slots=True, eq=False)
class _Line:
    """Those who note sequences of one journal: one of them writes, the next note gathers what the others bring."""

    next_note: _Note = field(default_factory=_Note)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    callers: int = 0


class JournalAudit:
    """Notes what the ledger answered for, before the router is told, and compares it with what routers report.

    A journal is one row: batches that are answered at the same time would queue for it, each for a commit of its own.
    So what comes while one note is being written is written together, by whoever gets the next turn.
    """

    def __init__(self, journals: Journals, metrics: JournalMetrics) -> None:
        self._journals = journals
        self._metrics = metrics
        self._lines: dict[tuple[str, str], _Line] = {}

    async def note(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        """Note the sequences of a batch that were answered for good; its router may forget those events.

        An event without a sequence, and a batch without an epoch, come from no journal and are not noted.
        """
        answered = [
            submission.event.sequence
            for submission, outcome in zip(batch.submissions, outcomes, strict=True)
            if outcome.disposition is not Disposition.RETRY
        ]
        if batch.epoch and any(sequence > 0 for sequence in answered):
            await self._note(batch.router_id, batch.epoch, answered)

    async def _note(self, router_id: str, epoch: str, sequences: Sequence[int]) -> None:
        line = self._lines.setdefault((router_id, epoch), _Line())
        line.callers += 1
        note = line.next_note
        note.sequences += sequences
        try:
            async with line.turn:
                if note.is_written:
                    return
                # Whoever had this note in hand before was cancelled or failed: it is still to be written, by each of
                # those who wait for it, until one succeeds.
                if line.next_note is note:
                    line.next_note = _Note()
                await self._journals.answered(router_id, epoch, ranges_of(note.sequences))
                note.is_written = True
        finally:
            line.callers -= 1
            if line.callers == 0:
                del self._lines[router_id, epoch]

    async def report(self, router_id: str, epoch: str, report: JournalReport) -> Journal:
        """Take in how a journal stands, and give it with what is missing of it."""
        return await self._journals.report(router_id, epoch, report)

    async def refresh(self) -> None:
        """Bring the metrics up to date."""
        self._metrics.journals_known(await self._journals.load())
