"""Keeps account of the routers' journals: what was answered for, how they say they stand, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
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


class JournalAudit:
    """Notes what the ledger answered for, before the router is told, and compares it with what routers report."""

    def __init__(self, journals: Journals, metrics: JournalMetrics) -> None:
        self._journals = journals
        self._metrics = metrics

    async def note(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        """Note the sequences of a batch that were answered for good; its router may forget those events.

        An event without a sequence, and a batch without an epoch, come from no journal and are not noted.
        """
        answered = [
            submission.event.sequence
            for submission, outcome in zip(batch.submissions, outcomes, strict=True)
            if outcome.disposition is not Disposition.RETRY
        ]
        ranges = ranges_of(answered)
        if batch.epoch and ranges:
            await self._journals.answered(batch.router_id, batch.epoch, ranges)

    async def report(self, router_id: str, epoch: str, report: JournalReport) -> Journal:
        """Take in how a journal stands, and give it with what is missing of it."""
        return await self._journals.report(router_id, epoch, report)

    async def refresh(self) -> None:
        """Bring the metrics up to date."""
        self._metrics.journals_known(await self._journals.load())
