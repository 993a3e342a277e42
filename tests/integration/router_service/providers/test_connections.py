"""When a connection is kept for the next request, and when it goes. Real sockets."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest
from aiohttp import StreamReader

from router_service.providers.transport import ConnectionLimits, drop_connection
from tests.integration.router_service.providers.transports import Open, get, in_chunks, post, read_all
from tests.support.provider_server import ScriptedProvider


async def test_a_connection_whose_answer_came_in_odd_pieces_serves_the_next_one(open_transport: Open) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + in_chunks(b"0123456789" * 3, 7)
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                for byte in answer:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        transport = open_transport(url)
        bodies = [b"".join(await read_all(await transport.handle_async_request(get(url)))) for _ in range(3)]
        await transport.aclose()

        assert bodies == [b"0123456789" * 3] * 3
        assert connections == 1


@pytest.mark.parametrize(("method", "connections"), [("GET", 2), ("POST", 1)])
async def test_only_what_does_no_harm_is_asked_again_when_a_kept_connection_turns_out_closed(
    open_transport: Open, method: str, connections: int
) -> None:
    asked: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(0)
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                asked[-1] += 1
                if asked == [2]:
                    break
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        transport = open_transport(url)
        await read_all(await transport.handle_async_request(httpx.Request(method, url)))
        if method == "GET":
            response = await transport.handle_async_request(httpx.Request(method, url))
            assert await read_all(response) == [b"ok"]
        else:
            with pytest.raises(httpx.RemoteProtocolError):
                await transport.handle_async_request(httpx.Request(method, url))
        await transport.aclose()

        assert len(asked) == connections


async def test_a_connection_whose_server_left_a_request_unread_serves_no_other(open_transport: Open) -> None:
    """What is still to be written of the first request would stand in the way of the second for ever."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno")
        await is_over.wait()
        writer.close()

    is_over = asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        transport = open_transport(url)
        for body in (b"x" * (32 << 20), b"x"):  # far more than the kernel takes for a reader who does not read
            request = httpx.Request("POST", url, content=body)
            response = await asyncio.wait_for(transport.handle_async_request(request), 30)
            assert await read_all(response) == [b"no"]
        await transport.aclose()
        is_over.set()

        assert connections == 2


async def test_what_a_server_sends_unasked_is_no_answer_to_the_next_request(open_transport: Open) -> None:
    """On a kept connection that would be another tenant's."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await is_read.wait()
            is_read.clear()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen")
            await reader.readuntil(b"\r\n\r\n")  # ends with the connection
        may_go_on.set()
        writer.close()

    is_read, may_go_on = asyncio.Event(), asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        transport = open_transport(url)
        for _ in range(2):
            assert await read_all(await transport.handle_async_request(get(url))) == [b"ok"]
            is_read.set()
            await asyncio.wait_for(may_go_on.wait(), 30)
            may_go_on.clear()
        await transport.aclose()

        assert connections == 2


async def test_an_answer_that_is_given_up_takes_its_connection_with_it_whatever_is_still_to_be_sent(
    open_transport: Open,
) -> None:
    """Descriptor and request would else be kept for as long as the server reads nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await is_given_up.wait()
        with suppress(ConnectionError):
            while data := await reader.read(1 << 20):
                received.append(len(data))
        has_ended.set()
        writer.close()

    received: list[int] = []
    is_given_up, has_ended = asyncio.Event(), asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        request = httpx.Request("POST", url, content=b"x" * (32 << 20))  # far more than the kernel takes
        await give_up(await open_transport(url).handle_async_request(request))
        is_given_up.set()
        await asyncio.wait_for(has_ended.wait(), 30)

        assert sum(received) < 32 << 20


@pytest.mark.parametrize("is_being_read", [True, False])
async def test_closing_the_transport_ends_an_answer_that_is_under_way(
    open_transport: Open, *, is_being_read: bool
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        transport = open_transport(url)
        response = await transport.handle_async_request(get(url))
        arrivals = aiter(response.stream)  # type: ignore[arg-type]
        assert await anext(arrivals) == b"hello"
        reading = asyncio.create_task(rest_of(arrivals))
        if is_being_read:
            await asyncio.sleep(0)

        await transport.aclose()

        with pytest.raises(httpx.ReadError):
            await asyncio.wait_for(reading, 30)
        await response.aclose()


async def rest_of(arrivals: AsyncIterator[bytes]) -> list[bytes]:
    return [data async for data in arrivals]


async def test_an_answer_that_is_given_up_waits_for_no_garbage_collection(open_transport: Open) -> None:
    """What had arrived of a thousand answers would else be kept until there is one, which is seldom in a router."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + in_chunks(b"x" * 4000, 40)[:-5])
        await writer.drain()
        await reader.read()  # the other side's end
        writer.close()

    gc.collect()
    gc.disable()
    try:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            transport = open_transport(url)
            for _ in range(10):
                await give_up(await transport.handle_async_request(get(url)))
            await transport.aclose()
            await asyncio.sleep(0.1)  # connections end in the loop

            assert [kept for kept in gc.get_objects() if type(kept) is StreamReader] == []
    finally:
        gc.enable()


async def give_up(response: httpx.Response) -> None:
    """Read a little of an answer, and close it before its end."""
    arrivals = aiter(response.stream)  # type: ignore[arg-type]  # ours is asynchronous
    await anext(arrivals)
    await response.aclose()


async def test_a_closed_transport_refuses(server: ScriptedProvider, open_transport: Open) -> None:
    transport = open_transport(server.base_url)
    await transport.aclose()

    with pytest.raises(httpx.ConnectError, match="closed"):
        await transport.handle_async_request(get(server.base_url))


async def test_no_more_connections_than_allowed_are_opened(server: ScriptedProvider, open_transport: Open) -> None:
    transport = open_transport(server.base_url, limits=ConnectionLimits(max_connections=1))
    held = await transport.handle_async_request(post(server.base_url, "silence"))

    with pytest.raises(httpx.ConnectTimeout):
        await transport.handle_async_request(get(f"{server.base_url}/models", connect_s=0.05))

    await held.aclose()
    assert server.connections_accepted == 1


async def test_a_connection_is_not_dropped_under_the_request_that_has_it_by_now(open_transport: Open) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                await may_answer.wait()
        writer.close()

    may_answer = asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        transport = open_transport(url)
        first = await transport.handle_async_request(get(url))
        await read_all(first)
        second = asyncio.create_task(transport.handle_async_request(get(url)))
        await asyncio.sleep(0)  # it is on its way, on the same connection

        drop_connection(first)
        may_answer.set()

        assert await read_all(await second) == [b"ok"]
        await transport.aclose()
