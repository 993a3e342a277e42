"""The database's histograms: the same counts as the pure ones, in a form that can be compared by `=`."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from service_runtime.migrations import migrate
from tests.support.postgres import LEDGER_MIGRATIONS
from usage_service.domain import histogram

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

EDGES = [bound + step for bound in histogram.LOWER_BOUNDS_MS for step in (-1, 0, 1)] + [0, 2**31 - 1]


@pytest.fixture
async def connection(ledger_database: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(ledger_database)
    yield connection
    await connection.close()


async def counted(connection: Connection, durations_ms: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(
        await connection.fetchval(
            "SELECT hist_counts(hist_count(hist_bucket(d))) FROM unnest($1::integer[]) AS t (d)", durations_ms
        )
    )


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
                SELECT hist_count(hist_bucket(d)) AS part
                FROM unnest($1::integer[]) WITH ORDINALITY AS t (d, number) GROUP BY number % $2
            )
            SELECT hist_merge(part) AS stored, hist_sum(part) AS answered,
                coalesce(hist_merge(part), '{}') =
                    (SELECT hist_count(hist_bucket(d)) FROM unnest($1::integer[]) AS t (d)) AS is_canonical,
                coalesce(hist_merge(part), '{}') IS NOT DISTINCT FROM coalesce(
                    (SELECT hist_of(array_agg(hist_bucket(d))) FROM unnest($1::integer[]) AS t (d)), '{}')
                    AS is_list_counted_the_same
            FROM parts
            """,
            durations,
            rng.choice([1, 2, 5]),
        )

        assert whole == histogram.count(durations)
        assert row is not None
        assert row["is_canonical"]
        assert row["is_list_counted_the_same"]
        assert tuple(row["answered"] or ()) == whole
        assert tuple(row["stored"] or ()) == whole[next((n for n, number in enumerate(whole) if number), 0) :]


async def test_nothing_is_an_empty_histogram(connection: Connection) -> None:
    row = await connection.fetchrow(
        "SELECT hist_count(hist_bucket(NULL)), hist_counts('{}'), hist_add('{}', '{}'),"
        " hist_add('[3:3]={1}', '{}')::text"
    )

    assert row is not None
    assert tuple(row) == ([], [], [], "[3:3]={1}")


async def test_histograms_that_began_at_bucket_0_are_narrowed(empty_database: str, tmp_path: Path) -> None:
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
            "SELECT latency_histogram::text AS stored, hist_counts(latency_histogram) AS counts"
            " FROM usage_rollup_hour ORDER BY provider"
        )
    finally:
        await connection.close()
    assert [row["stored"] for row in rows] == ["{}", "{4}", "[3:3]={5}", "[4:6]={7,0,8}"]
    assert [row["counts"] for row in rows] == [[], [4], [0, 0, 5], [0, 0, 0, 7, 0, 8]]
