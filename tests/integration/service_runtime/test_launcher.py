"""The launcher with real processes: a real Postgres and small services written for the test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service_runtime.embedded_postgres import EmbeddedPostgres
from tests.support.postgres import FAST_SETTINGS

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60.0  # until a wait is given up; busy machines have needed more than thirty

# A service that asks the database something, notes what happens to it, and ends when it is told to.
SERVICE = """
import asyncio, os, sys
from pathlib import Path
import asyncpg
from service_runtime.process import run
name = {name!r}
def note(text):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{{name}} {{text}}\\n")
async def main(lifecycle):
    connection = await asyncpg.connect(os.environ["TURNPIKE_DATABASE_URL"].replace("@/turnpike?", "@/postgres?"))
    await connection.fetchval("SELECT 1")
    await connection.close()
    note(f"started {{os.getpid()}}")
    lifecycle.ready("127.0.0.1:1234", hint={hint!r})
    await lifecycle.wait_for_stop()
    note("stopping")
    await asyncio.sleep({drain_s})
    note("stopped")
run(name, main)
"""
REFUSING = """
from service_runtime.process import run
from service_runtime.startup import StartupError
async def main(lifecycle):
    raise StartupError("port 50051 on 127.0.0.1 is taken; stop its owner")
run("refusing_service", main)
"""
CRASHING = """
import asyncio
from service_runtime.process import run
async def main(lifecycle):
    lifecycle.ready("127.0.0.1:1")
    await asyncio.sleep(0.1)
    raise ValueError("a bug")
run("crashing_service", main)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("launched") / "postgres"
    with EmbeddedPostgres(directory, settings=FAST_SETTINGS):
        pass
    return directory


class World:
    """A directory with services, a data directory, and what the launcher and the services say."""

    def __init__(self, directory: Path, cluster: Path) -> None:
        self.directory = directory
        self.notes = directory / "notes"
        self.notes.touch()
        self.output = directory / "output"
        shutil.copytree(cluster, directory / "data" / "postgres")
        self.write("first_service", SERVICE.format(name="first_service", hint="", drain_s=0))
        self.write("second_service", SERVICE.format(name="second_service", hint="try: hello", drain_s=0))
        self.write("refusing_service", REFUSING)
        self.write("crashing_service", CRASHING)
        self.processes: list[subprocess.Popen[bytes]] = []

    def write(self, module: str, code: str) -> None:
        (self.directory / f"{module}.py").write_text(code)

    def launch(self, *modules: str, **environment: str) -> subprocess.Popen[bytes]:
        variables = {name: value for name, value in os.environ.items() if not name.startswith("TURNPIKE_")}
        variables |= {
            "TURNPIKE_DATA_DIR": str(self.directory / "data"),
            "NOTES": str(self.notes),
            "PYTHONPATH": f"{self.directory}:{ROOT}",
            **environment,
        }
        with self.output.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "service_runtime.launcher", *modules],
                env=variables,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def said(self) -> str:
        return self.output.read_text()

    def noted(self) -> list[str]:
        return [
            line.rpartition(" ")[0] if " started " in line else line for line in self.notes.read_text().splitlines()
        ]

    def pid_of(self, service: str) -> int:
        lines = [line.split() for line in self.notes.read_text().splitlines()]
        return next(int(line[2]) for line in reversed(lines) if line[:2] == [service, "started"])

    def postgres_pid(self) -> int | None:
        return EmbeddedPostgres(self.directory / "data" / "postgres").process_id

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def until_ready(self) -> None:
        self.until(lambda: "ready in" in self.said())


@pytest.fixture
def world(tmp_path: Path, cluster: Path) -> Iterator[World]:
    world = World(tmp_path, cluster)
    yield world
    for process in world.processes:
        process.kill()
        process.wait()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_services_start_in_order_and_stop_in_reverse_order_before_postgres(world: World) -> None:
    launcher = world.launch("first_service", "second_service")
    world.until_ready()
    said = world.said()
    launcher.send_signal(signal.SIGINT)

    assert launcher.wait(PATIENCE_S) == 0
    assert "s: first_service on 127.0.0.1:1234, second_service on 127.0.0.1:1234\ntry: hello\n" in said
    assert world.noted() == [
        "first_service started",
        "second_service started",
        "second_service stopping",
        "second_service stopped",
        "first_service stopping",
        "first_service stopped",
    ]
    assert world.postgres_pid() is None


def test_a_service_that_cannot_start_says_why_and_nothing_is_left_running(world: World) -> None:
    launcher = world.launch("first_service", "refusing_service")

    assert launcher.wait(PATIENCE_S) == 1
    said = world.said()
    assert "refusing_service: port 50051 on 127.0.0.1 is taken; stop its owner\n" in said
    assert "refusing_service ended with exit code 2; stopping everything\n" in said
    assert "Traceback" not in said
    assert world.noted()[-1] == "first_service stopped"
    assert world.postgres_pid() is None


def test_a_service_that_crashes_ends_everything(world: World) -> None:
    launcher = world.launch("first_service", "crashing_service")

    assert launcher.wait(PATIENCE_S) == 1
    assert "crashing_service ended with exit code 1; stopping everything" in world.said()
    assert not is_running(world.pid_of("first_service"))


def test_a_service_that_is_killed_ends_everything(world: World) -> None:
    launcher = world.launch("first_service", "second_service")
    world.until_ready()
    os.kill(world.pid_of("first_service"), signal.SIGKILL)

    assert launcher.wait(PATIENCE_S) == 1
    assert "first_service was killed by SIGKILL; stopping everything" in world.said()
    assert world.noted()[-1] == "second_service stopped"


def test_nothing_outlives_a_launcher_that_is_killed_and_the_next_one_starts(world: World) -> None:
    launcher = world.launch("first_service", "second_service")
    world.until_ready()
    pids = [world.pid_of("first_service"), world.pid_of("second_service"), world.postgres_pid()]
    launcher.kill()
    launcher.wait()

    world.until(lambda: not any(is_running(pid) for pid in pids if pid is not None))
    world.output.write_text("")
    again = world.launch("first_service", "second_service")
    world.until_ready()
    again.send_signal(signal.SIGTERM)
    assert again.wait(PATIENCE_S) == 0


def test_postgres_is_started_again_when_it_dies_and_the_services_live_on(world: World) -> None:
    launcher = world.launch("first_service")
    world.until_ready()
    before = world.postgres_pid()
    assert before is not None
    os.kill(before, signal.SIGKILL)

    world.until(lambda: world.postgres_pid() not in {None, before})
    assert is_running(world.pid_of("first_service"))
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(PATIENCE_S) == 0


def test_a_second_signal_ends_a_drain_at_once(world: World) -> None:
    world.write("slow_service", SERVICE.format(name="slow_service", hint="", drain_s=60))
    launcher = world.launch("slow_service")
    world.until_ready()
    launcher.send_signal(signal.SIGINT)
    world.until(lambda: world.noted()[-1] == "slow_service stopping")
    launcher.send_signal(signal.SIGINT)

    assert launcher.wait(20) == 0
    assert not is_running(world.pid_of("slow_service"))
    assert world.postgres_pid() is None


def test_a_database_of_the_operators_is_used_and_none_is_started(
    world: World, postgres_server: EmbeddedPostgres
) -> None:
    launcher = world.launch("first_service", TURNPIKE_DATABASE_URL=postgres_server.dsn)
    world.until_ready()

    assert world.postgres_pid() is None
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(PATIENCE_S) == 0
    assert postgres_server.is_alive()


def test_it_never_imports_grpc_nor_an_event_loop() -> None:
    """It forks, and its children must not inherit threads."""
    code = "import sys, service_runtime.launcher; print(sorted({'grpc', 'asyncio', 'pydantic'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert result.stdout == "[]\n"


@pytest.mark.parametrize("arguments", [[], ["no-module"], ["--help"]])
def test_called_wrongly_it_says_how(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "service_runtime.launcher", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert result.returncode == 64
    assert result.stderr.startswith("usage: ")
