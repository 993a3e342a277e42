"""Several processes of one service behind one port, started, restarted and stopped by a process of their own.

Each worker is a whole service, with an event loop, a journal directory and a metrics port of its own. The kernel
spreads *connections* over them (SO_REUSEPORT), not calls, so a client with one connection uses one worker; see
`worker_ports_from` for clients that spread their calls themselves.

The supervisor has one thread and imports neither gRPC nor asyncio. It answers whoever started it (READY, STATUS) as a
service of one process does.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from service_runtime.notify import HINT_FIELD, WAITING_FIELD, notify_supervisor
from service_runtime.settings import ServiceSettings
from service_runtime.startup import EXIT_CANNOT_START, StartupError
from service_runtime.supervision import Child

_POLL_S = 0.05
_CLEANUP_S = 8.0  # after a worker's own grace: it settles and sends what is left
_FIRST_RESTART_S = 0.1
_LONGEST_RESTART_S = 5.0
_STABLE_AFTER_S = 30.0  # a worker that has lived so long is restarted at once again


@dataclass(slots=True)
class _Slot:
    """One worker's place; `child` is None while it waits to be started again."""

    number: int
    child: Child | None = None
    started_at_s: float = 0.0
    restart_at_s: float = 0.0
    failures: int = field(default=0)


class Workers:
    """The workers of one service."""

    def __init__(
        self, module: str, settings: ServiceSettings, *, environ: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        """`say` writes one line for a person, such as that a worker is started again."""
        self._module = module
        self._settings = settings
        self._environ = environ
        self._say = say
        self._slots = [_Slot(number) for number in range(settings.workers)]
        self._stop_signals = 0
        self._prefix = (settings.model_config.get("env_prefix") or "").upper()

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; the exit code. Raises StartupError when the port is not free."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        with (
            reserved_port(self._settings.bind_host, self._settings.port) as port,
            tempfile.TemporaryDirectory(prefix="turnpike-workers-") as directory,
        ):
            try:
                exit_code = self._start(port, Path(directory))
                if exit_code is None:
                    exit_code = self._serve(port, Path(directory))
            finally:
                self._stop()
        return exit_code

    def _start(self, port: int, directory: Path) -> int | None:
        """Start the first worker, which prepares what all share, then the others; an exit code when one cannot."""
        waits_for = ""
        for slots in (self._slots[:1], self._slots[1:]):
            for slot in slots:
                self._launch(slot, port, directory)
            while not all(slot.child is not None and slot.child.is_ready for slot in slots):
                if self._stop_signals:
                    return 0
                for slot in slots:
                    assert slot.child is not None
                    slot.child.listen(_POLL_S)
                    if slot.child.waits_for != waits_for:
                        waits_for = slot.child.waits_for
                        notify_supervisor(f"{WAITING_FIELD}={waits_for}")
                    if slot.child.exit_code is not None:
                        return slot.child.exit_code if slot.child.exit_code > 0 else 1
        first = self._slots[0].child
        assert first is not None
        hint = [f"{HINT_FIELD}={first.hint}"] if first.hint else []
        notify_supervisor("\n".join(["READY=1", f"STATUS={first.address} ({len(self._slots)} workers)", *hint]))
        return None

    def _serve(self, port: int, directory: Path) -> int:
        while not self._stop_signals:
            now_s = time.monotonic()
            for slot in self._slots:
                if slot.child is None:
                    if now_s >= slot.restart_at_s:
                        self._launch(slot, port, directory)
                elif slot.child.exit_code is not None:
                    self._note_end(slot, slot.child, now_s)
            time.sleep(_POLL_S)
        return 0

    def _launch(self, slot: _Slot, port: int, directory: Path) -> None:
        environment = {
            **self._environ,
            f"{self._prefix}PORT": str(port),
            f"{self._prefix}METRICS_PORT": str(self._settings.metrics_port),
            f"{self._prefix}WORKERS": str(self._settings.workers),
            f"{self._prefix}WORKER": str(slot.number),
        }
        slot.started_at_s = time.monotonic()
        slot.child = Child(self._module, environment, directory, name=f"{self._module}-{slot.number}")

    def _note_end(self, slot: _Slot, child: Child, now_s: float) -> None:
        """Start the worker again, later each time it does not live long: its journal and its callers wait for it."""
        child.close()
        slot.child = None
        slot.failures = 0 if now_s - slot.started_at_s >= _STABLE_AFTER_S else slot.failures + 1
        wait_s = 0.0 if slot.failures <= 1 else min(_LONGEST_RESTART_S, _FIRST_RESTART_S * 2.0 ** (slot.failures - 1))
        slot.restart_at_s = now_s + wait_s
        code = child.exit_code or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._say(f"{self._module}: worker {slot.number} {how}; starting it again in {wait_s:g} s")

    def _stop(self) -> None:
        """Ask all at once, since each drains by itself; a second signal, or the end of the grace, kills."""
        notify_supervisor("STOPPING=1")
        children = [slot.child for slot in self._slots if slot.child is not None]
        for child in children:
            child.ask_to_stop()
        deadline_s = time.monotonic() + self._settings.drain_delay + self._settings.drain_grace_s + _CLEANUP_S
        while any(child.exit_code is None for child in children):
            if self._stop_signals > 1 or time.monotonic() > deadline_s:
                break
            time.sleep(_POLL_S)
        for child in children:
            child.kill()
            child.close()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_signals += 1


@contextmanager
def reserved_port(host: str, port: int) -> Iterator[int]:
    """Hold a port for this service while its workers come and go; the port, where 0 takes any free one.

    Raises StartupError when somebody else has it: the workers share it, so none of them could tell.
    """
    with _bound(host, port, shared=False):
        pass  # nobody has it, not even somebody who would share
    with _bound(host, port, shared=True) as held:
        yield int(held.getsockname()[1])


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise StartupError(f"cannot listen on port {port} of {host}: {error.strerror}; set another port") from error
    return found


def supervise(module: str, settings: ServiceSettings) -> int:
    """Run the workers of `module` as its settings say; the exit code, 2 with one line when they cannot start."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - for a person; the workers have the logs

    try:
        return Workers(module, settings, environ=os.environ, say=say).run()
    except StartupError as error:
        say(f"{module}: {error}")
        return EXIT_CANNOT_START
