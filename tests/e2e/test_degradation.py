"""S1: what the services do while Postgres is away, at the start and later; and that health tells the truth of it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service_runtime.embedded_postgres import EmbeddedPostgres
from tests.support.forked import Nursery
from tests.support.forked_site import RouterUnderTest, Site, eventually
from tests.support.postgres import FAST_SETTINGS
from tests.support.provider_server import ProviderProcess
from turnpike.router.v1 import tenant_service_pb2, tenant_service_pb2_grpc

KEY = f"sk-canary-{uuid.uuid4().hex}"
COMPLETIONS = "turnpike.router.v1.RouterService"
TENANTS = "turnpike.router.v1.TenantService"
JOURNAL = f"{COMPLETIONS}/journal"
DATABASE = f"{COMPLETIONS}/db"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A server that these tests may stop and freeze."""
    with (
        tempfile.TemporaryDirectory(prefix="turnpike-test-") as directory,
        EmbeddedPostgres(Path(directory), settings=FAST_SETTINGS) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def site(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The provider knows no key but the tenant's own."""
    directory = Path(tmp_path_factory.mktemp("site"))
    with Nursery() as nursery, ProviderProcess(directory, "--accept-key", KEY) as provider:
        site = Site(nursery, postgres.dsn, provider, directory)
        site.start_usage()
        yield site


@pytest.fixture
def router(site: Site, tmp_path: Path) -> Iterator[RouterUnderTest]:
    router = RouterUnderTest(site, tmp_path / "router")
    yield router
    if router.process is not None:
        router.process.kill()


def health(port: int, *names: str) -> Mapping[str, int]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return {
            name: stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10, wait_for_ready=True).status
            for name in names
        }


def create_tenant(router: RouterUnderTest) -> None:
    """The tenant that `router.ask` asks for, with a key of its own."""
    with grpc.insecure_channel(f"127.0.0.1:{router.port}") as channel:
        request = tenant_service_pb2.CreateTenantRequest(
            tenant_id=router.tenant_id, name="Acme", provider_tokens={"local": KEY}
        )
        tenant_service_pb2_grpc.TenantServiceStub(channel).CreateTenant(request, timeout=10)


def metric(router: RouterUnderTest, name: str) -> float:
    text = urllib.request.urlopen(f"http://127.0.0.1:{router.port + 1000}/metrics", timeout=10).read().decode()
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.partition(" ")[2])


def server_processes(postgres: EmbeddedPostgres) -> list[int]:
    assert postgres.process_id is not None
    lines = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [(int(pid), int(parent)) for pid, parent in (line.split() for line in lines.splitlines())]
    return [postgres.process_id, *(pid for pid, parent in pairs if parent == postgres.process_id)]


def test_s1_started_without_postgres_the_router_serves_the_tenants_that_it_knows(
    postgres: EmbeddedPostgres, site: Site, router: RouterUnderTest
) -> None:
    process = router.start()
    create_tenant(router)
    router.ask()
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert site.usage is not None
    site.usage.kill()
    snapshot = router.directory / "tenants.snapshot"
    assert KEY not in snapshot.read_text()
    assert stat.S_IMODE(snapshot.stat().st_mode) == 0o600
    postgres.stop()

    usage = site.launch_usage()
    router.start()
    router.ask()
    stranger = RouterUnderTest(site, router.directory)
    stranger.port = router.port
    stranger.ask()

    assert len(router.history.results) == 2, router.history.errors
    assert stranger.history.errors == [grpc.StatusCode.UNAVAILABLE]
    assert metric(router, "turnpike_router_tenant_snapshot_reads_total") >= 1
    assert metric(router, "turnpike_router_tenant_snapshot_age_seconds") > 0
    assert "tenants.served_from_snapshot" in router.process_output()
    assert KEY not in router.process_output()
    assert health(router.port, "", COMPLETIONS, JOURNAL, DATABASE, TENANTS) == {
        "": SERVING,
        COMPLETIONS: SERVING,
        JOURNAL: SERVING,
        DATABASE: NOT_SERVING,
        TENANTS: NOT_SERVING,
    }
    assert health(site.usage_port, "", "turnpike.usage.v1.UsageService") == {
        "": SERVING,
        "turnpike.usage.v1.UsageService": NOT_SERVING,
    }

    postgres.start()

    usage.wait_until_logged("usage.ready")
    assert eventually(lambda: health(router.port, TENANTS)[TENANTS], lambda status: status == SERVING) == SERVING
    router.check()
    assert metric(router, "turnpike_router_tenant_snapshot_age_seconds") == 0


def test_started_without_postgres_and_without_tenants_the_router_lives_and_waits(
    postgres: EmbeddedPostgres, router: RouterUnderTest
) -> None:
    postgres.stop()
    process = router.launch().wait_until_logged("postgres.away_at_start")

    assert health(router.port, "", COMPLETIONS, DATABASE) == {
        "": SERVING,
        COMPLETIONS: NOT_SERVING,
        DATABASE: NOT_SERVING,
    }

    postgres.start()
    process.wait_until_logged("router.ready")
    assert health(router.port, COMPLETIONS, DATABASE) == {COMPLETIONS: SERVING, DATABASE: SERVING}


@pytest.mark.parametrize("module", ["router_service", "usage_service"])
@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("postgresql://nobody@/turnpike?host={socket}", "refuses the user or the password"),
        ("postgresql://someone:secret@no-such-host.invalid/turnpike", "'no-such-host.invalid' has no address"),
    ],
)
def test_an_address_that_waiting_cannot_mend_stops_the_start_with_one_line(
    site: Site, router: RouterUnderTest, module: str, address: str, complaint: str
) -> None:
    dsn = address.format(socket=site.dsn.partition("host=")[2])
    port = "ROUTER_PORT" if module == "router_service" else "USAGE_PORT"
    environment = site.environment(router.directory, "") | {"TURNPIKE_DATABASE_URL": dsn, port: str(router.port)}

    process = site.nursery.start(module, environment, router.directory.with_suffix(".log"))

    assert process.wait() == 2
    (line,) = [line for line in process.output().splitlines() if line.startswith(f"{module}: ")]
    assert complaint in line
    assert "correct TURNPIKE_DATABASE_URL" in line
    assert "secret" not in process.output()
    assert "Traceback" not in process.output()


def test_s1_while_postgres_is_frozen_streams_go_on_and_afterwards_the_books_are_whole(
    postgres: EmbeddedPostgres, router: RouterUnderTest
) -> None:
    router.start()
    create_tenant(router)
    router.ask()
    frozen = server_processes(postgres)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(5):
            router.ask()
        frozen_health = eventually(
            lambda: health(router.port, COMPLETIONS, DATABASE, ""), lambda seen: seen[DATABASE] == NOT_SERVING
        )
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)

    assert len(router.history.results) == 6, router.history.errors
    assert frozen_health == {COMPLETIONS: SERVING, DATABASE: NOT_SERVING, "": SERVING}
    router.check()
