"""How much the journal may hold, and the space it keeps back on the disk for attempts that are running."""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from router_service.usage.metrics import JournalMetrics
from service_runtime.errors import Category, ServiceError

_log = structlog.get_logger(__name__)

RESERVE_BYTES = 8 << 20  # some 10,000 records
_RETRY_INTERVAL_S = 5.0
_LOOKS_EVERY_S = 0.05  # how much is used; a look costs some 40 us beside a commit's 140
# In one statement: three take four times as long.
_USED_BYTES = (
    "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
)


class JournalSpace:
    """Refuses new attempts when the file is at its limit, or when the reserve is gone because the disk is full.

    The reserve is a file of real blocks. When a record does not fit on the disk it is deleted, which makes room for
    the records of all attempts that are running; while it is missing no new attempt begins.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int,
        metrics: JournalMetrics,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._now_s = now_s
        self._next_try_s = 0.0
        self._next_look_s = -math.inf
        self._used_bytes = 0
        self._has_reserve = False
        self._allocate()

    def has_room(self, connection: sqlite3.Connection) -> bool:
        """Whether a new attempt may begin. Looked at now and then only, until the limit is half reached."""
        now_s = self._now_s()
        if now_s >= self._next_look_s or self._used_bytes >= self._max_bytes // 2:
            (self._used_bytes,) = connection.execute(_USED_BYTES).fetchone()
            self._metrics.used_bytes.set(self._used_bytes)
            self._next_look_s = now_s + _LOOKS_EVERY_S
        if not self._has_reserve and now_s >= self._next_try_s:
            self._allocate()
        return self._used_bytes < self._max_bytes and self._has_reserve

    def release_reserve(self) -> bool:
        """Give the reserve's space to the records of running attempts; False when it was given up before."""
        if not self._has_reserve:
            return False
        self._has_reserve = False
        self._next_try_s = self._now_s() + _RETRY_INTERVAL_S
        self._metrics.reserve_bytes.set(0)
        _log.error("journal.reserve_released", remedy=f"free disk space for {self._directory}")
        self._path.unlink(missing_ok=True)
        return True

    def full(self) -> ServiceError:
        """The refusal: nothing is sent that could not be accounted for."""
        return ServiceError(
            Category.RESOURCE_EXHAUSTED,
            "JOURNAL_FULL",
            "the usage journal is full and nothing is sent that could not be accounted for; retry later, and see to "
            "it that usage_service is reachable and the router's disk has room",
            retry_after_s=_RETRY_INTERVAL_S,
        )

    @property
    def _path(self) -> Path:
        return self._directory / "reserve"

    def _allocate(self) -> None:
        """Take the reserve from the disk, whole or not at all."""
        self._next_try_s = self._now_s() + _RETRY_INTERVAL_S
        part = self._directory / "reserve.part"
        try:
            # A reserve from an earlier run may be short: it is only as good as its blocks.
            with self._path.open("ab") if self._path.exists() else part.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
            if part.exists():
                part.rename(self._path)
        except OSError as error:
            part.unlink(missing_ok=True)
            _log.error("journal.no_reserve", error=error.strerror, remedy=f"free {RESERVE_BYTES >> 20} MiB of disk")
            return
        self._has_reserve = True
        self._metrics.reserve_bytes.set(RESERVE_BYTES)
