"""The transport against real sockets: which exception each fault becomes, and where it refuses to connect."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest
from aiohttp import StreamReader

from router_service.providers.transport import SLICE_BYTES
from tests.integration.router_service.providers.transports import Open, get, in_chunks, post, read_all
from tests.support.provider_server import ScriptedProvider


async def test_an_answer_comes_through_with_status_headers_and_body(
    server: ScriptedProvider, open_transport: Open
) -> None:
    transport = open_transport(server.base_url)

    response = await transport.handle_async_request(get(f"{server.base_url}/models"))

    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert b"scripted-small" in b"".join(await read_all(response))


async def test_what_has_arrived_is_given_out_at_once(server: ScriptedProvider, open_transport: Open) -> None:
    transport = open_transport(server.base_url)
    response = await transport.handle_async_request(post(server.base_url, "ok?n=50&end_ms=100"))
    await asyncio.sleep(0.05)  # everything is on this side by now

    pieces = await read_all(response)

    assert len(pieces) < 10
    assert b"".join(pieces).count(b"data: ") == 53


async def test_nobody_listening_is_a_connect_error(open_transport: Open) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"

        with pytest.raises(httpx.ConnectError):
            await open_transport(url).handle_async_request(get(url))


async def test_a_connection_that_is_not_taken_is_a_connect_timeout(open_transport: Open) -> None:
    """B1: a full backlog drops the next SYN, as a black hole does."""
    with socket.socket() as deaf, socket.socket() as filler:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        filler.connect(deaf.getsockname())
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"

        with pytest.raises(httpx.ConnectTimeout):
            await open_transport(url).handle_async_request(get(url, connect_s=0.1))


async def test_a_tls_handshake_that_does_not_end_is_a_connect_timeout(
    server: ScriptedProvider, open_transport: Open
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"

        with pytest.raises(httpx.ConnectTimeout):
            await open_transport(url).handle_async_request(get(url, connect_s=0.1))


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("close?headers=0", httpx.RemoteProtocolError),
        ("reset?headers=0", httpx.ReadError),
        ("huge-headers?size=300000", httpx.RemoteProtocolError),
        ("huge-headers?size=10&n=1000", httpx.RemoteProtocolError),
        ("gzip", httpx.DecodingError),
    ],
)
async def test_every_fault_before_the_headers_has_its_exception(
    server: ScriptedProvider, open_transport: Open, script: str, fault: type[Exception]
) -> None:
    with pytest.raises(fault) as caught:
        await open_transport(server.base_url).handle_async_request(post(server.base_url, script))

    assert type(caught.value) is fault


@pytest.mark.parametrize(
    ("script", "fault"),
    [("close?after=1", httpx.RemoteProtocolError), ("reset?after=1&pause_ms=20", httpx.RemoteProtocolError)],
)
async def test_every_fault_in_the_body_has_its_exception(
    server: ScriptedProvider, open_transport: Open, script: str, fault: type[Exception]
) -> None:
    response = await open_transport(server.base_url).handle_async_request(post(server.base_url, script))

    with pytest.raises(fault) as caught:
        await read_all(response)

    assert type(caught.value) is fault


async def raw_answer(answer: bytes, open_transport: Open) -> httpx.Response:
    """The response to a server that says just `answer`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        response = await open_transport(url).handle_async_request(get(url))
        await read_all(response)
        return response


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nx\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
        b"",
    ],
)
async def test_bytes_that_are_no_http_are_a_protocol_error(answer: bytes, open_transport: Open) -> None:
    """B9."""
    with pytest.raises(httpx.RemoteProtocolError):
        await raw_answer(answer, open_transport)


LONG_BODY = bytes(range(256)) * 4096


@pytest.mark.parametrize(
    ("header", "coded"),
    [
        (b"Content-Length: %d" % len(LONG_BODY), LONG_BODY),
        (b"Transfer-Encoding: chunked", in_chunks(LONG_BODY, 17)),
        (b"Transfer-Encoding: chunked", in_chunks(LONG_BODY, 1000)),
        (b"Transfer-Encoding: chunked", in_chunks(LONG_BODY, 1 << 18)),
    ],
    ids=["whole", "tiny chunks", "chunks", "huge chunks"],
)
async def test_what_nobody_reads_stays_outside_but_for_a_few_slices(
    open_transport: Open, monkeypatch: pytest.MonkeyPatch, header: bytes, coded: bytes
) -> None:
    let_in = 0
    take = StreamReader.feed_data

    def count(body: StreamReader, data: bytes, size: int = 0) -> bool:
        nonlocal let_in
        let_in += len(data)
        return take(body, data, size)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + header + b"\r\n\r\n" + coded)
        await writer.drain()
        writer.close()

    monkeypatch.setattr(StreamReader, "feed_data", count)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        response = await open_transport(url).handle_async_request(get(url))
        arrivals = aiter(response.stream)  # type: ignore[arg-type]
        slices = [await anext(arrivals)]
        for _ in range(50):
            await asyncio.sleep(0)  # the loop would read on if it were let
        let_in_for_one_slice = let_in
        slices += [data async for data in arrivals]

        assert let_in_for_one_slice <= 6 * SLICE_BYTES
        assert max(len(data) for data in slices) <= SLICE_BYTES
        assert b"".join(slices) == LONG_BODY


async def test_a_body_that_turns_malformed_ends_at_once(open_transport: Open) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await may_go_on.wait()
        writer.write(b"no size\r\n")
        await reader.read()
        writer.close()

    may_go_on = asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        response = await open_transport(url).handle_async_request(get(url))
        arrivals = aiter(response.stream)  # type: ignore[arg-type]
        assert await anext(arrivals) == b"hello"
        may_go_on.set()

        with pytest.raises(httpx.RemoteProtocolError):
            await asyncio.wait_for(anext(arrivals), 10)
        await response.aclose()


async def test_a_request_that_cannot_be_written_as_http_is_not_sent(
    server: ScriptedProvider, open_transport: Open
) -> None:
    request = httpx.Request("GET", f"{server.base_url}/models", headers={"Authorization": "Bearer a\r\nX-Injected: b"})

    with pytest.raises(httpx.LocalProtocolError) as refusal:
        await open_transport(server.base_url).handle_async_request(request)

    assert "Bearer" not in str(refusal.value)
    assert not server.served


async def test_switching_protocols_is_an_answer_like_any_other(open_transport: Open) -> None:
    answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"

    assert (await raw_answer(answer, open_transport)).status_code == 101
