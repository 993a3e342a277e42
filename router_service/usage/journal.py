"""The durable record of attempts: opened before the first byte goes out, settled before the caller sees the end.

One thread owns the file. Everything that waits when it begins a commit goes into that commit, so a busy router pays one
sync for many records and an idle one pays it alone. A record is durable when `opened` or `settled` returns.
"""

from __future__ import annotations

import fcntl
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from uuid import UUID

import msgspec
import structlog

from router_service.domain.usage import AttemptOpened, AttemptSettled, HeldAttempt, LateUsage
from router_service.usage import held_records, running_records
from router_service.usage.encode import interrupted_event, opened_fields, settled_event
from router_service.usage.group_commit import GroupCommit, RowWriter
from router_service.usage.journal_file import FILE_NAME, Recovery, checksum, epoch_of, open_journal
from router_service.usage.journal_space import JournalSpace
from router_service.usage.log_mending import mend_log
from router_service.usage.metrics import UsageMetrics
from service_runtime.errors import ServiceError
from service_runtime.faults import CrashPoint, crash_point
from service_runtime.startup import StartupError

_log = structlog.get_logger(__name__)

# A bit may turn a blob into text that is none, or a number into text: read as what it is meant to be, it is a payload
# with a wrong checksum, and not an error that stops all that is behind it.
_SELECT = (
    "SELECT sequence, CAST(payload AS BLOB), CAST(crc AS INTEGER), CAST(written_at AS REAL) "
    "FROM outbox WHERE sequence > ? AND sequence < ? AND sequence NOT BETWEEN ? AND ? ORDER BY sequence"
)
_BEYOND_ALL = (1 << 63) - 1
# Whoever opens or settles an attempt waits for at most one such piece, of less than half a millisecond.
_ROWS_AT_ONCE = 128

NONE = (0, 0)  # no sequences: they begin at 1

Row = tuple[int, bytes, int, float]


class JournalledEvent(msgspec.Struct, frozen=True):
    """An event that waits for the ledger; `payload` is the serialised UsageEvent without its sequence."""

    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class JournalState:
    """How the journal stands. `first_waiting` is 0 when none waits; times are seconds since 1970, None for none."""

    last_sequence: int
    first_waiting: int
    waiting: int
    opened: int
    held: int
    dead_letters: int
    oldest_waiting_s: float | None
    oldest_open_s: float | None


class SqliteJournal:
    """Implements `routing.ports.UsageJournal`, and gives the sender what it has to send."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        lock: int,
        recovery: Recovery,
        space: JournalSpace,
        metrics: UsageMetrics,
    ) -> None:
        self._lock = lock
        self._metrics = metrics
        self._is_closed = False
        self._on_settled: Callable[[int], None] = lambda _: None
        self._on_opened: Callable[[float], None] = lambda _: None
        self.recovery = recovery
        self.epoch = epoch_of(connection)
        self._space = space
        self._thread = GroupCommit(connection, space, metrics)
        self._opening = RowWriter(running_records.write_opened, metrics.records["opened",].inc)
        self._settling = RowWriter(running_records.write_settled, self._more_wait)
        self._live_at_s = -math.inf
        self._fields: dict[bytes, bytes] = {}  # of the attempts that run, as `opened_fields` gives them
        self._waiting = 0
        self._count_waiting(recovery.waiting)
        metrics.held.set(recovery.held)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        max_bytes: int,
        metrics: UsageMetrics,
        new_epoch: Callable[[], str],
        now_s: Callable[[], float] = time.time,
    ) -> SqliteJournal:
        """Open or make the journal in a directory, which this process then owns.

        Raises StartupError, in one line, when another router owns it or it cannot be written.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _lock(directory)
        except OSError as error:
            raise _unwritable(directory, error) from error
        try:
            log_aside = mend_log(directory / FILE_NAME, now_s=now_s())
            connection, recovery = open_journal(directory, new_epoch=new_epoch, now_s=now_s)
        except (OSError, sqlite3.Error) as error:
            os.close(lock)
            raise _unwritable(directory, error) from error
        if log_aside is not None and recovery.set_aside is None:
            recovery = replace(recovery, set_aside=log_aside)
        _report(recovery, directory, metrics)
        space = JournalSpace(directory, max_bytes=max_bytes, metrics=metrics)
        return cls(connection, lock, recovery, space, metrics)

    def on_settled(self, callback: Callable[[int], None]) -> None:
        """Call `callback` on the event loop whenever there is something new to send, with how many events."""
        self._on_settled = callback

    def on_opened(self, callback: Callable[[float], None]) -> None:
        """Call `callback` with the seconds that each `opened` has waited for the disk."""
        self._on_opened = callback

    @property
    def waiting(self) -> int:
        """How many events wait for the ledger."""
        return self._waiting

    @property
    def idle_s(self) -> float:
        """Seconds since an attempt was last opened or settled here; infinite when none was."""
        return time.monotonic() - self._live_at_s

    async def opened(self, attempt: AttemptOpened) -> None:
        """See `routing.ports.UsageJournal`."""
        began_s = self._live_at_s = time.monotonic()
        event_id, fields = attempt.event_id.bytes, opened_fields(attempt)
        payload = interrupted_event(fields, attempt.estimated_input_tokens)
        await self._thread.write((event_id, payload, checksum(payload)), self._opening, needs_room=True)
        self._fields[event_id] = fields
        crash_point(CrashPoint.JOURNAL_AFTER_OPENED_SYNC)
        self._on_opened(time.monotonic() - began_s)

    async def settled(self, attempt: AttemptSettled) -> None:
        """See `routing.ports.UsageJournal`. Raises JOURNAL_FULL only when even the reserve is used up.

        The record is then written once there is room again, unless the process ends before, or too many wait: such an
        attempt stays opened, and is reported as interrupted at the next start. So is one that was to be absorbed by
        another, which does not follow now: it has become the outcome of its request.
        """
        self._live_at_s = time.monotonic()
        event_id = attempt.opened.event_id.bytes
        payload = settled_event(self._fields.pop(event_id, b"") or opened_fields(attempt.opened), attempt)
        row = (event_id, payload, checksum(payload), time.time())
        if attempt.enquiry is not None:
            write_held = held_records.holding(row, attempt.enquiry)
            await self._thread.do(write_held, is_kept=not attempt.absorbed, then=self._one_more_is_held)
            crash_point(CrashPoint.JOURNAL_AFTER_HELD_SYNC)
            return
        await self._thread.write(row, self._settling, is_kept=not attempt.absorbed)
        crash_point(CrashPoint.JOURNAL_AFTER_SETTLED_SYNC)

    async def held(self) -> list[HeldAttempt]:
        """See `routing.ports.UsageJournal`."""
        attempts: list[HeldAttempt] = await self._thread.do_in_time(held_records.all_held, is_reading=True)
        return attempts

    async def release(self, event_id: UUID, late: LateUsage | None) -> bool:
        """See `routing.ports.UsageJournal`."""
        was_held: bool = await self._thread.do(held_records.releasing(event_id, late, time.time()))
        crash_point(CrashPoint.JOURNAL_AFTER_RELEASE_SYNC)
        if was_held:
            self._metrics.held.dec()
            self._more_wait(1)
        return was_held

    async def oldest(self, limit: int, *, but: tuple[int, int] = NONE) -> list[JournalledEvent]:
        """Up to `limit` events, the longest waiting first; `but`: without those of these sequences, both included."""
        rows = await self._rows(limit, but, newest_first=False)
        if rows or but == NONE:
            self._metrics.oldest_waiting.set(rows[0][3] if rows else 0)
        return await self._sound(rows)

    async def newest(self, limit: int, *, but: tuple[int, int] = NONE) -> list[JournalledEvent]:
        """Up to `limit` events, the latest first; `but` as for `oldest`."""
        return await self._sound(await self._rows(limit, but, newest_first=True))

    async def remove(self, sequences: Sequence[int]) -> None:
        """Forget events that the ledger has acknowledged."""
        for first, last in _runs(sequences):
            await self._remove_run(first, last)
        crash_point(CrashPoint.JOURNAL_AFTER_REMOVAL_SYNC)

    async def _remove_run(self, first: int, last: int) -> None:
        removed = 0

        def delete(db: sqlite3.Connection) -> None:
            nonlocal removed
            removed = db.execute("DELETE FROM outbox WHERE sequence BETWEEN ? AND ?", (first, last)).rowcount
            crash_point(CrashPoint.JOURNAL_BEFORE_REMOVAL_SYNC)

        # Counted also when whoever removes is stopped meanwhile.
        await self._thread.do_in_time(delete, then=lambda: self._count_waiting(-removed))

    async def bury(self, reasons: Sequence[tuple[int, str]]) -> None:
        """Set events aside that the ledger will never take; they stay in the file for a person to look at."""
        now_s = time.time()
        moves = [(reason, now_s, sequence) for sequence, reason in reasons]
        moved = 0

        def move(db: sqlite3.Connection) -> None:
            nonlocal moved
            db.executemany(
                "INSERT OR REPLACE INTO dead_letter (sequence, event_id, payload, crc, reason, moved_at) "
                "SELECT sequence, event_id, payload, crc, ?, ? FROM outbox WHERE sequence = ?",
                moves,
            )
            sequences = [(sequence,) for sequence, _ in reasons]
            moved = db.executemany("DELETE FROM outbox WHERE sequence = ?", sequences).rowcount
            crash_point(CrashPoint.JOURNAL_BEFORE_BURIAL_SYNC)

        await self._thread.do(move, then=lambda: self._count_waiting(-moved))
        crash_point(CrashPoint.JOURNAL_AFTER_BURIAL_SYNC)
        for _, reason in reasons:
            self._metrics.dead_letters.labels(reason).inc()

    async def takes_new_work(self) -> bool:
        """Whether a new attempt could be opened now: the file works and is not full."""
        try:
            return bool(await self._thread.do_in_time(self._space.has_room, is_reading=True))
        except ServiceError:
            return False

    async def state(self) -> JournalState:
        """How the journal stands, all at one moment; also brings the metrics of size and age up to date."""
        stored: JournalState = await self._thread.do_in_time(_state_of, is_reading=True)
        state = replace(stored, waiting=self._waiting)
        self._metrics.opened.set(state.opened)
        self._metrics.oldest_waiting.set(state.oldest_waiting_s or 0)
        self._metrics.oldest_opened.set(state.oldest_open_s or 0)
        return state

    async def close(self) -> None:
        """Finish what was asked for, then close the file and release the directory."""
        await self._thread.close()
        if not self._is_closed:
            self._is_closed = True
            os.close(self._lock)

    def _more_wait(self, count: int) -> None:
        self._metrics.records["settled",].inc(count)
        self._count_waiting(count)
        self._on_settled(count)

    def _count_waiting(self, change: int) -> None:
        self._waiting += change
        self._metrics.waiting.set(self._waiting)

    def _one_more_is_held(self) -> None:
        self._metrics.records["held",].inc()
        self._metrics.held.inc()

    async def _rows(self, limit: int, but: tuple[int, int], *, newest_first: bool) -> list[Row]:
        """Up to `limit` rows, read piece by piece; what is settled meanwhile is seen by the next reading."""
        rows: list[Row] = []
        query = f"{_SELECT} DESC LIMIT ?" if newest_first else f"{_SELECT} LIMIT ?"
        above, below = 0, _BEYOND_ALL
        while len(rows) < limit:
            wanted = min(limit - len(rows), _ROWS_AT_ONCE)
            read = partial(_fetch, query=query, bounds=(above, below, *but, wanted))
            piece: list[Row] = await self._thread.do_in_time(read, is_reading=True)
            rows += piece
            if len(piece) < wanted:
                break
            above, below = (above, piece[-1][0]) if newest_first else (piece[-1][0], below)
        return rows

    async def _sound(self, rows: Sequence[Row]) -> list[JournalledEvent]:
        """The rows whose bytes are as they were written; the others are set aside."""
        sound = [JournalledEvent(sequence, payload) for sequence, payload, crc, _ in rows if checksum(payload) == crc]
        if len(sound) < len(rows):
            damaged = [(sequence, "checksum") for sequence, payload, crc, _ in rows if checksum(payload) != crc]
            _log.error("journal.records_damaged", count=len(damaged))
            await self.bury(damaged)
        return sound


def _fetch(db: sqlite3.Connection, *, query: str, bounds: tuple[int, ...]) -> list[Row]:
    return db.execute(query, bounds).fetchall()


def _runs(sequences: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and the last of each run without a gap, of at most `_ROWS_AT_ONCE`: one statement deletes it."""
    first = last = 0
    for sequence in sorted(sequences):
        if first and (sequence != last + 1 or sequence - first >= _ROWS_AT_ONCE):
            yield first, last
            first = 0
        first, last = first or sequence, sequence
    if first:
        yield first, last


def _state_of(db: sqlite3.Connection) -> JournalState:
    (last,) = db.execute("SELECT ifnull(max(seq), 0) FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
    first = db.execute("SELECT sequence, CAST(written_at AS REAL) FROM outbox ORDER BY sequence LIMIT 1").fetchone()
    # A UUIDv7 begins with its millisecond, so that the least is the oldest.
    opened, oldest = db.execute("SELECT count(*), min(event_id) FROM opened").fetchone()
    (held,) = db.execute("SELECT count(*) FROM held").fetchone()
    (dead,) = db.execute("SELECT count(*) FROM dead_letter").fetchone()
    return JournalState(
        last_sequence=last,
        first_waiting=first[0] if first else 0,
        waiting=0,  # to count a long backlog is to read all of it: the journal keeps count
        opened=opened,
        held=held,
        dead_letters=dead,
        oldest_waiting_s=first[1] if first else None,
        oldest_open_s=int.from_bytes(oldest[:6], "big") / 1000 if opened else None,
    )


def router_name(directory: Path, new_name: Callable[[], str]) -> str:
    """The router's stable name, made once and kept beside its journal."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / "router-id"
    try:
        with path.open("x") as file:
            file.write(new_name())
    except FileExistsError:
        pass
    return path.read_text().strip()


def _lock(directory: Path) -> int:
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StartupError(
            f"the journal in {directory} belongs to another running router; "
            "stop it, or give this one a directory of its own by TURNPIKE_DATA_DIR"
        ) from None
    return lock


def _report(recovery: Recovery, directory: Path, metrics: UsageMetrics) -> None:
    metrics.recovered.labels("interrupted").inc(recovery.interrupted)
    metrics.recovered.labels("salvaged").inc(recovery.salvaged)
    metrics.recovered.labels("unreadable").inc(recovery.unreadable)
    metrics.corrupt_files.inc(1 if recovery.set_aside is not None else 0)
    if recovery.interrupted or recovery.waiting:
        _log.info("journal.recovered", interrupted=recovery.interrupted, waiting=recovery.waiting)
    if recovery.set_aside is not None or recovery.unreadable:
        _log.error(
            "journal.damaged",
            file=str(directory / FILE_NAME),
            set_aside=str(recovery.set_aside) if recovery.set_aside else None,
            salvaged=recovery.salvaged,
            unreadable=recovery.unreadable,
        )


def _unwritable(directory: Path, error: Exception) -> StartupError:
    return StartupError(f"the journal in {directory} cannot be written ({error}); make room or mend it")
