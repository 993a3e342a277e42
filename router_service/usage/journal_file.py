"""The journal's SQLite file: its tables, its rows, and what can be saved of a damaged one.

Two tables. `opened` holds attempts that are running: as payload the event that the ledger shall get if the router dies
before they end. `outbox` holds what waits for the ledger, numbered without gaps per epoch. Each payload is the
serialised `UsageEvent`, frozen when it was first written, beside its checksum.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

FILE_NAME = "journal.sqlite"
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE opened (event_id BLOB PRIMARY KEY, payload BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE outbox (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id BLOB NOT NULL, payload BLOB NOT NULL, crc INTEGER NOT NULL, written_at REAL NOT NULL
);
CREATE TABLE dead_letter (
    sequence INTEGER PRIMARY KEY, event_id BLOB NOT NULL, payload BLOB NOT NULL, crc INTEGER NOT NULL,
    reason TEXT NOT NULL, moved_at REAL NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found at start: running attempts of a dead router, records waiting, and what was damaged."""

    interrupted: int = 0
    waiting: int = 0
    set_aside: Path | None = None
    salvaged: int = 0
    unreadable: int = 0


def open_journal(
    directory: Path, *, new_epoch: Callable[[], str], now_s: Callable[[], float]
) -> tuple[sqlite3.Connection, Recovery]:
    """Open the journal in a directory that this process owns, making or mending it as needed.

    Attempts that were running when the router died become events in the outbox. A file that is damaged, foreign or of
    a future version is moved aside whole; every record in it that can still be read is taken over. Raises
    sqlite3.Error or OSError only when a fresh file cannot be written either.
    """
    path = directory / FILE_NAME
    aside, salvaged = None, _Salvage()
    if path.exists() and not _is_sound(path):
        salvaged = _salvage(path)
        aside = _set_aside(directory, now_s)
    connection = _connect(path)
    try:
        if not _has_schema(connection):
            _make_schema(connection, new_epoch())
        interrupted, unreadable = _recover(connection, salvaged, now_s())
        (waiting,) = connection.execute("SELECT count(*) FROM outbox").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection, Recovery(
        interrupted, waiting, aside, len(salvaged.outbox) + len(salvaged.opened), unreadable + salvaged.unreadable
    )


def checksum(payload: bytes) -> int:
    """CRC-32 of a payload: tells a record that the disk changed."""
    return zlib.crc32(payload)


def epoch_of(connection: sqlite3.Connection) -> str:
    """The epoch: a new one whenever the file was made anew, so that its numbers begin again without colliding."""
    (epoch,) = connection.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
    return str(epoch)


def _connect(path: Path) -> sqlite3.Connection:
    # The journal's thread is the only one that uses the connection once it is open.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    path.chmod(0o600)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def _has_schema(connection: sqlite3.Connection) -> bool:
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return bool(tables)


def _make_schema(connection: sqlite3.Connection, epoch: str) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA.split(";"):
        connection.execute(statement)
    connection.executemany(
        "INSERT INTO meta (name, value) VALUES (?, ?)", [("schema_version", str(SCHEMA_VERSION)), ("epoch", epoch)]
    )
    connection.execute("COMMIT")


def _is_sound(path: Path) -> bool:
    """Whether the file is a whole journal of a version that this code knows. An empty file counts as a fresh one."""
    try:
        with closing(_connect(path)) as connection:
            if not _has_schema(connection):
                return True
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            row = connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone()
            epoch = connection.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
    except (sqlite3.Error, OSError):
        return False
    return verdict == "ok" and row == (str(SCHEMA_VERSION),) and epoch is not None


class _Salvage:
    """Records saved from a damaged file, and how many could not be."""

    def __init__(self) -> None:
        self.opened: list[tuple[bytes, bytes]] = []
        self.outbox: list[tuple[bytes, bytes]] = []
        self.unreadable = 0


def _salvage(path: Path) -> _Salvage:
    saved = _Salvage()
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    except sqlite3.Error:
        return saved
    with closing(connection):
        for table, target in (("opened", saved.opened), ("outbox", saved.outbox)):
            for row in _rows_that_can_be_read(connection, table):
                if row is None:
                    saved.unreadable += 1
                    continue
                event_id, payload, crc = row
                if isinstance(payload, bytes) and isinstance(event_id, bytes) and checksum(payload) == crc:
                    target.append((event_id, payload))
                else:
                    saved.unreadable += 1
    return saved


def _rows_that_can_be_read(
    connection: sqlite3.Connection, table: str
) -> Iterator[tuple[object, object, object] | None]:
    """Row by row; None for a place where the file cannot be read, after which the scan goes on from the other end."""
    seen: set[object] = set()
    for direction in ("ASC", "DESC"):
        key = "event_id" if table == "opened" else "sequence"
        try:
            cursor = connection.execute(
                f"SELECT {key}, event_id, payload, crc FROM {table} ORDER BY {key} {direction}"  # noqa: S608 - constants
            )
            for position, event_id, payload, crc in cursor:
                if position in seen:
                    return
                seen.add(position)
                yield event_id, payload, crc
        except sqlite3.Error:
            if direction == "ASC":
                yield None
            continue
        return


def _set_aside(directory: Path, now_s: Callable[[], float]) -> Path:
    """Move the file and its companions into a directory of their own; nothing unreadable is ever deleted."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s()))
    for suffix in ("", *(f"-{number}" for number in range(1, 1000))):
        aside = directory / f"corrupt-{stamp}{suffix}"
        try:
            aside.mkdir(mode=0o700)
        except FileExistsError:
            continue
        for file in directory.glob(f"{FILE_NAME}*"):
            file.rename(aside / file.name)
        return aside
    raise OSError(f"there are 1000 directories named corrupt-{stamp} in the journal already; move them away")


def _recover(connection: sqlite3.Connection, salvaged: _Salvage, now_s: float) -> tuple[int, int]:
    """Turn what was running into events to send, in one transaction; count also what carries a wrong checksum."""
    rows = connection.execute("SELECT event_id, payload, crc FROM opened").fetchall()
    sound = [(event_id, payload) for event_id, payload, crc in rows if checksum(payload) == crc]
    settled = {event_id for event_id, _ in salvaged.outbox}
    taken_over = [
        *salvaged.outbox,
        *((event_id, payload) for event_id, payload in salvaged.opened if event_id not in settled),
    ]
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        "INSERT INTO outbox (event_id, payload, crc, written_at) VALUES (?, ?, ?, ?)",
        [(event_id, payload, checksum(payload), now_s) for event_id, payload in (*taken_over, *sound)],
    )
    connection.executemany(
        "INSERT INTO dead_letter (sequence, event_id, payload, crc, reason, moved_at) "
        "VALUES ((SELECT ifnull(min(sequence), 0) - 1 FROM dead_letter WHERE sequence < 0), ?, ?, ?, 'checksum', ?)",
        [(event_id, payload, crc, now_s) for event_id, payload, crc in rows if checksum(payload) != crc],
    )
    connection.execute("DELETE FROM opened")
    connection.execute("COMMIT")
    return len(sound), len(rows) - len(sound)
