"""The services as real processes that start in milliseconds: forked from one that has their imports behind it.

    with Nursery() as nursery:
        router = nursery.start("router_service", environment, log)
        router.wait_until_logged("router.ready")
        router.kill()

A forked process runs what `python -m <module>` runs, and can be killed, frozen and waited for like any other.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Self

_PRELOADED = ("router_service.app", "usage_service.app", "uvloop")
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.01


class Forked:
    """One service process."""

    def __init__(self, nursery: Nursery, pid: int, log: Path, log_offset: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self._log = log
        self._log_offset = log_offset
        self._exit_code: int | None = None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the number of the signal that ended it."""
        if self._exit_code is None:
            self._exit_code = self._nursery.ask({"poll": self.pid})
        return self._exit_code

    def output(self) -> str:
        """What this process has written so far."""
        return self._log.read_bytes()[self._log_offset :].decode(errors="replace")

    def wait_until_logged(self, text: str, *, within_s: float = 20.0) -> Self:
        """Return once `text` is in the output."""
        give_up_at = time.monotonic() + within_s
        while text not in self.output():
            assert self.exit_code is None, f"it ended with {self.exit_code}:\n{self.output()}"
            assert time.monotonic() < give_up_at, f"no {text!r} within {within_s} s:\n{self.output()}"
            time.sleep(_POLL_S)
        return self

    def wait(self, *, within_s: float = 20.0) -> int:
        """The exit code, once it has ended."""
        give_up_at = time.monotonic() + within_s
        while (code := self.exit_code) is None:
            assert time.monotonic() < give_up_at, f"it still runs after {within_s} s:\n{self.output()}"
            time.sleep(_POLL_S)
        return code

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.exit_code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self.wait()


class Nursery:
    """The process that the services are forked from. Its children die with it, and it with whoever made it."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forked"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    def start(self, module: str, environment: Mapping[str, str], log: Path) -> Forked:
        """Run `python -m module` with exactly this environment; its output is appended to `log`."""
        log.touch()
        offset = log.stat().st_size
        pid = self.ask({"module": module, "environment": dict(environment), "log": str(log)})
        return Forked(self, pid, log, offset)

    def ask(self, question: Mapping[str, object]) -> Any:
        """One line to the process and the line that it answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def _serve() -> None:
    """Fork and report on children, as standard input asks, until it ends."""
    for name in _PRELOADED:
        importlib.import_module(name)
    _die_with_parent()
    for line in sys.stdin:
        question = json.loads(line)
        if "poll" in question:
            answer = _exit_code(question["poll"])
        else:
            answer = os.fork()
            if answer == 0:
                _become(question)
        print(json.dumps(answer), flush=True)


def _exit_code(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _become(question: Mapping[str, Any]) -> NoReturn:
    """Run the module in this process, which was forked a moment ago, and end."""
    code = 1
    try:
        _die_with_parent()
        output = os.open(question["log"], os.O_WRONLY | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.environ.clear()
        os.environ.update(question["environment"])
        runpy.run_module(question["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    _serve()
