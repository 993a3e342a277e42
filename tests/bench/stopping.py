"""How a bench begins and ends: with a table, with the reason why there is none, or before its time."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import grpc

from service_runtime.startup import StartupError
from tests.bench.processes import BenchFailed

INTERRUPTED: Final = 130  # as a shell tells of Ctrl-C


def exit_code(bench: Callable[[], int | None]) -> int:
    """What `bench` returns, or 0; 1, with a line that says why, when there is no table; `INTERRUPTED` after a signal.

    SIGTERM ends a bench as Ctrl-C does, by a KeyboardInterrupt in the main thread, so that whatever it has started ends
    with it.
    """
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        return bench() or 0
    except (BenchFailed, StartupError, AssertionError, OSError, ValueError, grpc.RpcError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; what it had started has ended", file=sys.stderr)
        return INTERRUPTED


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Let the block fail with BenchFailed when it still runs after that time."""
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def _interrupted(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # from now on it ends what it has started, and is not to be disturbed
    raise KeyboardInterrupt


def _out_of_time(_number: int, _frame: object) -> None:
    raise BenchFailed("out of time: the machine is too busy, or something hangs")
