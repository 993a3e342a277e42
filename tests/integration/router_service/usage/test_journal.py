from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from uuid import UUID

import pytest
import uuid_utils.compat
from msgspec.structs import replace

from router_service.usage.journal import JournalledEvent, SqliteJournal
from service_runtime.errors import ServiceError
from service_runtime.startup import StartupError
from tests.support.attempts import journal_metrics, opened_attempt, settled_attempt
from turnpike.usage.v1 import token_usage_pb2, usage_event_pb2

new_id = uuid_utils.compat.uuid7


@asynccontextmanager
async def opened_journal(directory: Path, *, max_bytes: int = 1 << 30) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal.open(
        directory, max_bytes=max_bytes, metrics=journal_metrics(), new_epoch=lambda: str(new_id())
    )
    try:
        yield journal
    finally:
        await journal.close()


def events_of(entries: list[JournalledEvent]) -> list[usage_event_pb2.UsageEvent]:
    return [usage_event_pb2.UsageEvent.FromString(entry.payload) for entry in entries]


def corrupted(directory: Path) -> list[Path]:
    return sorted(directory.glob("corrupt-*"))


async def fill(directory: Path, count: int) -> list[UUID]:
    """A closed journal with settled events; the file holds them all."""
    ids = [new_id() for _ in range(count)]
    async with opened_journal(directory) as journal:
        await asyncio.gather(*(journal.settled(settled_attempt(event_id)) for event_id in ids))
    return ids


async def test_settled_attempts_wait_in_order_and_without_gaps(tmp_path: Path) -> None:
    async with opened_journal(tmp_path) as journal:
        ids = [new_id() for _ in range(100)]
        for event_id in ids:
            await journal.opened(opened_attempt(event_id))
            await journal.settled(settled_attempt(event_id))

        waiting = await journal.oldest(1000)

    assert [entry.sequence for entry in waiting] == list(range(1, 101))
    assert [event.event_id for event in events_of(waiting)] == [str(event_id) for event_id in ids]
    assert {event.status for event in events_of(waiting)} == {usage_event_pb2.USAGE_STATUS_SUCCESS}


async def test_numbers_of_removed_events_are_never_given_again(tmp_path: Path) -> None:
    async with opened_journal(tmp_path) as journal:
        await journal.settled(settled_attempt(new_id()))
        await journal.remove([1])
    async with opened_journal(tmp_path) as journal:
        await journal.settled(settled_attempt(new_id()))

        assert [entry.sequence for entry in await journal.oldest(10)] == [2]


async def test_u2_an_attempt_that_died_with_the_router_becomes_one_interrupted_event(tmp_path: Path) -> None:
    event_id = new_id()
    async with opened_journal(tmp_path) as journal:
        await journal.opened(opened_attempt(event_id, estimated_input_tokens=77))

    async with opened_journal(tmp_path) as journal:
        (event,) = events_of(await journal.oldest(10))
        recovery = journal.recovery
    async with opened_journal(tmp_path) as journal:
        again = await journal.oldest(10)

    assert recovery.interrupted == 1
    assert event.event_id == str(event_id)
    assert event.status == usage_event_pb2.USAGE_STATUS_INTERRUPTED
    assert event.usage_source == token_usage_pb2.TOKEN_USAGE_SOURCE_ESTIMATED
    assert event.token_usage.input_tokens == 77
    assert len(again) == 1


async def test_of_two_attempts_that_died_between_opening_one_and_settling_the_other_the_last_is_the_outcome(
    tmp_path: Path,
) -> None:
    first, second, other = (opened_attempt(new_id()) for _ in range(3))
    second = replace(second, request_id=first.request_id, attempt=2)
    other = replace(other, request_id=new_id(), attempt=2)
    async with opened_journal(tmp_path) as journal:
        for opened in (second, first, other):
            await journal.opened(opened)

    async with opened_journal(tmp_path) as journal:
        events = events_of(await journal.oldest(10))

    assert {event.event_id: event.absorbed for event in events} == {
        str(first.event_id): True,
        str(second.event_id): False,
        str(other.event_id): False,
    }
    assert {event.status for event in events} == {usage_event_pb2.USAGE_STATUS_INTERRUPTED}


async def test_events_the_ledger_refuses_are_kept_aside(tmp_path: Path) -> None:
    async with opened_journal(tmp_path) as journal:
        await journal.settled(settled_attempt(new_id()))
        await journal.bury([(1, "rejected")])

        assert await journal.oldest(10) == []
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as file:
        assert file.execute("SELECT sequence, reason FROM dead_letter").fetchall() == [(1, "rejected")]


async def test_a_second_router_on_the_same_journal_is_refused_in_one_line(tmp_path: Path) -> None:
    async with opened_journal(tmp_path):
        with pytest.raises(StartupError, match="belongs to another running router") as refused:
            SqliteJournal.open(tmp_path, max_bytes=1 << 20, metrics=journal_metrics(), new_epoch=lambda: "e")

    assert "\n" not in str(refused.value)


async def test_u4_a_full_journal_refuses_new_attempts_and_still_settles_running_ones(tmp_path: Path) -> None:
    async with opened_journal(tmp_path, max_bytes=1) as journal:
        with pytest.raises(ServiceError) as refused:
            await journal.opened(opened_attempt(new_id()))
        await journal.settled(settled_attempt(new_id()))

        assert refused.value.reason == "JOURNAL_FULL"
        assert len(await journal.oldest(10)) == 1


async def test_one_bad_record_does_not_fail_those_that_share_its_commit(tmp_path: Path) -> None:
    twice = new_id()
    async with opened_journal(tmp_path) as journal:
        results = await asyncio.gather(
            *(journal.opened(opened_attempt(event_id)) for event_id in (twice, new_id(), twice, new_id())),
            return_exceptions=True,
        )

    assert [isinstance(result, Exception) for result in results].count(True) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"not a database at all" * 500),
        lambda file: file.write_bytes(file.read_bytes()[:1000]),
        lambda file: file.write_bytes(file.read_bytes()[:-5000]),
        lambda file: sqlite_do(file, "CREATE TABLE foreign_table (x)", "DROP TABLE meta"),
        lambda file: sqlite_do(file, "UPDATE meta SET value = '99' WHERE name = 'schema_version'"),
    ],
    ids=["foreign bytes", "cut early", "cut late", "foreign schema", "future version"],
)
async def test_a_damaged_journal_is_set_aside_and_the_router_starts(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    await fill(tmp_path, 200)
    damage(tmp_path / "journal.sqlite")

    async with opened_journal(tmp_path) as journal:
        await journal.settled(settled_attempt(new_id()))
        waiting = await journal.oldest(1000)

    assert len(corrupted(tmp_path)) == 1
    assert journal.recovery.set_aside == corrupted(tmp_path)[0]
    assert len(waiting) == journal.recovery.salvaged + 1


async def test_a_future_version_loses_no_record(tmp_path: Path) -> None:
    ids = await fill(tmp_path, 200)
    sqlite_do(tmp_path / "journal.sqlite", "UPDATE meta SET value = '99' WHERE name = 'schema_version'")

    async with opened_journal(tmp_path) as journal:
        found = events_of(await journal.oldest(1000))

    assert {event.event_id for event in found} == {str(event_id) for event_id in ids}


async def test_an_empty_file_is_a_fresh_journal(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").touch()

    async with opened_journal(tmp_path) as journal:
        await journal.settled(settled_attempt(new_id()))

        assert len(await journal.oldest(10)) == 1
    assert corrupted(tmp_path) == []


@pytest.mark.parametrize("seed", range(10))
async def test_flipped_bits_cost_at_most_the_records_they_touch(tmp_path: Path, seed: int) -> None:
    ids = {str(event_id) for event_id in await fill(tmp_path, 300)}
    file = tmp_path / "journal.sqlite"
    content = bytearray(file.read_bytes())
    position = random.Random(seed).randrange(len(content) // 3, len(content))
    content[position] ^= 1 << (seed % 8)
    file.write_bytes(content)

    async with opened_journal(tmp_path) as journal:
        found = {event.event_id for event in events_of(await journal.oldest(1000))}

    assert found <= ids
    assert len(found) >= len(ids) - 30  # a page of the outbox holds about a dozen records


KILLED_WRITER = """
import asyncio, sys, uuid_utils.compat
from pathlib import Path
from router_service.usage.journal import SqliteJournal
from tests.support.attempts import journal_metrics, opened_attempt, settled_attempt

async def write(journal):
    while True:
        event_id = uuid_utils.compat.uuid7()
        await journal.opened(opened_attempt(event_id))
        print("o", event_id, flush=True)
        await journal.settled(settled_attempt(event_id))
        print("s", event_id, flush=True)

async def main():
    metrics = journal_metrics()
    journal = SqliteJournal.open(Path(sys.argv[1]), max_bytes=1 << 30, metrics=metrics, new_epoch=lambda: "epoch")
    await asyncio.gather(*(write(journal) for _ in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 50, 400])
async def test_u1_what_was_acknowledged_survives_kill_9(tmp_path: Path, lines: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    ) as writer:
        assert writer.stdout is not None
        acknowledged = [writer.stdout.readline().split() for _ in range(lines)]
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += [line.split() for line in writer.stdout.read().splitlines() if len(line) == 38]

    async with opened_journal(tmp_path) as journal:
        events = events_of(await journal.oldest(100_000))

    found = {event.event_id: event.status for event in events}
    settled = {event_id for kind, event_id in acknowledged if kind == "s"}
    assert len(events) == len(found)
    assert {event_id for _, event_id in acknowledged} <= found.keys()
    assert {found[event_id] for event_id in settled} <= {usage_event_pb2.USAGE_STATUS_SUCCESS}


def sqlite_do(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        for statement in statements:
            connection.execute(statement)
