"""Records that are held while a provider is asked what they consumed: durable at once, sent once, and never lost."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from decimal import Decimal
from pathlib import Path

import uuid_utils.compat
from msgspec.structs import replace

from router_service.domain.usage import AttemptSettled, AttemptStatus, LateEnquiry, LateUsage, TokenUsage, UsageSource
from router_service.usage.journal import JournalledEvent, SqliteJournal
from tests.support.attempts import TENANT, journal_metrics, settled_attempt
from turnpike.usage.v1 import token_usage_pb2, usage_event_pb2

new_id = uuid_utils.compat.uuid7

ENQUIRY = LateEnquiry("openrouter", "gen-1", "print-1")
LATE = LateUsage(TokenUsage(input_tokens=31, output_tokens=7), Decimal("0.00042"), "vendor/model-that-answered")


@asynccontextmanager
async def opened_journal(directory: Path) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal.open(
        directory, max_bytes=1 << 30, metrics=journal_metrics(), new_epoch=lambda: str(new_id())
    )
    try:
        yield journal
    finally:
        await journal.close()


def cut_off() -> AttemptSettled:
    """An attempt whose caller left before the provider counted."""
    return replace(
        settled_attempt(new_id()),
        status=AttemptStatus.CANCELLED,
        usage=TokenUsage(input_tokens=12, output_tokens=3),
        usage_source=UsageSource.ESTIMATED,
        enquiry=ENQUIRY,
    )


def events_of(entries: list[JournalledEvent]) -> list[usage_event_pb2.UsageEvent]:
    return [usage_event_pb2.UsageEvent.FromString(entry.payload) for entry in entries]


async def test_a_held_record_is_not_sent_and_leaves_no_gap_in_the_numbers(tmp_path: Path) -> None:
    async with opened_journal(tmp_path) as journal:
        held = cut_off()
        await journal.settled(held)
        await journal.settled(settled_attempt(new_id()))
        before = await journal.oldest(10)
        await journal.release(held.opened.event_id, None)
        after = await journal.oldest(10)

    assert [entry.sequence for entry in before] == [1]
    assert [entry.sequence for entry in after] == [1, 2]
    assert events_of(after)[1].event_id == str(held.opened.event_id)


async def test_a_late_answer_replaces_the_estimate(tmp_path: Path) -> None:
    async with opened_journal(tmp_path) as journal:
        held = cut_off()
        await journal.opened(held.opened)
        await journal.settled(held)
        assert await journal.release(held.opened.event_id, LATE)
        (event,) = events_of(await journal.oldest(10))

    assert event.usage_source == token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER_LATE
    assert (event.token_usage.input_tokens, event.token_usage.output_tokens) == (31, 7)
    assert event.provider_reported_cost_usd == "0.000420000000"
    assert (event.model, event.requested_model) == ("vendor/model-that-answered", "groq-model")
    assert event.status == usage_event_pb2.USAGE_STATUS_CANCELLED


async def test_u1_a_record_is_released_once_whatever_is_learnt_later(tmp_path: Path) -> None:
    async with opened_journal(tmp_path) as journal:
        held = cut_off()
        await journal.settled(held)
        answers = [await journal.release(held.opened.event_id, late) for late in (None, LATE)]
        (event,) = events_of(await journal.oldest(10))

    assert answers == [True, False]
    assert event.usage_source == token_usage_pb2.TOKEN_USAGE_SOURCE_ESTIMATED


async def test_u2_a_held_record_outlives_the_router_with_its_question(tmp_path: Path) -> None:
    held = cut_off()
    async with opened_journal(tmp_path) as journal:
        await journal.opened(held.opened)
        await journal.settled(held)
    async with opened_journal(tmp_path) as journal:
        (found,) = await journal.held()
        nothing_yet = await journal.oldest(10)
        await journal.release(found.event_id, None)
        (event,) = events_of(await journal.oldest(10))

    assert (found.event_id, found.tenant_id, found.enquiry) == (held.opened.event_id, TENANT, ENQUIRY)
    assert nothing_yet == []
    assert event.token_usage.input_tokens == 12


async def test_a_journal_of_the_version_before_is_taken_on_as_it_is(tmp_path: Path) -> None:
    async with opened_journal(tmp_path) as journal:
        await journal.settled(settled_attempt(new_id()))
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as file:
        file.execute("DROP TABLE held")
        file.execute("UPDATE meta SET value = '1' WHERE name = 'schema_version'")
        file.commit()

    async with opened_journal(tmp_path) as journal:
        await journal.settled(cut_off())

        assert journal.recovery.set_aside is None
        assert len(await journal.oldest(10)) == len(await journal.held()) == 1


async def test_u2_what_was_held_in_a_damaged_journal_goes_out_as_estimated(tmp_path: Path) -> None:
    held = cut_off()
    async with opened_journal(tmp_path) as journal:
        await journal.settled(held)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as file:
        file.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'")
        file.commit()

    async with opened_journal(tmp_path) as journal:
        (event,) = events_of(await journal.oldest(10))

        assert journal.recovery.set_aside is not None
        assert event.event_id == str(held.opened.event_id)
        assert event.usage_source == token_usage_pb2.TOKEN_USAGE_SOURCE_ESTIMATED


async def test_a_held_record_that_the_disk_changed_is_set_aside_and_not_sent(tmp_path: Path) -> None:
    held = cut_off()
    async with opened_journal(tmp_path) as journal:
        await journal.settled(held)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as file:
        file.execute("UPDATE held SET crc = crc + 1")
        file.commit()

    async with opened_journal(tmp_path) as journal:
        (found,) = await journal.held()
        await journal.release(found.event_id, LATE)

        assert found.enquiry is None
        assert await journal.oldest(10) == []
