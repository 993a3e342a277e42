from __future__ import annotations

import asyncio

import pytest

from service_runtime.background import Periodic
from service_runtime.metrics import Metrics


class Work:
    """Counts its runs and fails in those that it is told to fail in."""

    def __init__(self, *failing_runs: int) -> None:
        self.runs = 0
        self._failing_runs = failing_runs
        self._changed = asyncio.Event()

    async def __call__(self) -> None:
        self.runs += 1
        self._changed.set()
        if self.runs in self._failing_runs:
            raise ValueError("no luck")

    async def until(self, runs: int) -> None:
        async with asyncio.timeout(5):
            while self.runs < runs:
                self._changed.clear()
                await self._changed.wait()


def outcomes(metrics: Metrics, outcome: str) -> float | None:
    return metrics.registry.get_sample_value("background_runs_total", {"name": "work", "outcome": outcome})


async def test_it_runs_at_once_and_again_after_each_interval() -> None:
    work = Work()
    periodic = Periodic("work", work, interval_s=0.001, metrics=Metrics())

    periodic.start()
    await work.until(3)
    await periodic.stop()

    runs = work.runs
    await asyncio.sleep(0.01)
    assert work.runs == runs


async def test_failures_are_counted_and_followed_by_the_next_run() -> None:
    work, metrics = Work(1, 2), Metrics()
    periodic = Periodic("work", work, interval_s=0.001, first_retry_s=0.001, metrics=metrics)

    periodic.start()
    await work.until(4)
    await periodic.stop()

    assert outcomes(metrics, "failure") == 2
    assert periodic.consecutive_failures == 0


async def test_after_a_failure_it_does_not_wait_out_a_long_interval() -> None:
    work = Work(1)
    periodic = Periodic("work", work, interval_s=3600, first_retry_s=0.001, metrics=Metrics())

    periodic.start()
    await work.until(2)
    await periodic.stop()


async def test_it_may_be_woken_before_its_time() -> None:
    work = Work()
    periodic = Periodic("work", work, interval_s=3600, metrics=Metrics())

    periodic.start()
    await work.until(1)
    periodic.wake()
    await work.until(2)
    await periodic.stop()


async def test_a_run_that_hangs_is_ended_by_its_timeout_and_counts_as_failed() -> None:
    metrics = Metrics()
    periodic = Periodic("work", asyncio.Event().wait, interval_s=1, timeout_s=0.01, metrics=metrics)

    assert not await periodic.run_once()
    assert outcomes(metrics, "failure") == 1


async def test_a_stop_waits_for_the_cleanup_of_a_run_in_progress() -> None:
    entered, cleaned_up = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.set()

    periodic = Periodic("work", work, interval_s=1, metrics=Metrics())
    periodic.start()
    await entered.wait()
    await periodic.stop()

    assert cleaned_up.is_set()


async def test_stopping_what_was_never_started_is_nothing() -> None:
    await Periodic("work", Work(), interval_s=1, metrics=Metrics()).stop()


@pytest.mark.parametrize("failures", [1, 1000])
async def test_a_long_outage_does_not_break_the_arithmetic_of_the_wait(failures: int) -> None:
    periodic = Periodic("work", Work(), interval_s=0.001, metrics=Metrics())
    periodic.consecutive_failures = failures

    await asyncio.wait_for(periodic._wait(), 5)


async def test_work_that_does_not_start_at_once_waits_an_interval_first() -> None:
    work = Work()
    periodic = Periodic("work", work, interval_s=3600, metrics=Metrics(), starts_at_once=False)

    periodic.start()
    await asyncio.sleep(0)
    assert work.runs == 0
    periodic.wake()
    await work.until(1)
    await periodic.stop()

    assert work.runs == 1
