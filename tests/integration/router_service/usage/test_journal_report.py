from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import uuid_utils.compat

from router_service.usage.channel import usage_channel
from router_service.usage.journal import SqliteJournal
from router_service.usage.journal_report import JournalReporter
from service_runtime.errors import ServiceError
from tests.support.attempts import journal_metrics, opened_attempt, settled_attempt
from tests.support.fake_usage_service import FakeUsageService, serving

new_id = uuid_utils.compat.uuid7


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    opened = SqliteJournal.open(tmp_path, max_bytes=1 << 30, metrics=journal_metrics(), new_epoch=lambda: "epoch-1")
    yield opened
    await opened.close()


async def test_a_report_says_what_was_numbered_what_waits_and_what_runs(journal: SqliteJournal) -> None:
    began_s = time.time()
    for _ in range(5):
        await journal.settled(settled_attempt(new_id()))
    await journal.remove([1, 3])
    await journal.bury([(2, "rejected")])
    await journal.opened(opened_attempt(new_id()))
    service = FakeUsageService()
    metrics = journal_metrics()
    service.missing = 1
    async with serving(service) as target, usage_channel(target) as channel:
        await JournalReporter(journal, channel, router_id="router-1", metrics=metrics).report()

    (state,) = service.journal_states
    assert (state.router_id, state.epoch) == ("router-1", "epoch-1")
    assert (state.last_sequence, state.first_waiting_sequence, state.waiting_count) == (5, 4, 2)
    assert (state.open_count, state.held_count, state.dead_letter_count) == (1, 0, 1)
    for oldest in (state.oldest_waiting_time, state.oldest_open_time):
        assert began_s - 0.01 <= oldest.ToNanoseconds() / 1e9 <= time.time()
    assert metrics.missing._value.get() == 1


async def test_an_empty_journal_reports_that_nothing_waits_also_after_it_was_emptied(journal: SqliteJournal) -> None:
    before = await journal.state()
    await journal.settled(settled_attempt(new_id()))
    await journal.remove([1])
    after = await journal.state()

    assert (before.last_sequence, before.first_waiting, before.waiting, before.opened) == (0, 0, 0, 0)
    assert (after.last_sequence, after.first_waiting, after.waiting, after.oldest_waiting_s) == (1, 0, 0, None)


async def test_a_ledger_that_is_away_costs_a_report_and_nothing_else(journal: SqliteJournal) -> None:
    service = FakeUsageService()
    service.failure = grpc.StatusCode.UNAVAILABLE
    async with serving(service) as target, usage_channel(target) as channel:
        reporter = JournalReporter(journal, channel, router_id="router-1", metrics=journal_metrics())
        with pytest.raises(ServiceError, match="did not take the journal's report"):
            await reporter.report()
