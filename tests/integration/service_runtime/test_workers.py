"""Several workers behind one port, as real processes: small services written for the test."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.ports import free_ports

ROOT = Path(__file__).parents[3]

# A service that notes what becomes of its workers, and dies or refuses to start when a file says so.
SERVICE = """
import asyncio, os, sys
from pathlib import Path
from pydantic_settings import SettingsConfigDict
from service_runtime.settings import ServiceSettings
from service_runtime.service_main import run_service
from service_runtime.startup import StartupError

class Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="ECHO_")
    port: int = 50051

def note(settings, text):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{settings.worker} {text}\\n")

async def main(settings, lifecycle):
    from service_runtime.grpc_server import GrpcServer
    from service_runtime.metrics import Metrics
    if Path(os.environ["NOTES"] + f".refuse-{settings.worker}").exists():
        raise StartupError("something is missing; bring it")
    if Path(os.environ["NOTES"] + f".hang-{settings.worker}").exists():
        note(settings, "hangs")
        await lifecycle.wait_for_stop()
        return
    metrics = Metrics(worker=settings.worker)
    server = GrpcServer.from_settings(settings, metrics)
    await server.start()
    with metrics.serve(settings.bind_host, settings.own_metrics_port):
        server.set_serving(True)
        note(settings, f"started {os.getpid()} metrics {settings.own_metrics_port}")
        lifecycle.ready(server.address)
        await lifecycle.wait_for_stop()
        note(settings, "stopping")
        await server.drain(1.0)
    note(settings, "stopped")

if __name__ == "__main__":
    assert "grpc" not in sys.modules
    run_service("echo_service", Settings, main, sys.argv[1:])
"""


class World:
    """A directory with the service, and what it and its supervisor say."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.notes = directory / "notes"
        self.notes.touch()
        self.output = directory / "output"
        self.port, self.worker_ports_from = free_ports(2), free_ports(2)
        self.process: subprocess.Popen[bytes] | None = None
        (directory / "echo_service.py").write_text(SERVICE)
        self.told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.told.bind(str(directory / "told"))
        self.told.settimeout(30)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        foreign = ("TURNPIKE_", "ECHO_")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
            "PYTHONPATH": f"{self.directory}:{ROOT}",
            "NOTES": str(self.notes),
            "NOTIFY_SOCKET": str(self.directory / "told"),
            "TURNPIKE_DATABASE_URL": "postgresql://nobody@localhost/none",
            "ECHO_PORT": str(self.port),
            "ECHO_WORKER_PORTS_FROM": str(self.worker_ports_from),
            **variables,
        }
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "echo_service", *arguments],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return self.process

    def start_ready(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start, and wait until the supervisor says that all workers serve."""
        process = self.start(*arguments, **variables)
        assert self.told.recv(4096).decode() == f"READY=1\nSTATUS=127.0.0.1:{self.port} (2 workers)"
        return process

    def said(self) -> list[str]:
        return self.notes.read_text().splitlines()

    def pids(self) -> dict[int, list[int]]:
        """The processes of each worker, in the order of their starts."""
        pids: dict[int, list[int]] = {}
        for worker, pid in re.findall(r"^(\d+) started (\d+)", self.notes.read_text(), re.MULTILINE):
            pids.setdefault(int(worker), []).append(int(pid))
        return pids


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    if world.process is not None and world.process.poll() is None:
        world.process.kill()
        world.process.wait()
    world.told.close()


def eventually(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s, "it never came to that"
        time.sleep(0.02)


def is_serving(port: int) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its types know no methods
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=10, wait_for_ready=True)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_workers_share_a_port_and_each_has_one_of_its_own_and_one_for_metrics(world: World) -> None:
    world.start_ready("--workers", "2")

    assert is_serving(world.port)
    assert is_serving(world.worker_ports_from)
    assert is_serving(world.worker_ports_from + 1)
    assert sorted(line.split("metrics ")[1] for line in world.said()) == [
        str(world.port + 1000),
        str(world.port + 1010),
    ]
    for worker in (0, 1):
        with urlopen(f"http://127.0.0.1:{world.port + 1000 + 10 * worker}/metrics", timeout=30) as answer:
            assert f'grpc_server_in_flight{{worker="{worker}"}} 0.0' in answer.read().decode()


def test_a_stop_lets_every_worker_drain(world: World) -> None:
    process = world.start_ready(ECHO_WORKERS="2")

    process.send_signal(signal.SIGTERM)

    assert process.wait(20) == 0
    assert sorted(line for line in world.said() if line.endswith("stopped")) == ["0 stopped", "1 stopped"]


def test_a_worker_that_dies_is_started_again_in_its_place_while_the_other_serves(world: World) -> None:
    process = world.start_ready("--workers", "2")
    first, second = (world.pids()[number][0] for number in (0, 1))

    os.kill(second, signal.SIGKILL)
    eventually(lambda: len(world.pids()[1]) == 2)

    assert world.pids()[0] == [first]
    assert process.poll() is None
    assert "worker 1 was killed by SIGKILL" in world.output.read_text()
    assert is_serving(world.worker_ports_from + 1)


def test_a_worker_that_dies_again_and_again_is_started_later_each_time_and_comes_back(world: World) -> None:
    process = world.start_ready("--workers", "2")
    refusal = Path(f"{world.notes}.refuse-1")
    refusal.touch()

    os.kill(world.pids()[1][0], signal.SIGKILL)
    eventually(lambda: "worker 1 ended with exit code 2; starting it again in 0.4 s" in world.output.read_text())
    assert process.poll() is None
    assert is_serving(world.worker_ports_from)
    refusal.unlink()

    assert is_serving(world.worker_ports_from + 1)
    waits_s = re.findall(r"worker 1 .* starting it again in ([\d.]+) s", world.output.read_text())
    assert waits_s[:3] == ["0", "0.2", "0.4"]
    assert len(world.pids()[0]) == 1


@pytest.mark.parametrize("worker", [0, 1])
def test_a_stop_while_workers_start_ends_those_that_have(world: World, worker: int) -> None:
    Path(f"{world.notes}.hang-{worker}").touch()
    process = world.start("--workers", "2")
    eventually(lambda: f"{worker} hangs" in world.said())

    process.send_signal(signal.SIGTERM)

    assert process.wait(20) == 0
    assert [line for line in world.said() if line.endswith("stopped")] == ["0 stopped"][:worker]


def test_the_supervisor_never_loads_grpc(world: World) -> None:
    process = world.start_ready("--workers", "2")

    def has_grpc(pid: int) -> bool:
        return "cygrpc" in Path(f"/proc/{pid}/maps").read_text()

    assert [has_grpc(pid) for pids in world.pids().values() for pid in pids] == [True, True]
    assert not has_grpc(process.pid)


def test_a_killed_supervisor_takes_its_workers_with_it(world: World) -> None:
    process = world.start_ready("--workers", "2")

    process.kill()
    process.wait()

    for (pid,) in world.pids().values():
        eventually(lambda pid=pid: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]


@pytest.mark.parametrize("worker", [0, 1])
def test_where_one_worker_cannot_start_none_does(world: World, worker: int) -> None:
    Path(f"{world.notes}.refuse-{worker}").touch()

    process = world.start("--workers", "2")

    assert process.wait(30) == 2
    assert "echo_service: something is missing; bring it" in world.output.read_text()
    assert [line for line in world.said() if line.endswith("stopped")] == ["0 stopped"][:worker]


def test_a_port_that_somebody_else_shares_is_taken(world: World) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", world.port))

        process = world.start("--workers", "2")

        assert process.wait(30) == 2
    assert f"echo_service: cannot listen on port {world.port} of 127.0.0.1" in world.output.read_text()


def test_too_few_ports_for_the_workers_are_told_at_once(world: World) -> None:
    process = world.start("--workers", "4", ECHO_METRICS_PORT="65533")

    assert process.wait(30) == 2
    assert "ECHO_METRICS_PORT: 4 workers need ports up to 65563; choose a lower one" in world.output.read_text()


@pytest.mark.parametrize("number", ["0", "-1", "65", "1.5", "two", ""])
def test_a_number_of_workers_that_is_none_is_told_with_those_that_are(world: World, number: str) -> None:
    process = world.start(f"--workers={number}")

    assert process.wait(30) == 2
    assert f"argument --workers: '{number}' is no number from 1 to 64" in world.output.read_text()
