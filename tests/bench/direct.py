"""The baseline: one streamed completion straight at the provider, over a kept-alive socket, with nothing in between."""

from __future__ import annotations

import asyncio
import json
import time
from typing import cast

_END_OF_BODY = b"0\r\n\r\n"
_CONTENT = b'"content":"word'


class DirectConnection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self.first_content_s = 0.0
        self._tail = b""
        self._done: asyncio.Future[None] | None = None
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is one by its methods, not by its type

    def data_received(self, data: bytes) -> None:
        if self._done is None or self._done.done():
            return
        seen = self._tail + data
        if not self.first_content_s and _CONTENT in seen:
            self.first_content_s = time.monotonic()
        self._tail = seen[-64:]
        if seen.endswith(_END_OF_BODY):
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError("the provider closed the connection"))

    async def stream(self, request: bytes) -> float:
        """Send `request` and read the whole answer; when its first content came, on the monotonic clock."""
        assert self._transport is not None
        self.first_content_s, self._tail = 0.0, b""
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._done
        return self.first_content_s


class DirectClient:
    """Connections to the provider, made when none is idle."""

    def __init__(self, target: str, model: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._idle: list[DirectConnection] = []
        messages = [{"role": "user", "content": "Tell me about turnpikes."}]
        body = json.dumps({"model": model, "messages": messages, "stream": True}, separators=(",", ":")).encode()
        self._request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {target}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode() + body

    async def call(self) -> float:
        """One streamed completion; when its first content came, on the monotonic clock."""
        if self._idle:
            connection = self._idle.pop()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(DirectConnection, self._host, self._port)
        first_s = await connection.stream(self._request)
        self._idle.append(connection)
        return first_s
