"""A connection's end, and when it is noticed: what came before it counts, and nothing comes after it. Real sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.integration.router_service.providers.transports import Open, get, in_chunks, read_all
from tests.support.certificates import self_signed

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


@contextmanager
def server_of(*answers: Callable[[socket.socket], None], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The address of a server in a thread: it works while our loop does not. Each connection has its answer."""

    def serve() -> None:
        with ExitStack() as connections, suppress(TimeoutError):
            for answer in answers:
                connection, _ = listening.accept()
                answer(connections.enter_context(tls.wrap_socket(connection, server_side=True) if tls else connection))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listening.getsockname()[1]}"
        thread.join(30)
        assert not thread.is_alive()


def read_head(connection: socket.socket) -> None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1 << 16)


def end_and_wait(connection: socket.socket) -> None:
    """Send a FIN, without TLS's farewell, and wait until the other side has closed the connection for it."""
    socket.socket.shutdown(connection, socket.SHUT_WR)
    while socket.socket.recv(connection, 1 << 16):
        pass


@pytest.mark.parametrize("size", [10, 10_000])
async def test_what_came_before_a_body_broke_off_is_read_first_however_late(open_transport: Open, size: int) -> None:
    """A reader is late where his caller is slow. [DONE] may be among it, and what was consumed."""
    text = bytes(range(65, 75)) * (size // 10)

    def answer(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(CHUNKED + in_chunks(text, 1_000).removesuffix(b"0\r\n\r\n"))
        end_and_wait(connection)
        is_over.set()

    is_over = threading.Event()
    with server_of(answer) as url:
        response = await open_transport(url).handle_async_request(get(url))
        await asyncio.to_thread(is_over.wait, 30)
        arrivals = aiter(response.stream)  # type: ignore[arg-type]  # ours is asynchronous
        arrived = b""
        while len(arrived) < size:
            arrived += await anext(arrivals)
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(arrivals)
        await response.aclose()

    assert arrived == text


@pytest.mark.parametrize("is_late", [False, True])
async def test_what_came_over_tls_before_the_end_is_read_however_late(
    open_transport: Open, tmp_path: Path, *, is_late: bool
) -> None:
    """uvloop forgets what it has not yet given out when the connection ends."""
    certificate, key = self_signed(tmp_path, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    text = bytes(range(256)) * 400

    def answer(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(CHUNKED + in_chunks(text, 1_000))
        end_and_wait(connection)
        is_over.set()

    is_over = threading.Event()
    with server_of(answer, tls=context) as url:
        transport = open_transport(url, tls=ssl.create_default_context(cafile=certificate))
        response = await transport.handle_async_request(get(url))
        if is_late:
            await asyncio.to_thread(is_over.wait, 30)
        arrived = await read_all(response)

    assert b"".join(arrived) == text


def says_more(connection: socket.socket) -> None:
    connection.sendall(WHOLE + b"no")


def ends(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)


def breaks(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("goes", [says_more, ends, breaks])
async def test_a_kept_connection_on_which_something_has_come_serves_nobody_though_the_loop_has_not_seen_it(
    open_transport: Open, goes: Callable[[socket.socket], None]
) -> None:
    """What it says would be taken for the answer, and every answer after it for another request's."""

    def first(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(WHOLE + b"ok")
        is_read.wait(30)
        goes(connection)
        has_gone.set()

    def second(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(WHOLE + b"ok")

    is_read, has_gone = threading.Event(), threading.Event()
    with server_of(first, second) as url:
        transport = open_transport(url)
        assert await read_all(await transport.handle_async_request(httpx.Request("POST", url))) == [b"ok"]
        is_read.set()
        has_gone.wait(30)  # in the loop's own thread: it sees nothing of this

        assert await read_all(await transport.handle_async_request(httpx.Request("POST", url))) == [b"ok"]
        await transport.aclose()
