"""Mends the journal's write-ahead log before SQLite sees it, which would silently drop all that is behind damage."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import structlog

from router_service.usage.write_ahead_log import mend

_log = structlog.get_logger(__name__)

_DEFAULT_PAGE_BYTES = 4096
_PAGE_SIZE_AT = slice(16, 18)


def mend_log(database: Path, *, now_s: float) -> Path | None:
    """Replace a damaged log by one without the damaged frames; the directory that keeps the originals, or None.

    Call it while nobody has the database open. A crash in between leaves the damaged log in place, to be mended at the
    next start. Raises OSError when there is no room for the copies.
    """
    log = Path(f"{database}-wal")
    if not log.exists() or not database.exists():
        return None
    mended = mend(log.read_bytes(), page_bytes=_page_bytes(database))
    if mended is None:
        return None
    aside = _new_directory(database.parent, now_s)
    shutil.copy2(log, aside / log.name)
    shutil.copy2(database, aside / database.name)
    part = log.with_name(f"{log.name}.part")
    with part.open("wb") as file:
        file.write(mended.content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(log)
    _log.error("journal.log_mended", file=str(log), lost_frames=mended.lost_frames, originals=str(aside))
    return aside


def _page_bytes(database: Path) -> int:
    """The page size that the database's header states; 1 stands for 65536."""
    with database.open("rb") as file:
        stated = int.from_bytes(file.read(100)[_PAGE_SIZE_AT], "big")
    size = 65536 if stated == 1 else stated
    return size if 512 <= size <= 65536 and size & (size - 1) == 0 else _DEFAULT_PAGE_BYTES


def _new_directory(parent: Path, now_s: float) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    number = 0
    while True:
        aside = parent / f"corrupt-{stamp}-log{f'-{number}' if number else ''}"
        try:
            aside.mkdir(mode=0o700)
        except FileExistsError:
            number += 1
            continue
        return aside
