"""Read windows: an answer that trickles in is read once in a while, not once for every piece that arrives.

Nearly all that a streamed answer costs is paid for each arrival: waking up, HTTP, JSON, a message to the caller. Pieces
that are read together cost little more than one (docs/decisions/0010).
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final, Protocol

# More than this is no trickle: it wakes the reader at once, so that a burst is not held up.
BURST_BYTES: Final = 8 << 10


class HoldableSocket(Protocol):
    """What of a socket is needed here: its options."""

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        """As of `socket.socket`."""


class ReadWindows:
    """Lets what arrives on a socket gather in the kernel, without waking anybody, until the next tick.

    Ticks are `window_s` seconds apart, the same ones for all sockets, and only while one is held: nothing waits longer
    than that. The end of a connection and `BURST_BYTES` together wake at once. A window of 0 holds nothing.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._held: set[HoldableSocket] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._last_tick_s = float("-inf")

    @property
    def held(self) -> int:
        """How many sockets wait for the next tick."""
        return len(self._held)

    def hold(self, sock: HoldableSocket) -> None:
        """Hold a socket until the next tick. One that is closed, or whose platform cannot do it, is left as it is."""
        if self._window_s <= 0 or not _wakes_from(sock, BURST_BYTES):
            return
        self._held.add(sock)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            next_s = self._last_tick_s + self._window_s
            if next_s <= loop.time():
                next_s = loop.time() + self._window_s
            self._timer = loop.call_at(next_s, self._tick, loop)

    def let_go(self, sock: HoldableSocket) -> None:
        """Hold a socket no longer: its connection will be another request's, or be closed."""
        if sock in self._held:
            self._held.remove(sock)
            _wakes_from(sock, 1)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        self._last_tick_s = loop.time()
        held, self._held = self._held, set()
        for sock in held:
            _wakes_from(sock, 1)


def _wakes_from(sock: HoldableSocket, arrived_bytes: int) -> bool:
    """Have the kernel call a socket readable from so many bytes on; False when it cannot.

    Pausing the event loop's transport would not do: over TLS it goes on reading and decrypting.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, arrived_bytes)
    except (OSError, ValueError):  # closed meanwhile; uvloop's sockets then say that -1 is no descriptor
        return False
    return True
