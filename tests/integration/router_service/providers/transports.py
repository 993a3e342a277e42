"""Transports to servers of the tests' own, and what is asked through them."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from router_service.providers.egress import EgressPolicy, parse_networks
from router_service.providers.transport import AiohttpTransport

LOOPBACK = EgressPolicy(parse_networks(["127.0.0.1"]))
Open = Callable[..., AiohttpTransport]


def get(url: str, *, connect_s: float = 2.0) -> httpx.Request:
    return httpx.Request("GET", url, extensions={"timeout": {"connect": connect_s}})


def post(url: str, model: str) -> httpx.Request:
    return httpx.Request("POST", f"{url}/chat/completions", json={"model": model, "messages": []})


def in_chunks(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


async def read_all(response: httpx.Response) -> list[bytes]:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    try:
        return [data async for data in response.stream]
    finally:
        await response.aclose()
