"""Records of the beginning and of the end of attempts, written for all attempts of a commit at once."""

from __future__ import annotations

import sqlite3
from typing import Any

from service_runtime.faults import CrashPoint, crash_point

Row = tuple[Any, ...]


def write_opened(db: sqlite3.Connection, rows: list[Row]) -> None:
    """Attempts about to be sent. `rows`: event id, payload, checksum."""
    db.executemany("INSERT INTO opened (event_id, payload, crc) VALUES (?, ?, ?)", rows)
    for _ in rows:
        crash_point(CrashPoint.JOURNAL_BEFORE_OPENED_SYNC)


def write_settled(db: sqlite3.Connection, rows: list[Row]) -> None:
    """Attempts that ended, from now on to be sent to the ledger. `rows`: event id, payload, checksum, time."""
    db.executemany("DELETE FROM opened WHERE event_id = ?", [row[:1] for row in rows])
    db.executemany("INSERT INTO outbox (event_id, payload, crc, written_at) VALUES (?, ?, ?, ?)", rows)
    for _ in rows:
        crash_point(CrashPoint.JOURNAL_BEFORE_SETTLED_SYNC)
