"""HTTP to one provider: the httpx seam (`httpx.Request` in, `httpx.Response` out) over aiohttp's connections.

Called directly with a prebuilt request, never through `httpx.AsyncClient`: client and default transport of httpx cost
many times what the request itself does, and `http_exchange` says why aiohttp's client is left out too. The response's
stream yields what has arrived at once.

What it refuses: any origin but the one it was made for, addresses outside the egress policy, redirects (a 3xx is an
answer like any other), content-encodings (none was asked for), proxies and cookies from the environment, huge headers.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

import aiohttp
import httpx
from aiohttp import AddrInfoType
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_reqrep import ClientRequest
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from router_service.providers.bounded_reads import BoundedConnector
from router_service.providers.egress import EgressPolicy
from router_service.providers.http_exchange import AnswerLimits, Exchange, exchange, head_of
from router_service.providers.read_window import BURST_BYTES, HoldableSocket, ReadWindows

_OWN_HEADERS: Final = frozenset({b"host", b"content-length", b"connection", b"transfer-encoding"})  # written here
# The most that one step of a body yields. What a caller does not read waits in pieces of this size: one as bytes, one
# as text, and one on its way out. It is what a burst is, too: whoever gets a whole piece is not reading a trickle.
SLICE_BYTES: Final = BURST_BYTES
_Refusal = Callable[[str], str | None]


class EgressRefused(httpx.ConnectError):
    """Our own policy forbids the address; nothing was sent."""


class _AddressRefused(OSError):
    """An `EgressRefused` on its way through aiohttp, which wraps only `OSError`."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds of one provider's connections."""

    max_connections: int = 1024
    idle_expiry_s: float = 15.0  # below every vendor's own: a connection that the server closes first costs a request
    dns_ttl_s: int = 30
    max_header_line_bytes: int = 16_384
    max_headers: int = 128
    default_connect_timeout_s: float = 3.0


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Connections to the one origin of `base_url`, kept alive between requests.

    `resolver_threads` run the name look-ups, so that a slow name server starves nobody else. Raises only
    `httpx.TransportError`s; the time to connect is `request.extensions["timeout"]["connect"]`, nothing else is timed.
    """

    def __init__(
        self,
        base_url: str,
        policy: EgressPolicy,
        *,
        resolver_threads: Executor,
        tls: ssl.SSLContext | None = None,
        limits: ConnectionLimits | None = None,
        windows: ReadWindows | None = None,
    ) -> None:
        self._origin = _origin(httpx.URL(base_url))
        self._policy = policy
        self._resolver_threads = resolver_threads
        self._tls = tls
        self._limits = limits or ConnectionLimits()
        self._windows = windows or ReadWindows(0)
        self._answer_limits = AnswerLimits(self._limits.max_header_line_bytes, self._limits.max_headers, SLICE_BYTES)
        self._opened: tuple[BoundedConnector, ClientRequest] | None = None  # and what tells it where to connect to
        self._last_url = ("", b"", b"")  # the last address that was checked; its target and its host, as sent
        self._is_closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request` and return when the response's headers are there."""
        url = str(request.url)
        if url != self._last_url[0]:
            if _origin(request.url) != self._origin:
                raise EgressRefused("the request is for another origin than this provider's", request=request)
            parsed = URL(url, encoded=True)
            self._last_url = (url, parsed.raw_path_qs.encode(), (parsed.host_port_subcomponent or "").encode())
        try:
            answer = await self._exchanged(request)
        except (aiohttp.ClientError, HttpProcessingError, OSError, TimeoutError, ValueError) as error:
            raise _fault_before_headers(error, request) from error
        stream: httpx.AsyncByteStream = _ArrivalStream(answer, request, self._windows)
        if any(map(_is_coded, answer.encodings)):
            await stream.aclose()
            if httpx.codes.is_success(answer.status):
                raise httpx.DecodingError("the body has a content-encoding that was not asked for", request=request)
            stream = httpx.ByteStream(b"")  # the status alone says enough; the body could be a bomb
        return httpx.Response(answer.status, headers=answer.headers, stream=stream, request=request)

    async def aclose(self) -> None:
        """Close every connection. Requests that are under way fail; later ones are refused."""
        self._is_closed = True
        if self._opened is not None:
            await self._opened[0].close()

    async def _exchanged(self, request: httpx.Request) -> Exchange:
        connector, place = self._open(request)
        timeout: Mapping[str, float | None] = request.extensions.get("timeout", {})
        connect_s = timeout.get("connect") or self._limits.default_connect_timeout_s
        body = b"".join(request.stream)  # type: ignore[arg-type]  # whole, as whoever made it says
        headers = [header for header in request.headers.raw if header[0].lower() not in _OWN_HEADERS]
        if body or request.method != "GET":
            headers.append((b"Content-Length", b"%d" % len(body)))
        _, target, host = self._last_url
        data = head_of(request.method, target, host, headers) + body
        try:
            return await exchange(connector, place, data, self._answer_limits, connect_s=connect_s)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            if request.method != "GET" or isinstance(error, aiohttp.ClientConnectorError):
                raise
            # The server may have closed a kept connection just then, and to ask again does no harm.
            return await exchange(connector, place, data, self._answer_limits, connect_s=connect_s)

    def _open(self, request: httpx.Request) -> tuple[BoundedConnector, ClientRequest]:
        if self._is_closed:
            raise httpx.ConnectError("the transport is closed", request=request)
        if self._opened is None:  # made late, because aiohttp wants the running loop
            limits = self._limits
            connector = BoundedConnector(
                max_read_bytes=2 * SLICE_BYTES,
                limit=limits.max_connections,
                keepalive_timeout=limits.idle_expiry_s,
                ttl_dns_cache=limits.dns_ttl_s,
                resolver=_CheckedResolver(self._refusal, self._resolver_threads),
                socket_factory=self._checked_socket,
                ssl=self._tls if self._tls is not None else True,
            )
            place = ClientRequest("GET", URL(str(request.url), encoded=True), loop=asyncio.get_running_loop())
            self._opened = (connector, place)
        return self._opened

    def _refusal(self, address: str) -> str | None:
        return self._policy.refusal(address, encrypted=self._origin[0] == "https")

    def _checked_socket(self, info: AddrInfoType) -> socket.socket:
        # The address here is the one that is dialled next: nothing can change between the check and the use.
        family, kind, protocol, _, address = info
        refusal = self._refusal(address[0])
        if refusal is not None:
            raise _AddressRefused(refusal)
        return socket.socket(family, kind, protocol)


class _CheckedResolver(AbstractResolver):
    """Looks names up in threads of its own and refuses a name as soon as one of its addresses is refused."""

    def __init__(self, refusal: _Refusal, threads: Executor) -> None:
        self._refusal = refusal
        self._threads = threads

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        infos = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        )
        results: list[ResolveResult] = []
        for found_family, _, protocol, _, address in infos:
            ip = str(address[0])
            refusal = self._refusal(ip)
            if refusal is not None:
                raise _AddressRefused(refusal)
            results.append(
                ResolveResult(
                    hostname=host,
                    host=ip,
                    port=port,
                    family=found_family,
                    proto=protocol,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        return results

    async def close(self) -> None:
        """Nothing to close: the threads belong to whoever made them."""


class _ArrivalStream(httpx.AsyncByteStream):
    """A body. Each step yields what has arrived, a slice at most; closing before the end drops the connection."""

    def __init__(self, answer: Exchange, request: httpx.Request, windows: ReadWindows) -> None:
        self._answer = answer
        self._request = request
        self._windows = windows
        self._socket: HoldableSocket | None = None  # while it may be held
        self._last_was_full = False
        self._is_burst = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            data = await self._answer.body.read(SLICE_BYTES)
        except (aiohttp.ClientError, OSError) as error:
            data = self._answer.left(SLICE_BYTES)  # whoever reads late misses nothing of what came before the end
            if not data:
                raise _fault_in_body(error, self._request) from error
        if self._socket is not None:
            self._let_go(self._socket)
        if not data:
            raise StopAsyncIteration
        is_full = len(data) == SLICE_BYTES
        self._is_burst = is_full or self._last_was_full  # the end of one is none the less part of it
        self._last_was_full = is_full
        return data

    def hold(self) -> None:
        """See `hold_reading`."""
        if self._is_burst:
            return
        transport = self._answer.transport  # None after the end of the body
        if transport is not None:
            self._socket = transport.get_extra_info("socket")
            if self._socket is not None:
                self._windows.hold(self._socket)

    def has_ended(self) -> bool:
        """See `has_ended`."""
        return self._answer.body.is_eof()

    async def aclose(self) -> None:
        if self._socket is not None:
            self._let_go(self._socket)
        self._answer.close()  # after the end of the body the connection is back in the pool, and this does nothing

    def drop(self) -> None:
        """See `drop_connection`."""
        self._answer.drop()

    def _let_go(self, sock: HoldableSocket) -> None:
        self._windows.let_go(sock)
        self._socket = None


def hold_reading(response: httpx.Response) -> None:
    """Let what arrives from now on gather until the window is over; one step of the stream then yields all of it.

    Not after a burst: its rest is on its way, and gathering would only delay it.
    """
    if isinstance(response.stream, _ArrivalStream):
        response.stream.hold()


def has_ended(response: httpx.Response) -> bool:
    """Whether the end of the body is here, read or not, so that its connection is free already."""
    return isinstance(response.stream, _ArrivalStream) and response.stream.has_ended()


def drop_connection(response: httpx.Response) -> None:
    """Let no other request go out where this answer came from."""
    if isinstance(response.stream, _ArrivalStream):
        response.stream.drop()


def _is_coded(encoding: str) -> bool:
    return encoding.strip().lower() not in {"", "identity"}


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return (url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80))


# The first that fits, from the most special to the most general.
_FAULTS_BEFORE_HEADERS: Final[tuple[tuple[type[Exception], type[httpx.TransportError], str], ...]] = (
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout, "no connection in time"),
    (aiohttp.ClientConnectorCertificateError, httpx.ConnectError, "the server's certificate is not valid"),
    (aiohttp.ClientConnectorSSLError, httpx.ConnectError, "the TLS handshake failed"),
    (aiohttp.ClientConnectorDNSError, httpx.ConnectError, "the host name does not resolve"),
    (aiohttp.ClientConnectorError, httpx.ConnectError, "the connection failed"),
    (TimeoutError, httpx.ReadTimeout, "the server is silent"),
    (aiohttp.ServerDisconnectedError, httpx.RemoteProtocolError, "the server closed the connection without an answer"),
    (HttpProcessingError, httpx.RemoteProtocolError, "the answer is not HTTP or its headers are too large"),
    (aiohttp.ClientConnectionResetError, httpx.WriteError, "the connection broke while the request was sent"),
    (OSError, httpx.ReadError, "the connection broke before the answer"),
    (ValueError, httpx.LocalProtocolError, "the request cannot be written as HTTP"),
    (Exception, httpx.RemoteProtocolError, "the exchange failed before the answer"),
)


def _fault_before_headers(error: Exception, request: httpx.Request) -> httpx.TransportError:
    """The httpx exception for what happened before the response's headers were whole.

    No text of `error` is passed on: aiohttp quotes header values and bytes of the wire in it.
    """
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, _AddressRefused):
        return EgressRefused(str(error.os_error), request=request)
    fault, text = next((fault, text) for kind, fault, text in _FAULTS_BEFORE_HEADERS if isinstance(error, kind))
    return fault(text, request=request)


def _fault_in_body(error: Exception, request: httpx.Request) -> httpx.TransportError:
    if isinstance(error, TimeoutError):
        return httpx.ReadTimeout("the server fell silent", request=request)
    if isinstance(error, aiohttp.ClientPayloadError):  # a reset within a chunk too: aiohttp tells them apart in prose
        return httpx.RemoteProtocolError("the body is cut off or malformed", request=request)
    return httpx.ReadError("the connection broke in the body", request=request)
