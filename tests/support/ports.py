"""Ports for the processes that tests start."""

from __future__ import annotations

import secrets
import socket
from contextlib import ExitStack

from service_runtime.settings import METRICS_PORTS_APART

# Below every system's range for outgoing connections (Linux begins at 32768): none of those takes a port between the
# moment at which it was found free here and the moment at which a service binds it.
_FIRST, _LAST = 10_240, 30_720
_METRICS_ABOVE = 1000
_given: set[int] = set()


def free_ports(count: int = 1) -> int:
    """The first of `count` ports in a row that nobody has, nor those where a service of so many workers, or as many
    services, put metrics: 1000 above, in steps of ten or one.

    No port is given twice to one process of tests.
    """
    while True:
        first = _FIRST + secrets.randbelow(_LAST - _FIRST - count)
        places = [
            (number, _METRICS_ABOVE + number, _METRICS_ABOVE + METRICS_PORTS_APART * number) for number in range(count)
        ]
        row = {first + place for each in places for place in each}
        if row.isdisjoint(_given) and _all_free(row):
            _given.update(row)
            return first


def _all_free(ports: set[int]) -> bool:
    """Whether each of `ports` could be bound on loopback just now."""
    with ExitStack() as held:
        for port in ports:
            try:
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
