"""One thread that owns a SQLite connection, and commits together whatever waits when a commit begins.

Nobody is ever left waiting: whatever goes wrong in the thread reaches those whose work it was, and the thread goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

import structlog

from router_service.usage.metrics import UsageMetrics
from service_runtime.errors import Category, ServiceError
from service_runtime.faults import CrashPoint, Sabotage, crash_point, is_sabotaged

_log = structlog.get_logger(__name__)

_GROUP_LIMIT = 512
# Both keep SQLite's log at a few megabytes: a commit writes some five pages, a changed row one or two.
_ROTATION_COMMITS = 250
_ROTATION_CHANGES = 1_000
_MAX_ERROR = 100  # SQLite quotes what it could not decode
_DISK_CODES = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})

Statement = Callable[[sqlite3.Connection], Any]


class DiskSpace(Protocol):
    """Whether more may be written, and what can be given up when nothing more fits."""

    def has_room(self, connection: sqlite3.Connection) -> bool:
        """Whether new work may still be taken on."""
        ...

    def release_reserve(self) -> bool:
        """Give up the space held back for running work; False when it was given up before."""
        ...

    def full(self) -> ServiceError:
        """What those are told whose work does not fit."""
        ...


@dataclass(slots=True)
class _Work:
    """One statement for the thread, and who waits for it. `needs_room` marks work that a full journal refuses."""

    run: Statement
    waiter: asyncio.Future[Any]
    needs_room: bool
    then: Callable[[], None] | None
    result: Any = None
    error: Exception | None = None


class GroupCommit:
    """Runs statements in the thread that owns the connection."""

    def __init__(self, connection: sqlite3.Connection, space: DiskSpace, metrics: UsageMetrics) -> None:
        self._connection = connection
        self._space = space
        self._metrics = metrics
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._is_closed = False
        self._commits_since_rotation = 0
        self._rotated_at = connection.total_changes
        self._thread = threading.Thread(target=self._serve, name="journal", daemon=True)
        self._thread.start()

    async def do(self, run: Statement, *, needs_room: bool = False, then: Callable[[], None] | None = None) -> Any:
        """Run a statement in the next commit; its result, once that is on disk.

        Whoever stops waiting does not undo it: `then` runs on the event loop after the commit in any case.
        Raises what the statement raised, or the space's `full()` when the disk or the journal is full, or
        UNAVAILABLE JOURNAL_DAMAGED when SQLite cannot make sense of the file.
        """
        if self._is_closed:
            raise ServiceError(Category.UNAVAILABLE, "SHUTTING_DOWN", "the router is shutting down; retry elsewhere")
        work = _Work(run, asyncio.get_running_loop().create_future(), needs_room, then)
        self._queue.put(work)
        return await work.waiter

    async def close(self) -> None:
        """Finish what was asked for, then close the connection."""
        if not self._is_closed:
            self._is_closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    # ── the thread ────────────────────────────────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        is_last = False
        while not is_last:
            group, is_last = self._next_group()
            try:
                self._commit(group)
            except Exception as error:  # noqa: BLE001 - the thread outlives any group; those who wait are told
                _log.exception("journal.group_failed", records=len(group))
                for work in group:
                    work.error = error
            _deliver(group)
            self._rotate_if_due()
        if self._connection.in_transaction:  # under sabotage
            self._connection.execute("COMMIT")
        self._connection.close()

    def _next_group(self) -> tuple[list[_Work], bool]:
        """What waits now, at least one piece of work; and whether no more will come."""
        group: list[_Work] = []
        while not group or (len(group) < _GROUP_LIMIT and not self._queue.empty()):
            work = self._queue.get()
            if work is None:
                return group, True
            group.append(work)
        return group, False

    def _commit(self, group: list[_Work]) -> None:
        if any(work.needs_room for work in group) and not self._space.has_room(self._connection):
            for work in group:
                work.error = self._space.full() if work.needs_room else None
        admitted = [work for work in group if work.error is None]
        if admitted:
            self._write(admitted)

    def _write(self, group: list[_Work]) -> None:
        """One transaction for all; if it fails, each by itself, so that only the culprit is told."""
        try:
            self._transact(group)
        except sqlite3.Error as error:
            self._metrics.failed_writes.inc()
            if len(group) > 1:
                for work in group:
                    self._write([work])
            else:
                self._remedy(group[0], error)

    def _remedy(self, work: _Work, error: sqlite3.Error) -> None:
        """When the disk is full: refuse what is new; for what is running, give up the reserve and write it."""
        if isinstance(error, sqlite3.IntegrityError):
            work.error = error
            return
        _log.error("journal.access_failed", error=str(error)[:_MAX_ERROR])
        if not _disk_refused(error):
            work.error = _damaged()
        elif not work.needs_room and self._space.release_reserve():
            self._write([work])
        else:
            work.error = self._space.full()

    def _rotate_if_due(self) -> None:
        """Move SQLite's log into the main file now and then, when nobody waits for what is in it."""
        changes = self._connection.total_changes
        if self._commits_since_rotation < _ROTATION_COMMITS and changes - self._rotated_at < _ROTATION_CHANGES:
            return
        self._commits_since_rotation, self._rotated_at = 0, changes
        crash_point(CrashPoint.JOURNAL_BEFORE_ROTATION)
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:  # the records are safe in the log; the next rotation takes them over
            self._metrics.failed_writes.inc()
            _log.error("journal.rotation_failed", error=str(error)[:_MAX_ERROR])
        crash_point(CrashPoint.JOURNAL_AFTER_ROTATION)

    def _transact(self, group: list[_Work]) -> None:
        if is_sabotaged(Sabotage.SKIP_SYNC):
            self._transact_without_sync(group)
            return
        if self._connection.in_transaction:  # an earlier roll-back failed as well
            self._connection.execute("ROLLBACK")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for work in group:
                work.result = work.run(self._connection)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._commits_since_rotation += 1
        self._metrics.commits.inc()
        self._metrics.group_size.observe(len(group))

    def _transact_without_sync(self, group: list[_Work]) -> None:
        """Sabotage: those who wait are told that their records are durable, which a close alone makes true."""
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")
        for work in group:
            work.result = work.run(self._connection)


def _disk_refused(error: sqlite3.Error) -> bool:
    """Whether the disk would not take it, as opposed to a file that cannot be understood."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF in _DISK_CODES


def _damaged() -> ServiceError:
    return ServiceError(
        Category.UNAVAILABLE, "JOURNAL_DAMAGED", "the usage journal cannot be read; restart the router, which mends it"
    )


def _deliver(group: list[_Work]) -> None:
    """Wake all who wait, with one call per event loop: each such call costs a system call."""
    loops = {work.waiter.get_loop() for work in group}
    for loop in loops:
        mine = [work for work in group if work.waiter.get_loop() is loop]
        # A closed loop has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, mine)


def _resolve(group: list[_Work]) -> None:
    for work in group:
        if not work.waiter.done():
            if work.error is not None:
                work.waiter.set_exception(work.error)
            else:
                work.waiter.set_result(work.result)
        if work.error is None and work.then is not None:
            work.then()
