"""Batches that are answered at the same time are noted together, and none of them before it is durable."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from service_runtime.errors import Category, ServiceError
from tests.support.usage_events import reported_event
from usage_service.domain.journal import Journal, JournalReport, SequenceRange
from usage_service.metering.journals import JournalAudit
from usage_service.metering.recording import Batch, Disposition, Outcome, Submission

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
AWAY = ServiceError(Category.UNAVAILABLE, "DATABASE_UNAVAILABLE", "away")


class JournalsInMemory:
    """What was written, write by write. A write waits for `opened` and raises the next of `failures`."""

    def __init__(self) -> None:
        self.writes: list[tuple[str, str, list[tuple[int, int]]]] = []
        self.opened = asyncio.Event()
        self.failures: list[Exception] = []

    async def answered(self, router_id: str, epoch: str, ranges: Sequence[SequenceRange]) -> None:
        await self.opened.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.writes.append((router_id, epoch, [(known.first, known.last) for known in ranges]))

    async def report(self, router_id: str, epoch: str, report: JournalReport) -> Journal:
        raise AssertionError("noting what was answered reports no journal")

    async def load(self) -> Sequence[Journal]:
        return []


class NoMetrics:
    def journals_known(self, journals: Sequence[Journal]) -> None: ...


@pytest.fixture
def journals() -> JournalsInMemory:
    return JournalsInMemory()


@pytest.fixture
def audit(journals: JournalsInMemory) -> JournalAudit:
    return JournalAudit(journals, NoMetrics())


def noting(
    audit: JournalAudit, *sequences: int, router: str = "router-1", outcome: Disposition = Disposition.ACCEPTED
) -> asyncio.Task[None]:
    batch = Batch(router, "epoch-1", [Submission(reported_event(NOW, sequence=each), b"") for each in sequences])
    return asyncio.create_task(audit.note(batch, [Outcome(outcome)] * len(sequences)))


async def begun(*tasks: asyncio.Task[None]) -> None:
    """Every task has come as far as it can without anybody else."""
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


async def test_what_comes_while_a_note_is_written_is_written_together(
    audit: JournalAudit, journals: JournalsInMemory
) -> None:
    first = noting(audit, 1, 2)
    await begun(first)
    others = [noting(audit, 5, 6), noting(audit, 3, 4), noting(audit, 9)]
    await begun(first, *others)

    journals.opened.set()
    await asyncio.gather(first, *others)

    assert journals.writes == [("router-1", "epoch-1", [(1, 2)]), ("router-1", "epoch-1", [(3, 6), (9, 9)])]


async def test_journals_of_different_routers_do_not_wait_for_each_other(
    audit: JournalAudit, journals: JournalsInMemory
) -> None:
    journals.opened.set()

    await asyncio.gather(noting(audit, 1), noting(audit, 1, router="router-2"))

    assert sorted(router for router, _, _ in journals.writes) == ["router-1", "router-2"]


async def test_a_caller_that_leaves_takes_no_other_note_with_it(
    audit: JournalAudit, journals: JournalsInMemory
) -> None:
    first = noting(audit, 1)
    await begun(first)
    leaving, staying = noting(audit, 2), noting(audit, 3)
    await begun(first, leaving, staying)

    leaving.cancel()
    first.cancel()
    journals.opened.set()
    await staying

    assert ("router-1", "epoch-1", [(2, 3)]) in journals.writes


async def test_a_writer_that_leaves_leaves_its_note_to_the_next(
    audit: JournalAudit, journals: JournalsInMemory
) -> None:
    first = noting(audit, 1)
    await begun(first)
    writer, next_one = noting(audit, 2), noting(audit, 3)
    await begun(writer, next_one)
    first.cancel()
    await begun(writer, next_one)

    writer.cancel()
    await begun(next_one)
    journals.opened.set()
    await next_one

    assert journals.writes == [("router-1", "epoch-1", [(2, 3)])]


async def test_nobody_is_told_that_a_note_is_durable_when_it_is_not(
    audit: JournalAudit, journals: JournalsInMemory
) -> None:
    first = noting(audit, 1)
    await begun(first)
    second, third = noting(audit, 2), noting(audit, 3)
    await begun(second, third)
    journals.failures = [AWAY, AWAY, AWAY]

    journals.opened.set()
    outcomes = list(await asyncio.gather(first, second, third, return_exceptions=True))

    assert outcomes == [AWAY, AWAY, AWAY]
    assert journals.writes == []


async def test_a_failed_note_is_written_by_the_next_who_waits_for_it(
    audit: JournalAudit, journals: JournalsInMemory
) -> None:
    first = noting(audit, 1)
    await begun(first)
    second, third = noting(audit, 2), noting(audit, 3)
    await begun(second, third)
    journals.failures = [AWAY, AWAY]

    journals.opened.set()
    outcomes = list(await asyncio.gather(first, second, third, return_exceptions=True))

    assert outcomes == [AWAY, AWAY, None]
    assert journals.writes == [("router-1", "epoch-1", [(2, 3)])]


async def test_what_is_to_be_resent_is_not_noted(audit: JournalAudit, journals: JournalsInMemory) -> None:
    journals.opened.set()

    await noting(audit, 1, 2, outcome=Disposition.RETRY)

    assert journals.writes == []
