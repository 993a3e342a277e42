"""Connections of aiohttp that take no more from the kernel at a time than they are asked for.

Event loops read up to 256 KiB at once. Where an answer is read in small pieces, and slowly, because its caller is slow,
most of that would stay in aiohttp's parser meanwhile: some 100 KiB for each frozen reader of a long answer.

Because so little arrives at a time, all of it is parsed at once, and pausing is a matter of the transport alone.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from ssl import SSLError, SSLObject
from typing import Any, Final, cast

from aiohttp import ClientConnectionError, ClientPayloadError, StreamReader, TCPConnector
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage

from router_service.providers.http_chunks import bytes_missing, whole_chunks

_END_OF_HEAD: Final = b"\r\n\r\n"
_FIRST_FINAL_STATUS: Final = 200  # below it are interim answers


class BoundedConnector(TCPConnector):
    """A `TCPConnector` whose connections read at most `max_read_bytes` at a time."""

    def __init__(self, *, max_read_bytes: int, **options: Any) -> None:
        super().__init__(**options)
        arrived = memoryview(bytearray(max_read_bytes))  # emptied before anybody else reads, so one is enough for all
        # aiohttp has no public way to choose what it makes for a connection.
        self._factory: Callable[[], ResponseHandler] = partial(BoundedHandler, arrived, self._loop)  # type: ignore[assignment]


class BoundedHandler(ResponseHandler):
    """aiohttp's handler of a connection, which is left whatever this does not do itself.

    It takes the ordinary chunks of a body apart and hands all that arrived together to the body's reader as one piece:
    aiohttp's parser calls back three times for each chunk, and its reader once more. All else is that parser's, which
    is at a chunk's begin, or within one that is `_owed` bytes more, whenever a body is taken here. From the first bytes
    on that are no ordinary chunk, the rest of the body is the parser's.

    What aiohttp leaves undone: it takes what comes behind an answer for the next request's, which may be another
    tenant's, and a connection that it closes lives on until all of the request is sent and TLS has said goodbye.
    """

    def __init__(self, arrived: memoryview, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._arrived = arrived
        self._readable = select.poll()
        self._awaits_head = False
        self._is_answered = False
        self._message: tuple[RawResponseMessage, StreamReader] | None = None  # the one whose head has just been read
        self._body: StreamReader | None = None  # where this handler takes the chunks apart
        self._owed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._readable.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        reads = _BoundedReads(self, self._arrived, transport.get_extra_info("ssl_object"))
        cast("asyncio.Transport", transport).set_protocol(reads)

    def is_connected(self) -> bool:
        """Whether the next request may go out here, which the pool asks of a connection that nobody uses.

        What has come since the last answer is no answer to it, or is the end, though the loop may not have read it yet.
        """
        return super().is_connected() and not self._readable.poll(0)

    def set_response_params(self, **params: Any) -> None:
        """Expect the answer to a request."""
        self._body = None
        self._awaits_head = True
        self._is_answered = False
        super().set_response_params(**params)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take what the parser made of a head."""
        if self._is_answered:
            self.close()
            return
        self._is_answered = data[0].code >= _FIRST_FINAL_STATUS
        self._message = data
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        """Take what arrived."""
        if self._body is not None:
            self._take_chunks(self._body, data, 0)
        elif self._awaits_head:
            self._awaits_head = False
            self._take_head(data)
        elif self._is_answered and self._payload is not None and self._payload.is_eof():
            self.close()
        else:
            super().data_received(data)

    def close(self) -> None:
        """Close at once, whatever is still to be sent; an answer that has not ended fails."""
        self.abort()

    def abort(self) -> None:
        """Close at once; an answer that has not ended fails."""
        body = self._payload
        self.force_close()
        super().abort()
        _fail(body, ClientConnectionError("the connection was closed"))

    def close_behind(self, body: StreamReader) -> None:
        """Close, unless another request has gone out here since the answer with this body."""
        if self._is_answered and self._payload is body:
            self.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Take the connection's end, which the parser judges."""
        self._body = None
        super().connection_lost(exc)

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """Fail, and a body that has begun too: aiohttp leaves its reader waiting when the parser gives up within it."""
        if exc_cause is None:
            super().set_exception(exc)
        else:
            super().set_exception(exc, exc_cause)
        _fail(self._payload, ClientPayloadError("the body is malformed"))

    def pause_reading(self) -> None:
        """Read nothing more from the transport. The parser goes on to the end of what has arrived."""
        self._reading_paused = True
        self._pause_transport_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Read on. aiohttp's reader says so after every piece that it gives, most often where nothing was paused."""
        del resume_parser  # it was not paused
        if self._reading_paused:
            super().resume_reading(resume_parser=False)

    def _take_head(self, data: bytes) -> None:
        end = data.find(_END_OF_HEAD) + len(_END_OF_HEAD)
        if end < len(_END_OF_HEAD):
            super().data_received(data)
            return
        message = self._message_of(data[:end])
        if message is not None and message[0].chunked and not message[1].is_eof():
            self._body = message[1]
            self._owed = 0
            self._body.begin_http_chunk_receiving()  # the parser may only do so as long as nothing was fed
            self._take_chunks(self._body, data, end)
        elif end < len(data):
            super().data_received(data[end:])

    def _message_of(self, head: bytes) -> tuple[RawResponseMessage, StreamReader] | None:
        self._message = None
        super().data_received(head)
        message, self._message = self._message, None
        return message

    def _take_chunks(self, body: StreamReader, data: bytes, start: int) -> None:
        if self._owed:
            end = min(start + self._owed, len(data))
            super().data_received(data[start:end])
            if self.exception() is not None:
                self._body = None
                return
            self._owed -= end - start
            start = end
        contents, start = whole_chunks(data, start)
        if contents:
            body.feed_data(b"".join(contents))
        if start < len(data):
            owed = bytes_missing(data, start)
            if owed is None:
                self._body = None
            else:
                self._owed = owed
            super().data_received(data[start:])


def _fail(body: StreamReader | None, error: Exception) -> None:
    # Besides waking its reader this lets the body forget whom to tell of its end: in a cycle it would keep what it
    # holds until garbage is collected.
    if body is not None and not body.is_eof() and body.exception() is None:
        body.set_exception(error)


class _BoundedReads(asyncio.BufferedProtocol):
    """Stands between the transport and aiohttp's handler, because it is a protocol's kind that decides how it reads."""

    def __init__(self, handler: ResponseHandler, arrived: memoryview, tls: SSLObject | None) -> None:
        self._handler = handler
        self._arrived = arrived
        self._tls = tls

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return self._arrived

    def buffer_updated(self, nbytes: int) -> None:
        self._handler.data_received(self._arrived[:nbytes].tobytes())

    def eof_received(self) -> None:
        self._handler.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._tls is not None:
            self._take_rest(self._tls)
        self._handler.connection_lost(exc)

    def _take_rest(self, tls: SSLObject) -> None:
        """Take what came before the end and is still within TLS: uvloop gives it to nobody.

        That is whatever came since reading was paused, and of a burst all but the first `_arrived`.
        """
        with suppress(SSLError):  # it wants more, or is not whole
            while self._handler.connected and (data := tls.read(len(self._arrived))):
                self._handler.data_received(data)

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()
