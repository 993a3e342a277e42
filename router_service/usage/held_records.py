"""Records of the journal that wait for an enquiry: settled and durable with an estimate, and not yet to be sent.

A record leaves here once, into the outbox, where it gets its number: a record that is held makes no gap there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from uuid import UUID

import msgspec

from router_service.domain.usage import HeldAttempt, LateEnquiry, LateUsage
from router_service.usage.encode import amended_event
from router_service.usage.journal_file import checksum
from service_runtime.faults import CrashPoint, crash_point
from turnpike.usage.v1 import usage_event_pb2


def holding(row: tuple[bytes, bytes, int, float], enquiry: LateEnquiry) -> Callable[[sqlite3.Connection], None]:
    """The statement that settles an attempt and holds its record. `row`: event id, payload, checksum, time."""
    event_id, payload, crc, now_s = row
    held = (event_id, payload, crc, msgspec.json.encode(enquiry).decode(), now_s)

    def write(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM opened WHERE event_id = ?", (event_id,))
        db.execute("INSERT INTO held (event_id, payload, crc, enquiry, written_at) VALUES (?, ?, ?, ?, ?)", held)
        crash_point(CrashPoint.JOURNAL_BEFORE_HELD_SYNC)

    return write


def releasing(event_id: UUID, late: LateUsage | None, now_s: float) -> Callable[[sqlite3.Connection], bool]:
    """The statement that hands a held record to the outbox, with the late figures or with its estimate.

    Its result is False when no such record is held: it was released before, and nothing may change it any more.
    """

    def write(db: sqlite3.Connection) -> bool:
        row = db.execute(
            "SELECT CAST(payload AS BLOB), CAST(crc AS INTEGER) FROM held WHERE event_id = ?", (event_id.bytes,)
        ).fetchone()
        if row is None:
            return False
        payload, crc = row
        if late is not None and checksum(payload) == crc:  # a damaged one is found out, and buried, by the sender
            payload = amended_event(payload, late)
            crc = checksum(payload)
        db.execute(
            "INSERT INTO outbox (event_id, payload, crc, written_at) VALUES (?, ?, ?, ?)",
            (event_id.bytes, payload, crc, now_s),
        )
        db.execute("DELETE FROM held WHERE event_id = ?", (event_id.bytes,))
        crash_point(CrashPoint.JOURNAL_BEFORE_RELEASE_SYNC)
        return True

    return write


def all_held(db: sqlite3.Connection) -> list[HeldAttempt]:
    """Every held record, the longest held first."""
    rows = db.execute(
        "SELECT event_id, CAST(payload AS BLOB), CAST(crc AS INTEGER), CAST(enquiry AS BLOB), CAST(written_at AS REAL) "
        "FROM held ORDER BY written_at"
    ).fetchall()
    return [_held_attempt(*row) for row in rows]


def _held_attempt(event_id: bytes, payload: bytes, crc: int, enquiry: bytes, written_at: float) -> HeldAttempt:
    tenant_id, question = UUID(int=0), None
    if checksum(payload) == crc:
        tenant_id = UUID(usage_event_pb2.UsageEvent.FromString(payload).tenant_id)
        try:
            question = msgspec.json.decode(enquiry, type=LateEnquiry)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            question = None  # without its question the record goes out as it stands
    return HeldAttempt(UUID(bytes=event_id), tenant_id, question, written_at)
