"""WatchUsage over a real server and a real ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from service_runtime.grpc_server import GrpcServer
from service_runtime.metrics import Metrics
from service_runtime.postgres import Postgres
from tests.support.ledger_rows import ledger_row, store
from tests.support.usage_events import OTHER_TENANT, TENANT
from turnpike.usage.v1 import usage_service_pb2 as pb
from turnpike.usage.v1 import usage_service_pb2_grpc
from usage_service.api.usage_servicer import UsageServicer
from usage_service.api.watch import WatchHandler
from usage_service.domain.window import RollupRetention
from usage_service.metering.reporting import Reporting
from usage_service.metering.watching import Watching, WatchLimits
from usage_service.storage.records import PostgresRecords
from usage_service.storage.rollups import PostgresRollups

NOT_ASKED = cast("Any", None)


@dataclass
class Live:
    """A server with live totals and nothing else."""

    postgres: Postgres
    watching: Watching
    server: GrpcServer
    stub: Any

    def watch(self, *, timeout_s: float = 30.0, **fields: Any) -> Any:
        values: dict[str, Any] = {"tenant_id": TENANT, "min_interval": Duration()} | fields
        request = pb.WatchUsageRequest(**values)
        return self.stub.WatchUsage(request, timeout=timeout_s)


@asynccontextmanager
async def serving(dsn: str, limits: WatchLimits) -> AsyncIterator[Live]:
    postgres = await Postgres.connect(dsn, min_size=1, max_size=3)
    reporting = Reporting(
        rollups=PostgresRollups(postgres),
        records=PostgresRecords(postgres),
        retention=RollupRetention(),
        now=lambda: datetime.now(UTC),
    )
    watching = Watching(reporting, limits)
    servicer = UsageServicer(
        recorder=NOT_ASKED, reports=NOT_ASKED, journals=NOT_ASKED, watch=WatchHandler(watching), now=NOT_ASKED
    )
    server = GrpcServer(host="127.0.0.1", port=0, metrics=Metrics())
    server.add(
        "turnpike.usage.v1.UsageService",
        partial(usage_service_pb2_grpc.add_UsageServiceServicer_to_server, servicer),
    )
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield Live(postgres, watching, server, usage_service_pb2_grpc.UsageServiceStub(channel))
    finally:
        await watching.stop()
        assert await server.drain(1.0) == 0
        await postgres.close()


@pytest.fixture
async def live(ledger_database: str) -> AsyncIterator[Live]:
    async with serving(ledger_database, WatchLimits(poll_s=0.02, heartbeat_s=0.3)) as one:
        yield one


async def test_what_is_stored_is_told_to_everybody_who_watches_its_tenant(live: Live) -> None:
    now = datetime.now(UTC)
    await store(live.postgres, [ledger_row(now - timedelta(hours=1)), ledger_row(now, tenant_id=OTHER_TENANT)])
    everybody = [live.watch(grouping=pb.USAGE_GROUPING_MODEL) for _ in range(5)]
    first = [await call.read() for call in everybody]
    await store(live.postgres, [ledger_row(now, provider="llm7", model="gpt-4o", cost_usd=None)])
    second = [await call.read() for call in everybody]
    while any(message.is_heartbeat for message in second):
        second = [await call.read() if m.is_heartbeat else m for call, m in zip(everybody, second, strict=True)]

    assert live.watching.polls == 1
    for message in first:
        assert (message.total.requests, message.is_heartbeat) == (1, False)
        assert message.total.cost.cost_usd == "0.000985000000"
    for message in second:
        assert [(one.provider, one.requests) for one in message.stats] == [("groq", 1), ("llm7", 1)]
        assert (message.total.requests, message.total.cost.unpriced_attempts) == (2, 1)
        assert message.end_time.ToDatetime(UTC) - message.start_time.ToDatetime(UTC) >= timedelta(days=1)
    for call in everybody:
        call.cancel()


async def test_a_stream_ends_well_before_its_deadline_and_leaves_nothing_behind(live: Live) -> None:
    messages = [message async for message in live.watch(timeout_s=1.5)]

    assert not messages[0].is_heartbeat
    assert all(message.is_heartbeat for message in messages[1:])
    assert messages[1:]
    assert (live.watching.watchers, live.watching.polls) == (0, 0)


async def test_a_stream_ends_well_when_the_service_drains(live: Live) -> None:
    call = live.watch()
    await call.read()

    draining = asyncio.create_task(live.watching.stop())
    while (message := await call.read()) is not grpc.aio.EOF:
        assert message.is_heartbeat
    await draining

    assert await call.code() == grpc.StatusCode.OK


async def test_a_caller_who_leaves_ends_the_poll(live: Live) -> None:
    call = live.watch()
    await call.read()
    assert live.watching.polls == 1

    call.cancel()

    async with asyncio.timeout(5):
        while live.watching.polls:
            await asyncio.sleep(0.01)


async def test_a_stream_that_is_one_too_many_is_refused(ledger_database: str) -> None:
    async with serving(ledger_database, WatchLimits(most_of_tenant=1)) as live:
        first = live.watch()
        await first.read()

        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await live.watch().read()

        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()


async def test_every_bad_field_is_named(live: Live) -> None:
    call = live.watch(tenant_id="x", window=Duration(seconds=59), min_interval=Duration(seconds=61), grouping=9)
    with pytest.raises(grpc.aio.AioRpcError, match=r"tenant_id: must be a UUID.*3 more") as refused:
        await call.read()

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
