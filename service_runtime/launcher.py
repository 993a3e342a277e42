"""Turnpike on one machine: an embedded Postgres and the services, as one thing to start and stop.

    python -m service_runtime.launcher usage_service router_service

Starts them in this order, each when the one before it is ready, and stops them in the reverse order. When a service
ends, everything ends: a supervisor above restarts. Only Postgres is restarted here, because the services ride it out.
It has one thread and imports neither gRPC nor asyncio, so that forking is safe.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from service_runtime.data_dir import DATA_DIR_VARIABLE, DATABASE_URL_VARIABLE, DEFAULT_DATA_DIR
from service_runtime.embedded_postgres import EmbeddedPostgres
from service_runtime.startup import StartupError
from service_runtime.supervision import Child

EXIT_FAILED = 1
EXIT_USAGE = 64

_POLL_S = 0.1
_POSTGRES_CHECK_S = 1.0
# A service drains for 30 s by default and then cleans up.
_STOP_GRACE_S = 40.0
_POSTGRES_GRACE_S = 20.0


class _Failed(Exception):
    """Why the launcher gives up, as a line for the person who started it."""


class _Interrupted(BaseException):
    """A signal came while Postgres was starting: that may take minutes, and nobody waits for it now."""


class Launcher:
    """The processes of one machine."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = modules
        self._children: list[Child] = []
        self._postgres: EmbeddedPostgres | None = None
        self._signals = 0
        self._is_starting_postgres = False
        self._next_postgres_check_s = 0.0

    def run(self) -> int:
        """Start everything, serve until a signal comes or something ends; the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and background jobs have it
                signal.signal(number, self._on_signal)
        exit_code = 0
        try:
            with tempfile.TemporaryDirectory(prefix="turnpike-") as socket_dir:
                try:
                    self._start(Path(socket_dir))
                    self._serve()
                finally:
                    self._stop_children()
        except _Interrupted:
            pass
        except (_Failed, StartupError) as error:
            print(error, file=sys.stderr, flush=True)
            exit_code = EXIT_FAILED
        finally:
            if self._postgres is not None:
                self._postgres.stop(grace_s=_POSTGRES_GRACE_S if self._signals < 2 else 0.5)
        return exit_code

    def _start(self, socket_dir: Path) -> None:
        started_s = time.monotonic()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if not environment.get(DATABASE_URL_VARIABLE):
            data_dir = Path(environment.get(DATA_DIR_VARIABLE) or DEFAULT_DATA_DIR)
            self._postgres = EmbeddedPostgres(data_dir / "postgres")
            environment[DATABASE_URL_VARIABLE] = self._start_postgres(self._postgres)
        for module in self._modules:
            child = Child(module, environment, socket_dir)
            self._children.append(child)
            # One that waits for its database holds up nobody: the router can serve without.
            while not child.is_ready and not child.waits_for and not self._signals:
                child.listen(_POLL_S)
                self._check()
            if child.waits_for and not child.is_ready:
                print(f"{child.module} is up and waits: {child.waits_for}", file=sys.stderr, flush=True)
        self._wait_for_those_that_wait()
        if self._signals:
            return
        addresses = ", ".join(f"{child.module} on {child.address}" for child in self._children)
        print(f"ready in {time.monotonic() - started_s:.1f} s: {addresses}", flush=True)
        for child in self._children:
            if child.hint:
                print(child.hint, flush=True)

    def _wait_for_those_that_wait(self) -> None:
        if any(not child.is_ready for child in self._children):
            for child in self._children:
                if child.is_ready:
                    print(f"{child.module} serves on {child.address}", flush=True)
        while not self._signals and (waiting := [child for child in self._children if not child.is_ready]):
            for child in waiting:
                child.listen(_POLL_S)
            self._check()

    def _serve(self) -> None:
        while not self._signals:
            self._check()
            time.sleep(_POLL_S)

    def _check(self) -> None:
        for child in self._children:
            if (code := child.exit_code) is not None:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                raise _Failed(f"{child.module} {how}; stopping everything")
        if self._postgres is None or time.monotonic() < self._next_postgres_check_s:
            return
        self._next_postgres_check_s = time.monotonic() + _POSTGRES_CHECK_S
        if not self._postgres.is_alive():
            print("Postgres has ended; starting it again", file=sys.stderr, flush=True)
            self._start_postgres(self._postgres)

    def _start_postgres(self, postgres: EmbeddedPostgres) -> str:
        self._is_starting_postgres = True
        try:
            if self._signals:
                raise _Interrupted
            return postgres.start()
        finally:
            self._is_starting_postgres = False

    def _stop_children(self) -> None:
        """The last started first: nobody loses what it depends on while it still drains."""
        for child in reversed(self._children):
            child.ask_to_stop()
            deadline_s = time.monotonic() + _STOP_GRACE_S
            while child.exit_code is None and self._signals < 2 and time.monotonic() < deadline_s:
                time.sleep(_POLL_S / 4)
            child.kill()
            child.close()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        if self._is_starting_postgres:
            self._is_starting_postgres = False  # once: it must not interrupt the cleaning up
            raise _Interrupted


def main(arguments: Sequence[str]) -> int:
    """Run the modules named by `arguments`."""
    if not arguments or any(not name.isidentifier() for name in arguments):
        print("usage: python -m service_runtime.launcher MODULE...", file=sys.stderr)
        return EXIT_USAGE
    return Launcher(arguments).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
