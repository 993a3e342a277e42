"""The event stream format of the HTML standard, said in the plainest way: what the decoder is held against."""

from __future__ import annotations

from router_service.providers.sse import SseEvent


def by_the_standard(stream: bytes) -> list[SseEvent]:
    """The standard's algorithm, one line at a time, with the open event at the end given out too."""
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events, data, name = [], None, ""
    for line in [*text.split(b"\n"), b""]:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if data is not None:
                events.append(SseEvent(b"\n".join(data), name))
            data, name = None, ""
        elif field == b"data":
            data = [*(data or []), value]
        elif field == b"event":
            name = value.decode("utf-8", "replace")
    return events
