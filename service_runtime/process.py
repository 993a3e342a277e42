"""The frame of a service's process: event loop, signals, exit code, and word to whoever started it.

def main() -> None:
    run("router_service", serve)

async def serve(lifecycle: Lifecycle) -> None:
    ...
    lifecycle.ready(server.address)
    await lifecycle.wait_for_stop()
    ...
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog
import uvloop

from service_runtime.errors import ServiceError
from service_runtime.notify import HINT_FIELD, WAITING_FIELD, notify_supervisor
from service_runtime.redaction import REDACTOR
from service_runtime.startup import EXIT_CANNOT_START, StartupError

log = structlog.get_logger(__name__)

EXIT_CRASHED = 1
_EXIT_KILLED_BY = 128  # plus the signal's number, as shells have it

# glibc's mallopt. Buffers of messages come and go; by default each large one is mapped and unmapped anew.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

_GC_THRESHOLDS = (50_000, 20, 20)


class Lifecycle:
    """What a service's main coroutine knows of its process."""

    def __init__(self) -> None:
        self.is_ready = False
        self._stop = asyncio.Event()

    def ready(self, address: str = "", hint: str = "") -> None:
        """Tell the supervisor, if there is one, that requests are served; call it once they are.

        `address` is where, `127.0.0.1:50051`; `hint` is one line that helps a newcomer on.
        """
        self.is_ready = True
        _settle_down()
        fields = ["READY=1", *([f"STATUS={address}"] if address else []), *([f"{HINT_FIELD}={hint}"] if hint else [])]
        _tell_supervisor("\n".join(fields))

    def waiting(self, reason: str) -> None:
        """Tell the supervisor that the process lives and waits for something; `reason` is one line without secrets."""
        _tell_supervisor(f"{WAITING_FIELD}={' '.join(reason.split())}")

    @property
    def stop_was_requested(self) -> bool:
        """Whether the process is to end."""
        return self._stop.is_set()

    def request_stop(self) -> None:
        """Ask the process to end, as SIGTERM does."""
        if not self._stop.is_set():
            self._stop.set()
            _tell_supervisor("STOPPING=1")

    async def wait_for_stop(self) -> None:
        """Return when SIGTERM or SIGINT has come, or somebody has asked."""
        await self._stop.wait()


Main = Callable[[Lifecycle], Awaitable[None]]


def run(name: str, main: Main) -> NoReturn:
    """Run `main` to its end and exit: 0 when it returns, 2 when it cannot start, 1 when it crashes.

    The first SIGTERM or SIGINT asks it to stop; the second ends the process at once.
    """
    sys.exit(run_to_exit_code(name, main))


def run_to_exit_code(name: str, main: Main) -> int:
    """As `run`, but return the exit code."""
    _tune_allocator()
    lifecycle_is_ready = False

    async def supervised() -> None:
        nonlocal lifecycle_is_ready
        lifecycle = Lifecycle()
        _handle_signals(lifecycle)
        try:
            await main(lifecycle)
        finally:
            lifecycle_is_ready = lifecycle.is_ready

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(supervised())
    except (StartupError, ServiceError) as error:
        if lifecycle_is_ready:
            log.critical("process.crashed", name=name, exc_info=error)
            return EXIT_CRASHED
        line = " ".join(str(error).split())
        print(f"{name}: {REDACTOR.redact(line)}", file=sys.stderr, flush=True)  # noqa: T201 - for a person, not a log
        return EXIT_CANNOT_START
    except Exception as error:
        log.critical("process.crashed", name=name, exc_info=error)
        return EXIT_CRASHED
    return 0


def _tell_supervisor(message: str) -> None:
    if (error := notify_supervisor(message)) is not None:
        log.warning("process.supervisor_not_told", cause=error.strerror)


def _handle_signals(lifecycle: Lifecycle) -> None:
    loop = asyncio.get_running_loop()

    def handle(number: signal.Signals) -> None:
        if lifecycle.stop_was_requested:
            os._exit(_EXIT_KILLED_BY + number)
        log.info("process.stopping", signal=number.name)
        lifecycle.request_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle, number)


def _tune_allocator() -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc: musl and macOS have no such knob
    mallopt(_M_MMAP_THRESHOLD, 4 << 20)
    mallopt(_M_TRIM_THRESHOLD, 64 << 20)
    mallopt(_M_ARENA_MAX, 2)  # an arena for each of the libraries' threads keeps what each has freed


def _settle_down() -> None:
    """Leave what was made during the start out of every later garbage collection, and give back what it has freed.

    What serves requests makes few cycles: one collection for 50,000 new objects finds them as well as one for 700,
    and a batch of usage events alone is thousands of objects: that saves the ledger 3 us an event.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
