"""The journal's SQLite file: its tables, its rows, and what can be saved of a damaged one.

`opened` holds attempts that are running: as payload the event that the ledger shall get if the router dies before they
end. `held` holds attempts that ended without a count, while their provider is asked for it: as payload the event with
the estimate. `outbox` holds what waits for the ledger, numbered without gaps per epoch. Each payload is the serialised
`UsageEvent` beside its checksum; in the outbox it is frozen.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from router_service.usage.encode import with_one_outcome
from router_service.usage.raw_records import records, split
from router_service.usage.write_ahead_log import committed_pages
from service_runtime.faults import CrashPoint, crash_point

FILE_NAME = "journal.sqlite"
PAGE_BYTES = 4096  # SQLite's default, which this file is always made with
_MAGIC = b"SQLite format 3\0"
SCHEMA_VERSION = 2
_FRESH_NAME = "fresh.sqlite"
# What reading a damaged file raises. SQLite's messages quote the file, and what they quote need not be text any more.
_DAMAGE = (sqlite3.Error, UnicodeDecodeError)
_DAMAGE_CODES = frozenset(
    {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_ERROR}
)

# A bit may turn a blob into text that is none: read as bytes, it is a record with a wrong checksum and not an error.
_RECORD = "CAST(event_id AS BLOB), CAST(payload AS BLOB), CAST(crc AS INTEGER)"

_HELD = """
CREATE TABLE held (
    event_id BLOB PRIMARY KEY, payload BLOB NOT NULL, crc INTEGER NOT NULL,
    enquiry TEXT NOT NULL, written_at REAL NOT NULL
) WITHOUT ROWID
"""
_SCHEMA = f"""
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
{_HELD};
"""
_READABLE_VERSIONS = frozenset({"1", str(SCHEMA_VERSION)})  # version 1 had no `held`


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found at start: running attempts of a dead router, records waiting or held, and what was damaged."""

    interrupted: int = 0
    waiting: int = 0
    held: int = 0
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
    path, fresh = directory / FILE_NAME, directory / _FRESH_NAME
    aside, salvaged = None, _Salvage()
    if not path.exists() and not fresh.exists() and Path(f"{path}-wal").exists():
        path.touch()  # its log may hold all there is, and is salvaged like that of a damaged file
    if not path.exists() and fresh.exists():
        # A router died after it had taken everything over, and before the new file took the old one's place.
        aside = _set_aside(directory, now_s)
        fresh.rename(path)
    elif path.exists() and not _is_sound(path):
        aside, salvaged = _take_over(directory, new_epoch(), now_s)
    try:
        connection, recovery = _recovered(path, new_epoch, now_s)
    except _DAMAGE as error:
        if aside is not None or not _is_damage(error):
            raise
        # SQLite's check passed over it: a page that only a write comes to, or a header that says "read only".
        aside, salvaged = _take_over(directory, new_epoch(), now_s)
        connection, recovery = _recovered(path, new_epoch, now_s)
    return connection, replace(
        recovery,
        set_aside=aside,
        salvaged=len(salvaged.outbox) + len(salvaged.opened),
        unreadable=recovery.unreadable + salvaged.unreadable,
    )


def _take_over(directory: Path, epoch: str, now_s: Callable[[], float]) -> tuple[Path, _Salvage]:
    """Move a damaged file aside, with a fresh one in its place that holds what could be read; where it was moved to."""
    path, fresh = directory / FILE_NAME, directory / _FRESH_NAME
    salvaged = _salvage(path)
    _write_fresh(fresh, salvaged, epoch, now_s())
    crash_point(CrashPoint.TAKE_OVER_BEFORE_SET_ASIDE)
    aside = _set_aside(directory, now_s)
    crash_point(CrashPoint.TAKE_OVER_AFTER_SET_ASIDE)
    fresh.rename(path)
    crash_point(CrashPoint.TAKE_OVER_AFTER_RENAME)
    return aside, salvaged


def _recovered(
    path: Path, new_epoch: Callable[[], str], now_s: Callable[[], float]
) -> tuple[sqlite3.Connection, Recovery]:
    """A sound file, opened, with what was running in it turned into events; proved to take a write."""
    connection = _connect(path)
    try:
        if not _has_schema(connection):
            _make_schema(connection, new_epoch())
        _bring_up_to_date(connection)
        _prove_writable(connection)
        interrupted, unreadable = _recover(connection, _Salvage(), now_s())
        crash_point(CrashPoint.RECOVERY_AFTER_SYNC)
        (waiting,) = connection.execute("SELECT count(*) FROM outbox").fetchone()
        (held,) = connection.execute("SELECT count(*) FROM held").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection, Recovery(interrupted, waiting, held, unreadable=unreadable)


def _prove_writable(connection: sqlite3.Connection) -> None:
    """Write to each table that requests write to, and take it back: damage shows now and not at the first request."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("INSERT INTO opened (event_id, payload, crc) VALUES (x'', x'', 0)")
        connection.execute("INSERT INTO outbox (event_id, payload, crc, written_at) VALUES (x'', x'', 0, 0)")
    finally:
        if connection.in_transaction:  # SQLite may have taken it back by itself
            connection.execute("ROLLBACK")


def _is_damage(error: Exception) -> bool:
    """Whether it is the file that is at fault, and not a full disk or somebody who holds it locked."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _DAMAGE_CODES


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
    try:
        path.chmod(0o600)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # `GroupCommit` does it when nobody waits
        connection.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        connection.close()
        raise
    return connection


def _write_fresh(path: Path, salvaged: _Salvage, epoch: str, now_s: float) -> None:
    """A whole new journal with what was saved, before the old file is moved: a crash at any point loses nothing."""
    for leftover in path.parent.glob(f"{path.name}*"):
        leftover.unlink()
    with closing(_connect(path)) as connection:
        _make_schema(connection, epoch)
        _recover(connection, salvaged, now_s)


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


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    if _has_table(connection, "held"):
        return
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(_HELD)
    connection.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", (str(SCHEMA_VERSION),))
    connection.execute("COMMIT")


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)).fetchone()
    return found is not None


def _is_sound(path: Path) -> bool:
    """Whether the file is a whole journal of a version that this code knows. An empty file counts as a fresh one,
    unless it has a log, which SQLite would delete.
    """
    with path.open("rb") as file:
        begins_well = file.read(len(_MAGIC)) == _MAGIC
    if not begins_well:
        log = Path(f"{path}-wal")
        return path.stat().st_size == 0 and not (log.exists() and log.stat().st_size)
    try:
        with closing(_connect(path)) as connection:
            if not _has_schema(connection):
                return True
            if not _tables(connection) <= _known_tables():
                return False
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            row = connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone()
            epoch = connection.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
    except (*_DAMAGE, OSError):
        return False
    return verdict == "ok" and row is not None and row[0] in _READABLE_VERSIONS and epoch is not None


def _tables(connection: sqlite3.Connection) -> set[str]:
    """How the tables were made, without differences of white space."""
    rows = connection.execute("SELECT CAST(sql AS BLOB) FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
    return {" ".join((sql or b"").decode(errors="replace").split()) for (sql,) in rows}


def _known_tables() -> set[str]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(_SCHEMA)
        return _tables(connection)


class _Salvage:
    """Records saved from a damaged file, and how many could not be."""

    def __init__(self) -> None:
        self.opened: list[tuple[bytes, bytes]] = []
        self.outbox: list[tuple[bytes, bytes]] = []
        self.unreadable = 0


def _salvage(path: Path) -> _Salvage:
    saved = _Salvage()
    content, log = path.read_bytes(), Path(f"{path}-wal")
    pages = split(content, PAGE_BYTES)
    if log.exists():
        pages |= committed_pages(log.read_bytes(), page_bytes=PAGE_BYTES)
    if content.startswith(_MAGIC):
        _salvage_rows(path, saved)
    # What SQLite does not find any more is looked for page by page.
    known = {event_id for event_id, _ in (*saved.outbox, *saved.opened)}
    for record in records(pages):
        if record.event_id not in known or record.is_settled:
            known.add(record.event_id)
            (saved.outbox if record.is_settled else saved.opened).append((record.event_id, record.payload))
    # Of one attempt its end goes before its beginning, and either is taken once.
    saved.outbox = list({event_id: (event_id, payload) for event_id, payload in reversed(saved.outbox)}.values())[::-1]
    settled = {event_id for event_id, _ in saved.outbox}
    saved.opened = [row for row in dict.fromkeys(saved.opened) if row[0] not in settled]
    return saved


def _salvage_rows(path: Path, saved: _Salvage) -> None:
    """What SQLite itself can still read."""
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    except _DAMAGE:
        return
    with closing(connection):
        # What was held goes to the ledger as it is: with the estimate.
        tables = [("opened", saved.opened), ("outbox", saved.outbox)]
        with suppress(*_DAMAGE):  # a file whose list of tables is unreadable gives nothing below either
            tables += [("held", saved.outbox)] if _has_table(connection, "held") else []
        for table, target in tables:
            for row in _rows_that_can_be_read(connection, table):
                if row is None:
                    saved.unreadable += 1
                    continue
                event_id, payload, crc = row
                if isinstance(payload, bytes) and isinstance(event_id, bytes) and checksum(payload) == crc:
                    target.append((event_id, payload))
                else:
                    saved.unreadable += 1


Row = tuple[object, object, object]


def _rows_that_can_be_read(connection: sqlite3.Connection, table: str) -> Iterator[Row | None]:
    """Event id, payload and checksum of each row; None for a place where the file cannot be read.

    The table is read from both ends up to the damage. Rows of the outbox that lie beyond it are asked for one by one:
    damage to an inner page hides only some of them.
    """
    key = "sequence" if table == "outbox" else "event_id"
    query = f"SELECT {key}, {_RECORD} FROM {table}"  # noqa: S608 - constants of this module
    seen: set[object] = set()
    for direction in ("ASC", "DESC"):
        try:
            for position, *row in connection.execute(f"{query} ORDER BY {key} {direction}"):
                # Only the way back meets what was read before; on the way there a known key is one that a bit changed.
                if position in seen and direction == "DESC":
                    continue
                seen.add(position)
                yield row[0], row[1], row[2]
        except _DAMAGE:
            yield None
        else:
            return
    numbers = [position for position in seen if isinstance(position, int)]
    for sequence in range(min(numbers, default=1), max(numbers, default=0)):
        if sequence not in seen:
            yield from _row_at(connection, query, sequence)


def _row_at(connection: sqlite3.Connection, query: str, sequence: int) -> Iterator[Row]:
    try:
        found = connection.execute(f"{query} WHERE sequence = ?", (sequence,)).fetchone()
    except _DAMAGE:
        return
    if found is not None:
        yield found[1], found[2], found[3]


def _set_aside(directory: Path, now_s: Callable[[], float]) -> Path:
    """Move the file and its companions into a directory of their own; nothing unreadable is ever deleted."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s()))
    for suffix in ("", *(f"-{number}" for number in range(1, 1000))):
        aside = directory / f"corrupt-{stamp}{suffix}"
        try:
            aside.mkdir(mode=0o700)
        except FileExistsError:
            continue
        # The database before its log: alone, the log is harmless, but the database would be older than it was.
        for file in sorted(directory.glob(f"{FILE_NAME}*")):
            file.rename(aside / file.name)
        return aside
    raise OSError(f"there are 1000 directories named corrupt-{stamp} in the journal already; move them away")


def _recover(connection: sqlite3.Connection, salvaged: _Salvage, now_s: float) -> tuple[int, int]:
    """Turn what was running into events to send, in one transaction; count also what carries a wrong checksum."""
    rows = connection.execute(f"SELECT {_RECORD} FROM opened").fetchall()  # noqa: S608 - a constant of this module
    sound = [(event_id, payload) for event_id, payload, crc in rows if checksum(payload) == crc]
    settled = {event_id for event_id, _ in salvaged.outbox}
    running = [*((event_id, payload) for event_id, payload in salvaged.opened if event_id not in settled), *sound]
    events = with_one_outcome([payload for _, payload in running])
    recovered = [*salvaged.outbox, *zip((event_id for event_id, _ in running), events, strict=True)]
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        "INSERT INTO outbox (event_id, payload, crc, written_at) VALUES (?, ?, ?, ?)",
        [(event_id, payload, checksum(payload), now_s) for event_id, payload in recovered],
    )
    connection.executemany(
        "INSERT INTO dead_letter (sequence, event_id, payload, crc, reason, moved_at) "
        "VALUES ((SELECT ifnull(min(sequence), 0) - 1 FROM dead_letter WHERE sequence < 0), ?, ?, ?, 'checksum', ?)",
        [(event_id, payload, crc, now_s) for event_id, payload, crc in rows if checksum(payload) != crc],
    )
    connection.execute("DELETE FROM opened")
    crash_point(CrashPoint.RECOVERY_BEFORE_SYNC)
    connection.execute("COMMIT")
    return len(sound), len(rows) - len(sound)
