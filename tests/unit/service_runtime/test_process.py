from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from service_runtime.errors import Category, ServiceError
from service_runtime.notify import notify_supervisor
from service_runtime.process import Lifecycle, run_to_exit_code
from service_runtime.startup import StartupError

ROOT = Path(__file__).parents[3]


async def test_a_requested_stop_ends_the_wait() -> None:
    lifecycle = Lifecycle()
    lifecycle.request_stop()

    await lifecycle.wait_for_stop()

    assert lifecycle.stop_was_requested


def test_a_main_that_returns_ends_with_success() -> None:
    async def main(lifecycle: Lifecycle) -> None:
        lifecycle.ready()

    assert run_to_exit_code("service", main) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_main_to_stop(number: signal.Signals) -> None:
    steps = []

    async def main(lifecycle: Lifecycle) -> None:
        os.kill(os.getpid(), number)
        await lifecycle.wait_for_stop()
        await asyncio.sleep(0)
        steps.append("cleaned up")

    assert run_to_exit_code("service", main) == 0
    assert steps == ["cleaned up"]


@pytest.mark.parametrize(
    "error",
    [
        StartupError("port 1 is taken;\nstop its owner"),
        ServiceError(Category.UNAVAILABLE, "X", "port 1 is taken; stop its owner"),
    ],
)
def test_who_cannot_start_says_so_in_one_line(error: Exception, capfd: pytest.CaptureFixture[str]) -> None:
    async def main(lifecycle: Lifecycle) -> None:
        raise error

    assert run_to_exit_code("service", main) == 2
    assert capfd.readouterr().err == "service: port 1 is taken; stop its owner\n"


def test_the_line_holds_no_secret(capfd: pytest.CaptureFixture[str]) -> None:
    async def main(lifecycle: Lifecycle) -> None:
        raise StartupError("cannot use postgresql://user:CANARY-PASSWORD@host/db")

    assert run_to_exit_code("service", main) == 2
    assert "CANARY" not in capfd.readouterr().err


def test_a_bug_ends_with_another_exit_code() -> None:
    async def main(lifecycle: Lifecycle) -> None:
        raise KeyError("x")

    assert run_to_exit_code("service", main) == 1


def test_an_outage_after_the_start_is_a_crash() -> None:
    async def main(lifecycle: Lifecycle) -> None:
        lifecycle.ready()
        raise ServiceError(Category.UNAVAILABLE, "DATABASE_UNAVAILABLE", "gone")

    assert run_to_exit_code("service", main) == 1


def test_the_second_signal_ends_the_process_at_once() -> None:
    code = (
        "import asyncio, os, signal\n"
        "from service_runtime.process import run\n"
        "async def main(lifecycle):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    await lifecycle.wait_for_stop()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    await asyncio.sleep(60)\n"
        "run('service', main)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False, timeout=30)

    assert result.returncode == 128 + signal.SIGTERM


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return listener


async def test_the_supervisor_is_told_where_and_when(supervisor: socket.socket) -> None:
    with supervisor:
        lifecycle = Lifecycle()
        lifecycle.ready("127.0.0.1:50051", hint="try: this")
        ready = supervisor.recv(4096)
        lifecycle.request_stop()
        lifecycle.request_stop()
        stopping = supervisor.recv(4096)

    assert ready == b"READY=1\nSTATUS=127.0.0.1:50051\nX_TURNPIKE_HINT=try: this"
    assert stopping == b"STOPPING=1"


def test_a_supervisor_that_is_gone_or_never_reads_does_no_harm(supervisor: socket.socket) -> None:
    with supervisor:
        for _ in range(2000):
            notify_supervisor("STATUS=busy")
    notify_supervisor("READY=1")
