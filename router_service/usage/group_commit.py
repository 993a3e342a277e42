"""One thread that owns a SQLite connection, and commits together whatever waits when a commit begins.

Some work has a caller behind it, and some has time: a backlog that is read and removed again. What has time rides along
with a commit that is due anyway, one piece each, or is done when nobody else has come for a moment; so it costs those
who wait no sync of its own. It is for whoever asks for such work to ask for small pieces.

Each statement hands Python's lock over to the event loop and has to get it back. So what every request writes is handed
in as rows, and the rows of all that wait are written by one statement: a group of four costs a seventh less (136 us
instead of 158 for the two records of an attempt), and holds up the loop less often.

Nobody is ever left waiting: whatever goes wrong in the thread reaches those whose work it was, and the thread goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import msgspec
import structlog

from router_service.usage.metrics import CommitMetrics
from service_runtime.errors import Category, ServiceError
from service_runtime.faults import CrashPoint, Sabotage, crash_point, is_sabotaged

_log = structlog.get_logger(__name__)

_GROUP_LIMIT = 512
_KEPT_AT_MOST = 4_096  # pieces of work that found no room and are tried again; some megabytes
_RETRY_S = 1.0
_PATIENCE_S = 0.004  # that work which has time waits for a commit to ride along with
# SQLite's log is moved into the main file once nothing has come for so long, sooner from the second number of pages on
# when nobody waits, and from the third on in any case: two syncs of the disk, for which everybody who comes waits. The
# pages are an estimate; the log takes 4 KiB for each.
_QUIET_S = 1.0
_ROTATION_PAGES_WHEN_QUIET = 32
_ROTATION_PAGES = 1_500
_ROTATION_PAGES_AT_MOST = 4_000
_PAGES_PER_COMMIT = 4  # of inner pages and of the table of sequences
_RECORDS_PER_PAGE = 4  # a record is written as opened, deleted there, and written to the outbox
_MAX_ERROR = 100  # SQLite quotes what it could not decode
_DISK_CODES = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})

Statement = Callable[[sqlite3.Connection], Any]
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class RowWriter:
    """Writes the rows of many at once. `written` is told on the event loop how many of them are on disk."""

    write: Callable[[sqlite3.Connection, list[Row]], None]
    written: Callable[[int], None]


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


class _Work(msgspec.Struct, eq=False):
    """One statement for the thread, or a row for its writer, and who waits for it.

    `needs_room` marks work that a full journal refuses.

    `has_time` marks work that nobody's request waits for, `is_reading` such of it as needs no transaction, and
    `is_kept` work that is done later when there is no room for it now, though whoever waits is told so at once.
    """

    run: Statement | None
    waiter: asyncio.Future[Any]
    needs_room: bool = False
    then: Callable[[], None] | None = None
    has_time: bool = False
    is_reading: bool = False
    is_kept: bool = False
    writer: RowWriter | None = None
    row: Row = ()
    result: Any = None
    error: Exception | None = None


class GroupCommit:
    """Runs statements in the thread that owns the connection."""

    def __init__(self, connection: sqlite3.Connection, space: DiskSpace, metrics: CommitMetrics) -> None:
        self._connection = connection
        self._space = space
        self._metrics = metrics
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._is_closed = False
        self._has_time: deque[_Work] = deque()  # the thread's own
        self._pages_since_rotation = 0
        self._kept: list[_Work] = []
        self._retry_at_s = 0.0
        self._thread = threading.Thread(target=self._serve, name="journal", daemon=True)
        self._thread.start()

    async def do(
        self,
        run: Statement,
        *,
        needs_room: bool = False,
        is_kept: bool = False,
        then: Callable[[], None] | None = None,
    ) -> Any:
        """Run a statement in the next commit; its result, once that is on disk.

        Whoever stops waiting does not undo it: `then` runs on the event loop after the commit in any case. A statement
        that `is_kept` runs once there is room again, within bounds, after its caller was told that there is none.
        Raises what the statement raised, or the space's `full()` when the disk or the journal is full, or
        UNAVAILABLE JOURNAL_DAMAGED when SQLite cannot make sense of the file.
        """
        waiter = asyncio.get_running_loop().create_future()
        return await self._ask(_Work(run, waiter, needs_room, then, is_kept=is_kept))

    def write(
        self, row: Row, writer: RowWriter, *, needs_room: bool = False, is_kept: bool = False
    ) -> asyncio.Future[None]:
        """As `do`, for a row: await the future.

        The rows of one writer are written in order; those of different writers, and statements, in any. So a row may
        rest on nothing that is not on disk yet.
        """
        waiter = asyncio.get_running_loop().create_future()
        return self._ask(_Work(None, waiter, needs_room, is_kept=is_kept, writer=writer, row=row))

    async def do_in_time(
        self, run: Statement, *, is_reading: bool = False, then: Callable[[], None] | None = None
    ) -> Any:
        """As `do`, for a small piece of work for which no request waits; one that only reads waits for no commit."""
        waiter = asyncio.get_running_loop().create_future()
        return await self._ask(_Work(run, waiter, then=then, has_time=True, is_reading=is_reading))

    async def close(self) -> None:
        """Finish what was asked for, then close the connection."""
        if not self._is_closed:
            self._is_closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _ask(self, work: _Work) -> asyncio.Future[Any]:
        if self._is_closed:
            raise ServiceError(Category.UNAVAILABLE, "SHUTTING_DOWN", "the router is shutting down; retry elsewhere")
        self._queue.put(work)
        return work.waiter

    # ── the thread ────────────────────────────────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        is_last = False
        while not is_last or self._has_time:
            group, is_last = self._next_group(is_last)
            if group:
                self._carry_out(group, self._commit)
            is_quiet = not (group or self._has_time)
            if self._has_time and self._has_time[0].is_reading:
                self._carry_out([self._has_time.popleft()], self._read)
            if self._kept and (is_last or time.monotonic() >= self._retry_at_s):
                self._write_kept()
            self._rotate_if_due(is_quiet=is_quiet)
        if self._connection.in_transaction:  # under sabotage
            self._connection.execute("COMMIT")
        self._connection.close()

    def _carry_out(self, group: list[_Work], how: Callable[[list[_Work]], None]) -> None:
        try:
            how(group)
        except Exception as error:  # noqa: BLE001 - the thread outlives any group; those who wait are told
            _log.exception("journal.group_failed", records=len(group))
            for work in group:
                work.error = error
        _deliver(group)

    def _next_group(self, is_last: bool) -> tuple[list[_Work], bool]:
        """What waits now, with at most one piece of what has time; and whether no more will come.

        Nothing waits when the next that has time only reads, or when it has been quiet for long.
        """
        group: list[_Work] = []
        while not is_last and (not group or (len(group) < _GROUP_LIMIT and not self._queue.empty())):
            try:
                work = self._queue.get(timeout=self._patience_s())
            except Empty:
                break
            if work is None:
                is_last = True
            elif work.has_time:
                self._has_time.append(work)
            else:
                group.append(work)
        if self._has_time and not self._has_time[0].is_reading:
            group.append(self._has_time.popleft())
        return group, is_last

    def _patience_s(self) -> float | None:
        """How long to wait for work that is urgent; None for ever."""
        if not self._has_time:
            if self._kept:
                return _RETRY_S
            return _QUIET_S if self._pages_since_rotation >= _ROTATION_PAGES_WHEN_QUIET else None
        return 0.0 if self._has_time[0].is_reading else _PATIENCE_S

    def _read(self, group: list[_Work]) -> None:
        (work,) = group
        try:
            _run(group, self._connection)
        except sqlite3.Error as error:
            self._metrics.failed_writes.inc()
            self._remedy(work, error)

    def _commit(self, group: list[_Work]) -> None:
        if any(work.needs_room for work in group) and not self._space.has_room(self._connection):
            for work in group:
                if work.needs_room:
                    self._refuse(work)
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
            self._refuse(work)

    def _refuse(self, work: _Work) -> None:
        self._metrics.refusals.labels("new" if work.needs_room else "running").inc()
        work.error = self._space.full()
        if work.is_kept and len(self._kept) < _KEPT_AT_MOST:
            again = msgspec.structs.replace(work, is_kept=False, result=None, error=None)
            self._kept.append(again)
            self._metrics.kept.set(len(self._kept))
            self._retry_at_s = time.monotonic() + _RETRY_S

    def _write_kept(self) -> None:
        """Try again what found no room; all of it goes into one commit, or stays."""
        try:
            self._transact(self._kept)
        except Exception:  # noqa: BLE001 - whatever it is, the thread outlives it, and they are tried again
            self._metrics.failed_writes.inc()
            self._retry_at_s = time.monotonic() + _RETRY_S
            return
        _log.info("journal.kept_records_written", records=len(self._kept))
        done, self._kept = self._kept, []
        self._metrics.kept.set(0)
        _deliver(done)

    def _rotate_if_due(self, *, is_quiet: bool) -> None:
        """Move SQLite's log into the main file now and then, when nobody waits for what is in it."""
        due_at = _ROTATION_PAGES if self._queue.empty() else _ROTATION_PAGES_AT_MOST
        if self._pages_since_rotation < (_ROTATION_PAGES_WHEN_QUIET if is_quiet else due_at):
            return
        self._pages_since_rotation = 0
        crash_point(CrashPoint.JOURNAL_BEFORE_ROTATION)
        try:
            with self._metrics.rotation_seconds.time():
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
        began_s = time.perf_counter()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            _run(group, self._connection)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._pages_since_rotation += _PAGES_PER_COMMIT + len(group) // _RECORDS_PER_PAGE
        self._metrics.commits.inc()
        self._metrics.commit_seconds.observe(time.perf_counter() - began_s)
        self._metrics.group_size.observe(len(group))

    def _transact_without_sync(self, group: list[_Work]) -> None:
        """Sabotage: those who wait are told that their records are durable, which a close alone makes true."""
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")
        _run(group, self._connection)


def _run(group: list[_Work], connection: sqlite3.Connection) -> None:
    rows: dict[RowWriter, list[Row]] = {}
    for work in group:
        if work.run is not None:
            work.result = work.run(connection)
        elif work.writer is not None:
            rows.setdefault(work.writer, []).append(work.row)
    for writer, of_writer in rows.items():
        writer.write(connection, of_writer)


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
    written: dict[RowWriter, int] = {}
    for work in group:
        if not work.waiter.done():
            if work.error is not None:
                work.waiter.set_exception(work.error)
            else:
                work.waiter.set_result(work.result)
        if work.error is None and work.then is not None:
            work.then()
        if work.error is None and work.writer is not None:
            written[work.writer] = written.get(work.writer, 0) + 1
    for writer, count in written.items():
        writer.written(count)
