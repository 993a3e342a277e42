"""Whose time the machine's cores are: the router's, its event loop's, the load's, nobody's."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.processes import Tree, idle_s


@dataclass(frozen=True, slots=True)
class CoreTime:
    """Seconds since the start of the machine or of the process in question, or, as `since` gives them, cores."""

    passed: float
    router: float
    loop: float  # of the router, the thread of its event loop
    loop_waited: float  # it stood ready and had no core
    load: float  # this process, which makes the calls
    idle: float

    def since(self, before: CoreTime) -> CoreTime:
        """The cores that each had on average from `before` to now."""
        passed = self.passed - before.passed
        return CoreTime(
            passed=1.0,
            router=(self.router - before.router) / passed,
            loop=(self.loop - before.loop) / passed,
            loop_waited=(self.loop_waited - before.loop_waited) / passed,
            load=(self.load - before.load) / passed,
            idle=(self.idle - before.idle) / passed,
        )


def core_time(router: Tree) -> CoreTime:
    """As it is now. With several workers the loop is the supervisor's, which has none: then it says nothing."""
    loop, loop_waited = _main_thread_s(router.root)
    return CoreTime(
        passed=time.monotonic(),
        router=router.cpu_s(),
        loop=loop,
        loop_waited=loop_waited,
        load=time.process_time(),
        idle=idle_s(),
    )


def _main_thread_s(pid: int) -> tuple[float, float]:
    """How long it ran, and how long it waited for a core."""
    ran_ns, waited_ns, _ = Path(f"/proc/{pid}/task/{pid}/schedstat").read_bytes().split()
    return int(ran_ns) / 1e9, int(waited_ns) / 1e9
