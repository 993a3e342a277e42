"""The handler of a connection against aiohttp's own, which it must agree with however the bytes are cut."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import ClientPayloadError, StreamReader
from aiohttp.client_proto import ResponseHandler
from hypothesis import given
from hypothesis import strategies as st

from router_service.providers.bounded_reads import BoundedHandler

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
# More than any answer below has: aiohttp pauses its parser too, and loses what that holds when the server hangs up.
SLICE = 4096


class Line(asyncio.Transport):
    """A transport that only remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.is_paused = False
        self.is_closed = False

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True


def awaiting_answer(kind: type[ResponseHandler]) -> tuple[ResponseHandler, Line]:
    loop = asyncio.get_running_loop()
    handler = kind(loop) if kind is ResponseHandler else BoundedHandler(memoryview(bytearray(SLICE)), loop)
    line = Line()
    handler.transport = line
    handler.set_response_params(read_until_eof=True, auto_decompress=False, read_bufsize=SLICE)
    return handler, line


def begun(handler: ResponseHandler) -> tuple[int, StreamReader] | None:
    """Status and body of the answer whose head has come, taken as aiohttp takes them: interim answers are skipped."""
    while handler._buffer:
        message, body = handler._buffer.popleft()[0]
        if message.code >= 200:
            return message.code, body
    return None


def held(body: StreamReader) -> int:
    """The bytes that wait for a reader; aiohttp's body of an answer without one has no count."""
    return getattr(body, "_size", 0)


def outcome(kind: type[ResponseHandler], pieces: list[bytes], *, reads: int) -> dict[str, Any]:
    """What a reader has when it takes some bytes after each piece and the server hangs up behind the answer's last."""
    handler, _ = awaiting_answer(kind)
    taken = b""
    answer: tuple[int, StreamReader] | None = None
    for piece in pieces:
        if handler.exception() is not None or (answer is not None and answer[1].is_eof()):
            break
        handler.data_received(piece)
        answer = answer or begun(handler)
        if answer is not None and answer[1].exception() is None and reads and held(answer[1]):
            taken += answer[1].read_nowait(reads)
    is_reusable = not handler.should_close
    is_malformed = handler.exception() is not None
    is_whole = answer is not None and answer[1].is_eof()
    handler.connection_lost(None)
    if answer is None:
        return {"status": None}
    status, body = answer
    error, body._exception = body.exception(), None
    while held(body):
        taken += body.read_nowait()
    return {
        "status": status,
        "body": taken,
        "is_reusable": is_reusable,
        "is_malformed": is_malformed,
        "is_whole": is_whole,
        "fails": is_malformed or isinstance(error, ClientPayloadError),
    }


HEADS = st.sampled_from(
    [
        *([CHUNKED] * 4),
        b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED,
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
    ]
)
PARTS = st.sampled_from(
    [
        *(b"5\r\nhello\r\n", b"A\r\n0123456789\r\n", b"1\r\n\r\r\n", b"12\r\nline\r\n\r\nand another\r\n"),
        *(b"5;name=value\r\nhello\r\n", b"40\r\n" + b"x" * 64 + b"\r\n", b"0c8\r\n" + b"y" * 200 + b"\r\n"),
    ]
)
ENDS = st.sampled_from(
    [
        *([b"0\r\n\r\n"] * 4),
        *(
            b"",
            b"0\r\nTrailer: 1\r\n\r\n",
            b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            b"ZZ\r\n",
            b"5\r\nhello!\r\n",
            b"3\r\nab",
        ),
    ]
)


@given(HEADS, st.lists(PARTS, max_size=8), ENDS, st.data())
def test_any_answer_in_any_pieces_is_what_aiohttp_makes_of_it(
    head: bytes, parts: list[bytes], tail: bytes, data: st.DataObject
) -> None:
    answer = head + b"".join(parts) + tail
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=8)))
    pieces = [answer[start:end] for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True) if start < end]
    reads = data.draw(st.sampled_from([0, 1, 7, SLICE]))

    async def both() -> tuple[dict[str, Any], dict[str, Any]]:
        return tuple(outcome(kind, pieces, reads=reads) for kind in (BoundedHandler, ResponseHandler))  # type: ignore[return-value]

    ours, theirs = asyncio.run(both())

    if theirs["status"] is None:  # aiohttp drops a head that came together with something malformed
        assert ours["status"] is None or ours["fails"]
    else:
        assert ours == theirs


@pytest.mark.parametrize("behind", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", b"HTTP", b"\r\n", b"nonsense"])
@pytest.mark.parametrize(
    "answer",
    [CHUNKED + b"2\r\nok\r\n0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"],
    ids=["chunked", "whole"],
)
async def test_a_connection_on_which_more_comes_than_was_asked_for_serves_no_other_request(
    answer: bytes, behind: bytes
) -> None:
    handler, line = awaiting_answer(BoundedHandler)
    handler.data_received(answer)
    taken = begun(handler)
    assert taken is not None

    handler.data_received(behind)

    assert (line.is_closed, handler.should_close) == (True, True)
    assert begun(handler) is None
    assert taken[1].read_nowait() == b"ok"


async def test_a_second_answer_right_behind_the_first_is_not_kept_for_the_next_request() -> None:
    handler, line = awaiting_answer(BoundedHandler)

    handler.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" * 3)

    taken = begun(handler)
    assert taken is not None
    assert taken[1].read_nowait() == b"ok"
    assert begun(handler) is None
    assert (line.is_closed, handler.should_close) == (True, True)


async def test_a_reader_that_is_behind_pauses_the_line_until_it_has_caught_up() -> None:
    handler, line = awaiting_answer(BoundedHandler)
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    handler.data_received(CHUNKED + chunk * 9)
    answer = begun(handler)
    assert answer is not None

    was_paused = line.is_paused
    taken = answer[1].read_nowait(6 * 1024)

    assert (was_paused, line.is_paused) == (True, False)
    handler.data_received(chunk + b"0\r\n\r\n")
    assert taken + answer[1].read_nowait() == b"x" * 10_240
    assert not handler.should_close


async def test_an_end_that_comes_while_the_line_is_paused_is_not_lost_when_the_server_hangs_up() -> None:
    handler, _ = awaiting_answer(BoundedHandler)
    handler.data_received(CHUNKED + b"400\r\n" + b"x" * 1024 + b"\r\n")
    handler.data_received(b"2000\r\n" + b"y" * 8192 + b"\r\n0\r\n\r\n")
    answer = begun(handler)
    assert answer is not None

    handler.connection_lost(None)

    assert answer[1].read_nowait() == b"x" * 1024 + b"y" * 8192
    assert (answer[1].is_eof(), answer[1].exception()) == (True, None)


async def test_many_small_chunks_that_nobody_reads_do_not_make_the_parser_keep_any() -> None:
    handler, line = awaiting_answer(BoundedHandler)
    handler.data_received(CHUNKED)
    for _ in range(400):
        handler.data_received(b"5\r\nhel")
        handler.data_received(b"lo\r\n")
    answer = begun(handler)
    assert answer is not None

    taken = answer[1].read_nowait()
    handler.data_received(b"5\r\nhel")
    handler.data_received(b"lo\r\n0\r\n\r\n")

    assert taken + answer[1].read_nowait() == b"hello" * 401
    assert not line.is_paused
