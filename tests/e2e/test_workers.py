"""U1, U2: a router of two workers keeps the books of both, whichever dies, and when there is only one afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Semaphore

import asyncpg
import grpc
import pytest

from service_runtime.embedded_postgres import EmbeddedPostgres
from tests.support.ports import free_ports
from tests.support.postgres import dsn_of
from tests.support.provider_server import ProviderProcess
from tests.support.stack import Stack
from turnpike.router.v1 import (
    completion_pb2,
    router_service_pb2,
    router_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)

TENANT = str(uuid.uuid4())
NAME = "pair"
WORKERS = 2
MOST_CONNECTIONS = 64  # that all of them reach the same of two workers has a chance of 2 to the -63
ALONE = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each channel


class Service:
    """One service started by hand, perhaps a supervisor with its workers."""

    def __init__(self, module: str, stack: Stack) -> None:
        self.module = module
        self.stack = stack
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, ready: int = 1) -> None:
        """Start it, and wait until so many of its processes are ready."""
        seen = self.ready()
        with self.stack.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, *arguments], env=self.stack.variables(), stdout=log, stderr=log
            )
        eventually(lambda: self.ready() == seen + ready, self.stack.output)

    def ready(self) -> int:
        return self.stack.output().count(f"{self.module.removesuffix('_service')}.ready")

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        """SIGKILL to the process itself: its workers must see to themselves."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


def eventually(is_so: Callable[[], object], otherwise: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline_s, otherwise()
        time.sleep(0.02)


class Site:
    """Postgres, a provider, usage_service, and a router whose number of workers changes."""

    def __init__(self, dsn: str, provider: ProviderProcess, directory: Path) -> None:
        self.dsn = dsn
        self.worker_ports_from = free_ports(WORKERS)
        common = {
            "TURNPIKE_DATABASE_URL": dsn,
            "ROUTER_LOCAL_BASE_URL": provider.base_url,
            "ROUTER_ROUTER_ID": NAME,
            "ROUTER_WORKER_PORTS_FROM": str(self.worker_ports_from),
        }
        self.usage = Service("usage_service", Stack(directory / "usage", common))
        shared = common | {"USAGE_PORT": str(self.usage.stack.usage_port)}
        self.router = Service("router_service", Stack(directory / "router", shared, router_port=free_ports(WORKERS)))

    def worker(self, number: int) -> str:
        return f"127.0.0.1:{self.worker_ports_from + number}"

    def booked(self) -> list[asyncpg.Record]:
        """Each row of the ledger: model, router and status."""

        async def fetch() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.dsn)
            try:
                return await connection.fetch("SELECT model_name, router_id, status FROM model_usage_stats")
            finally:
                await connection.close()

        return asyncio.run(fetch())

    def create_tenant(self, worker: int) -> str:
        """A tenant that this worker alone has read; its id."""
        with grpc.insecure_channel(self.worker(worker), options=ALONE) as channel:
            tenants = tenant_service_pb2_grpc.TenantServiceStub(channel)
            return tenants.CreateTenant(tenant_service_pb2.CreateTenantRequest(name="Acme"), timeout=30).tenant.id

    def pids_of(self, number: int) -> set[int]:
        """The running processes that are worker `number`, by what their environment says."""
        assert self.router.process is not None
        found = set()
        for path in Path(f"/proc/{self.router.process.pid}/task").glob("*/children"):
            for pid in path.read_text().split():
                if b"ROUTER_WORKER=%d" % number in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.add(int(pid))
        return found


@pytest.fixture
def site(postgres_server: EmbeddedPostgres, tmp_path: Path) -> Iterator[Site]:
    dsn = dsn_of(postgres_server, f"workers_{uuid.uuid4().hex}")
    with ProviderProcess(tmp_path) as provider:
        site = Site(dsn, provider, tmp_path)
        try:
            site.usage.start()
            site.router.start("--workers", str(WORKERS), ready=WORKERS)
            yield site
        finally:
            site.router.kill()
            site.usage.kill()


def test_s1_each_worker_keeps_its_tenants_on_disk_in_a_file_of_its_own(site: Site) -> None:
    created = [site.create_tenant(worker) for worker in (0, 1)]
    assert site.router.stop() == 0, site.router.stack.output()

    kept = [(site.router.stack.data_dir / name).read_text() for name in ("tenants.snapshot", "tenants.snapshot-1")]
    assert [[tenant_id in text for tenant_id in created] for text in kept] == [[True, False], [False, True]]


def ask(target: str, script: str = "ok?n=2", *, begun: Semaphore | None = None) -> tuple[str, grpc.StatusCode]:
    """One stream over a connection of its own: the model, which names it, and how it ended."""
    model = f"{script}&id={uuid.uuid4().hex}"
    request = router_service_pb2.StreamCompletionRequest(
        tenant_id=TENANT,
        messages=[completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="hello there")],
        provider="local",
        model=model,
    )
    with grpc.insecure_channel(target, options=ALONE) as channel:
        try:
            stream = router_service_pb2_grpc.RouterServiceStub(channel).StreamCompletion(request, timeout=30)
            first = next(iter(stream))
            if begun is not None:
                begun.release()
            *_, last = [first, *stream]
        except grpc.RpcError as error:
            return model, error.code()
    assert last.HasField("result")
    return model, grpc.StatusCode.OK


def test_u1_u2_the_books_hold_whichever_worker_dies_and_however_many_there_are(site: Site) -> None:
    asked: dict[str, grpc.StatusCode] = {}

    # Both workers are reached through the port that they share.
    routers: set[str] = set()
    while len(routers) < 2 and len(asked) < MOST_CONNECTIONS:
        asked.update(ask(site.router.stack.router) for _ in range(8))
        eventually(lambda: len(site.booked()) == len(asked), site.router.stack.output)
        routers = {row["router_id"] for row in site.booked()}
    assert routers == {NAME, f"{NAME}-1"}

    # The second is killed while streams run at both: those of the first end well, those of the second are booked once.
    (killed,) = site.pids_of(1)
    with ThreadPoolExecutor(6) as threads:
        begun = Semaphore(0)
        slow = partial(ask, script="ok?n=20&gap_ms=100", begun=begun)
        spared = [threads.submit(slow, site.worker(0)) for _ in range(3)]
        struck = [threads.submit(slow, site.worker(1)) for _ in range(3)]
        assert all(begun.acquire(timeout=30) for _ in spared + struck)
        os.kill(killed, signal.SIGKILL)
        asked.update(each.result() for each in spared + struck)
    assert [each.result()[1] for each in spared] == [grpc.StatusCode.OK] * 3
    assert [each.result()[1] for each in struck] == [grpc.StatusCode.UNAVAILABLE] * 3
    eventually(lambda: site.router.ready() == 3, site.router.stack.output)
    assert site.pids_of(1).isdisjoint({killed})
    asked.update([ask(site.worker(1))])

    # What the second worker cannot send before the stop is carried by the only one that is left.
    eventually(lambda: len(site.booked()) == len(asked), site.router.stack.output)
    site.usage.kill()
    left = dict(ask(site.worker(1)) for _ in range(3))
    asked.update(left)
    assert site.router.stop() == 0, site.router.stack.output()
    before = len(site.booked())
    site.usage.start()
    site.router.start()
    eventually(lambda: len(site.booked()) == len(asked), site.router.stack.output)

    booked = site.booked()
    assert len(booked) == before + 3
    assert Counter(row["model_name"] for row in booked) == dict.fromkeys(asked, 1)
    assert {row["router_id"] for row in booked if row["model_name"] in left} == {f"{NAME}-1"}
    succeeded = {row["model_name"] for row in booked if row["status"] == "success"}
    assert succeeded == {model for model, code in asked.items() if code is grpc.StatusCode.OK}
    assert site.router.stop() == 0
