"""What is fuzzed, and what must hold for any bytes. Any exception that leaves a target is a finding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import atheris

with atheris.instrument_imports(include=["router_service.providers", "router_service.domain"]):
    from router_service.domain.completion import ContentDelta, ProviderFinished
    from router_service.domain.errors import ProviderError
    from router_service.providers.answer_body import AnswerBody
    from router_service.providers.error_mapping import error_from_response
    from router_service.providers.loose_json import MAX_TOKENS
    from router_service.providers.openai_chat import ChatDecoder
    from router_service.providers.quota_headers import parse_quota, parse_retry_after_s
    from router_service.providers.sse import SseDecoder, SseEvent, SseLimitExceeded

from tests.support.provider_garbage import STREAMS
from tests.support.sse_standard import by_the_standard

NOW_UNIX_S: Final = 1_790_000_000.0
MAX_MESSAGE: Final = 300


def fuzz_sse(data: bytes) -> None:
    """The events are those of the standard, however the bytes are cut; caps alone may refuse them."""
    source = atheris.FuzzedDataProvider(data)
    cuts = [source.ConsumeIntInRange(1, 64) for _ in range(8)]
    stream = source.ConsumeBytes(1 << 16)
    expected = by_the_standard(stream)
    assert _events([stream]) == expected
    assert _events(_pieces(stream, cuts)) == expected
    small = SseDecoder(max_line_bytes=32, max_event_bytes=64, max_total_bytes=4096)
    try:
        for piece in _pieces(stream, cuts):
            small.feed(piece)
    except SseLimitExceeded:
        assert len(stream) > 32


def fuzz_chat(data: bytes) -> None:
    """The content and the end of an answer do not depend on how its bytes are cut, and all of it can be passed on."""
    source = atheris.FuzzedDataProvider(data)
    cuts = [source.ConsumeIntInRange(1, 64) for _ in range(8)]
    stream = source.ConsumeBytes(1 << 16)
    text, end = _answer([stream])
    again, same_end = _answer(_pieces(stream, cuts))
    assert again == text
    assert type(end) is type(same_end)
    text.encode()
    if isinstance(end, ProviderError):
        assert end.message.isprintable()
        assert len(end.message) < MAX_MESSAGE
    else:
        usage = end.usage
        counts = () if usage is None else (usage.input_tokens, usage.output_tokens, usage.reasoning_tokens)
        assert all(0 <= count <= MAX_TOKENS for count in counts)
        assert end.model.isprintable()


def fuzz_error(data: bytes) -> None:
    """Any status, headers and body are some failure, with a wait that is no nonsense and a message that is ours."""
    source = atheris.FuzzedDataProvider(data)
    status = source.ConsumeIntInRange(100, 999)
    names = ("retry-after", "retry-after-ms", "x-ratelimit-reset-tokens", "x-ratelimit-remaining-tokens")
    headers = {name: source.ConsumeUnicodeNoSurrogates(24) for name in names}
    error = error_from_response(status, headers, source.ConsumeBytes(1 << 12), now_unix_s=NOW_UNIX_S)
    assert error.retry_after_s is None or error.retry_after_s >= 0
    assert error.message.isascii()
    assert len(error.message) < MAX_MESSAGE
    parse_quota(headers, now_unix_s=NOW_UNIX_S)
    parse_retry_after_s(headers, now_unix_s=NOW_UNIX_S)


def _events(pieces: Iterable[bytes]) -> list[SseEvent]:
    decoder = SseDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)] + decoder.flush()


def _answer(pieces: Iterable[bytes]) -> tuple[str, ProviderFinished | ProviderError]:
    body, chat = AnswerBody(), ChatDecoder()
    deltas: list[ContentDelta] = []
    for piece in pieces:
        deltas += chat.feed(body.feed(piece))
        if chat.is_over:
            break
    else:
        deltas += chat.feed(body.flush(), may_be_cut=True)
    assert all(delta.text or delta.reasoning or delta.tool_calls for delta in deltas)
    text = "".join(delta.reasoning + delta.text for delta in deltas)
    try:
        return text, chat.finish()
    except ProviderError as error:
        return text, error


def _pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    pieces, start, turn = [], 0, 0
    while start < len(stream):
        length = cuts[turn % len(cuts)]
        pieces.append(stream[start : start + length])
        start, turn = start + length, turn + 1
    return pieces


_ERRORS: Final = (
    b'{"error":{"message":"Please try again in 5.289s.","type":"tokens","code":"rate_limit_exceeded"}}',
    b'{"error":{"code":403,"message":"no","metadata":{"error_type":"permission_denied","reasons":["x"]}}}',
    b'{"error":{"message":"no","http_status":404,"availability":{"code":"no_endpoints","retry_after":12}}}',
    b'{"error":"Unauthorized"}',
    b'{"detail":"upgrade required"}',
)

TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {"sse": fuzz_sse, "chat": fuzz_chat, "error": fuzz_error}


def seeds(name: str) -> list[bytes]:
    """Inputs to begin with. atheris takes numbers from the end of the data, so these stand first."""
    return list(_ERRORS) if name == "error" else [odd.body for odd in STREAMS.values()]
