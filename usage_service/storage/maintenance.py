"""What the ledger's tables need now and then: partitions ahead, retention behind."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from service_runtime.postgres import Postgres
from usage_service.domain.window import RollupRetention
from usage_service.storage.limits import forget_levels
from usage_service.storage.partitions import Partitions
from usage_service.storage.rollups import purge_rollups

# Longer than any window, so that no level that still counts is forgotten.
_LEVELS_KEPT = timedelta(days=62)
# Long enough that nobody notices a service whose maintenance has failed for days.
_AHEAD = timedelta(days=14)

_log = structlog.get_logger(__name__)


class Maintenance:
    """Any number of processes may do it at once."""

    def __init__(
        self,
        owner: Postgres,
        partitions: Partitions,
        *,
        accept_back: timedelta,
        raw_retention: timedelta | None,
        rollup_retention: RollupRetention,
        now: Callable[[], datetime],
    ) -> None:
        """`owner` may change and empty the tables. `raw_retention` None keeps raw rows for good."""
        self._owner = owner
        self._partitions = partitions
        self._accept_back = accept_back
        self._raw_retention = raw_retention
        self._rollup_retention = rollup_retention
        self._now = now

    async def cover(self) -> None:
        """Make the partitions of every usage time that may come in the next two weeks."""
        now = self._now()
        # Asked of the database, not of memory: somebody may have dropped one.
        self._partitions.forget()
        await self._partitions.cover(now - self._accept_back, now + _AHEAD)

    async def run(self) -> None:
        """Partitions ahead, then retention. Raises what the database raises; the next run goes on from there."""
        await self.cover()
        now = self._now()
        if self._raw_retention is not None:
            dropped = await self._partitions.drop_before(now - self._raw_retention)
            if dropped:
                _log.info("ledger.weeks_dropped", weeks=[week.isoformat() for week in dropped])
        await forget_levels(self._owner, now - _LEVELS_KEPT)
        purged = await purge_rollups(self._owner, self._rollup_retention, now)
        if purged.minutes or purged.hours:
            _log.info("ledger.rollups_purged", minutes=purged.minutes, hours=purged.hours)
