"""Many times more calls than a router can serve, at next to no cost for whoever makes them.

A gRPC client spends about as much on a call as the router does, so that on a machine of few cores it is the client that
is overloaded. Here calls are HTTP/2 frames written as bytes, and of an answer only the heads of its frames are read:
one with data was served, one that ends without was refused, or came when its deadline was over.
"""

from __future__ import annotations

import re
import selectors
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.bench.processes import BenchFailed
from turnpike.router.v1 import completion_pb2, router_service_pb2

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_STATUS: Final = re.compile(rb"grpc-status[\x01\x02](\d{1,2})")
_CONNECTIONS: Final = 8
_MOST_OPEN: Final = 240  # of the 250 streams that the server takes on one connection
_WIDE_WINDOW: Final = 1 << 30
_LAST_ANSWERS_S: Final = 2.0
_PATIENT_S: Final = 60.0


@dataclass(slots=True)
class Flood:
    """What came of it. Milliseconds from when each call was meant to start, ascending."""

    begun: int = 0
    served_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    served_meanwhile: int = 0  # of those served: before the last call was begun
    codes: Counter[str] = field(default_factory=Counter)  # of those refused: numbers as gRPC has them
    seconds: float = 0.0


def _nobody() -> None:
    """Watches nothing."""


def saturate(
    target: str, tenants: Sequence[str], *, in_flight: int, seconds: float, look: Callable[[], None] = _nobody
) -> float:
    """A closed loop of `Complete`: calls served per second. Raises BenchFailed when one is not."""
    told = flood(
        target,
        tenants,
        per_s=1e6,
        seconds=seconds,
        deadline_s=_PATIENT_S,
        most_open=in_flight // _CONNECTIONS,
        look=look,
    )
    if told.refused_ms or len(told.served_ms) < told.begun:
        raise BenchFailed(f"of {told.begun} calls in a closed loop {len(told.served_ms)} were served")
    return told.served_meanwhile / told.seconds


def flood(
    target: str,
    tenants: Sequence[str],
    *,
    per_s: float,
    seconds: float,
    deadline_s: float,
    most_open: int = _MOST_OPEN,
    look: Callable[[], None] = _nobody,
) -> Flood:
    """An open loop of `Complete`, as long as no connection has `most_open` calls open.

    `look` is called just before the first call and just after the last. Raises BenchFailed when the server ends a
    connection.
    """
    told = Flood()
    links = [
        Link(target, "Complete", request_for(tenants[i % len(tenants)], "one"), told, deadline_s=deadline_s)
        for i in range(_CONNECTIONS)
    ]
    with selectors.DefaultSelector() as selector:
        for link in links:
            selector.register(link.socket, selectors.EVENT_READ, link)
        look()
        started_s = time.monotonic()
        while (passed_s := time.monotonic() - started_s) < seconds:
            due = int(passed_s * per_s) - told.begun
            for link in links:
                count = min(-(-due // len(links)), most_open - len(link.intended_s))
                if count > 0:
                    link.begin([started_s + (told.begun + i) / per_s for i in range(count)])
            read_ready(selector, 0.001)
        told.seconds, told.served_meanwhile = time.monotonic() - started_s, len(told.served_ms)
        look()
        ends_s = time.monotonic() + _LAST_ANSWERS_S
        while any(link.intended_s for link in links) and time.monotonic() < ends_s:
            read_ready(selector, 0.05)
    for link in links:
        link.socket.close()
    told.served_ms.sort()
    told.refused_ms.sort()
    return told


def request_for(tenant: str, model: str) -> bytes:
    """A CompleteRequest; a StreamCompletionRequest has the same fields, so the same bytes."""
    message = completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="Tell me about turnpikes.")
    return router_service_pb2.CompleteRequest(
        tenant_id=tenant, messages=[message], model=model, provider="local", endpoint="/bench"
    ).SerializeToString()


def read_ready(selector: selectors.BaseSelector, within_s: float) -> None:
    """Let each registered link, the `data` of its key, take what has come, or wait `within_s` for it."""
    for key, _ in selector.select(within_s):
        link: Link = key.data
        link.read()


class Link:
    """One connection and the calls of one method on it: `intended_s` by stream, of those without an end."""

    def __init__(
        self, target: str, method: str, request: bytes, told: Flood, *, deadline_s: float, reads: bool = True
    ) -> None:
        """Where it does not read, no answer gets on after the 64 KiB that HTTP/2 allows a connection at first."""
        host, _, port = target.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._headers = _header_block(target, method, f"{round(deadline_s * 1000)}m")
        self._body = b"\0" + struct.pack(">I", len(request)) + request
        self._deadline_s = deadline_s
        self._told = told
        self._unread = b""
        self._next_stream = 1
        self._with_data: set[int] = set()
        self.intended_s: dict[int, float] = {}
        if reads:  # windows so wide that no answer ever waits for one
            settings = struct.pack(">HI", 4, _WIDE_WINDOW)
            widening = _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _WIDE_WINDOW))
        else:
            settings = widening = b""
        self.socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + widening)

    def begin(self, intended_s: Sequence[float]) -> None:
        """Begin a call for each of the times, with one write."""
        parts: list[bytes] = []
        for at_s in intended_s:
            parts.append(_frame(_HEADERS, _END_HEADERS, self._next_stream, self._headers))
            parts.append(_frame(_DATA, _END_STREAM, self._next_stream, self._body))
            self.intended_s[self._next_stream] = at_s
            self._next_stream += 2
        self._told.begun += len(intended_s)
        self.socket.sendall(b"".join(parts))

    def read(self) -> None:
        """Take what has come."""
        received = self.socket.recv(1 << 18)
        if not received:
            raise BenchFailed("the router closed a connection of the flood")
        data, at, now_s = self._unread + received, 0, time.monotonic()
        while len(data) - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if end > len(data):
                break
            kind, flags, stream = data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big")
            self._take(kind, flags, stream, data[at + 9 : end], now_s)
            at = end
        self._unread = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes, now_s: float) -> None:
        if kind == _GOAWAY:
            raise BenchFailed("the router sent GOAWAY to the flood")
        if kind == _SETTINGS and not flags & _ACK:
            self.socket.sendall(_frame(_SETTINGS, _ACK, 0))
        elif kind == _PING and not flags & _ACK:
            self.socket.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _DATA:
            self._with_data.add(stream)
        elif kind == _RST_STREAM or (kind == _HEADERS and flags & _END_STREAM):
            self._ended(stream, now_s, payload if kind == _HEADERS else b"")

    def _ended(self, stream: int, now_s: float, trailers: bytes) -> None:
        """Take note of an end with `trailers`, or by a reset without any."""
        intended_s = self.intended_s.pop(stream, None)
        was_served = stream in self._with_data
        self._with_data.discard(stream)
        if intended_s is None or not trailers:  # a second end, or one that was cut
            return
        took_s = now_s - intended_s
        if took_s <= self._deadline_s:
            (self._told.served_ms if was_served else self._told.refused_ms).append(took_s * 1_000)
            if not was_served:
                self._told.codes[_code(trailers)] += 1


def _code(trailers: bytes) -> str:
    """The status, which gRPC's core writes out in full in each answer; '?' where it does not."""
    found = _STATUS.search(trailers)
    return found[1].decode() if found else "?"


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _header_block(authority: str, method: str, timeout: str) -> bytes:
    """The headers of a call, none of which enters the table of the connection."""
    block = b"\x83\x86\x04" + _literal(f"/turnpike.router.v1.RouterService/{method}") + b"\x01" + _literal(authority)
    for name, value in (("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", timeout)):
        block += b"\x00" + _literal(name) + _literal(value)
    return block


def _literal(value: str) -> bytes:
    """A string of HPACK without Huffman coding, of at most 126 bytes."""
    data = value.encode()
    if len(data) > 126:
        raise ValueError(f"{value!r} is longer than 126 bytes")
    return bytes((len(data),)) + data
