"""The durable record of attempts: opened before the first byte goes out, settled before the caller sees the end.

One thread owns the file. Everything that waits when it begins a commit goes into that commit, so a busy router pays one
sync for many records and an idle one pays it alone. A record is durable when `opened` or `settled` returns.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import structlog

from router_service.domain.usage import AttemptOpened, AttemptSettled
from router_service.usage.encode import interrupted_event, settled_event
from router_service.usage.journal_file import FILE_NAME, Recovery, checksum, epoch_of, open_journal
from router_service.usage.metrics import UsageMetrics
from service_runtime.errors import Category, ServiceError
from service_runtime.startup import StartupError

_log = structlog.get_logger(__name__)

_GROUP_LIMIT = 512
_RESERVE_BYTES = 8 << 20
_SPACE_CHECK_INTERVAL_S = 5.0

Statement = Callable[[sqlite3.Connection], Any]


@dataclass(frozen=True, slots=True)
class JournalledEvent:
    """An event that waits for the ledger; `payload` is the serialised UsageEvent without its sequence."""

    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Work:
    """One statement for the thread, and who waits for it. `needs_room` marks work that a full journal refuses."""

    run: Statement
    done: Future[Any]
    needs_room: bool = False


class SqliteJournal:
    """Implements `routing.ports.UsageJournal`, and gives the sender what it has to send."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        directory: Path,
        lock: int,
        recovery: Recovery,
        *,
        max_bytes: int,
        metrics: UsageMetrics,
    ) -> None:
        self._connection = connection
        self._directory = directory
        self._lock = lock
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="journal", daemon=True)
        self._closed = False
        self._next_space_check_s = 0.0
        self._on_settled: Callable[[], None] = lambda: None
        self.recovery = recovery
        self.epoch = epoch_of(connection)
        metrics.waiting.set(recovery.waiting)
        self._keep_reserve()
        self._thread.start()

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
            connection, recovery = open_journal(directory, new_epoch=new_epoch, now_s=now_s)
        except (OSError, sqlite3.Error) as error:
            raise StartupError(
                f"the journal in {directory} cannot be written ({error}); make room or mend it"
            ) from error
        _report(recovery, directory, metrics)
        return cls(connection, directory, lock, recovery, max_bytes=max_bytes, metrics=metrics)

    def on_settled(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the event loop whenever there is something new to send."""
        self._on_settled = callback

    async def opened(self, attempt: AttemptOpened) -> None:
        """See `routing.ports.UsageJournal`."""
        payload = interrupted_event(attempt).SerializeToString()
        row = (attempt.event_id.bytes, payload, checksum(payload))
        self._metrics.records.labels("opened").inc()
        await self._do(
            lambda db: db.execute("INSERT INTO opened (event_id, payload, crc) VALUES (?, ?, ?)", row), needs_room=True
        )

    async def settled(self, attempt: AttemptSettled) -> None:
        """See `routing.ports.UsageJournal`."""
        payload = settled_event(attempt).SerializeToString()
        event_id = attempt.opened.event_id.bytes

        def write(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM opened WHERE event_id = ?", (event_id,))
            db.execute(
                "INSERT INTO outbox (event_id, payload, crc, written_at) VALUES (?, ?, ?, ?)",
                (event_id, payload, checksum(payload), time.time()),
            )

        self._metrics.records.labels("settled").inc()
        await self._do(write)
        self._metrics.waiting.inc()
        self._on_settled()

    async def oldest(self, limit: int) -> list[JournalledEvent]:
        """Up to `limit` events, the longest waiting first."""
        return await self._select("SELECT sequence, payload, crc FROM outbox ORDER BY sequence LIMIT ?", limit)

    async def newest(self, limit: int) -> list[JournalledEvent]:
        """Up to `limit` events, the latest first."""
        return await self._select("SELECT sequence, payload, crc FROM outbox ORDER BY sequence DESC LIMIT ?", limit)

    async def remove(self, sequences: Sequence[int]) -> None:
        """Forget events that the ledger has acknowledged."""
        rows = [(sequence,) for sequence in sequences]
        await self._do(lambda db: db.executemany("DELETE FROM outbox WHERE sequence = ?", rows))
        self._metrics.waiting.dec(len(rows))

    async def bury(self, reasons: Sequence[tuple[int, str]]) -> None:
        """Set events aside that the ledger will never take; they stay in the file for a person to look at."""
        now_s = time.time()
        moves = [(reason, now_s, sequence) for sequence, reason in reasons]

        def move(db: sqlite3.Connection) -> None:
            db.executemany(
                "INSERT OR REPLACE INTO dead_letter (sequence, event_id, payload, crc, reason, moved_at) "
                "SELECT sequence, event_id, payload, crc, ?, ? FROM outbox WHERE sequence = ?",
                moves,
            )
            db.executemany("DELETE FROM outbox WHERE sequence = ?", [(sequence,) for sequence, _ in reasons])

        await self._do(move)
        self._metrics.waiting.dec(len(moves))
        for _, reason in reasons:
            self._metrics.dead_letters.labels(reason).inc()

    async def close(self) -> None:
        """Finish what was asked for, then close the file and release the directory."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._connection.close()
        os.close(self._lock)

    async def _select(self, query: str, limit: int) -> list[JournalledEvent]:
        rows = await self._do(lambda db: db.execute(query, (limit,)).fetchall())
        damaged = [(sequence, "checksum") for sequence, payload, crc in rows if checksum(payload) != crc]
        if damaged:
            await self.bury(damaged)
        return [JournalledEvent(sequence, payload) for sequence, payload, crc in rows if checksum(payload) == crc]

    async def _do(self, run: Statement, *, needs_room: bool = False) -> Any:
        if self._closed:
            raise ServiceError(Category.UNAVAILABLE, "SHUTTING_DOWN", "the router is shutting down; retry elsewhere")
        work = _Work(run, Future(), needs_room)
        self._queue.put(work)
        # Shielded: what is journalled stays journalled, whoever stops waiting for it.
        return await asyncio.shield(asyncio.wrap_future(work.done))

    # ── the thread ────────────────────────────────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        while (first := self._queue.get()) is not None:
            group = [first]
            stop = False
            while len(group) < _GROUP_LIMIT and not self._queue.empty():
                work = self._queue.get()
                if work is None:
                    stop = True
                    break
                group.append(work)
            self._commit(group)
            if stop:
                return

    def _commit(self, group: list[_Work]) -> None:
        """One transaction for all; if it fails, each by itself, so that only the culprit is told."""
        try:
            results = self._transact(self._with_room(group))
        except sqlite3.Error as error:
            if len(group) == 1:
                self._refuse_or_release(group[0], error)
            else:
                for work in group:
                    self._commit([work])
            return
        self._metrics.commits.inc()
        self._metrics.group_size.observe(len(group))
        for work, result in results:
            work.done.set_result(result)

    def _transact(self, group: list[_Work]) -> list[tuple[_Work, Any]]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            results = [(work, work.run(self._connection)) for work in group]
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return [(work, result if isinstance(result, list) else None) for work, result in results]

    def _with_room(self, group: list[_Work]) -> list[_Work]:
        if not any(work.needs_room for work in group) or self._has_room():
            return group
        for work in group:
            if work.needs_room:
                work.done.set_exception(_full(self._directory))
        return [work for work in group if not work.needs_room]

    def _has_room(self) -> bool:
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        (size,) = self._connection.execute("PRAGMA page_size").fetchone()
        used = (pages - free) * size
        self._metrics.used_bytes.set(used)
        if not self._reserve.exists() and time.monotonic() >= self._next_space_check_s:
            self._next_space_check_s = time.monotonic() + _SPACE_CHECK_INTERVAL_S
            self._keep_reserve()
        return used < self._max_bytes and self._reserve.exists()

    def _refuse_or_release(self, work: _Work, error: sqlite3.Error) -> None:
        """The disk is full: refuse what is new; for what is running, give up the reserve and write it."""
        if work.needs_room:
            _log.error("journal.write_failed", error=str(error))
            work.done.set_exception(_full(self._directory))
            return
        if self._reserve.exists():
            _log.error("journal.reserve_released", error=str(error))
            self._reserve.unlink()
            self._commit([work])
            return
        work.done.set_exception(error)

    @property
    def _reserve(self) -> Path:
        return self._directory / "reserve"

    def _keep_reserve(self) -> None:
        """Hold disk space back, so that the records of running requests fit when the disk is full."""
        if self._reserve.exists():
            return
        part = self._directory / "reserve.part"
        try:
            with part.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)
            part.rename(self._reserve)
        except OSError as error:
            part.unlink(missing_ok=True)
            _log.error("journal.no_reserve", error=error.strerror, remedy=f"free {_RESERVE_BYTES >> 20} MiB")


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


def _full(directory: Path) -> ServiceError:
    return ServiceError(
        Category.RESOURCE_EXHAUSTED,
        "JOURNAL_FULL",
        f"the usage journal in {directory.name} is full; nothing is sent that could not be accounted for; retry later",
        retry_after_s=5.0,
    )
