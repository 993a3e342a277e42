"""Whatever bytes of the journal change: the router starts, and every record whose own page was left alone is there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uuid_utils.compat
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from router_service.usage.journal import SqliteJournal
from tests.support.attempts import journal_metrics, opened_attempt, settled_attempt
from tests.support.postgres import run_apart
from turnpike.usage.v1 import usage_event_pb2

PAGE_BYTES = 4096
SETTLED, RUNNING = 60, 12
new_id = uuid_utils.compat.uuid7


@dataclass(frozen=True)
class Filled:
    """A journal's directory as a router left it, and which page holds which record."""

    directory: Path
    pages: dict[str, int]  # by event id
    size: int


def journal_in(directory: Path, epoch: str = "epoch-2") -> SqliteJournal:
    return SqliteJournal.open(directory, max_bytes=1 << 30, metrics=journal_metrics(), new_epoch=lambda: epoch)


async def fill(directory: Path) -> list[str]:
    journal = journal_in(directory, "epoch-1")
    ids = [new_id() for _ in range(SETTLED + RUNNING)]
    for event_id in ids[:SETTLED]:
        await journal.opened(opened_attempt(event_id))
        await journal.settled(settled_attempt(event_id))
    for event_id in ids[SETTLED:]:
        await journal.opened(opened_attempt(event_id))
    await journal.close()
    return [str(event_id) for event_id in ids]


async def recovered(directory: Path) -> list[str]:
    journal = journal_in(directory)
    entries = await journal.oldest(10_000)
    await journal.close()
    return [usage_event_pb2.UsageEvent.FromString(entry.payload).event_id for entry in entries]


@pytest.fixture(scope="module")
def filled() -> Iterator[Filled]:
    with tempfile.TemporaryDirectory() as directory:
        ids = run_apart(fill(Path(directory)))
        content = (Path(directory) / "journal.sqlite").read_bytes()
        pages = {event_id: content.rindex(event_id.encode()) // PAGE_BYTES for event_id in ids}
        yield Filled(Path(directory), pages, len(content))


def after(filled: Filled, content: bytes) -> list[str]:
    """What a router finds in the journal when its main file holds `content`."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "journal"
        shutil.copytree(filled.directory, copy)
        (copy / "journal.sqlite").write_bytes(content)
        return run_apart(recovered(copy))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_u1_no_edit_costs_a_record_on_another_page(filled: Filled, data: st.DataObject) -> None:
    content = bytearray((filled.directory / "journal.sqlite").read_bytes())
    # The first pages hold what leads to all others.
    places = st.one_of(st.integers(0, 200), st.integers(0, filled.size - 1))
    edits = data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8))
    for place, byte in edits:
        content[place] = byte
    edited = {place // PAGE_BYTES for place, _ in edits}

    found = after(filled, bytes(content))

    assert {event_id for event_id, page in filled.pages.items() if page not in edited} <= set(found)
    assert set(found) <= set(filled.pages)
    assert len(found) == len(set(found))


def test_u1_a_schema_that_is_no_text_any_more_costs_no_record_on_another_page(filled: Filled) -> None:
    content = bytearray((filled.directory / "journal.sqlite").read_bytes())
    content[content.index(b"CREATE TABLE") + 2] = 0x80  # SQLite's message quotes it, and so is no UTF-8 either

    found = after(filled, bytes(content))

    assert set(found) == set(filled.pages)


@pytest.mark.parametrize("place", [18, 19], ids=["write version", "read version"])
def test_u1_a_file_that_calls_itself_of_another_kind_is_taken_over(filled: Filled, place: int) -> None:
    content = bytearray((filled.directory / "journal.sqlite").read_bytes())
    content[place] = 5  # read, SQLite's own check finds nothing; written, "attempt to write a readonly database"

    found = after(filled, bytes(content))

    assert set(found) == set(filled.pages)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_u1_a_file_that_was_cut_keeps_the_records_before_the_cut(filled: Filled, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, filled.size))
    content = (filled.directory / "journal.sqlite").read_bytes()[:length]

    found = after(filled, content)

    assert {event_id for event_id, page in filled.pages.items() if (page + 1) * PAGE_BYTES <= length} <= set(found)
    assert set(found) <= set(filled.pages)


@pytest.mark.parametrize(
    "zeroed", [range(1), range(1, 4), range(100, 104)], ids=["first page", "roots", "past the end"]
)
def test_u1_pages_of_zeros_cost_no_record_on_another(filled: Filled, zeroed: range) -> None:
    content = bytearray((filled.directory / "journal.sqlite").read_bytes())
    for page in zeroed:
        if page * PAGE_BYTES < len(content):
            content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = bytes(PAGE_BYTES)

    found = after(filled, bytes(content))

    assert {event_id for event_id, page in filled.pages.items() if page not in zeroed} <= set(found)


async def test_u1_a_record_that_is_longer_than_a_page_is_found_without_the_first_page(tmp_path: Path) -> None:
    large = {f"label-{number}": "x" * 250 for number in range(16)}
    journal = journal_in(tmp_path, "epoch-1")
    ids = [new_id() for _ in range(6)]
    for event_id in ids[:3]:
        attempt = settled_attempt(event_id)
        await journal.settled(structs.replace(attempt, opened=structs.replace(attempt.opened, labels=large)))
    for event_id in ids[3:]:
        await journal.opened(structs.replace(opened_attempt(event_id), labels=large))
    await journal.close()
    file = tmp_path / "journal.sqlite"
    file.write_bytes(bytes(PAGE_BYTES) + file.read_bytes()[PAGE_BYTES:])

    assert sorted(await recovered(tmp_path)) == sorted(str(event_id) for event_id in ids)


@pytest.mark.parametrize("loss", ["emptied", "deleted", "first page"])
async def test_u1_a_main_file_that_is_lost_costs_nothing_that_stands_in_the_log(tmp_path: Path, loss: str) -> None:
    live, copy = tmp_path / "live", tmp_path / "copy"
    journal = journal_in(live, "epoch-1")
    ids = [new_id() for _ in range(20)]
    for event_id in ids:
        await journal.settled(settled_attempt(event_id))
    shutil.copytree(live, copy)  # as a kill leaves it: all of it is in the log
    await journal.close()
    file = copy / "journal.sqlite"
    if loss == "deleted":
        file.unlink()
    else:
        file.write_bytes(b"" if loss == "emptied" else bytes(file.stat().st_size))

    assert sorted(await recovered(copy)) == sorted(str(event_id) for event_id in ids)


async def test_a_journal_whose_files_were_made_read_only_is_used_all_the_same(tmp_path: Path) -> None:
    journal = journal_in(tmp_path, "epoch-1")
    event_id = new_id()
    await journal.settled(settled_attempt(event_id))
    await journal.close()
    (tmp_path / "journal.sqlite").chmod(0o400)

    assert await recovered(tmp_path) == [str(event_id)]
