"""One request and its answer on a connection of aiohttp's pool, without aiohttp's client in between.

What that client adds is not wanted here (redirects, cookies, proxies, decompression), or done once instead of for every
request, and on Python 3.11 it starts a task to write each body. aiohttp keeps the connections and parses the answers.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import lru_cache

import aiohttp
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.http import RawResponseMessage

from router_service.providers.bounded_reads import BoundedHandler


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """What an answer may hold, and how much of its body waits here, in bytes and headers."""

    max_line_bytes: int
    max_headers: int
    read_ahead_bytes: int


class Exchange:
    """An answer that has begun. At the end of `body` its connection goes back to the pool by itself."""

    __slots__ = ("_connection", "_protocol", "body", "encodings", "headers", "status")

    def __init__(self, message: RawResponseMessage, body: aiohttp.StreamReader, connection: Connection) -> None:
        self.status = message.code
        self.headers = message.raw_headers
        self.encodings = message.headers.getall("Content-Encoding", ())
        self.body = body
        self._connection = connection
        self._protocol = connection.protocol
        body.on_eof(self._give_back)

    @property
    def transport(self) -> asyncio.Transport | None:
        """The connection's; None after the end of the body, when it may be another request's."""
        return self._connection.transport

    def left(self, max_bytes: int) -> bytes:
        """What of the body had come before it failed and was not read yet. aiohttp only tells of the failure."""
        rest: bytes = self.body._read_nowait(max_bytes)  # noqa: SLF001 - its public twin raises the failure, too
        return rest

    def close(self) -> None:
        """Drop the connection, if the body has not ended."""
        self._connection.close()

    def drop(self) -> None:
        """Drop the connection, also when the body has ended, unless it is another request's by now."""
        self._connection.close()
        if isinstance(self._protocol, BoundedHandler):
            self._protocol.close_behind(self.body)

    def _give_back(self) -> None:
        transport = self._connection.transport
        if transport is not None and transport.get_write_buffer_size():
            self._connection.close()  # the server answered a request that it has not read, and may never read
        else:
            self._connection.release()


def head_of(method: str, target: bytes, host: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The head of a request. Raises `ValueError` where a part would end its line, without quoting it."""
    lines = [b"%b %b HTTP/1.1" % (method.encode(), target), b"Host: " + host]
    lines += [b"%b: %b" % header for header in headers]
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    if not head.count(b"\n") == head.count(b"\r") == len(lines) + 1 or b"\0" in head:
        raise ValueError("a line end or a NUL in the head of a request")
    return head


@lru_cache(maxsize=16)
def _time_to_connect(seconds: float) -> aiohttp.ClientTimeout:
    """Nearly always the provider's own; a new connection alone needs it, but the pool wants it for every request."""
    return aiohttp.ClientTimeout(total=None, connect=seconds, sock_connect=seconds)


async def exchange(
    connector: aiohttp.BaseConnector, place: ClientRequest, request: bytes, limits: AnswerLimits, *, connect_s: float
) -> Exchange:
    """Send the bytes of `request` to where `place` leads, and return when the head of the answer is there.

    Raises what aiohttp's client would; what is no HTTP as `aiohttp.http_exceptions.HttpProcessingError`.
    """
    try:
        connection = await connector.connect(place, [], _time_to_connect(connect_s))
    except TimeoutError as error:
        raise aiohttp.ConnectionTimeoutError("no connection in time") from error
    try:
        return await _answer(connection, request, limits)
    except BaseException:
        connection.close()
        raise


async def _answer(connection: Connection, request: bytes, limits: AnswerLimits) -> Exchange:
    protocol, transport = connection.protocol, connection.transport
    if protocol is None or transport is None or transport.is_closing():
        raise aiohttp.ClientConnectionResetError("the connection is closed")
    protocol.set_response_params(
        auto_decompress=False,
        read_until_eof=True,
        read_bufsize=limits.read_ahead_bytes,
        max_line_size=limits.max_line_bytes,
        max_field_size=limits.max_line_bytes,
        max_headers=limits.max_headers,
    )
    transport.write(request)
    message, body = await protocol.read()
    while 100 <= message.code < 200 and message.code != 101:  # an interim answer
        message, body = await protocol.read()
    return Exchange(message, body, connection)
