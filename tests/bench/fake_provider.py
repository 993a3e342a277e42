"""A provider of OpenAI's wire that costs next to nothing: every answer is made of bytes that were computed at start.

The requested model chooses the answer: `one` delta, 50 in a `burst` of one write, 50 `paced` 10 ms apart, 50 `slow`
ones 250 ms apart, or a `long` answer of 500 larger ones in one write, for a reader that does not read it.
Prints its port as the only line of its output, and serves until its input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Final, cast

import uvloop

DELTAS: Final = 50
GAP_S: Final = 0.010
SLOW_GAP_S: Final = 0.250
LONG_DELTAS: Final = 500
_LONG_WORDS: Final = 100  # in each of them: far over what HTTP/2 lets a server send before it is read
MODELS: Final = ("one", "burst", "paced", "slow", "long")

_END_OF_HEADERS: Final = b"\r\n\r\n"
_MAX_REQUEST_BYTES: Final = 1 << 20


def _event(choices: list[dict[str, object]], **fields: object) -> bytes:
    chunk = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1_790_000_000, "model": "bench"}
    data = b"data: " + json.dumps({**chunk, "choices": choices, **fields}, separators=(",", ":")).encode() + b"\n\n"
    return _http_chunk(data)


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _usage(deltas: int) -> dict[str, int]:
    return {"prompt_tokens": 12, "completion_tokens": deltas, "total_tokens": 12 + deltas}


def stream_pieces(deltas: int, *, words: int = 1) -> Sequence[bytes]:
    """A streamed answer, headers first, one piece for each delta, and the end with finish reason and usage."""
    headers = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    role = _event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
    texts = [
        _event([{"index": 0, "delta": {"content": f"word{number} " * words}, "finish_reason": None}])
        for number in range(deltas)
    ]
    finish = _event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    end = finish + _event([], usage=_usage(deltas)) + _http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    return [headers + role, *texts, end]


def _json_answer(value: object) -> bytes:
    body = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


_ONE: Final = b"".join(stream_pieces(1))
_BURST: Final = b"".join(stream_pieces(DELTAS))
_PACED: Final = stream_pieces(DELTAS)
_LONG: Final = b"".join(stream_pieces(LONG_DELTAS, words=_LONG_WORDS))
LONG_BYTES: Final = len(_LONG)
_WHOLE: Final = _json_answer(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "model": "bench",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word0 "}, "finish_reason": "stop"}],
        "usage": _usage(1),
    }
)
_MODEL_LIST: Final = _json_answer({"object": "list", "data": [{"id": model, "object": "model"} for model in MODELS]})


class _Connection(asyncio.Protocol):
    """One kept-alive connection. A client sends the next request when it has the whole answer to the last."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._received = b""
        self._transport: asyncio.WriteTransport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is one by its methods, not by its type

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(_END_OF_HEADERS)
        if end < 0 or len(self._received) < end + len(_END_OF_HEADERS) + _content_length(self._received[:end]):
            if len(self._received) > _MAX_REQUEST_BYTES:
                raise ValueError(f"a request of over {_MAX_REQUEST_BYTES} bytes")
            return
        request, self._received = self._received, b""
        self._answer(request, request[end:].replace(b" ", b""))

    def _answer(self, request: bytes, body: bytes) -> None:
        assert self._transport is not None
        if request.startswith(b"GET "):
            self._transport.write(_MODEL_LIST)
        elif b'"stream":true' not in body:
            self._transport.write(_WHOLE)
        elif b'"model":"burst"' in body:
            self._transport.write(_BURST)
        elif b'"model":"paced"' in body:
            self._begin_paced(GAP_S)
        elif b'"model":"slow"' in body:
            self._begin_paced(SLOW_GAP_S)
        elif b'"model":"long"' in body:
            self._transport.write(_LONG)
        else:
            self._transport.write(_ONE)

    def _begin_paced(self, gap_s: float) -> None:
        # Headers, role and first delta at once, so that the time to first token holds no gap of the provider.
        assert self._transport is not None
        self._transport.write(_PACED[0] + _PACED[1])
        self._after_gap(gap_s, 2)

    def _after_gap(self, gap_s: float, piece: int) -> None:
        self._timer = self._loop.call_later(gap_s, self._send_paced, gap_s, piece)

    def _send_paced(self, gap_s: float, piece: int) -> None:
        assert self._transport is not None
        self._transport.write(_PACED[piece])
        if piece + 1 < len(_PACED):
            self._after_gap(gap_s, piece + 1)


def _content_length(headers: bytes) -> int:
    for line in headers.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(loop), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    uvloop.run(_serve())
