"""A ledger of the bench's own: a Postgres with the default settings, and usage_service processes on its databases."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import grpc.aio

from service_runtime.embedded_postgres import EmbeddedPostgres
from service_runtime.migrations import migrate
from tests.bench.processes import BenchFailed, Tree
from tests.support.ports import free_ports
from tests.support.postgres import LEDGER_MIGRATIONS, dsn_of
from turnpike.usage.v1 import usage_service_pb2 as pb

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

RECORD_USAGE: Final = "/turnpike.usage.v1.UsageService/RecordUsage"
_TIMEOUT_S: Final = 60.0
_START_S: Final = 30.0
Method = Callable[..., Any]  # the multicallables of grpc.aio, whose types want serializers


@contextmanager
def running_postgres() -> Iterator[EmbeddedPostgres]:
    """A server with the settings of `make run`, durable commits included; its data goes at the end."""
    directory = Path(tempfile.mkdtemp(prefix="turnpike-bench-"))
    try:
        with EmbeddedPostgres(directory / "postgres") as server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def create_ledger(server: EmbeddedPostgres, database: str) -> str:
    """A new database with the ledger's schema; its address."""
    dsn = dsn_of(server, database)
    await migrate(dsn, "usage_service", LEDGER_MIGRATIONS)
    return dsn


@dataclass(frozen=True, slots=True)
class LedgerService:
    """A running usage_service and a channel to it."""

    process: Tree
    channel: grpc.aio.Channel

    def method(self, path: str) -> Method:
        """A method by its full name that takes and gives bytes."""
        method: Method = self.channel.unary_unary(path)
        return method

    async def record(self, requests: Sequence[bytes], *, in_flight: int) -> None:
        """Send requests of new events, `in_flight` at a time. Raises BenchFailed unless every event is accepted."""
        method = self.method(RECORD_USAGE)
        remaining = iter(requests)

        async def worker() -> None:
            for request in remaining:
                answer = pb.RecordUsageResponse.FromString(await method(request, timeout=_TIMEOUT_S))
                for result in answer.results:
                    if result.disposition != pb.RECORD_DISPOSITION_ACCEPTED:
                        raise BenchFailed(f"an event was not accepted: {result}")

        await gather(worker() for _ in range(in_flight))


async def gather(tasks: Iterator[Awaitable[None]]) -> None:
    """Wait for all; the first failure ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(task)  # type: ignore[arg-type]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures


@asynccontextmanager
async def running_service(dsn: str, settings: Mapping[str, str] | None = None) -> AsyncIterator[LedgerService]:
    """usage_service on a database, as a process of its own with the default settings and those given."""
    port = free_ports()
    with tempfile.TemporaryDirectory(prefix="turnpike-bench-") as directory:
        log_path = Path(directory) / "log"
        foreign = ("TURNPIKE_", "ROUTER_", "USAGE_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
            "USAGE_DATABASE_URL": dsn,
            "USAGE_PORT": str(port),
            "TURNPIKE_DATA_DIR": directory,
            **(settings or {}),
        }
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "usage_service"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{port}",
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100)],
        )
        try:
            try:
                async with asyncio.timeout(_START_S):
                    await channel.channel_ready()
            except TimeoutError:
                raise BenchFailed(f"usage_service did not start:\n{log_path.read_text()[-2_000:]}") from None
            yield LedgerService(Tree(process.pid), channel)
        finally:
            await channel.close()
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
