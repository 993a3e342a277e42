"""How fast the ledger takes events in through its RPC, beside the bare statement on the same rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from service_runtime.embedded_postgres import EmbeddedPostgres
from service_runtime.postgres import Postgres
from tests.bench.figures import Figure, Target
from tests.bench.ledger_events import Traffic
from tests.bench.ledger_site import LedgerService, create_ledger, running_service
from tests.bench.processes import BenchFailed, Tree
from usage_service.storage.partitions import Partitions

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

BATCH_EVENTS: Final = 500
# Requests at once, as of 16 routers that each send a batch and wait: with few the service and Postgres take turns.
IN_FLIGHT: Final = 16
_CONDITIONS: Final = (
    f"durable; batches of {BATCH_EVENTS} of 200 tenants and 12 models (Zipf), an event a millisecond; "
    "client, service and Postgres on the same machine"
)
_BARE: Final = "COPY to a temporary table and one INSERT ... ON CONFLICT, one connection, no rollups, rows ready made"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run of events took: seconds, and user + system time in us per event."""

    events_per_s: float
    service_us: float
    postgres_us: float


async def through_rpc(service: LedgerService, postgres: Tree, requests: Sequence[bytes]) -> Cost:
    """Record batches of new events."""
    events = len(requests) * BATCH_EVENTS
    service_s, postgres_s, started_s = service.process.cpu_s(), postgres.cpu_s(), time.monotonic()
    await service.record(requests, in_flight=IN_FLIGHT)
    elapsed_s = time.monotonic() - started_s
    return Cost(
        events / elapsed_s,
        (service.process.cpu_s() - service_s) / events * 1e6,
        (postgres.cpu_s() - postgres_s) / events * 1e6,
    )


class BareStatement:
    """The insert into the ledger's table as the service does it, and nothing else."""

    def __init__(self, connection: Connection, columns: Sequence[str]) -> None:
        self._connection = connection
        self._columns = columns
        listed = ", ".join(f'"{column}"' for column in columns)
        self._create_stage = (
            f"CREATE TEMP TABLE IF NOT EXISTS bare_stage ON COMMIT DELETE ROWS"
            f" AS SELECT {listed} FROM model_usage_stats WITH NO DATA"
        )
        self._select = f"SELECT {listed} FROM model_usage_stats WHERE id = ANY($1::uuid[])"
        self._insert = (
            f"INSERT INTO model_usage_stats ({listed}) SELECT {listed} FROM bare_stage"
            ' ORDER BY tenant_id, "timestamp", id ON CONFLICT DO NOTHING RETURNING id'
        )

    @classmethod
    async def on(cls, dsn: str) -> BareStatement:
        """Ready to run on a database with the ledger's schema."""
        owner = await Postgres.connect(dsn, min_size=0, max_size=1)
        now = datetime.now(UTC)
        await Partitions(owner).cover(now - timedelta(days=2), now + timedelta(days=2))
        await owner.close()
        connection = await asyncpg.connect(dsn)
        columns = await connection.fetch(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'model_usage_stats'::regclass AND attnum > 0"
            " AND NOT attisdropped AND attname <> 'ingested_at' ORDER BY attnum"
        )
        bare = cls(connection, [row["attname"] for row in columns])
        await connection.execute(bare._create_stage)
        return bare

    async def rows_of(self, ledger: Connection, request: Sequence[str]) -> list[tuple[Any, ...]]:
        """What the ledger has made of the events with these ids."""
        return [tuple(row) for row in await ledger.fetch(self._select, request)]

    async def store(self, postgres: Tree, batches: Sequence[Sequence[tuple[Any, ...]]]) -> Cost:
        """Store batches one after the other, each in a transaction."""
        events = sum(len(batch) for batch in batches)
        postgres_s, started_s = postgres.cpu_s(), time.monotonic()
        for batch in batches:
            async with self._connection.transaction():
                await self._connection.copy_records_to_table(
                    "bare_stage", schema_name="pg_temp", records=batch, columns=list(self._columns)
                )
                stored = await self._connection.fetch(self._insert)
            if len(stored) != len(batch):
                raise BenchFailed(f"the bare statement stored {len(stored)} rows of {len(batch)}")
        elapsed_s = time.monotonic() - started_s
        return Cost(events / elapsed_s, 0.0, (postgres.cpu_s() - postgres_s) / events * 1e6)

    async def close(self) -> None:
        await self._connection.close()


async def measure(server: EmbeddedPostgres, *, rounds: int, batches: int) -> list[Figure]:
    """Alternated rounds: the service on new rows, the bare statement on those of the round before."""
    dsn = await create_ledger(server, "ingest")
    bare = await BareStatement.on(await create_ledger(server, "bare"))
    ledger = await asyncpg.connect(dsn)
    assert server.process_id is not None
    postgres = Tree(server.process_id)
    rpc_costs: list[Cost] = []
    bare_costs: list[Cost] = []
    earlier: list[list[tuple[Any, ...]]] = []
    try:
        async with running_service(dsn) as service:
            start = datetime.now(UTC) - timedelta(hours=3)
            for number in range(rounds + 1):
                traffic = Traffic(seed=number, start=start + timedelta(minutes=5) * number)
                requests, ids = traffic.requests(batches, BATCH_EVENTS)
                # The first round warms both up and makes the first rows for the bare statement.
                if number % 2 == 0:
                    rpc_costs.append(await through_rpc(service, postgres, requests))
                if earlier:
                    bare_costs.append(await bare.store(postgres, earlier))
                if number % 2 == 1:
                    rpc_costs.append(await through_rpc(service, postgres, requests))
                earlier = [await bare.rows_of(ledger, each) for each in ids]
            balance = await ledger.fetchrow(
                "SELECT (SELECT count(*) FROM model_usage_stats), (SELECT sum(attempts) FROM usage_rollup_minute),"
                " (SELECT sum(attempts) FROM usage_rollup_hour), (SELECT sum(attempts) FROM usage_rollup_day)"
            )
    finally:
        await ledger.close()
        await bare.close()
    assert balance is not None
    if len(set(balance)) != 1:
        raise BenchFailed(f"rows and rollups do not agree: {tuple(balance)}")
    return _figures(rpc_costs[1:], bare_costs, events=batches * BATCH_EVENTS)


def _figures(rpc: Sequence[Cost], bare: Sequence[Cost], *, events: int) -> list[Figure]:
    rpc_conditions = f"with rollups, {IN_FLIGHT} in flight; {_CONDITIONS}; {len(rpc)} rounds of {events}"
    bare_conditions = f"{_BARE}; {_CONDITIONS}; {len(bare)} rounds of {events}"
    ratios = [one.events_per_s / other.events_per_s for one, other in zip(rpc, bare, strict=True)]
    return [
        Figure(
            "ingest over the bare statement",
            "x",
            ratios,
            f"events a second through RecordUsage by those of the bare statement, in each round; {len(ratios)} rounds",
            Target(0.5, is_at_most=False),
        ),
        Figure("ingest through RecordUsage", "events/s", [one.events_per_s for one in rpc], rpc_conditions),
        Figure("the bare statement", "events/s", [one.events_per_s for one in bare], bare_conditions),
        Figure("usage_service CPU per event", "us", [one.service_us for one in rpc], rpc_conditions),
        Figure("Postgres CPU per event", "us", [one.postgres_us for one in rpc], rpc_conditions),
        Figure("Postgres CPU per row, bare", "us", [one.postgres_us for one in bare], bare_conditions),
    ]
