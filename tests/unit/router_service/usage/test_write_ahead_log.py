from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router_service.usage.write_ahead_log import mend

PAGE_BYTES = 4096
FRAME_BYTES = PAGE_BYTES + 24


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Database and log as a killed process leaves them: 60 commits of one row each, none in the main file."""
    directory = tmp_path_factory.mktemp("crashed")
    live = directory / "live.sqlite"
    connection = sqlite3.connect(live, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE records (number INTEGER PRIMARY KEY, payload BLOB NOT NULL)")
    for number in range(60):
        connection.execute("INSERT INTO records VALUES (?, ?)", (number, bytes([number]) * 300))
    shutil.copy(live, directory / "db")
    shutil.copy(f"{live}-wal", directory / "db-wal")
    connection.close()
    return directory


def numbers(directory: Path, crashed: Path, log: bytes) -> list[int]:
    """What SQLite reads from the crashed database with this log."""
    shutil.copy(crashed / "db", directory / "db")
    (directory / "db-wal").write_bytes(log)
    connection = sqlite3.connect(directory / "db")
    try:
        return [number for (number,) in connection.execute("SELECT number FROM records ORDER BY number")]
    finally:
        connection.close()


def log_of(crashed: Path) -> bytes:
    return (crashed / "db-wal").read_bytes()


def flipped(log: bytes, position: int) -> bytes:
    return log[:position] + bytes([log[position] ^ 0x10]) + log[position + 1 :]


def test_a_log_as_sqlite_wrote_it_is_left_alone(crashed: Path) -> None:
    assert mend(log_of(crashed), page_bytes=PAGE_BYTES) is None


@pytest.mark.parametrize("log", [b"", b"short", bytes(100_000)], ids=["empty", "shorter than a frame", "zeros"])
def test_what_is_no_log_is_left_alone(log: bytes) -> None:
    assert mend(log, page_bytes=PAGE_BYTES) is None


@pytest.mark.parametrize("kept_bytes", range(0, FRAME_BYTES, 997))
def test_an_unfinished_write_at_the_end_is_no_damage(crashed: Path, kept_bytes: int) -> None:
    log = log_of(crashed)

    assert mend(log[: len(log) - FRAME_BYTES + kept_bytes], page_bytes=PAGE_BYTES) is None


@pytest.mark.parametrize("offset", [0, 5, 9, 17, 21, 30, 2000], ids=lambda offset: f"byte {offset} of a frame")
def test_one_flipped_bit_costs_no_commit_that_a_later_frame_repeats(crashed: Path, tmp_path: Path, offset: int) -> None:
    log = log_of(crashed)
    damaged = flipped(log, 32 + 20 * FRAME_BYTES + offset)

    mended = mend(damaged, page_bytes=PAGE_BYTES)

    assert len(numbers(tmp_path, crashed, damaged)) < 60  # SQLite by itself loses what is behind
    assert mended is not None
    assert mended.lost_frames >= 1
    (tmp_path / "mended").mkdir()
    assert numbers(tmp_path / "mended", crashed, mended.content) == list(range(60))


@pytest.mark.parametrize("position", range(32), ids=lambda position: f"byte {position}")
def test_a_damaged_header_costs_nothing(crashed: Path, tmp_path: Path, position: int) -> None:
    mended = mend(flipped(log_of(crashed), position), page_bytes=PAGE_BYTES)

    assert mended is not None
    assert numbers(tmp_path, crashed, mended.content) == list(range(60))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_damaged_a_mended_log_is_one_that_sqlite_takes_whole(
    crashed: Path, tmp_path: Path, data: st.DataObject
) -> None:
    log = bytearray(log_of(crashed))
    for _ in range(data.draw(st.integers(1, 4))):
        log[data.draw(st.integers(0, len(log) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(log[: data.draw(st.integers(0, len(log)))])

    mended = mend(damaged, page_bytes=PAGE_BYTES)

    assert mended is None or mend(mended.content, page_bytes=PAGE_BYTES) is None
