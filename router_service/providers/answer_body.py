"""The body of an answer as events, whichever of its two forms it has: a stream of events, or one JSON object. Pure.

Some servers answer a request for a stream with one object, and most put their errors into one. What the headers call it
is often left out or wrong, so the body's first byte decides: an object begins with a brace, and no line of a stream
that says anything does.
"""

from __future__ import annotations

from typing import Final

from router_service.providers.sse import SseDecoder, SseEvent

MAX_OBJECT_BYTES: Final = 4 << 20
_MAX_BLANK_BYTES: Final = 1024


class BodyUnusable(Exception):
    """The body is nothing that an answer could be read from."""


class AnswerBody:
    """Feeds on bytes as they arrive and gives the events that they complete.

    Raises `BodyUnusable` for an object that is too long, and what `SseDecoder` raises.
    """

    def __init__(self) -> None:
        self._blank = b""  # what arrived while nothing showed which of the two it is
        self._form: SseDecoder | _WholeObject | None = None

    def feed(self, data: bytes) -> list[SseEvent]:
        """Take everything that has arrived and return the events it completes, in order."""
        if self._form is None:
            data = self._blank + data
            begin = data.lstrip()[:1]
            if not begin and len(data) <= _MAX_BLANK_BYTES:
                self._blank = data
                return []
            self._blank = b""
            self._form = _WholeObject() if begin == b"{" else SseDecoder()
        return self._form.feed(data)

    def flush(self) -> list[SseEvent]:
        """Say that the body has ended; return the event that was still open, if any."""
        return self._form.flush() if self._form is not None else []


class _WholeObject:
    """One object, which counts as one event."""

    def __init__(self) -> None:
        self._body = bytearray()

    def feed(self, data: bytes) -> list[SseEvent]:
        if len(self._body) + len(data) > MAX_OBJECT_BYTES:
            raise BodyUnusable(f"it is longer than {MAX_OBJECT_BYTES} bytes")
        self._body += data
        return []

    def flush(self) -> list[SseEvent]:
        return [SseEvent(bytes(self._body))]
