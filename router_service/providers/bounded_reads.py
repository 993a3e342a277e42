"""Connections of aiohttp that take no more from the kernel at a time than they are asked for.

Event loops read up to 256 KiB at once. Where an answer is read in small pieces, and slowly, because its caller is slow,
most of that would stay in aiohttp's parser meanwhile: some 100 KiB for each frozen reader of a long answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from aiohttp import TCPConnector
from aiohttp.client_proto import ResponseHandler


class BoundedConnector(TCPConnector):
    """A `TCPConnector` whose connections read at most `max_read_bytes` at a time."""

    def __init__(self, *, max_read_bytes: int, **options: Any) -> None:
        super().__init__(**options)
        arrived = memoryview(bytearray(max_read_bytes))  # emptied before anybody else reads, so one is enough for all
        # aiohttp has no public way to choose what it makes for a connection.
        self._factory: Callable[[], ResponseHandler] = partial(_Handler, arrived, self._loop)  # type: ignore[assignment]


class _Handler(ResponseHandler):
    def __init__(self, arrived: memoryview, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._arrived = arrived

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        cast("asyncio.Transport", transport).set_protocol(_BoundedReads(self, self._arrived))


class _BoundedReads(asyncio.BufferedProtocol):
    """Stands between the transport and aiohttp's handler, because it is a protocol's kind that decides how it reads."""

    def __init__(self, handler: ResponseHandler, arrived: memoryview) -> None:
        self._handler = handler
        self._arrived = arrived

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return self._arrived

    def buffer_updated(self, nbytes: int) -> None:
        self._handler.data_received(self._arrived[:nbytes].tobytes())

    def eof_received(self) -> None:
        self._handler.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._handler.connection_lost(exc)

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()
