"""A bad bit, in SQLite's log or in a record, must not cost what is behind it."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import pytest
import uuid_utils.compat

from router_service.usage.journal import SqliteJournal
from tests.support.attempts import journal_metrics, settled_attempt
from turnpike.usage.v1 import usage_event_pb2

COUNT = 60
new_id = uuid_utils.compat.uuid7


async def killed(directory: Path) -> list[str]:
    """A journal's files as `kill -9` leaves them, with the ids of what was acknowledged."""
    live = directory.with_name("live")
    journal = SqliteJournal.open(live, max_bytes=1 << 30, metrics=journal_metrics(), new_epoch=lambda: "epoch-1")
    ids = [new_id() for _ in range(COUNT)]
    for event_id in ids:
        await journal.settled(settled_attempt(event_id))
    shutil.copytree(live, directory)
    await journal.close()
    return [str(event_id) for event_id in ids]


async def recovered(directory: Path) -> tuple[SqliteJournal, list[str]]:
    journal = SqliteJournal.open(directory, max_bytes=1 << 30, metrics=journal_metrics(), new_epoch=lambda: "epoch-2")
    entries = await journal.oldest(1000)
    await journal.close()
    return journal, [usage_event_pb2.UsageEvent.FromString(entry.payload).event_id for entry in entries]


@pytest.mark.parametrize("seed", range(8))
async def test_u1_a_flipped_bit_in_the_log_costs_no_other_record(tmp_path: Path, seed: int) -> None:
    directory = tmp_path / "journal"
    ids = await killed(directory)
    log = directory / "journal.sqlite-wal"
    content = bytearray(log.read_bytes())
    position = random.Random(seed).randrange(len(content) * 9 // 10)
    content[position] ^= 1 << (seed % 8)
    log.write_bytes(content)

    journal, found = await recovered(directory)

    assert set(found) <= set(ids)
    assert len(found) >= COUNT - 1
    aside = journal.recovery.set_aside
    assert aside is not None
    assert (aside / "journal.sqlite-wal").read_bytes() == content


async def test_what_an_ordinary_kill_leaves_is_no_damage(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    ids = await killed(directory)

    journal, found = await recovered(directory)

    assert found == ids
    assert journal.epoch == "epoch-1"
    assert journal.recovery.set_aside is None
    assert list(directory.glob("corrupt-*")) == []


async def test_a_write_that_the_kill_cut_short_is_no_damage(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    ids = await killed(directory)
    log = directory / "journal.sqlite-wal"
    log.write_bytes(log.read_bytes()[:-1000])

    journal, found = await recovered(directory)

    assert found == ids[:-1]
    assert journal.recovery.set_aside is None


@pytest.mark.parametrize(
    "damage",
    ["payload = CAST(X'80' || payload AS TEXT)", "payload = 'text'", "crc = 'x'", "written_at = 'x', crc = 0"],
)
async def test_a_record_whose_type_a_bit_has_changed_does_not_hold_up_those_behind_it(
    tmp_path: Path, damage: str
) -> None:
    directory = tmp_path / "journal"
    ids = await killed(directory)
    connection = sqlite3.connect(directory / "journal.sqlite")
    connection.execute(f"UPDATE outbox SET {damage} WHERE sequence = 3")
    connection.commit()
    connection.close()

    _, found = await recovered(directory)

    assert found == ids[:2] + ids[3:]
