"""Weekly partitions: there before they are needed, gone when retention says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta

import pytest

from tests.support.ledger import LedgerUnderTest, ledger_on
from tests.support.usage_events import reported_event, submission
from usage_service.metering.recording import Batch
from usage_service.storage.partitions import week_of, weeks_covering

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)  # a Friday


@pytest.fixture
async def ledger(ledger_database: str) -> AsyncIterator[LedgerUnderTest]:
    async with ledger_on(ledger_database, now=lambda: NOW) as ledger:
        yield ledger


async def weeks(ledger: LedgerUnderTest) -> list[str]:
    names = await ledger.connection.fetch(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'model_usage_stats'::regclass"
    )
    return sorted(name.rpartition("_")[2] for (name,) in names)


def test_a_week_begins_on_monday_in_utc() -> None:
    sunday_night_in_utc = datetime.fromisoformat("2026-11-23T00:30:00+01:00")

    assert week_of(sunday_night_in_utc) == date(2026, 11, 16)
    assert week_of(datetime(2026, 11, 23, tzinfo=UTC)) == date(2026, 11, 23)


def test_the_window_of_late_events_is_six_weeks() -> None:
    spans = {len(list(weeks_covering(NOW + timedelta(days=day - 35), NOW + timedelta(days=day)))) for day in range(7)}

    assert spans == {6}


async def test_weeks_are_made_once_by_any_number_of_processes(ledger: LedgerUnderTest, ledger_database: str) -> None:
    async with ledger_on(ledger_database) as other:
        await asyncio.gather(
            ledger.partitions.cover(NOW - timedelta(days=7), NOW + timedelta(days=14)),
            other.partitions.cover(NOW, NOW + timedelta(days=14)),
            other.partitions.cover(NOW - timedelta(days=14), NOW),
        )

    assert await weeks(ledger) == ["20261102", "20261109", "20261116", "20261123", "20261130"]


async def test_a_new_partition_has_the_ledgers_key_and_indexes(ledger: LedgerUnderTest) -> None:
    await ledger.partitions.cover(NOW, NOW)

    indexes = await ledger.connection.fetch(
        "SELECT indexdef FROM pg_indexes WHERE tablename LIKE 'model_usage_stats_2%'"
    )
    attached = await ledger.connection.fetchval(
        "SELECT count(*) FROM pg_inherits WHERE inhparent IN "
        "(SELECT indexrelid FROM pg_index WHERE indrelid = 'model_usage_stats'::regclass)"
    )
    assert len(indexes) == attached == 4
    assert any("UNIQUE" in row["indexdef"] and '(tenant_id, "timestamp", id)' in row["indexdef"] for row in indexes)


async def test_there_is_no_default_partition(ledger: LedgerUnderTest) -> None:
    await ledger.partitions.cover(NOW, NOW)

    assert await ledger.connection.fetchval("SELECT partdefid FROM pg_partitioned_table") == 0


async def test_retention_drops_whole_weeks_and_keeps_their_rollups(ledger: LedgerUnderTest) -> None:
    events = [reported_event(NOW - timedelta(days=days)) for days in (0, 7, 21)]
    await ledger.recorder.record(Batch("router-1", "", [submission(event) for event in events]))

    dropped = await ledger.partitions.drop_before(datetime(2026, 11, 15, 23, 59, tzinfo=UTC))

    assert dropped == [date(2026, 10, 26), date(2026, 11, 2)]
    assert await weeks(ledger) == ["20261109", "20261116"]
    assert await ledger.connection.fetchval("SELECT count(*) FROM model_usage_stats") == 2
    assert await ledger.connection.fetchval("SELECT sum(attempts) FROM usage_rollup_day") == 3


async def test_a_dropped_week_is_made_again_when_it_is_needed(ledger: LedgerUnderTest) -> None:
    await ledger.partitions.cover(NOW, NOW)
    await ledger.partitions.drop_before(NOW + timedelta(days=30))

    await ledger.partitions.cover(NOW, NOW)

    assert await weeks(ledger) == ["20261116"]


async def test_a_week_in_use_is_left_for_the_next_time(ledger: LedgerUnderTest) -> None:
    await ledger.partitions.cover(NOW, NOW)
    async with ledger.connection.transaction():
        await ledger.connection.execute("LOCK TABLE model_usage_stats_20261116 IN ACCESS SHARE MODE")

        assert await ledger.partitions.drop_before(NOW + timedelta(days=30)) == []

    assert await ledger.partitions.drop_before(NOW + timedelta(days=30)) == [date(2026, 11, 16)]
