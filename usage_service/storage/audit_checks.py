"""What every check of an audit has in common: its statements, its time, and how its answer is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from service_runtime.postgres import load_queries
from usage_service.domain.audit import CheckResult, Discrepancy

if TYPE_CHECKING:
    from asyncpg import Record

    from service_runtime.postgres import Connection

QUERIES = load_queries(Path(__file__).with_name("audit.sql"))


async def bounded(connection: Connection, name: str, verify: Callable[[], Awaitable[CheckResult]]) -> CheckResult:
    """What a check finds, or that it could not be made in the time that a statement has."""
    try:
        async with connection.transaction():  # a savepoint: a statement that is cut must not end the snapshot
            return await verify()
    except asyncpg.QueryCanceledError:
        return CheckResult(unchecked=(name,))


def counted(fetched: Sequence[Record], discrepancy: Callable[[Record], Discrepancy], found: str) -> CheckResult:
    """The counts of the first record, and a discrepancy for each that names something in the column `found`."""
    named = [record for record in fetched if record[found]]
    return CheckResult(fetched[0]["checked"], fetched[0]["wrong"], tuple(discrepancy(record) for record in named))
