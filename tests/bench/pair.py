"""A second router of two workers beside the first: same tenants, same provider, same ledger, and a load of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.bench.processes import BenchFailed, Helper, Tree
from tests.bench.site import Site
from tests.support.ports import free_ports
from tests.support.stack import Stack

WORKERS: Final = 2
_START_S: Final = 40.0
_STOP_S: Final = 40.0
_DATABASE: Final = b"TURNPIKE_DATABASE_URL="


@dataclass(frozen=True, slots=True)
class Pair:
    """`site` is the first one with this router and this load in place of its own; each worker has a target.

    It is still starting until `wait_until_ready` has returned, which raises BenchFailed when it does not start.
    """

    site: Site
    targets: tuple[str, ...]
    wait_until_ready: Callable[[], None]


@contextmanager
def running_pair(site: Site, settings: Mapping[str, str]) -> Iterator[Pair]:
    """Begin to start it, and end it."""
    first_port = free_ports(WORKERS)
    with ExitStack() as ends:
        directory = Path(ends.enter_context(TemporaryDirectory(prefix="turnpike-bench-pair-")))
        stack = Stack(
            directory / "data",
            {
                "TURNPIKE_DATABASE_URL": _database_of(site.router_process.root),
                "USAGE_PORT": site.usage.rpartition(":")[2],
                "ROUTER_LOCAL_BASE_URL": f"http://{site.provider}/v1",
                "ROUTER_LOCAL_MODEL": "burst",
                "ROUTER_WORKERS": str(WORKERS),
                "ROUTER_WORKER_PORTS_FROM": str(first_port),
                **settings,
            },
        )
        log = ends.enter_context(stack.log.open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-m", "router_service"],
            env=stack.variables(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        ends.callback(_stop, process)
        load = ends.enter_context(Helper("tests.bench.load"))

        @cache
        def wait_until_ready() -> None:
            _wait_until_ready(process, stack)
            load.read_line(within_s=_START_S)

        yield Pair(
            replace(site, router=stack.router, router_process=Tree(process.pid), load=load),
            tuple(f"127.0.0.1:{first_port + number}" for number in range(WORKERS)),
            wait_until_ready,
        )


def _database_of(pid: int) -> str:
    """The database that a service was started with: a socket of the launcher's Postgres."""
    for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if variable.startswith(_DATABASE):
            return os.fsdecode(variable.removeprefix(_DATABASE))
    raise BenchFailed(f"process {pid} was started without a database")


def _wait_until_ready(process: subprocess.Popen[bytes], stack: Stack) -> None:
    deadline_s = time.monotonic() + _START_S
    while stack.output().count("router.ready") < WORKERS:
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise BenchFailed(f"the router of {WORKERS} workers did not start:\n{stack.output()}")
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
