"""Interruptions strike the block they are meant for, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from router_service.routing.watchdog import Interrupted, Reason, Watchdog
from tests.support.loop_clock import LoopClock


async def interrupted(watch: Watchdog, body: Callable[[], Awaitable[object]]) -> Reason:
    with pytest.raises(Interrupted) as caught:
        await guarded(watch, body)
    return caught.value.reason


async def guarded(watch: Watchdog, body: Callable[[], Awaitable[object]]) -> None:
    with watch:
        await body()


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_a_soft_clock_interrupts_unless_it_is_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = LoopClock(monkeypatch)
    watch = Watchdog()
    restarts = 0

    async def body() -> None:
        nonlocal restarts
        for _ in range(5):
            watch.expect(2.0, Reason.CONTENT_GAP)
            clock.passes(1.5)
            await asyncio.sleep(0)  # an interruption would strike here
            restarts += 1
        clock.passes(1.5)
        await asyncio.Event().wait()

    assert await interrupted(watch, body) is Reason.CONTENT_GAP
    assert restarts == 5


async def test_the_limit_strikes_however_often_the_soft_clock_starts_anew() -> None:
    watch = Watchdog()

    async def body() -> None:
        watch.limit(0.03, Reason.TOTAL)
        while True:
            watch.expect(60.0, Reason.CONTENT_GAP)
            await asyncio.sleep(0.005)

    assert await interrupted(watch, body) is Reason.TOTAL


async def test_a_sooner_clock_is_not_hidden_by_a_later_one() -> None:
    watch = Watchdog()

    async def body() -> None:
        watch.limit(60.0, Reason.TOTAL)
        watch.expect(0.01, Reason.FIRST_CONTENT)
        await asyncio.Event().wait()

    assert await interrupted(watch, body) is Reason.FIRST_CONTENT


async def test_a_stopped_soft_clock_does_not_strike() -> None:
    watch = Watchdog()

    with watch:
        watch.expect(0.005, Reason.CONTENT_GAP)
        watch.expect_nothing()
        await asyncio.sleep(0.02)


async def test_a_block_that_ends_leaves_no_clock_behind() -> None:
    watch = Watchdog()
    with watch:
        watch.limit(0.005, Reason.TOTAL)

    await asyncio.sleep(0.02)

    with watch:
        await asyncio.sleep(0)


async def test_a_clock_strikes_its_own_block_only() -> None:
    watch = Watchdog()

    async def body() -> None:
        watch.expect(0.001, Reason.FIRST_CONTENT)
        await for_ever()

    await interrupted(watch, body)
    with watch:
        await asyncio.sleep(0)

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_an_interruption_from_outside_holds_for_every_later_block() -> None:
    watch = Watchdog()
    asyncio.get_running_loop().call_soon(watch.interrupt, Reason.CALLER_LEFT)

    assert await interrupted(watch, for_ever) is Reason.CALLER_LEFT
    assert await interrupted(watch, for_ever) is Reason.CALLER_LEFT


async def test_the_first_interruption_counts() -> None:
    watch = Watchdog()
    watch.interrupt(Reason.CALLER_LEFT)
    watch.interrupt(Reason.SHUTDOWN)

    assert await interrupted(watch, for_ever) is Reason.CALLER_LEFT


async def test_a_cancellation_by_others_stays_a_cancellation() -> None:
    watch = Watchdog()
    task = asyncio.create_task(guarded(watch, for_ever))
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_by_others_is_not_hidden_by_ours() -> None:
    watch = Watchdog()
    task = asyncio.create_task(guarded(watch, for_ever))
    await asyncio.sleep(0)
    watch.interrupt(Reason.SHUTDOWN)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_another_error_goes_through_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError), Watchdog():
        raise ZeroDivisionError
