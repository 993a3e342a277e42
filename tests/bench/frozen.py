"""Callers that begin a stream and never read it, as frozen processes do: what each costs the router in memory.

Their streams are HTTP/2 frames written as bytes. What belongs to the connection is answered, such as pings, so that the
router has no reason to give it up; what belongs to an answer never gets room.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from tests.bench.open_flood import Flood, Link, read_ready, request_for
from tests.bench.processes import BenchFailed

_PER_CONNECTION: Final = 125  # the server takes 250
_PER_STEP: Final = 25  # begun at once, so that accepting them is not an overload
_DEADLINE_S: Final = 120.0
_START_S: Final = 25.0  # the router gives a reader up who has read nothing for thirty seconds
_STEADY_S: Final = 1.0


@contextmanager
def frozen_readers(target: str, tenants: Sequence[str], *, count: int, running: Callable[[], int]) -> Iterator[None]:
    """While it lasts, `count` readers of long streams stand still, by the router's own count `running`.

    Raises BenchFailed when that many do not run together.
    """
    told = Flood()
    links: list[Link] = []
    selector = selectors.DefaultSelector()
    try:
        for number in range(-(-count // _PER_CONNECTION)):
            request = request_for(tenants[number % len(tenants)], "long")
            link = Link(target, "StreamCompletion", request, told, deadline_s=_DEADLINE_S, reads=False)
            links.append(link)
            selector.register(link.socket, selectors.EVENT_READ, link)
        _begin(links, count, selector)
        _wait(lambda: running() == count, selector, f"{count} streams to run together")
        _hold(selector, _STEADY_S)
        if (now := running()) != count:
            raise BenchFailed(f"of {count} frozen readers {now} were left after {_STEADY_S:g} s")
        yield
    finally:
        for link in links:
            link.socket.close()
        selector.close()
    _wait(lambda: running() == 0, None, "the streams of frozen readers to end")


def _begin(links: Sequence[Link], count: int, selector: selectors.BaseSelector) -> None:
    left = count
    while left:
        for link in links:
            step = min(_PER_STEP, left, _PER_CONNECTION - len(link.intended_s))
            link.begin([time.monotonic()] * step)
            left -= step
            _hold(selector, 0.02)


def _wait(is_so: Callable[[], bool], selector: selectors.BaseSelector | None, what: str) -> None:
    deadline_s = time.monotonic() + _START_S
    while not is_so():
        if time.monotonic() > deadline_s:
            raise BenchFailed(f"waited {_START_S:g} s in vain for {what}")
        _hold(selector, 0.1)


def _hold(selector: selectors.BaseSelector | None, seconds: float) -> None:
    """Let time pass; connections stay answered."""
    ends_s = time.monotonic() + seconds
    while (left_s := ends_s - time.monotonic()) > 0:
        if selector is None:
            time.sleep(left_s)
        else:
            read_ready(selector, left_s)
