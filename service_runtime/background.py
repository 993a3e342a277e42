"""Work that goes on beside the requests and must never end unnoticed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from service_runtime.errors import ServiceError
from service_runtime.metrics import Metrics

log = structlog.get_logger(__name__)

_BACKOFF_FACTOR = 2.0
_JITTER = 0.1  # of the interval, so that replicas do not march in step


class Periodic:
    """Runs `work` again and again until it is stopped; a failure is logged, counted and followed by the next run.

    The first run is at once unless `starts_at_once` says otherwise. Between the end of one run and the start of the
    next are `interval_s` seconds, ten percent more or less; after failures the wait doubles from `first_retry_s` up to
    the interval.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Awaitable[object]],
        *,
        interval_s: float,
        metrics: Metrics,
        timeout_s: float | None = None,
        first_retry_s: float = 0.5,
        starts_at_once: bool = True,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`timeout_s` bounds one run; `jitter` returns a number in [0, 1)."""
        self.name = name
        self.consecutive_failures = 0
        self._work = work
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._first_retry_s = first_retry_s
        self._starts_at_once = starts_at_once
        self._jitter = jitter
        self._task: asyncio.Task[None] | None = None
        self._wanted_now = asyncio.Event()
        runs = metrics.counter("background_runs", "Runs of periodic work, by outcome.", ("name", "outcome"))
        self._successes, self._failures = runs.labels(name, "success"), runs.labels(name, "failure")

    def start(self) -> None:
        """Begin. Needs a running event loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run_until_stopped(), name=f"periodic {self.name}")

    def wake(self) -> None:
        """Run as soon as possible instead of waiting out the interval."""
        self._wanted_now.set()

    async def stop(self) -> None:
        """Cancel a run in progress and wait until it has ended."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def run_once(self) -> bool:
        """One supervised run, now; whether it succeeded."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._work()
        except Exception as error:  # noqa: BLE001 - the boundary of background work: nobody above could handle it
            self.consecutive_failures += 1
            self._failures.inc()
            # A ServiceError is foreseen, such as a peer that is away: its message says all, and only a bug has a trace.
            is_foreseen = isinstance(error, ServiceError)
            (log.warning if is_foreseen else log.exception)(
                "background.failed",
                name=self.name,
                consecutive_failures=self.consecutive_failures,
                **({"cause": str(error)} if is_foreseen else {}),
            )
            return False
        self.consecutive_failures = 0
        self._successes.inc()
        return True

    async def _run_until_stopped(self) -> None:
        if not self._starts_at_once:
            await self._wait()
        while True:
            self._wanted_now.clear()
            await self.run_once()
            await self._wait()

    async def _wait(self) -> None:
        wait_s = self._interval_s
        if self.consecutive_failures:
            # The exponent is bounded: a float cannot hold what a day of failures would make.
            backoff = _BACKOFF_FACTOR ** min(self.consecutive_failures - 1, 30)
            wait_s = min(wait_s, self._first_retry_s * backoff)
        wait_s *= 1 + _JITTER * (2 * self._jitter() - 1)
        try:
            async with asyncio.timeout(wait_s):
                await self._wanted_now.wait()
        except TimeoutError:
            return
