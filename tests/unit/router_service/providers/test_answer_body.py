"""The body of an answer: which form it has, however its bytes arrive."""

from __future__ import annotations

import pickle

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_service.domain.errors import FailureKind
from router_service.providers.answer_body import MAX_OBJECT_BYTES, AnswerBody, BodyUnusable
from router_service.providers.catalog import CATALOG
from router_service.providers.openai_provider import OpenAiProvider
from router_service.providers.sse import SseDecoder, SseEvent
from router_service.providers.vendor import Vendor
from tests.support.provider_requests import Answer, candidate, collect, completion

TYPES = ["text/event-stream", "application/json", "application/json; charset=utf-8", "text/plain", ""]
STREAM = b'data: {"choices":[{"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
OBJECT = b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'


async def answer_of(body: bytes, content_type: str) -> Answer:
    def respond(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": content_type}, stream=httpx.ByteStream(body))

    provider = OpenAiProvider(httpx.MockTransport(respond), Vendor())
    return await collect(provider.stream(candidate(CATALOG["local"], "m"), completion(), connect_timeout_s=1))


def events_of(pieces: list[bytes]) -> list[SseEvent]:
    body = AnswerBody()
    return [event for piece in pieces for event in body.feed(piece)] + body.flush()


@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize("body", [STREAM, OBJECT, b"\r\n" + STREAM, b"\n  " + OBJECT, b": ping\n\n" + STREAM])
async def test_an_answer_is_read_whatever_its_headers_call_it(body: bytes, content_type: str) -> None:
    answer = await answer_of(body, content_type)

    assert answer.text == "hi"
    assert answer.error is None


@pytest.mark.parametrize("content_type", TYPES)
async def test_an_error_object_has_its_kind_whatever_its_headers_call_it(content_type: str) -> None:
    error = b'{"error": {"message": "too long", "code": "context_length_exceeded"}}'

    assert (await answer_of(error, content_type)).failure.kind is FailureKind.CONTEXT_TOO_LONG


async def test_a_web_page_is_no_answer() -> None:
    assert (await answer_of(STREAM, "text/html; charset=utf-8")).failure.kind is FailureKind.PROTOCOL_VIOLATION


@given(st.sampled_from([STREAM, OBJECT, b"\r\n\r" + STREAM, b" \n " + OBJECT, b"  ", b""]), st.data())
def test_any_split_gives_the_same_events(body: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]

    assert events_of(pieces) == events_of([body])


@given(st.binary(max_size=200).filter(lambda body: not body.lstrip().startswith(b"{")))
def test_what_does_not_begin_with_a_brace_is_a_stream(body: bytes) -> None:
    decoder = SseDecoder()

    assert events_of([body]) == decoder.feed(body) + decoder.flush()


def test_blanks_without_an_end_are_not_kept() -> None:
    body = AnswerBody()

    for _ in range(100):
        assert body.feed(b"\n" * 1000) == []
        assert len(pickle.dumps(body)) < 2000, "all that it holds"

    assert body.feed(STREAM) == [SseEvent(STREAM[6:-16]), SseEvent(b"[DONE]")]


def test_an_object_that_is_too_long_is_refused() -> None:
    body = AnswerBody()
    body.feed(b"{" * MAX_OBJECT_BYTES)

    with pytest.raises(BodyUnusable, match="longer than"):
        body.feed(b"{")
