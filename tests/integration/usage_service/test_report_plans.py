"""What a report makes the database read: the buckets of its tiles, whatever else is in the ledger."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from service_runtime.embedded_postgres import EmbeddedPostgres
from service_runtime.postgres import Postgres
from tests.support.ledger_rows import random_rows, store
from tests.support.postgres import copy_of, filled_template
from tests.support.usage_events import TENANT
from usage_service.domain.report import Grouping, UsageFilter, total_of
from usage_service.domain.steps import Step, StepUnit, steps
from usage_service.domain.window import Grain, RollupRetention, Tile, Window, answerable, local_days, merged, tiles
from usage_service.storage import records
from usage_service.storage.audit_checks import QUERIES
from usage_service.storage.report_statements import Statement
from usage_service.storage.rollups import CONNECTION_SETTINGS, PostgresRollups

NOW = datetime(2026, 3, 18, 10, 41, 7, tzinfo=UTC)
KEPT = RollupRetention().kept_at(NOW)
MONTH = Window(NOW - timedelta(days=30), NOW)
TABLES = {grain: f"usage_rollup_{grain.label}" for grain in Grain}


async def a_month_of_usage(dsn: str) -> None:
    """A month of one tenant's usage beside 200 others', with statistics."""
    owner = await Postgres.connect(dsn, min_size=1, max_size=1, statement_timeout_s=30)
    await store(owner, random_rows(random.Random(7), 3_000, MONTH))
    async with owner.acquire() as connection:
        for table in TABLES.values():
            await connection.execute(
                f"""INSERT INTO {table}
                    SELECT md5(number::text)::uuid, one.bucket, one.provider, one.model_name, one.status,
                           one.error_class, one.funding, one.absorbed, one.usage_source, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                           1, 1, 1, 1, 1, 1
                    FROM generate_series(1, 200) AS number
                    CROSS JOIN LATERAL (SELECT * FROM {table} WHERE tenant_id = $1 LIMIT 100) AS one""",
                UUID(TENANT),
            )
            await connection.execute(f"ANALYZE {table}")
        await connection.execute("ANALYZE model_usage_stats")
    await owner.close()


@pytest.fixture(scope="module")
def month_of_usage(postgres_server: EmbeddedPostgres, ledger_template: str) -> Iterator[str]:
    with filled_template(postgres_server, ledger_template, a_month_of_usage) as name:
        yield name


@pytest.fixture
async def postgres(postgres_server: EmbeddedPostgres, month_of_usage: str) -> AsyncIterator[Postgres]:
    """As reports are connected, which may read and no more."""
    async with copy_of(postgres_server, month_of_usage) as dsn:
        pool = await Postgres.connect(dsn, min_size=1, max_size=1, statement_timeout_s=30, settings=CONNECTION_SETTINGS)
        yield pool
        await pool.close()


class PlannedRollups(PostgresRollups):
    """Explains what it would have fetched, by the plan that the statement has once it is in use."""

    plan: dict[str, Any]

    async def _fetch(self, statement: Statement) -> list[Any]:
        async with self._postgres.transaction() as connection:
            await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
            await connection.execute(f"PREPARE report AS {statement.text}")
            values = ", ".join(map(literal, statement.arguments))
            text = await connection.fetchval(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) EXECUTE report ({values})")
            await connection.execute("DEALLOCATE report")
        self.plan = json.loads(text)[0]["Plan"]
        # What it would have said follows, for reports that need a row to make an answer of.
        return await super()._fetch(statement)


def literal(value: object) -> str:
    """A value as EXECUTE takes it: of its parameter's type, told by its text."""
    match value:
        case None:
            return "NULL"
        case [first, *_]:
            kind = {str: "text", int: "integer", datetime: "timestamptz", timedelta: "interval"}.get(
                type(first), "uuid"
            )
            return f"ARRAY[{', '.join(map(literal, value))}]::{kind}[]"
        case timedelta():
            return f"'{value.total_seconds()} seconds'"
        case _:
            assert "'" not in str(value)
            return f"'{value}'"


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def rows_read(plan: dict[str, Any]) -> dict[str, int]:
    """Rows that each table's scans have looked at, if any, those that a filter then dropped included."""
    read: dict[str, int] = {}
    for node in nodes(plan):
        if table := node.get("Relation Name"):
            looked_at = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            read[table] = read.get(table, 0) + round(looked_at * node["Actual Loops"])
    return {table: count for table, count in read.items() if count}


async def rows_in(postgres: Postgres, covering: Sequence[Tile]) -> dict[str, int]:
    async with postgres.acquire() as connection:
        counts = {
            table: sum(
                [
                    await connection.fetchval(
                        f"SELECT count(*) FROM {table} WHERE tenant_id = $1 AND bucket >= $2 AND bucket < $3",
                        UUID(TENANT),
                        tile.start,
                        tile.end,
                    )
                    for tile in covering
                    if tile.grain is grain
                ]
            )
            for grain, table in TABLES.items()
        }
    return {table: count for table, count in counts.items() if count}


async def test_a_report_on_thirty_days_reads_the_rows_of_its_tiles_and_no_raw_row(postgres: Postgres) -> None:
    covering = tiles(answerable(MONTH, KEPT))
    planned = PlannedRollups(postgres)

    found = await planned.usage_by_group(UUID(TENANT), covering, UsageFilter(), grouping=Grouping.MODEL, limit=100)

    assert total_of(found).outcomes.attempts > 2_000
    assert rows_read(planned.plan) == await rows_in(postgres, covering)


async def test_a_page_of_a_report_and_the_total_of_all_pages_are_one_reading_of_its_tiles(postgres: Postgres) -> None:
    covering = tiles(answerable(MONTH, KEPT))
    planned = PlannedRollups(postgres)

    found = await planned.page_of_usage_by_group(
        UUID(TENANT), covering, UsageFilter(), grouping=Grouping.MODEL, after=None, limit=1
    )

    assert len(found.groups) == 1
    assert found.total.outcomes.attempts > 2_000
    assert rows_read(planned.plan) == await rows_in(postgres, covering)


async def test_a_connection_for_reports_cannot_write(postgres: Postgres) -> None:
    async with postgres.acquire() as connection:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await connection.execute("DELETE FROM usage_rollup_day")


async def test_a_report_hashes_its_rows_and_sorts_none_of_them(postgres: Postgres) -> None:
    planned = PlannedRollups(postgres)

    await planned.usage_by_group(
        UUID(TENANT), tiles(answerable(MONTH, KEPT)), UsageFilter(), grouping=Grouping.MODEL, limit=100
    )

    sums = [node for node in nodes(planned.plan) if node.get("Strategy") == "Hashed"]
    assert len(sums) == 1
    assert sum(rows_read(sums[0]).values()) > 1_000
    assert not [node for node in nodes(sums[0]) if node["Node Type"] == "Sort"]


@pytest.mark.parametrize(
    ("window", "step", "zone", "grains"),
    [
        (MONTH, Step(StepUnit.DAY), "UTC", 5),
        (MONTH, Step(StepUnit.HOUR, 6), "UTC", 3),
        (MONTH, Step(StepUnit.DAY), "Europe/Berlin", 3),
        (Window(NOW - timedelta(days=1), NOW), Step(StepUnit.MINUTE, 5), "UTC", 1),
        (MONTH, Step(StepUnit.HOUR, 30), "UTC", 60),
    ],
    ids=["days", "six hours", "days of a zone", "five minutes", "thirty hours"],
)
async def test_a_time_series_reads_the_rows_of_few_tiles_and_no_raw_row(
    postgres: Postgres, window: Window, step: Step, zone: str, grains: int
) -> None:
    cut = steps(answerable(window, KEPT), step, ZoneInfo(zone), KEPT)
    planned = PlannedRollups(postgres)

    points = await planned.usage_by_step(UUID(TENANT), cut, UsageFilter(), grouping=Grouping.PROVIDER, limit=10_000)

    covering = merged(tile for one in cut for tile in tiles(one))
    assert len(points) > 10
    assert rows_read(planned.plan) == await rows_in(postgres, covering)
    assert len(covering) <= grains  # one index scan each


async def test_costs_of_thirty_utc_days_read_the_rows_of_their_tiles_and_no_raw_row(postgres: Postgres) -> None:
    days = local_days(answerable(MONTH, KEPT), ZoneInfo("UTC"), KEPT)
    planned = PlannedRollups(postgres)

    await planned.costs_by_day(UUID(TENANT), days, UsageFilter(), after=None, limit=100)

    covering = [tile for day in days for tile in tiles(day.window)]
    assert rows_read(planned.plan) == await rows_in(postgres, covering)


async def test_usage_against_limits_reads_the_rows_of_the_current_windows(postgres: Postgres) -> None:
    covering = {
        length_s: tiles(answerable(Window(NOW - timedelta(seconds=length_s), NOW), KEPT)) for length_s in (60, 86_400)
    }
    planned = PlannedRollups(postgres)

    await planned.consumption(dict.fromkeys((UUID(TENANT), UUID(int=1), UUID(int=2)), covering))

    wanted: Counter[str] = Counter()
    for cover in covering.values():
        wanted.update(await rows_in(postgres, cover))
    assert rows_read(planned.plan) == wanted


async def test_failures_look_at_raw_rows_only_within_the_last_bucket_of_each_kind(postgres: Postgres) -> None:
    planned = PlannedRollups(postgres)

    await planned.failures(
        UUID(TENANT), tiles(answerable(MONTH, KEPT)), UsageFilter(), kept=KEPT, after=None, limit=100
    )

    raw = {table: count for table, count in rows_read(planned.plan).items() if table.startswith("model_usage_stats")}
    kinds = planned.plan["Actual Rows"]
    assert kinds > 10
    assert sum(raw.values()) <= kinds * 10, raw


async def test_a_page_of_records_reads_little_more_than_its_rows(postgres: Postgres) -> None:
    query = records._QUERIES["newest_records"]
    last = UUID(int=2**128 - 1)
    arguments = (UUID(TENANT), MONTH.start, MONTH.end, "", "", None, "", MONTH.end, last, 51)
    async with postgres.acquire() as connection:
        text = await connection.fetchval(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {query}", *arguments)

    read = rows_read(json.loads(text)[0]["Plan"])
    # Merged from the weeks, newest first: of each week but one a row at most is looked at in vain.
    assert 51 <= sum(read.values()) <= 51 + len(read)


async def test_an_audit_reads_its_tenants_days_and_no_others(postgres: Postgres) -> None:
    days = Window(Grain.DAY.floor(NOW) - timedelta(days=2), Grain.DAY.floor(NOW))
    span = (UUID(TENANT), days.start, days.end)
    async with postgres.transaction() as connection:
        # Here a week is so small that reading all of it is cheaper.
        await connection.execute("SET LOCAL enable_seqscan = off")
        rows = await connection.fetchval(
            'SELECT count(*) FROM model_usage_stats WHERE tenant_id = $1 AND "timestamp" >= $2 AND "timestamp" < $3',
            *span,
        )
        assert rows > 100
        checks: list[tuple[str, Grain | None]] = [("costs", None), ("rows", None), ("final_attempts", None)]
        for name, grain in [*checks, *(("rollup", grain) for grain in Grain)]:
            query = QUERIES[name]
            if grain is not None:
                query = query.replace("{rollup}", TABLES[grain]).replace("{width}", f"1 {grain.label}")
            more = [days.start] if name == "final_attempts" else []
            text = await connection.fetchval(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {query}", *span, 5, *more)

            read = rows_read(json.loads(text)[0]["Plan"])
            raw = sum(count for table, count in read.items() if table.startswith("model_usage_stats"))
            assert raw == rows, name
            if grain is not None:
                kept = await connection.fetchval(
                    f"SELECT count(*) FROM {TABLES[grain]} WHERE tenant_id = $1 AND bucket >= $2 AND bucket < $3", *span
                )
                assert read[TABLES[grain]] == kept > 0
