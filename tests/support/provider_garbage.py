"""Bytes that no provider should send, for the behaviours `raw` and `events` of `provider_scripts`.

`ANSWERS` are whole HTTP answers, or what stands in the place of one. `STREAMS` are bodies of event streams that are odd
in form and still say something: each with the text that they mean, and the completion tokens that they report, None
where the report is not credible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
_BODY: Final = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'

ANSWERS: Final[Mapping[str, bytes]] = {
    "another protocol": b"SSH-2.0-OpenSSH_9.9\r\n",
    "nothing": b"",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "a status of nine digits": b"HTTP/1.1 200200200 OK\r\n\r\n",
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    "a flood of continues": b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
    "a length that is no number": _HEAD + b"Content-Length: many\r\n\r\n" + _BODY,
    "a negative length": _HEAD + b"Content-Length: -5\r\n\r\n" + _BODY,
    "a length beyond the body": _HEAD + b"Content-Length: 100000\r\n\r\n" + _BODY[:20],
    "a length of twenty digits": _HEAD + b"Content-Length: 99999999999999999999\r\n\r\n" + _BODY[:20],
    "two lengths": _HEAD + b"Content-Length: 5\r\nContent-Length: 7\r\n\r\n" + _BODY,
    "a length and chunks": _HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "a chunk size that is no number": _HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nx\r\n",
    "a chunk size beyond all memory": _HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx\r\n",
    "a NUL in a header": _HEAD + b"X-Odd: a\0b\r\n\r\n" + _BODY,
    "a header without an end": _HEAD + b"X-Odd: " + b"x" * 400_000,
    "ten thousand headers": _HEAD + b"".join(b"X-%d: y\r\n" % number for number in range(10_000)) + b"\r\n",
}


class Odd(NamedTuple):
    """A body, and what it means."""

    body: bytes
    text: str
    output_tokens: int | None = 7


def _delta(content: bytes) -> bytes:
    return b'{"choices":[{"index":0,"delta":{"content":"' + content + b'"},"finish_reason":null}]}'


def _end(usage: bytes = b'{"prompt_tokens":3,"completion_tokens":7,"total_tokens":10}') -> bytes:
    return b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":' + usage + b"}"


def _stream(*data: bytes, end: bytes = b"\n\n") -> bytes:
    return b"".join(b"data: " + one + end for one in (*data, b"[DONE]"))


def _says(content: bytes, text: str) -> Odd:
    return Odd(_stream(_delta(content), _end()), text)


def _counts(usage: bytes, output_tokens: int | None = None) -> Odd:
    return Odd(_stream(_delta(b"hi"), _end(usage)), "hi", output_tokens)


_USAGE: Final = b'{"prompt_tokens":3,"completion_tokens":%b,"total_tokens":10}'

STREAMS: Final[Mapping[str, Odd]] = {
    "carriage returns": Odd(_stream(_delta(b"hi"), _end(), end=b"\r\r"), "hi"),
    "both line ends": Odd(_stream(_delta(b"hi"), _end(), end=b"\r\n\n"), "hi"),
    "a byte order mark": Odd(b"\xef\xbb\xbf" + _stream(_delta(b"hi"), _end()), "hi"),
    "no blank after the colon": Odd(_stream(_delta(b"hi"), _end()).replace(b"data: ", b"data:"), "hi"),
    "data on several lines": Odd(_stream(_delta(b"hi").replace(b",", b",\ndata: "), _end()), "hi"),
    "comments and other fields": Odd(
        b": hello\n\nid: 1\nretry: 5\nevent: message\n" + _stream(_delta(b"hi"), _end()) + b": bye\n\n", "hi"
    ),
    "no end of the last event": Odd(_stream(_delta(b"hi"), _end())[:-2], "hi"),
    "bytes that are no UTF-8": _says(b"a\xff\xfeb", "a\ufffd\ufffdb"),
    "a separator of lines": _says("a\u2028b\u0085c".encode(), "a\u2028b\u0085c"),
    "a lone surrogate": _says(rb"a\ud800b", "a?b"),
    "a NUL": _says(rb"a\u0000b", "a\0b"),
    # What follows from the other two numbers is credible; what stands there is not.
    "a number that is none": _counts(_USAGE % b"NaN", 7),
    "an infinite number": _counts(_USAGE % b"Infinity", 7),
    "a number of five thousand digits": _counts(_USAGE % (b"9" * 5000), 7),
    "a negative number": _counts(b'{"prompt_tokens":3,"completion_tokens":-7}'),
    "a number beyond 64 bits": _counts(b'{"prompt_tokens":3,"completion_tokens":9223372036854775808}'),
    "a number as a float": _counts(_USAGE % b"7.0", 7),
    "a number as text": _counts(_USAGE % b'"7"', 7),
    "usage that is a list": _counts(b"[1,2,3]"),
    "usage twice": Odd(
        _stream(
            _delta(b"hi"),
            _end(b'{"prompt_tokens":3,"completion_tokens":6}'),
            b'{"choices":[],"usage":%b}' % (_USAGE % b"7"),
        ),
        "hi",
    ),
    "a key twice": _counts(b'{"prompt_tokens":3,"completion_tokens":9,"completion_tokens":7,"total_tokens":-5}', 7),
    "no choices, and other choices": Odd(
        _stream(b"{}", b'{"choices":[]}', b'{"choices":[{"index":5,"delta":{"content":"no"}}]}', _delta(b"hi"), _end()),
        "hi",
    ),
    "fields of wrong types": Odd(
        _stream(
            b'{"id":5,"model":["x"],"choices":[{"index":0,"delta":{"content":"hi","tool_calls":{"a":1}}}]}', _end()
        ),
        "hi",
    ),
}
