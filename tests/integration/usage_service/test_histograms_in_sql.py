"""The database's histograms: the same counts as the pure ones, packed into one number."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from service_runtime.migrations import migrate
from tests.support.postgres import LEDGER_MIGRATIONS
from usage_service.domain import histogram
from usage_service.storage import packed_histogram

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

EDGES = [bound + step for bound in histogram.LOWER_BOUNDS_MS for step in (-1, 0, 1)] + [0, 2**31 - 1]


@pytest.fixture
async def connection(ledger_database: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(ledger_database)
    yield connection
    await connection.close()


async def counted(connection: Connection, durations_ms: Sequence[int | None]) -> tuple[int, ...]:
    packed = await connection.fetchval(
        "SELECT coalesce(sum(hist_one(d)), 0) FROM unnest($1::integer[]) AS t (d)", durations_ms
    )
    return histogram.unpacked(packed)


async def test_every_edge_falls_into_the_same_bucket(connection: Connection) -> None:
    buckets = await connection.fetch("SELECT d, hist_bucket(d) AS b FROM unnest($1::integer[]) AS t (d)", EDGES)

    assert {row["d"]: row["b"] for row in buckets} == {d: histogram.bucket_of(d) for d in EDGES}
    assert await counted(connection, EDGES) == histogram.count(EDGES)


async def test_random_durations_are_counted_the_same_however_they_are_grouped(connection: Connection) -> None:
    rng = random.Random(20)
    for _ in range(60):
        longest_ms = rng.choice([3, 200, 5_000, 2_000_000])
        durations = [rng.choice([None, rng.randrange(longest_ms)]) for _ in range(rng.choice([0, 1, 2, 7, 60]))]

        whole = await counted(connection, durations)
        row = await connection.fetchrow(
            """
            WITH parts AS (
                SELECT coalesce(sum(hist_one(d)), 0) AS part, hist_count(hist_bucket(d)) AS same_part
                FROM unnest($1::integer[]) WITH ORDINALITY AS t (d, number) GROUP BY number % $2
            )
            SELECT coalesce(sum(part), 0) AS merged, hist_counts(coalesce(sum(part), 0)) AS counts,
                numeric_send(coalesce(sum(part), 0)) AS sent,
                coalesce(sum(same_part), 0) = coalesce(sum(part), 0) AS is_the_same
            FROM parts
            """,
            durations,
            rng.choice([1, 2, 5]),
        )

        assert whole == histogram.count(durations)
        assert row is not None
        assert row["is_the_same"]
        assert histogram.unpacked(row["merged"]) == tuple(row["counts"]) == whole
        assert packed_histogram.unpacked(row["sent"]) == whole


async def test_nothing_is_an_empty_histogram(connection: Connection) -> None:
    row = await connection.fetchrow("SELECT hist_one(NULL), hist_count(hist_bucket(NULL)), hist_counts(0)")

    assert row is not None
    assert tuple(row) == (None, 0, [])


async def test_counts_do_not_spill_into_the_next_bucket(connection: Connection) -> None:
    most = 10**12 - 1

    row = await connection.fetchrow(
        "SELECT hist_counts(number) AS counts, numeric_send(number) AS sent"
        " FROM (SELECT hist_one(3) * $1 + hist_one(4) * $1 AS number) AS packed",
        Decimal(most),
    )

    assert row is not None
    assert row["counts"] == [0] * histogram.bucket_of(3) + [most] + [0] * 3 + [most]
    assert packed_histogram.unpacked(row["sent"]) == tuple(row["counts"])


async def test_histograms_that_were_arrays_are_packed(empty_database: str, tmp_path: Path) -> None:
    for file in sorted(LEDGER_MIGRATIONS.glob("*.sql"))[:5]:
        shutil.copy(file, tmp_path)
    await migrate(empty_database, "usage_service", tmp_path)
    connection = await asyncpg.connect(empty_database)
    try:
        await connection.execute(
            """
            INSERT INTO usage_rollup_hour
            SELECT gen_random_uuid(), '2026-01-01+00', n::text, '', '', '', '', false, '', 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                0, 0, latency, 0, 0, '{}'
            FROM unnest(ARRAY['{}', '{4}', '{0,0,5}', '{0,0,0,7,0,8}']) WITH ORDINALITY AS old (latency_text, n),
                CAST(latency_text AS bigint[]) AS latency
            """
        )

        await migrate(empty_database, "usage_service", LEDGER_MIGRATIONS)

        rows = await connection.fetch(
            "SELECT latency_histogram, hist_counts(latency_histogram) AS counts, first_token_histogram"
            " FROM usage_rollup_hour ORDER BY provider"
        )
    finally:
        await connection.close()
    expected = [(), (4,), (0, 0, 5), (0, 0, 0, 7, 0, 8)]
    assert [histogram.unpacked(row["latency_histogram"]) for row in rows] == expected
    assert [tuple(row["counts"]) for row in rows] == expected
    assert {row["first_token_histogram"] for row in rows} == {0}
