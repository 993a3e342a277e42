"""A bench that is told to end leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import uuid4

import pytest

from tests.bench.processes import BenchFailed, Helper
from tests.bench.stopping import INTERRUPTED, at_most, exit_code

_MARK = "BENCH_UNDER_TEST"
_STARTS_WITHIN_S = 120.0
_ENDS_WITHIN_S = 60.0


def marked(mark: str) -> Mapping[int, str]:
    """The command lines of all processes that were started, by whomever, with the mark in their environment."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
            if f"{_MARK}={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def wait_until(holds: Callable[[], bool], within_s: float, what: str) -> None:
    give_up_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < give_up_s, what
        time.sleep(0.1)


@pytest.mark.parametrize(
    "bench",
    [("tests.bench.isolation", "--only-isolation"), ("tests.bench.outage",), ("tests.bench.ledger", "ingest")],
    ids=["with threads", "in an event loop", "with a database alone"],
)
def test_a_bench_that_is_terminated_ends_all_that_it_has_started(bench: tuple[str, ...], tmp_path: Path) -> None:
    mark = str(uuid4())
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *bench], env={**os.environ, _MARK: mark}, stdout=log, stderr=log
        )
    try:
        wait_until(
            lambda: any("usage_service" in command for command in marked(mark).values()),
            _STARTS_WITHIN_S,
            f"{bench[0]} did not start usage_service",
        )

        process.terminate()

        assert process.wait(_ENDS_WITHIN_S) == INTERRUPTED, (tmp_path / "log").read_text()
        wait_until(lambda: not marked(mark), _ENDS_WITHIN_S, f"still there: {marked(mark)}")
    finally:
        for left in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        process.wait()


def test_a_bench_without_a_table_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise BenchFailed("nobody answers")

    before = signal.getsignal(signal.SIGTERM)
    try:
        code = exit_code(fails)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert code == 1
    assert capsys.readouterr().err == "bench: nobody answers\n"


def test_a_bench_that_takes_too_long_fails() -> None:
    before = signal.getsignal(signal.SIGALRM)
    try:
        with pytest.raises(BenchFailed, match="out of time"), at_most(1):
            time.sleep(60)
    finally:
        signal.signal(signal.SIGALRM, before)

    assert signal.alarm(0) == 0


def test_a_bench_whose_helper_has_ended_says_which() -> None:
    ends_at_once = "tests.bench.stopping"  # a module that does nothing by itself
    with Helper(ends_at_once) as helper:
        for ask in (lambda: helper.read_line(within_s=60), lambda: helper.write_line("anything")):
            with pytest.raises(BenchFailed, match=f"^{ends_at_once} ended with exit code 0$"):
                ask()
