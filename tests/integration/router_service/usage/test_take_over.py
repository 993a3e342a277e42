"""Taking over a damaged journal loses nothing that can be read, also when the router dies while it does so."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import uuid_utils.compat

from router_service.usage.journal import SqliteJournal
from router_service.usage.journal_file import open_journal
from service_runtime.startup import StartupError
from tests.support.attempts import journal_metrics, opened_attempt, settled_attempt

COUNT = 300
new_id = uuid_utils.compat.uuid7


def opened(directory: Path) -> SqliteJournal:
    return SqliteJournal.open(directory, max_bytes=1 << 30, metrics=journal_metrics(), new_epoch=lambda: "new")


async def fill(directory: Path) -> None:
    journal = opened(directory)
    for _ in range(COUNT):
        await journal.settled(settled_attempt(new_id()))
    await journal.close()


def change(directory: Path, *statements: str) -> None:
    connection = sqlite3.connect(directory / "journal.sqlite")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


async def count(directory: Path) -> int:
    journal = opened(directory)
    waiting = await journal.oldest(COUNT * 2)
    await journal.close()
    return len(waiting)


@pytest.mark.parametrize("survived_renames", range(3))
async def test_a_crash_at_any_rename_of_a_take_over_loses_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived_renames: int
) -> None:
    await fill(tmp_path)
    change(tmp_path, "UPDATE meta SET value = '99' WHERE name = 'schema_version'")
    (tmp_path / "journal.sqlite-journal").touch()  # a companion that has to move as well
    rename, left = Path.rename, [survived_renames]

    def rename_until_killed(source: Path, target: Path) -> Path:
        if source.parent == tmp_path and source.name != "reserve.part":
            if left[0] == 0:
                raise OSError("killed here")
            left[0] -= 1
        return rename(source, target)

    with monkeypatch.context() as crashing:
        crashing.setattr(Path, "rename", rename_until_killed)
        with pytest.raises(StartupError):
            opened(tmp_path)

    assert await count(tmp_path) == COUNT


async def test_a_number_that_a_bit_made_equal_to_an_earlier_one_hides_nothing_behind_it(tmp_path: Path) -> None:
    await fill(tmp_path)
    file = tmp_path / "journal.sqlite"
    content = bytearray(file.read_bytes())
    page = next(at for at in range(4096, len(content), 4096) if content[at] == 13 and content[at + 4] > 3)
    first, second = (int.from_bytes(content[page + at : page + at + 2], "big") + page for at in (8, 10))
    # A cell begins with its length, here in two bytes, and its number.
    content[second + 2] = content[first + 2]
    content[-4096:-4000] = bytes(96)  # and a page that makes the file unsound
    file.write_bytes(content)

    assert await count(tmp_path) >= COUNT - 30


async def test_a_running_attempt_whose_record_is_no_blob_any_more_does_not_stop_the_start(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    await journal.opened(opened_attempt(new_id()))
    await journal.opened(opened_attempt(new_id()))
    await journal.close()
    change(
        tmp_path,
        "UPDATE opened SET payload = CAST(X'80' || payload AS TEXT) "
        "WHERE event_id = (SELECT min(event_id) FROM opened)",
    )

    connection, recovery = open_journal(tmp_path, new_epoch=lambda: "new", now_s=lambda: 0.0)
    connection.close()

    assert (recovery.interrupted, recovery.unreadable) == (1, 1)
