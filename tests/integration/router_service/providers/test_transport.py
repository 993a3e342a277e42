"""The transport against real sockets: which exception each fault becomes, and where it refuses to connect."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import StreamReader

from router_service.domain.errors import FailureKind
from router_service.providers.catalog import CATALOG, build_catalog
from router_service.providers.egress import EgressPolicy, parse_networks
from router_service.providers.provider_set import HttpSettings, build_providers
from router_service.providers.transport import SLICE_BYTES, AiohttpTransport, ConnectionLimits, EgressRefused
from tests.support.certificates import self_signed
from tests.support.provider_requests import Asker, at, candidate, collect, completion, credential
from tests.support.provider_server import ScriptedProvider

LOOPBACK = EgressPolicy(parse_networks(["127.0.0.1"]))
Open = Callable[..., AiohttpTransport]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


@pytest.fixture
async def open_transport(threads: ThreadPoolExecutor) -> AsyncIterator[Open]:
    opened: list[AiohttpTransport] = []

    def open_one(base_url: str, policy: EgressPolicy = LOOPBACK, **options: Any) -> AiohttpTransport:
        opened.append(AiohttpTransport(base_url, policy, resolver_threads=threads, **options))
        return opened[-1]

    yield open_one
    for transport in opened:
        await transport.aclose()


def get(url: str, *, connect_s: float = 2.0) -> httpx.Request:
    return httpx.Request("GET", url, extensions={"timeout": {"connect": connect_s}})


def post(url: str, model: str) -> httpx.Request:
    return httpx.Request("POST", f"{url}/chat/completions", json={"model": model, "messages": []})


async def read_all(response: httpx.Response) -> list[bytes]:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    try:
        return [data async for data in response.stream]
    finally:
        await response.aclose()


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


def in_chunks(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


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


async def test_a_request_that_cannot_be_written_as_http_is_not_sent(
    server: ScriptedProvider, open_transport: Open
) -> None:
    request = httpx.Request("GET", f"{server.base_url}/models", headers={"Authorization": "Bearer a\r\nX-Injected: b"})

    with pytest.raises(httpx.LocalProtocolError) as refusal:
        await open_transport(server.base_url).handle_async_request(request)

    assert "Bearer" not in str(refusal.value)
    assert not server.served


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


async def test_switching_protocols_is_an_answer_like_any_other(open_transport: Open) -> None:
    answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"

    assert (await raw_answer(answer, open_transport)).status_code == 101


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


async def test_the_environments_proxy_does_not_see_a_request(
    server: ScriptedProvider, open_transport: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ScriptedProvider() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")

        await read_all(await open_transport(server.base_url).handle_async_request(get(f"{server.base_url}/models")))

        assert proxy.connections_accepted == 0


# ── K5: where it connects ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"])
async def test_a_vendors_name_never_leads_to_this_machine(
    server: ScriptedProvider, open_transport: Open, host: str
) -> None:
    url = f"http://{host}:{server.port}/v1"

    with pytest.raises(EgressRefused):
        await open_transport(url, EgressPolicy()).handle_async_request(get(f"{url}/models"))

    assert server.connections_accepted == 0


async def test_an_address_written_as_one_number_is_not_even_tried(
    server: ScriptedProvider, open_transport: Open
) -> None:
    url = f"http://2130706433:{server.port}/v1"

    with pytest.raises(httpx.LocalProtocolError):
        await open_transport(url).handle_async_request(get(f"{url}/models"))

    assert server.connections_accepted == 0


async def test_one_forbidden_address_among_several_refuses_the_name(
    server: ScriptedProvider, open_transport: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, server.port))
        for address in ("127.0.0.1", "169.254.169.254")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    url = f"http://gateway.test:{server.port}/v1"

    with pytest.raises(EgressRefused, match=r"169\.254\.169\.254"):
        await open_transport(url).handle_async_request(get(f"{url}/models"))

    assert server.connections_accepted == 0


async def test_the_address_that_was_checked_is_the_one_that_is_dialled(
    server: ScriptedProvider, open_transport: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ups: list[object] = []

    def look_up(host: object, *_: object, **__: object) -> list[Any]:
        look_ups.append(host)
        address = "127.0.0.1" if len(look_ups) == 1 else "169.254.169.254"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, server.port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    url = f"http://rebinding.test:{server.port}/v1"

    await read_all(await open_transport(url).handle_async_request(get(f"{url}/models")))

    assert look_ups == ["rebinding.test"]
    assert server.served[0].headers["host"] == f"rebinding.test:{server.port}"


async def test_a_name_that_does_not_resolve_is_a_connect_error(
    open_transport: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    with pytest.raises(httpx.ConnectError, match="resolve"):
        await open_transport("https://nowhere.test").handle_async_request(get("https://nowhere.test"))


async def test_another_origin_than_the_configured_one_is_refused(
    server: ScriptedProvider, open_transport: Open
) -> None:
    async with ScriptedProvider() as other:
        with pytest.raises(EgressRefused, match="origin"):
            await open_transport(server.base_url).handle_async_request(get(f"{other.base_url}/models"))

        assert other.connections_accepted == 0


async def test_a_vendor_at_a_loopback_address_is_refused_and_the_local_server_is_not(server: ScriptedProvider) -> None:
    providers = build_providers(build_catalog({"groq": server.base_url, "local": server.base_url}))

    vendor = await Asker(providers, server.base_url)("ok", provider="groq")
    local = await Asker(providers, server.base_url)("ok", provider="local")
    await providers.aclose()

    assert vendor.failure.kind is FailureKind.POLICY_REFUSED
    assert not vendor.failure.may_have_reached_provider
    assert local.finished


async def test_a_refused_connection_has_surely_consumed_nothing(server: ScriptedProvider, ask: Asker) -> None:
    await server.stop()

    failure = (await ask("ok")).failure

    assert failure.kind is FailureKind.CONNECT_FAILED
    assert not failure.may_have_reached_provider


async def test_a_key_is_never_shown_to_another_address(server: ScriptedProvider, ask: Asker) -> None:
    providers = build_providers(build_catalog({"local": "http://127.0.0.1:9/v1"}))
    elsewhere = candidate(at(CATALOG["local"], server.base_url), "ok")

    answer = await collect(providers["local"].stream(elsewhere, completion(), connect_timeout_s=1))
    verdict = await providers["local"].verify_key(server.base_url, credential())
    await providers.aclose()

    assert answer.failure.kind is FailureKind.POLICY_REFUSED
    assert verdict[0].value == "unknown"
    assert server.connections_accepted == 0


# ── B15: certificates ───────────────────────────────────────────────────────────────────────────────────────────────


async def over_tls(tmp_path: Path, name: str, *, trusted: bool, expired: bool = False) -> FailureKind | None:
    """The kind of failure, if any, of asking a server on 127.0.0.1 whose certificate is for `name`."""
    certificate, key = self_signed(tmp_path, name, expired=expired)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with ScriptedProvider(tls=context) as server:
        settings = HttpSettings(parse_networks(["127.0.0.1"]), ca_file=str(certificate) if trusted else None)
        providers = build_providers(build_catalog({"groq": server.base_url}), settings)
        answer = await Asker(providers, server.base_url)("ok")
        await providers.aclose()
        assert answer.error is None or server.served == []
        return answer.error.kind if answer.error is not None else None


async def test_a_certificate_that_is_trusted_and_fits_is_accepted(tmp_path: Path) -> None:
    assert await over_tls(tmp_path, "127.0.0.1", trusted=True) is None


@pytest.mark.parametrize(
    ("name", "trusted", "expired"), [("127.0.0.1", False, False), ("127.0.0.2", True, False), ("127.0.0.1", True, True)]
)
async def test_any_other_certificate_ends_the_attempt_before_anything_is_sent(
    tmp_path: Path, name: str, trusted: bool, expired: bool
) -> None:
    assert await over_tls(tmp_path, name, trusted=trusted, expired=expired) is FailureKind.CONNECT_FAILED
