from __future__ import annotations

import pytest

from router_service.providers.http_exchange import head_of

ORDINARY = [(b"Accept", b"text/event-stream"), (b"Content-Length", b"2")]


def test_a_head_is_a_request_line_the_host_and_the_headers_as_they_are() -> None:
    assert head_of("POST", b"/v1/chat?x=1", b"api.example.com:8443", ORDINARY) == (
        b"POST /v1/chat?x=1 HTTP/1.1\r\n"
        b"Host: api.example.com:8443\r\n"
        b"Accept: text/event-stream\r\n"
        b"Content-Length: 2\r\n"
        b"\r\n"
    )


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r", b"\0", b"\n\r"])
@pytest.mark.parametrize("place", ["target", "host", "name", "value"])
def test_a_part_that_would_end_its_line_is_refused_and_not_quoted(end: bytes, place: str) -> None:
    parts = {"target": b"/", "host": b"example.com", "name": b"Authorization", "value": b"Bearer secret"}
    parts[place] += end + b"X-Injected: secret"

    with pytest.raises(ValueError, match="line end") as refusal:
        head_of("GET", parts["target"], parts["host"], [(parts["name"], parts["value"])])

    assert "secret" not in str(refusal.value)
