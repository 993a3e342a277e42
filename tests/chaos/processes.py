"""Processes that are meant to be killed: started, frozen, ended and started again, with what they print kept.

An end that nobody asked for is kept too, as an `Unplanned`: a crash, or a SIGKILL that was not ours, which is how the
kernel ends a process that took too much memory.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from service_runtime import become

POLL_S = 0.02
_STOP_GRACE_S = 45.0


class ChaosFailed(Exception):
    """Why a run cannot go on, as a line for the person who asked for it."""


@dataclass(frozen=True, slots=True)
class Unplanned:
    """A process that ended without being asked to."""

    name: str
    exit_code: int

    @property
    def is_kill(self) -> bool:
        return self.exit_code == -signal.SIGKILL

    def __str__(self) -> str:
        how = f"was killed by {signal.Signals(-self.exit_code).name}" if self.exit_code < 0 else "ended"
        return f"{self.name} {how} without being asked to (exit code {self.exit_code})"


class Program:
    """`python -m <module>`, again and again. `environment` is added to what the tester's own keeps."""

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str] = (),
        *,
        directory: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """It says that it is ready by the protocol of NOTIFY_SOCKET; one that does not is waited for by other means."""
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None
        self.log = directory / f"{name}.log"
        self.start_times_s: list[float] = []
        self.ready_at_s = 0.0  # of the monotonic clock
        self.is_wanted = False
        # Whatever becomes of the supervisor, nothing of a run outlives it.
        self._command = become.command_line([sys.executable, "-m", module, *arguments], parent_dies=signal.SIGKILL)
        self._environment = dict(environment or {})
        self._socket_path = directory / f"{name}.sock"
        self._socket: socket.socket | None = None
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was never started"
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def unplanned(self) -> Unplanned | None:
        """Its end, when it was to run and does not."""
        if not self.is_wanted or self.process is None or self.process.poll() is None:
            return None
        return Unplanned(self.name, self.process.returncode)

    def launch(self) -> None:
        """Start it, without waiting."""
        if self._socket is not None:
            self._socket.close()
        self._socket_path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(self._socket_path))
        self.process = subprocess.Popen(
            self._command,
            env=_inherited() | self._environment | {"NOTIFY_SOCKET": str(self._socket_path)},
            stdin=subprocess.DEVNULL,
            # A pipe, not the file: a process whose files may grow no further shall still be able to say so.
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=_copy, args=(self.process.stdout, self.log), daemon=True)
        self._reader.start()

    async def start(self, *, within_s: float = 60.0) -> bool:
        """Start it, and wait until it is ready; False when it ended instead, as it may while what it needs is away."""
        began_s = time.monotonic()
        self.launch()
        while time.monotonic() < began_s + within_s:
            if self._said_ready():
                self.is_wanted = True
                self.ready_at_s = time.monotonic()
                self.start_times_s.append(self.ready_at_s - began_s)
                return True
            if not self.is_running:
                return False
            await asyncio.sleep(POLL_S)
        raise ChaosFailed(f"{self.name} did not get ready within {within_s:.0f} s:\n{self.tail()}")

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.is_wanted = False
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self._close()

    def signal(self, number: signal.Signals) -> None:
        if self.is_running:
            assert self.process is not None
            self.process.send_signal(number)

    async def stop(self) -> int:
        """SIGTERM, and wait until it has ended; the exit code."""
        self.is_wanted = False
        if self.process is None:
            return 0
        self.signal(signal.SIGTERM)
        give_up_at = time.monotonic() + _STOP_GRACE_S
        while self.is_running:
            if time.monotonic() > give_up_at:
                self.kill()
                raise ChaosFailed(f"{self.name} did not end within {_STOP_GRACE_S:.0f} s of SIGTERM:\n{self.tail()}")
            await asyncio.sleep(POLL_S)
        self._close()
        return self.process.returncode

    def tail(self, lines: int = 30) -> str:
        """The end of what it printed."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _said_ready(self) -> bool:
        assert self._socket is not None
        try:
            return b"READY=1" in self._socket.recv(4096).split(b"\n")
        except BlockingIOError:
            return False

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._reader is not None:
            self._reader.join(5)
            self._reader = None
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()


def _copy(source: IO[bytes], path: Path) -> None:
    with path.open("ab", buffering=0) as log:
        try:
            while data := os.read(source.fileno(), 1 << 16):
                log.write(data)
        except (OSError, ValueError):
            return  # closed by the main thread: the process is gone


def _inherited() -> dict[str, str]:
    """The tester's own environment without anything that would steer the services."""
    foreign = (
        "TURNPIKE_",
        "ROUTER_",
        "USAGE_",
        "GROQ_",
        "OPENROUTER_",
        "LLM7_",
        "LOCAL_",
        "NOTIFY_SOCKET",
        "COVERAGE_",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {"PYTHONUNBUFFERED": "1"}
