"""Sockets that are held are read again at the next tick, and one tick is for all of them."""

from __future__ import annotations

import errno
import socket

import pytest

from router_service.providers.read_window import ReadWindows
from tests.support.loop_clock import LoopClock

WINDOW_S = 0.025


class Socket:
    """A socket that only knows from how many bytes on it wakes its reader."""

    def __init__(self) -> None:
        self.wakes_from = 1
        self.closed_says: Exception | None = None

    @property
    def is_held(self) -> bool:
        return self.wakes_from > 1

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        if self.closed_says is not None:
            raise self.closed_says
        self.wakes_from = value


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> LoopClock:
    return LoopClock(monkeypatch)


async def test_a_held_socket_is_read_again_when_the_window_is_over_and_not_before(clock: LoopClock) -> None:
    windows, sock = ReadWindows(WINDOW_S), Socket()

    windows.hold(sock)
    clock.passes(WINDOW_S * 0.9)
    was_held = sock.is_held
    clock.passes(WINDOW_S * 0.2)

    assert (was_held, sock.is_held, windows.held) == (True, False, 0)


async def test_one_tick_is_for_all_so_whoever_comes_later_waits_less(clock: LoopClock) -> None:
    windows, early, late = ReadWindows(WINDOW_S), Socket(), Socket()

    windows.hold(early)
    clock.passes(WINDOW_S * 0.9)
    windows.hold(late)
    clock.passes(WINDOW_S * 0.2)

    assert not early.is_held
    assert not late.is_held


@pytest.mark.parametrize("rest_s", [WINDOW_S * 1.01, WINDOW_S * 10])
async def test_ticks_stay_a_whole_window_apart_whether_or_not_there_was_a_rest(clock: LoopClock, rest_s: float) -> None:
    windows, sock = ReadWindows(WINDOW_S), Socket()
    windows.hold(sock)
    clock.passes(rest_s)

    windows.hold(sock)
    clock.passes(WINDOW_S * 0.9)

    assert sock.is_held


async def test_a_socket_that_is_let_go_is_read_at_once(clock: LoopClock) -> None:
    windows, sock = ReadWindows(WINDOW_S), Socket()
    windows.hold(sock)

    windows.let_go(sock)

    assert (sock.is_held, windows.held) == (False, 0)


@pytest.mark.parametrize("says", [OSError(errno.EBADF, "Bad file descriptor"), ValueError("negative file descriptor")])
async def test_a_socket_closed_before_or_in_its_window_harms_nobody(clock: LoopClock, says: Exception) -> None:
    windows, closed, closing, sound = ReadWindows(WINDOW_S), Socket(), Socket(), Socket()
    closed.closed_says = says
    for sock in (closed, closing, sound):
        windows.hold(sock)
    closing.closed_says = says

    held = windows.held
    clock.passes(WINDOW_S * 1.01)

    assert (held, windows.held, sound.is_held) == (2, 0, False)


async def test_a_window_of_nothing_holds_nobody() -> None:
    windows, sock = ReadWindows(0), Socket()

    windows.hold(sock)

    assert not sock.is_held
