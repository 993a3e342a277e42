"""The processes of a run: starting and ending our own, and reading what they used from /proc."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class BenchFailed(Exception):
    """Why there is no table, as a line for the person who asked for it."""


class Helper:
    """`python -m <module>` that tells by one line that it is ready, and ends when its input does."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._name = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the bench, which then closes their inputs
        )
        self._unread = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def read_line(self, *, within_s: float) -> str:
        """Its next line. Raises BenchFailed when there is none in time."""
        assert self._process.stdout is not None
        deadline_s = time.monotonic() + within_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline_s - time.monotonic())):
                    raise BenchFailed(f"{self._name} said nothing for {within_s:g} s")
                data = os.read(self._process.stdout.fileno(), 1 << 16)
                if not data:
                    raise self._ended()
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def write_line(self, line: str) -> None:
        """Ask it for something. Raises BenchFailed when it has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _ended(self) -> BenchFailed:
        return BenchFailed(f"{self._name} ended with exit code {self._process.wait(5)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(5)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait(5)
        self._process.stdout.close()


@dataclass(frozen=True, slots=True)
class Tree:
    """A process and all below it, such as a service with its workers."""

    root: int

    def cpu_s(self) -> float:
        """User and system time since the start, in seconds, of the processes that still run."""
        total_s = 0.0
        for pid in self._pids():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                total_s += _cpu_s(pid)
        return total_s

    def rss_mib(self) -> float:
        """Resident memory; shared pages count in each process."""
        return sum(_status_kib(pid, "VmRSS") for pid in self._pids()) / 1024

    def _pids(self) -> Sequence[int]:
        found = [self.root]
        for pid in found:  # grows while it is read
            found += children(pid)
        return found


def idle_s() -> float:
    """Seconds that the machine's cores have been idle or waiting for a disk, together, since it was started."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    return (int(fields[4]) + int(fields[5])) / _TICKS_PER_S


def children(pid: int) -> Sequence[int]:
    """The processes that `pid` has started and that still run."""
    found: list[int] = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            found += map(int, tasks.read_text(encoding="ascii").split())
    return found


def child_running(pid: int, module: str) -> int:
    """The child of `pid` that was started as `python -m <module>`."""
    for child in children(pid):
        if Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[1:3] == [b"-m", module.encode()]:
            return child
    raise BenchFailed(f"process {pid} has no child that runs {module}")


def _cpu_s(pid: int) -> float:
    # The name in parentheses may hold anything, so fields are counted from its end: 14 and 15 are user and system.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _status_kib(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
        field, _, value = line.partition(":")
        if field == name:
            return int(value.split()[0])
    raise BenchFailed(f"/proc/{pid}/status has no {name}")
