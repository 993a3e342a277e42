"""What the journal's thread did when, so that the slowest `opened` of a run can be told from the disk's bad moments."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Final

from router_service.usage.group_commit import GroupCommit

_STEPS: Final = {"_transact": "commit", "_rotate_if_due": "rotation", "_read": "reading"}
_WORTH_NOTING_S: Final = 0.001
_LOOP_TICK_S: Final = 0.005
_SYNC_EVERY_S: Final = 0.02
_SYNC_BYTES: Final = 8192


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took from then to then, in seconds of `perf_counter`."""

    begin_s: float
    end_s: float
    what: str = ""

    @property
    def took_s(self) -> float:
        return self.end_s - self.begin_s

    def overlaps(self, other: Span) -> bool:
        return self.begin_s < other.end_s and other.begin_s < self.end_s


@dataclass
class Timeline:
    """Spans of everything that a waiting `opened` may have waited for."""

    opened: list[Span] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def note(self, begin_s: float, what: str) -> None:
        """What has just ended, if it took long enough to matter."""
        span = Span(begin_s, time.perf_counter(), what)
        if span.took_s >= _WORTH_NOTING_S:
            self.spans.append(span)

    def slowest(self, count: int) -> Iterator[str]:
        """The slowest `opened`, each with what went on meanwhile."""
        for wait in sorted(self.opened, key=lambda span: -span.took_s)[:count]:
            beside = (f"{span.what} {span.took_s * 1000:.1f}" for span in self.spans if span.overlaps(wait))
            yield f"{wait.what} {wait.took_s * 1000:.1f} ms; meanwhile, ms: {', '.join(beside) or 'nothing of note'}"


@asynccontextmanager
async def watching(directory: Path) -> AsyncIterator[Timeline]:
    """Notes the thread's steps, the event loop's delays, and what the same disk makes a bare sync wait."""
    timeline, stop = Timeline(), threading.Event()
    syncing = threading.Thread(target=_sync, args=(directory / "bare-beside", timeline, stop), daemon=True)
    with _noting_steps(timeline):
        syncing.start()
        ticking = asyncio.create_task(_tick(timeline))
        try:
            yield timeline
        finally:
            stop.set()
            ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticking
            await asyncio.to_thread(syncing.join)


@contextmanager
def _noting_steps(timeline: Timeline) -> Iterator[None]:
    originals = {name: getattr(GroupCommit, name) for name in _STEPS}

    def noting(name: str) -> Any:
        original = originals[name]

        @wraps(original)
        def step(*arguments: Any, **named: Any) -> Any:
            began_s = time.perf_counter()
            try:
                return original(*arguments, **named)
            finally:
                size = f" of {len(arguments[1])}" if name == "_transact" else ""
                timeline.note(began_s, f"{_STEPS[name]}{size}")

        return step

    for name in _STEPS:
        setattr(GroupCommit, name, noting(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(GroupCommit, name, original)


def _sync(path: Path, timeline: Timeline, stop: threading.Event) -> None:
    with path.open("w+b", buffering=0) as file:
        while not stop.wait(_SYNC_EVERY_S):
            began_s = time.perf_counter()
            file.seek(0)
            file.write(b"x" * _SYNC_BYTES)
            os.fdatasync(file.fileno())
            timeline.note(began_s, "a bare sync")


async def _tick(timeline: Timeline) -> None:
    while True:
        due_s = time.perf_counter() + _LOOP_TICK_S
        await asyncio.sleep(_LOOP_TICK_S)
        timeline.note(due_s, "event loop late")
