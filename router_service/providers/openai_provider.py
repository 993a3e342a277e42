"""Any provider that speaks OpenAI's chat wire: `routing.ports.Provider` over one transport."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Final
from urllib.parse import quote

import httpx

from router_service.domain.candidate import Candidate
from router_service.domain.completion import CompletionRequest, ProviderAccepted, ProviderItem
from router_service.domain.errors import FailureKind, ProviderError
from router_service.domain.tenant import Credential
from router_service.domain.usage import LateUsage
from router_service.providers.answer_body import AnswerBody, BodyUnusable
from router_service.providers.chat_request import encode
from router_service.providers.error_mapping import error_from_response, sentence
from router_service.providers.loose_json import NotJson, decode_loosely, label_of
from router_service.providers.openai_chat import ChatDecoder
from router_service.providers.quota_headers import parse_quota
from router_service.providers.sse import SseEvent, SseLimitExceeded
from router_service.providers.transport import EgressRefused, drop_connection, has_ended, hold_reading
from router_service.providers.vendor import Vendor
from router_service.routing.ports import KeyVerdict

_USER_AGENT: Final = "turnpike"
_KEY: Final = re.compile(r"[\x21-\x7e]{1,512}")
_MAX_ERROR_BODY_BYTES: Final = 64 << 10
_ERROR_BODY_TIME_S: Final = 2.0  # a body that is slower than this is not worth waiting for: the status is known
_KEY_CHECK_TIME_S: Final = 10.0
_KEY_CHECKS_AT_ONCE: Final = 8  # they share the connections with completions, and must not take them all
_ANSWERS_ANYBODY: Final = "the provider answers without a key too: that it takes this one says nothing"
# What a provider may say to a request without a key. All else is a failure, and tells nothing.
_REFUSALS: Final = frozenset(
    {FailureKind.KEY_REJECTED, FailureKind.NOT_ALLOWED, FailureKind.BAD_REQUEST, FailureKind.MODEL_GONE}
)
_LATE_USAGE_TIME_S: Final = 10.0
_LAST_BYTES_TIME_S: Final = 0.05  # after [DONE] only the end of the body is missing, and usually already there


class OpenAiProvider:
    """One provider, at the one address that `transport` was made for."""

    def __init__(
        self, transport: httpx.AsyncBaseTransport, vendor: Vendor, *, now_unix_s: Callable[[], float] = time.time
    ) -> None:
        self._transport = transport
        self._vendor = vendor
        self._now_unix_s = now_unix_s
        self._key_checks = asyncio.Semaphore(_KEY_CHECKS_AT_ONCE)
        self._last_url = ("", httpx.URL())  # nearly every request of a provider goes to the same one
        common = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **vendor.headers}
        self._headers: Final[Mapping[str, httpx.Headers]] = {  # by method
            "POST": httpx.Headers({**common, "Accept": "text/event-stream", "Content-Type": "application/json"}),
            "GET": httpx.Headers({**common, "Accept": "application/json"}),
        }

    async def stream(
        self, candidate: Candidate, request: CompletionRequest, *, connect_timeout_s: float
    ) -> AsyncGenerator[ProviderItem, None]:
        """See `routing.ports.Provider.stream`."""
        response = await self._send(
            self._http_request(
                "POST",
                f"{candidate.spec.base_url}/chat/completions",
                candidate.credential,
                content=encode(request, candidate.model.name, self._vendor.dialect),
                connect_timeout_s=connect_timeout_s,
            )
        )
        decoder, finished = ChatDecoder(), None
        arrivals = aiter(response.stream)  # type: ignore[arg-type]  # ours, and httpx's mock, is asynchronous
        try:
            if not response.is_success:
                raise await self._refusal(response)
            headers = _headers_of(response)
            yield self._accepted(headers)
            _refuse_web_page(headers)
            body = AnswerBody()
            async for data in arrivals:
                had_begun = decoder.has_content
                items = _items_of(decoder, body.feed(data))
                del data  # the items may wait here for a slow caller; what they were read from need not
                _gather(response, decoder, had_begun=had_begun)
                for item in items:
                    yield item
                if decoder.is_over:
                    break
            else:
                for delta in decoder.feed(body.flush(), may_be_cut=True):
                    yield delta
            finished = decoder.finish()
            yield finished
        except BodyUnusable as problem:
            raise decoder.broken(FailureKind.PROTOCOL_VIOLATION, str(problem)) from None
        except SseLimitExceeded as excess:
            raise decoder.broken(FailureKind.PROTOCOL_VIOLATION, str(excess)) from None
        except httpx.ReadTimeout as fault:
            raise decoder.broken(FailureKind.TIMED_OUT, str(fault)) from None
        except httpx.TransportError as fault:
            raise decoder.broken(FailureKind.TRANSPORT_FAILED, str(fault)) from None
        finally:
            may_be_kept = decoder.is_over and decoder.failure is None
            await _close(response, arrivals, may_be_kept=may_be_kept, was_an_answer=finished is not None)

    async def verify_key(self, base_url: str, credential: Credential) -> tuple[KeyVerdict, str]:
        """See `routing.ports.Provider.verify_key`."""
        if self._vendor.key_check_path is None:
            return KeyVerdict.UNKNOWN, self._vendor.key_check_gap
        url = base_url.rstrip("/") + self._vendor.key_check_path
        try:
            async with asyncio.timeout(_KEY_CHECK_TIME_S), self._key_checks:
                explanation = self._vendor.explain_valid_key(await self._looked_up(url, credential))
                if await self._answers_anybody(url):
                    return KeyVerdict.UNKNOWN, _ANSWERS_ANYBODY
                return KeyVerdict.VALID, explanation
        except ProviderError as error:
            verdict = KeyVerdict.INVALID if error.kind is FailureKind.KEY_REJECTED else KeyVerdict.UNKNOWN
            return verdict, error.message
        except TimeoutError:
            return KeyVerdict.UNKNOWN, f"the provider did not answer within {_KEY_CHECK_TIME_S:.0f} s"

    async def _answers_anybody(self, url: str) -> bool:
        """Whether the check checks nothing: servers of people's own often ask for no key, and vendors open lists."""
        try:
            await self._looked_up(url, None)
        except ProviderError as error:
            if error.kind not in _REFUSALS:
                words = f"the provider takes the key, but maybe it answers without a key too: {error.message}"
                raise ProviderError(error.kind, words, status=error.status) from None
            return False
        return True

    async def _looked_up(self, url: str, credential: Credential | None) -> object:
        """The JSON of a 200; None when it is none, as a long list that was cut off. Raises `ProviderError`."""
        response = await self._send(self._http_request("GET", url, credential))
        try:
            if response.status_code != httpx.codes.OK:
                raise await self._refusal(response)
            body = await _read_up_to(response, _MAX_ERROR_BODY_BYTES)
        finally:
            await response.aclose()
        try:
            answer: object = decode_loosely(body)
        except NotJson:
            answer = None
        return answer

    async def late_usage(self, base_url: str, credential: Credential | None, response_id: str) -> LateUsage | None:
        """See `routing.ports.Provider.late_usage`."""
        if not self._vendor.late_usage_path:
            raise ProviderError(
                FailureKind.NOT_ALLOWED, "the provider counts nothing afterwards", may_have_reached_provider=False
            )
        url = base_url.rstrip("/") + self._vendor.late_usage_path + quote(response_id, safe="")
        try:
            async with asyncio.timeout(_LATE_USAGE_TIME_S):
                return self._vendor.read_late_usage(await self._looked_up(url, credential))
        except ProviderError as error:
            if error.status == httpx.codes.NOT_FOUND:
                return None
            raise
        except TimeoutError:
            raise ProviderError(FailureKind.TIMED_OUT, sentence(FailureKind.TIMED_OUT)) from None

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()

    def _http_request(
        self,
        method: str,
        url: str,
        credential: Credential | None,
        *,
        content: bytes | None = None,
        connect_timeout_s: float | None = None,
    ) -> httpx.Request:
        timeout = {"connect": connect_timeout_s} if connect_timeout_s is not None else {}
        # With a stream instead of a content httpx leaves out the headers that the transport writes in any case; a
        # parsed URL and headers made once save the rest: 4 us instead of 33.
        request = httpx.Request(
            method,
            self._parsed(url),
            headers=self._headers[method],
            stream=httpx.ByteStream(content or b""),
            extensions={"timeout": timeout},
        )
        if credential is not None:
            key = credential.secret.reveal()
            if not _KEY.fullmatch(key):  # the transport would refuse it too, but as no failure of the key
                raise ProviderError(
                    FailureKind.KEY_REJECTED,
                    "the stored key holds characters that no key has; store it again",
                    may_have_reached_provider=False,
                )
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    def _parsed(self, url: str) -> httpx.URL:
        if url != self._last_url[0]:
            self._last_url = (url, httpx.URL(url))
        return self._last_url[1]

    def _accepted(self, headers: Mapping[str, str]) -> ProviderAccepted:
        header = self._vendor.response_id_header
        return ProviderAccepted(
            parse_quota(headers, now_unix_s=self._now_unix_s()), label_of(headers.get(header)) if header else ""
        )

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._transport.handle_async_request(request)
        except httpx.TransportError as fault:
            raise _error_from_fault(fault) from None
        except httpx.DecodingError as fault:
            raise ProviderError(
                FailureKind.PROTOCOL_VIOLATION, _because(FailureKind.PROTOCOL_VIOLATION, fault)
            ) from None

    async def _refusal(self, response: httpx.Response) -> ProviderError:
        body = await _read_up_to(response, _MAX_ERROR_BODY_BYTES)
        return error_from_response(response.status_code, response.headers, body, now_unix_s=self._now_unix_s())


def _items_of(decoder: ChatDecoder, events: list[SseEvent]) -> list[ProviderItem]:
    deltas = decoder.feed(events)
    return [*decoder.identity(), *deltas]


def _gather(response: httpx.Response, decoder: ChatDecoder, *, had_begun: bool) -> None:
    """Begin a read window, in a stream that trickles.

    Not after the first content, because a short answer ends right behind it; nor after the finish reason, because what
    is missing then is on its way.
    """
    if had_begun and decoder.expects_content:
        hold_reading(response)


def _headers_of(response: httpx.Response) -> Mapping[str, str]:
    """The headers by lower-case name, the last of several: 2 us, and what is looked up in `httpx.Headers` costs 11."""
    return {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in response.headers.raw}


def _refuse_web_page(headers: Mapping[str, str]) -> None:
    if headers.get("content-type", "").partition(";")[0].strip().lower() == "text/html":
        raise BodyUnusable("it is a web page")


async def _read_up_to(response: httpx.Response, max_bytes: int) -> bytes:
    """What of the body is there in reasonable time and size; a body that breaks off is used as far as it came."""
    body = bytearray()
    with suppress(httpx.TransportError, TimeoutError):
        async with asyncio.timeout(_ERROR_BODY_TIME_S):
            async for data in response.stream:  # type: ignore[union-attr]
                body += data
                if len(body) >= max_bytes:
                    break
    return bytes(body[:max_bytes])


async def _close(
    response: httpx.Response, arrivals: AsyncIterator[bytes], *, may_be_kept: bool, was_an_answer: bool
) -> None:
    """Let go of the connection: back to the pool when the body ends at once, else closed."""
    try:
        if may_be_kept and not has_ended(response):
            with suppress(httpx.TransportError, TimeoutError):  # the answer is whole; only the connection is lost
                async with asyncio.timeout(_LAST_BYTES_TIME_S):
                    async for _ in arrivals:
                        pass
    finally:
        await response.stream.aclose()  # type: ignore[union-attr]  # as above; through `response` it costs 4 us
        if response.is_success and not was_an_answer:
            # What came may have been said unasked. The answer that then still comes would be the next request's.
            drop_connection(response)


def _error_from_fault(fault: httpx.TransportError) -> ProviderError:
    match fault:
        case EgressRefused():
            kind, was_sent = FailureKind.POLICY_REFUSED, False
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.PoolTimeout() | httpx.LocalProtocolError():
            kind, was_sent = FailureKind.CONNECT_FAILED, False
        case httpx.TimeoutException():
            kind, was_sent = FailureKind.TIMED_OUT, True
        case _:
            kind, was_sent = FailureKind.TRANSPORT_FAILED, True
    return ProviderError(kind, _because(kind, fault), may_have_reached_provider=was_sent)


def _because(kind: FailureKind, fault: Exception) -> str:
    return f"{sentence(kind)}: {fault}"
