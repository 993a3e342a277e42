"""Services as forked processes around one Postgres and one scripted provider, and the books compared from outside."""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import asyncpg
import grpc

from router_service.usage.journal import SqliteJournal
from tests.support.attempts import TENANT as SEEDED_TENANT
from tests.support.attempts import journal_metrics, settled_attempt
from tests.support.forked import Forked, Nursery
from tests.support.ports import free_ports
from tests.support.postgres import run_apart
from tests.support.provider_server import ProviderProcess
from turnpike.router.v1 import completion_pb2, router_service_pb2, router_service_pb2_grpc

T = TypeVar("T")

TOKENS = 3
WORDS = 2  # of the prompt: the scripted provider counts a token each


@dataclass
class Site:
    """Postgres, the provider, and a usage_service that all routers of this module report to."""

    nursery: Nursery
    dsn: str
    provider: ProviderProcess
    directory: Path
    usage_port: int = field(default_factory=free_ports)
    usage: Forked | None = None

    def start_usage(self, faults: str = "") -> Forked:
        """A usage_service that has its database."""
        return self.launch_usage(faults).wait_until_logged("usage.ready")

    def launch_usage(self, faults: str = "") -> Forked:
        environment = self.environment(self.directory / "usage", faults) | {"USAGE_PORT": str(self.usage_port)}
        self.usage = self.nursery.start("usage_service", environment, self.directory / "usage.log")
        return self.usage

    @contextmanager
    def usage_under(self, faults: str) -> Iterator[Forked]:
        """Another usage_service in the place of the usual one, for the block."""
        assert self.usage is not None
        self.usage.kill()
        try:
            yield self.start_usage(faults)
        finally:
            self.usage.kill()
            self.start_usage()

    @contextmanager
    def usage_away(self) -> Iterator[None]:
        """No usage_service for the block: what a router knows, nobody else does."""
        assert self.usage is not None
        self.usage.kill()
        try:
            yield
        finally:
            self.start_usage()

    def environment(self, data_dir: Path, faults: str) -> dict[str, str]:
        return {
            "TURNPIKE_DATA_DIR": str(data_dir),
            "TURNPIKE_DATABASE_URL": self.dsn,
            "TURNPIKE_FAULTS": faults,
            "ROUTER_LOCAL_BASE_URL": self.provider.base_url,
            "ROUTER_SANDBOX": "false",
            "ROUTER_USAGE_TARGET": f"127.0.0.1:{self.usage_port}",
            "GRPC_ENABLE_FORK_SUPPORT": "0",
        }

    def sql(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        async def fetch() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.dsn)
            try:
                return await connection.fetch(statement, *arguments)
            finally:
                await connection.close()

        return asyncio.run(fetch())


@dataclass
class History:
    """What the caller saw, by request: the result, or the error that the stream ended with."""

    asked: set[str] = field(default_factory=set)
    results: dict[str, completion_pb2.CompletionResult] = field(default_factory=dict)
    errors: list[grpc.StatusCode] = field(default_factory=list)
    failures: dict[str, grpc.RpcError] = field(default_factory=dict)


class RouterUnderTest:
    """One router with a name and a journal of its own."""

    def __init__(self, site: Site, directory: Path) -> None:
        self.site = site
        self.directory = directory
        self.name = f"router-{uuid.uuid4()}"
        self.tenant_id = str(uuid.uuid4())
        self.port = free_ports()
        self.history = History()
        self.process: Forked | None = None

    @property
    def journal(self) -> Path:
        return self.directory / "journal"

    def launch(self, faults: str = "", *, settings: Mapping[str, str] | None = None) -> Forked:
        environment = self.site.environment(self.directory, faults) | {
            "ROUTER_PORT": str(self.port),
            "ROUTER_ROUTER_ID": self.name,
            **(settings or {}),
        }
        self.process = self.site.nursery.start("router_service", environment, self.directory.with_suffix(".log"))
        return self.process

    def start(self, faults: str = "", *, settings: Mapping[str, str] | None = None) -> Forked:
        return self.launch(faults, settings=settings).wait_until_logged("router.ready")

    def process_output(self) -> str:
        assert self.process is not None
        return self.process.output()

    def ask(self, script: str = f"ok?n={TOKENS}") -> str:
        """One stream, to whatever end; its model, which names it."""
        model = f"{script}&id={uuid.uuid4().hex}"
        self.history.asked.add(model)
        request = router_service_pb2.StreamCompletionRequest(
            tenant_id=self.tenant_id,
            messages=[completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="hello there")],
            provider="local",
            model=model,
        )
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            try:
                for event in router_service_pb2_grpc.RouterServiceStub(channel).StreamCompletion(request, timeout=20):
                    if event.WhichOneof("event") == "result":
                        self.history.results[model] = event.result
            except grpc.RpcError as error:
                self.history.errors.append(error.code())
                self.history.failures[model] = error
        return model

    def leave(self, model: str) -> None:
        """One stream at OpenRouter, left after its first content."""
        self.history.asked.add(model)
        request = router_service_pb2.StreamCompletionRequest(
            tenant_id=self.tenant_id,
            messages=[completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="hello there")],
            provider="openrouter",
            model=model,
        )
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            stream = router_service_pb2_grpc.RouterServiceStub(channel).StreamCompletion(request, timeout=20)
            try:
                next(event for event in stream if event.WhichOneof("event") == "delta")
            finally:
                stream.cancel()

    def ask_at_once(self, count: int) -> None:
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(lambda _: self.ask(f"ok?n={TOKENS}&gap_ms=10"), range(count)))

    def seed(self, *event_ids: uuid.UUID) -> None:
        """Put settled attempts into the journal, as a run before this one left them."""
        run_apart(self._settle(event_ids))

    async def _settle(self, event_ids: tuple[uuid.UUID, ...]) -> None:
        journal = SqliteJournal.open(
            self.journal, max_bytes=1 << 30, metrics=journal_metrics(), new_epoch=lambda: f"epoch-of-{self.name}"
        )
        await asyncio.gather(*(journal.settled(settled_attempt(event_id)) for event_id in event_ids))
        await journal.close()

    def rows(self) -> list[asyncpg.Record]:
        return self.site.sql("SELECT * FROM model_usage_stats WHERE router_id = $1", self.name)

    def opened(self) -> int:
        """Attempts that run, by the journal."""
        return self._count("opened")

    def waiting(self) -> int:
        """Records in the journal that the ledger has not got."""
        return self._count("opened") + self._count("held") + self._count("outbox")

    def _count(self, table: str) -> int:
        """Rows of a table, read beside the router that owns the journal."""
        with closing(sqlite3.connect(f"file:{self.journal / 'journal.sqlite'}?mode=ro", uri=True)) as connection:
            (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(count)

    def check(self) -> None:
        """Start anew if need be, let everything drain, and compare the three witnesses."""
        if self.process is None or self.process.exit_code is not None:
            self.start()
        self.ask()
        assert eventually(self.waiting, lambda waiting: waiting == 0) == 0
        rows = [row for row in self.rows() if row["tenant_id"] != SEEDED_TENANT]
        by_model = {row["model_name"]: row for row in rows}
        served = [entry.model for entry in self.site.provider.served if entry.model in self.history.asked]

        assert set(self.history.errors) <= {grpc.StatusCode.UNAVAILABLE}
        assert len(by_model) == len(rows), "an attempt was booked twice"
        assert set(by_model) <= self.history.asked, "a row that nobody asked for"
        assert set(served) <= set(by_model), "the provider served what nobody booked"
        assert set(self.history.results) <= set(by_model), "a caller saw the end of what nobody booked"
        for model, result in self.history.results.items():
            row = by_model[model]
            assert (row["status"], row["usage_source"]) == ("success", "provider")
            assert (row["input_tokens"], row["output_tokens"]) == (WORDS, TOKENS)
            assert (result.input_tokens, result.output_tokens) == (WORDS, TOKENS)
        for model in set(by_model) - set(self.history.results):
            assert by_model[model]["status"] in {"success", "interrupted", "cancelled"}
        self._check_rollups()
        self._check_sequences()

    def _check_rollups(self) -> None:
        totals = "sum(input_tokens) AS input, sum(output_tokens) AS output"
        rows = self.site.sql(
            f"SELECT count(*)::bigint AS n, {totals} FROM model_usage_stats WHERE tenant_id = $1",
            uuid.UUID(self.tenant_id),
        )
        rollups = self.site.sql(
            f"SELECT sum(attempts)::bigint AS n, {totals} FROM usage_rollup_day WHERE tenant_id = $1",
            uuid.UUID(self.tenant_id),
        )
        assert [tuple(row) for row in rollups] == [tuple(row) for row in rows]

    def _check_sequences(self) -> None:
        """No hole in what the ledger answered for, in any epoch."""
        for row in self.site.sql("SELECT epoch, answered FROM usage_journals WHERE router_id = $1", self.name):
            assert len(row["answered"]) == 1, row
            assert row["answered"][0].lower == 1, row


def eventually(look: Callable[[], T], is_it: Callable[[T], bool], within_s: float = 20.0) -> T:
    """What `look` sees as soon as `is_it`, or in the end: the caller asserts on it."""
    give_up_at = time.monotonic() + within_s
    while not is_it(seen := look()) and time.monotonic() < give_up_at:
        time.sleep(0.02)
    return seen
