"""Journals that workers left behind when their number was reduced: somebody must carry them to the ledger.

A worker's journal is a directory of its own, `worker-<k>`, below the first worker's. Nothing here touches one that a
running process owns.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc.aio
import structlog
from prometheus_client import CollectorRegistry

from router_service.usage.journal import SqliteJournal, router_name
from router_service.usage.journal_file import FILE_NAME
from router_service.usage.journal_report import JournalReporter
from router_service.usage.metrics import UsageMetrics
from router_service.usage.right_of_way import RightOfWay
from router_service.usage.sender import UsageSender
from service_runtime.errors import ServiceError
from service_runtime.startup import StartupError

_log = structlog.get_logger(__name__)

_NAME = re.compile(r"worker-([1-9][0-9]{0,4})")
_PASS_S = 60.0  # what one pass takes at most; what is left is carried by the next


def orphaned(journal: Path, *, workers: int) -> Iterator[Path]:
    """The journals below `journal` whose worker is none of the `workers` that run, numbered from 0."""
    if not journal.is_dir():
        return
    for directory in sorted(journal.iterdir()):
        match = _NAME.fullmatch(directory.name)
        if match and int(match[1]) >= workers and (directory / FILE_NAME).exists():
            yield directory


class OrphanDrain:
    """Adopts orphaned journals one after the other and sends what they hold. Run by the first worker alone."""

    def __init__(
        self,
        journal: Path,
        channel: grpc.aio.Channel,
        *,
        workers: int,
        max_bytes: int,
        new_name: Callable[[], str],
        right_of_way: RightOfWay | None = None,
        router_id: Callable[[Path], str] | None = None,
    ) -> None:
        """`router_id` names the router of a directory; by default the name that is kept in it.

        `right_of_way` is that of this process's requests: an orphan has none of its own, and is no more urgent.
        """
        self._journal = journal
        self._channel = channel
        self._workers = workers
        self._max_bytes = max_bytes
        self._new_name = new_name
        self._right_of_way = right_of_way
        self._router_id = router_id or (lambda directory: router_name(directory, new_name))
        self._empty: set[Path] = set()

    async def run(self) -> int:
        """One pass over all orphans; how many events were carried. One whose owner runs after all is left alone."""
        carried = 0
        for directory in orphaned(self._journal, workers=self._workers):
            if directory not in self._empty:
                carried += await self._drain(directory)
        return carried

    async def _drain(self, directory: Path) -> int:
        # Metrics of its own: those of this process are about this process's journal.
        metrics = UsageMetrics(CollectorRegistry())
        try:
            journal = await asyncio.to_thread(
                SqliteJournal.open, directory, max_bytes=self._max_bytes, metrics=metrics, new_epoch=self._new_name
            )
        except StartupError as error:
            _log.warning("journal.orphan_left_alone", directory=str(directory), cause=str(error))
            return 0
        try:
            return await self._carry(journal, directory, metrics)
        finally:
            await journal.close()

    async def _carry(self, journal: SqliteJournal, directory: Path, metrics: UsageMetrics) -> int:
        for held in await journal.held():
            await journal.release(held.event_id, None)  # nobody is left to ask its provider
        before = (await journal.state()).waiting
        router_id = self._router_id(directory)
        sender = UsageSender(
            journal, self._channel, router_id=router_id, metrics=metrics, right_of_way=self._right_of_way
        )
        sender.start()
        await sender.drain(_PASS_S)
        after = (await journal.state()).waiting
        try:
            await JournalReporter(journal, self._channel, router_id=router_id, metrics=metrics).report()
        except ServiceError as error:
            _log.warning("journal.orphan_not_reported", directory=str(directory), cause=error.message)
        else:
            if after == 0:
                self._empty.add(directory)
        _log.info("journal.orphan_carried", directory=str(directory), events=before - after, waiting=after)
        return before - after
