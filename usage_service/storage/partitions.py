"""The ledger's weekly partitions: made before they are needed, dropped when retention says so.

Weekly, because the 35 days that events may be late, at one partition a day, would alone be more than the 40 that
planning is cheap with. There is no DEFAULT partition: rows in it would later block the creation of the right one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from service_runtime.postgres import Postgres, load_queries

if TYPE_CHECKING:
    from service_runtime.postgres import Connection

_QUERIES = load_queries(Path(__file__).with_name("partitions.sql"))
_NAME = re.compile(r"model_usage_stats_(?P<start>\d{8})")
_WEEK = timedelta(weeks=1)


def week_of(instant: datetime) -> date:
    """The Monday, in UTC, of the week that holds `instant`."""
    day = instant.astimezone(UTC).date()
    return day - timedelta(days=day.weekday())


def weeks_covering(first: datetime, last: datetime) -> Iterator[date]:
    """The Mondays of all weeks from that of `first` to that of `last`."""
    week = week_of(first)
    while week <= week_of(last):
        yield week
        week += _WEEK


class Partitions:
    """Knows which weeks the ledger can hold, and makes the others. Needs the rights of the tables' owner."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._known: frozenset[date] = frozenset()
        self._changing = asyncio.Lock()

    async def cover(self, first: datetime, last: datetime) -> None:
        """Make sure that every instant from `first` to `last` has a partition; asks the database only when in doubt."""
        if self._known.issuperset(weeks_covering(first, last)):
            return
        async with self._changing:
            weeks = set(weeks_covering(first, last))
            if self._known.issuperset(weeks):
                return
            async with self._postgres.transaction() as connection:
                await connection.execute(_QUERIES["lock"])
                existing = await held_weeks(connection)
                for week in sorted(weeks - existing):
                    await _create(connection, week)
            self._known = frozenset(existing | weeks)

    async def drop_before(self, oldest_kept: datetime) -> list[date]:
        """Drop the weeks that end at or before `oldest_kept`; returns their Mondays.

        A week whose table is in use for longer than a second stays for the next time.
        """
        dropped: list[date] = []
        async with self._changing, self._postgres.acquire() as connection:
            for week in sorted(await held_weeks(connection)):
                if _midnight(week + _WEEK) > oldest_kept:
                    break
                # A writer that learns of it by a failed insert forgets and asks anew; here it is known at once.
                self._known -= {week}
                try:
                    async with connection.transaction():
                        await connection.execute(_QUERIES["lock"])
                        await connection.execute(_QUERIES["limit_lock_wait"])
                        await connection.execute(_QUERIES["drop_partition"].format(name=_name(week)))
                except (asyncpg.LockNotAvailableError, asyncpg.UndefinedTableError):
                    continue  # in use, or another process was faster
                dropped.append(week)
        return dropped

    def forget(self) -> None:
        """Ask the database again at the next `cover`."""
        self._known = frozenset()


async def held_weeks(connection: Connection) -> set[date]:
    """The Mondays of the weeks that have a partition."""
    names = await connection.fetch(_QUERIES["list_partitions"])
    matches = (_NAME.fullmatch(record["name"]) for record in names)
    return {date.fromisoformat(match["start"]) for match in matches if match}


async def _create(connection: Connection, week: date) -> None:
    bounds = {"start": _midnight(week).isoformat(), "end": _midnight(week + _WEEK).isoformat()}
    await connection.execute(_QUERIES["create_partition"].format(name=_name(week)))
    await connection.execute(_QUERIES["attach_partition"].format(name=_name(week), **bounds))


def _name(week: date) -> str:
    return f"model_usage_stats_{week:%Y%m%d}"


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
