"""Events sent again and again, shuffled, by many writers at once: nothing may change, nothing may wait for itself."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import asyncpg

from service_runtime.embedded_postgres import EmbeddedPostgres
from tests.bench.figures import Figure, Target
from tests.bench.ledger_events import Traffic, serialised
from tests.bench.ledger_model import LedgerModel
from tests.bench.ledger_site import RECORD_USAGE, LedgerService, create_ledger, gather, running_service
from tests.bench.processes import BenchFailed
from turnpike.usage.v1 import usage_event_pb2, usage_service_pb2

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

WRITERS: Final = 8
_LARGEST_BATCH: Final = 1_000
_MOST_COPIES: Final = 5
_TIMEOUT_S: Final = 60.0
_Disposition = usage_service_pb2.RecordDisposition


@dataclass(slots=True)
class Sending:
    """Events in the order in which they go out, each one to five times; writers take what comes next."""

    events: Sequence[usage_event_pb2.UsageEvent]
    rng: random.Random
    dispositions: Counter[str]
    order: list[int]
    taken: int = 0

    @classmethod
    def of(cls, events: Sequence[usage_event_pb2.UsageEvent], seed: int) -> Sending:
        rng = random.Random(seed)
        order = [number for number in range(len(events)) for _ in range(rng.randint(1, _MOST_COPIES))]
        rng.shuffle(order)
        return cls(events, rng, Counter(), order)

    def next_batch(self) -> bytes | None:
        """A request with the next 1 to 1000 events, or None at the end."""
        start, self.taken = self.taken, self.taken + self.rng.randint(1, _LARGEST_BATCH)
        numbers = self.order[start : self.taken]
        # From no journal: a million sequences at random are hundreds of thousands of gaps in one, which no router has,
        # and noting the next batch among 100,000 gaps takes most of a second.
        return serialised([self.events[number] for number in numbers], epoch="") if numbers else None

    async def send(self, service: LedgerService) -> None:
        """One writer: send batches until there is none, and those again that the ledger is too busy for."""
        method = service.method(RECORD_USAGE)
        while (request := self.next_batch()) is not None:
            answer = usage_service_pb2.RecordUsageResponse.FromString(await method(request, timeout=_TIMEOUT_S))
            self.dispositions.update(_Disposition.Name(result.disposition) for result in answer.results)


async def measure(server: EmbeddedPostgres, *, events: int) -> list[Figure]:
    """Send `events` events 1 to 5 times each by 8 writers over two services, and compare with the model."""
    dsn = await create_ledger(server, "replay")
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    # Around a midnight, so that every rollup has more than one bucket; 10 ms apart a million take nearly three hours.
    gap = timedelta(milliseconds=10)
    traffic = Traffic(seed=1, start=midnight - gap * (events // 2) - timedelta(hours=2), gap=gap)
    sent = list(itertools.islice(traffic.events(), events))
    model = LedgerModel()
    for event in sent:
        model.add(event)
    sending = Sending.of(sent, seed=2)
    connection = await asyncpg.connect(dsn)
    try:
        async with AsyncExitStack() as opened:
            # A service each, because one would join its callers' batches.
            services = [await opened.enter_async_context(running_service(dsn)) for _ in range(WRITERS)]
            started_s = time.monotonic()
            await gather(sending.send(service) for service in services)
            elapsed_s = time.monotonic() - started_s
            before = await fingerprint(connection)
            again = Sending.of(sent[: events // 20], seed=3)
            await gather(again.send(service) for service in services)
            changed = sum(was != now for was, now in zip(before, await fingerprint(connection), strict=True))
        differences = await model.differences(connection)
        deadlocks = await connection.fetchval(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
        rejected = await connection.fetchval("SELECT count(*) FROM usage_events_rejected")
    finally:
        await connection.close()
    wanted = {
        "RECORD_DISPOSITION_ACCEPTED": events,
        "RECORD_DISPOSITION_DUPLICATE": len(sending.order) - events,
    }
    if sending.dispositions != wanted or set(again.dispositions) != {"RECORD_DISPOSITION_DUPLICATE"} or rejected:
        raise BenchFailed(f"answers {dict(sending.dispositions)}, {rejected} in quarantine; wanted {wanted}")
    if differences:
        raise BenchFailed("the ledger differs from the model:\n" + "\n".join(differences))
    conditions = (
        f"{events} events sent {len(sending.order)} times in all, each 1 to 5 times, shuffled, in batches of 1 to "
        f"{_LARGEST_BATCH}, by {WRITERS} services at once, one writer each"
    )
    return [
        Figure(
            "replay: rows unlike the model",
            "rows",
            [float(len(differences))],
            f"{conditions}; every row of the ledger and of the three rollups, to the last digit",
            Target(0.0),
        ),
        Figure(
            "replay: tables changed by another replay",
            "tables",
            [float(changed)],
            f"{len(again.order)} events sent again by {WRITERS} writers; checksums of the four tables",
            Target(0.0),
        ),
        Figure("replay: deadlocks", "", [float(deadlocks)], f"pg_stat_database; {conditions}", Target(0.0)),
        Figure("replay: events answered", "events/s", [len(sending.order) / elapsed_s], conditions),
    ]


async def fingerprint(connection: Connection) -> list[str]:
    """A checksum of each table of the ledger, which no order of its rows changes."""
    return [
        str(await connection.fetchval(f"SELECT sum(hashtextextended(t::text, 0)::numeric) FROM {table} AS t"))
        for table in ("model_usage_stats", "usage_rollup_minute", "usage_rollup_hour", "usage_rollup_day")
    ]
