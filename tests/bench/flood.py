"""A flood of refused calls that costs next to nothing beside what it measures: HTTP/2 frames written as bytes.

    python -m tests.bench.flood HOST:PORT TENANT PER_S SECONDS [--connections N]

Prints what came of it as one line of JSON.

A gRPC client spends about as much on a call as the router on its refusal, so that on a machine of few cores a flood by
one measures itself. Here each call is the same few bytes, and of an answer only the frames' heads are read.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from tests.bench.figures import percentile
from turnpike.router.v1 import completion_pb2, router_service_pb2

HELLO: Final = completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="Tell me about turnpikes.")
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
METHOD: Final = "/turnpike.router.v1.RouterService/StreamCompletion"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
MOST_OPEN: Final = 200  # of the 250 streams that the server takes on one connection
TICK_S: Final = 0.001
LAST_ANSWERS_S: Final = 5.0


class Broken(Exception):
    """The server ended the connection."""


@dataclass(slots=True)
class Told:
    """Calls that were due, those that were begun as the connections had room for them, refused (an answer without
    content), others, and without an answer; what the flood itself cost; how long from a call's begin to its refusal.
    """

    due: int = 0
    begun: int = 0
    refused: int = 0
    others: int = 0
    unanswered: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def literal(value: str) -> bytes:
    """A string of HPACK without Huffman coding. At most 126 bytes."""
    data = value.encode()
    assert len(data) < 127
    return bytes((len(data),)) + data


def header_block(authority: str) -> bytes:
    """The headers of a call, none of which enters the table of the connection."""
    block = b"\x83\x86"  # :method POST, :scheme http
    block += b"\x04" + literal(METHOD) + b"\x01" + literal(authority)  # :path, :authority
    for name, value in (("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "30S")):
        block += b"\x00" + literal(name) + literal(value)
    return block


class Connection:
    """One connection and the calls on it."""

    def __init__(self, target: str, tenant: str) -> None:
        host, _, port = target.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=5)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        message = router_service_pb2.StreamCompletionRequest(tenant_id=tenant, messages=[HELLO]).SerializeToString()
        self._block = header_block(target)
        self._body = b"\0" + struct.pack(">I", len(message)) + message
        self._unread = b""
        self._next_stream = 1
        self._with_content: set[int] = set()
        self._open: dict[int, float] = {}  # and when it was begun
        self.refused_ms: list[float] = []
        self.told = Told()
        self._socket.sendall(PREFACE + frame(SETTINGS, 0, 0))

    @property
    def open(self) -> int:
        """Calls without an answer yet."""
        return len(self._open)

    def begin(self, count: int) -> None:
        """Begin so many calls with one write."""
        parts: list[bytes] = []
        now_s = time.monotonic()
        for _ in range(count):
            parts.append(frame(HEADERS, END_HEADERS, self._next_stream, self._block))
            parts.append(frame(DATA, END_STREAM, self._next_stream, self._body))
            self._open[self._next_stream] = now_s
            self._next_stream += 2
        self._socket.sendall(b"".join(parts))

    def fileno(self) -> int:
        """Of its socket, so that it can be selected."""
        return self._socket.fileno()

    def read(self) -> None:
        """Take what has come."""
        data = self._socket.recv(1 << 16)
        if not data:
            raise Broken("the server closed the connection")
        self._unread += data
        replies = b"".join(self._answer(*each) for each in self._frames())
        if replies:
            self._socket.sendall(replies)

    def close(self) -> None:
        self._socket.close()

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        data, at = self._unread, 0
        while len(data) - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if end > len(data):
                break
            yield data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big"), data[at + 9 : end]
            at = end
        self._unread = data[at:]

    def _answer(self, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        """Count a frame; what must be said to it."""
        if kind == GOAWAY:
            raise Broken("the server sent GOAWAY")
        if kind == SETTINGS and not flags & ACK:
            return frame(SETTINGS, ACK, 0)
        if kind == PING and not flags & ACK:
            return frame(PING, ACK, 0, payload)
        if kind == DATA:
            self._with_content.add(stream)
            return frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", len(payload))) if payload else b""
        if kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
            self._ended(stream, is_whole=kind == HEADERS)
        return b""

    def _ended(self, stream: int, *, is_whole: bool) -> None:
        begun_s = self._open.pop(stream, None)
        if begun_s is None:
            return  # a call that gRPC's core refuses is ended twice: by its status, then by a reset
        if is_whole and stream not in self._with_content:
            self.told.refused += 1
            self.refused_ms.append((time.monotonic() - begun_s) * 1000)
        else:
            self.told.others += 1
        self._with_content.discard(stream)


def flood(target: str, tenant: str, *, per_s: float, seconds: float, connections: int = 1) -> Told:
    """An open loop, as far as the streams of the connections allow. Raises Broken."""
    cpu_s, links, begun = time.process_time(), [Connection(target, tenant) for _ in range(connections)], 0
    started = time.monotonic()
    while (passed_s := time.monotonic() - started) < seconds:
        due = int(passed_s * per_s) - begun
        for link in links:
            count = min(-(-due // connections), MOST_OPEN - link.open)
            if count > 0:
                link.begin(count)
                begun += count
        read_ready(links, TICK_S)
    passed_s = time.monotonic() - started
    told = Told(due=int(passed_s * per_s), begun=begun, seconds=passed_s)
    # What is answered later was asked for in these seconds too.
    while any(link.open for link in links) and time.monotonic() - started < seconds + LAST_ANSWERS_S:
        read_ready(links, 0.1)
    for link in links:
        link.close()
        told.refused += link.told.refused
        told.others += link.told.others
        told.unanswered += link.open
    took_ms = sorted(ms for link in links for ms in link.refused_ms)
    if took_ms:
        told.p50_ms, told.p99_ms = percentile(took_ms, 0.5), percentile(took_ms, 0.99)
    told.cpu_s = time.process_time() - cpu_s
    return told


def read_ready(links: Sequence[Connection], within_s: float) -> None:
    """Take what has come on any, waiting for at most `within_s`."""
    for link in select.select(links, [], [], within_s)[0]:
        link.read()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.flood", description="Flood a router with one request.")
    parser.add_argument("target")
    parser.add_argument("tenant")
    parser.add_argument("per_s", type=float)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--connections", type=int, default=1)
    options = parser.parse_args()
    told = flood(
        options.target,
        options.tenant,
        per_s=options.per_s,
        seconds=options.seconds,
        connections=options.connections,
    )
    print(json.dumps(asdict(told)))


if __name__ == "__main__":
    main()
