"""Every vendor's own shapes, as files beside this test, through the adapter that has to understand them.

A file is a response: the status, the headers, an empty line, and the body as it comes over the wire. Each is read three
times: byte by byte, in pieces that fit nothing, and at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

import httpx
import pytest

from router_service.domain.completion import FinishReason, ProviderAccepted, ProviderIdentified
from router_service.domain.errors import FailureKind as Kind
from router_service.domain.usage import TokenUsage
from router_service.providers.catalog import CATALOG
from router_service.providers.openai_provider import OpenAiProvider
from router_service.providers.provider_set import VENDORS
from tests.support.provider_requests import Answer, candidate, collect, completion

SHAPES = Path(__file__).parent / "vendor_shapes"
LOCAL_SERVERS: Final = frozenset({"ollama", "llama-server", "llama-cpp-python", "vllm", "lm-studio"})
PIECES: Final = (1, 7, 1 << 20)
NOTHING_LEAKS: Final = ("canary", "org_01", "user_")


@dataclass(frozen=True)
class Good:
    """An answer that ended well."""

    text: str = "Good day"
    usage: TokenUsage | None = None
    model: str = ""
    reasoning: str = ""
    finish: FinishReason = FinishReason.STOP
    cost_usd: Decimal | None = None
    tool_arguments: str = ""


@dataclass(frozen=True)
class Bad:
    """A failure; `text` is the content before it."""

    kind: Kind
    text: str = ""
    retry_after_s: float | None = None
    usage: TokenUsage | None = None


OF_GROQ = TokenUsage(input_tokens=8, output_tokens=3, cached_read_tokens=64, reasoning_tokens=2)
OF_OPENROUTER = TokenUsage(
    input_tokens=13, output_tokens=6, cached_read_tokens=5, cached_write_tokens=2, reasoning_tokens=4
)
GPT_OSS, GEMINI = "openai/gpt-oss-120b", "google/gemini-3.8-flash"
CALLED = FinishReason.TOOL_CALLS

EXPECTED: Final[dict[str, Good | Bad]] = {
    "groq/usage-three-times": Good(usage=OF_GROQ, model=GPT_OSS, reasoning="Hm"),
    "groq/usage-in-x-groq": Good(usage=OF_GROQ, model=GPT_OSS),
    "groq/tool-call-in-one-delta": Good("", OF_GROQ, GPT_OSS, finish=CALLED, tool_arguments="{}"),
    "groq/event-error": Bad(Kind.MODEL_MISBEHAVED),
    "groq/over-capacity-in-x-groq": Bad(Kind.OVERLOADED),
    "groq/bad-key": Bad(Kind.KEY_REJECTED),
    "groq/model-decommissioned": Bad(Kind.MODEL_GONE),
    "groq/request-over-the-tier": Bad(Kind.REQUEST_TOO_LARGE),
    "groq/rate-limited": Bad(Kind.RATE_LIMITED, retry_after_s=6.0),
    "groq/flex-tier-full": Bad(Kind.OVERLOADED),
    "openrouter/comments-and-cost": Good(
        usage=OF_OPENROUTER, model=GEMINI, reasoning="Hm", cost_usd=Decimal("0.000123")
    ),
    "openrouter/more-reasoning-than-completion": Good(
        "a",
        TokenUsage(input_tokens=13, cached_read_tokens=5, cached_write_tokens=2, reasoning_tokens=10),
        GEMINI,
        cost_usd=Decimal("0.000123"),
    ),
    "openrouter/error-after-a-finish-reason": Bad(Kind.STREAM_BROKEN, "Good", usage=OF_OPENROUTER),
    "openrouter/error-in-a-choice-of-200": Bad(Kind.UPSTREAM_BROKEN),
    "openrouter/unknown-model": Bad(Kind.MODEL_GONE),
    "openrouter/no-endpoints": Bad(Kind.MODEL_GONE),
    "openrouter/at-capacity": Bad(Kind.OVERLOADED, retry_after_s=7.0),
    "openrouter/no-credit": Bad(Kind.NO_CREDIT),
    "openrouter/flagged-input": Bad(Kind.CONTENT_REFUSED),
    "openrouter/overloaded": Bad(Kind.OVERLOADED),
    "llm7/another-model-answers": Good(model="mistral-small-3.2"),
    "llm7/error-in-200": Bad(Kind.OVERLOADED),
    "llm7/pro-model-without-plan": Bad(Kind.NO_CREDIT),
    "ollama/good": Good(usage=TokenUsage(11, 6), model="qwen3:8b", reasoning="Hm"),
    "ollama/error-swallowed": Bad(Kind.STREAM_BROKEN, "Good"),
    "ollama/unknown-model": Bad(Kind.MODEL_GONE),
    "ollama/busy": Bad(Kind.OVERLOADED),
    "llama-server/timings-in-place-of-usage": Good(
        usage=TokenUsage(9, 6, cached_read_tokens=3), model="local.gguf", reasoning="Hm"
    ),
    "llama-server/error-in-the-stream": Bad(Kind.STREAM_BROKEN, "Good"),
    "llama-server/prompt-too-long": Bad(Kind.CONTEXT_TOO_LONG),
    "llama-server/loading": Bad(Kind.OVERLOADED),
    "llama-server/malformed-request": Bad(Kind.UPSTREAM_BROKEN),
    "llama-server/bad-key": Bad(Kind.KEY_REJECTED),
    "llama-cpp-python/never-any-usage": Good(model="tiny.gguf"),
    "llama-cpp-python/interrupted": Bad(Kind.STREAM_BROKEN, "Good"),
    "llama-cpp-python/tool-call-repeats-itself": Good(
        "", None, "tiny.gguf", finish=CALLED, tool_arguments='{"city":"Bern"}'
    ),
    "llama-cpp-python/bad-key": Bad(Kind.KEY_REJECTED),
    "llama-cpp-python/prompt-too-long": Bad(Kind.CONTEXT_TOO_LONG),
    "vllm/usage-in-every-chunk": Good(usage=TokenUsage(12, 3), model="meta/some-model"),
    "vllm/error-then-done": Bad(Kind.STREAM_BROKEN, "Good"),
    "vllm/bad-key": Bad(Kind.KEY_REJECTED),
    "vllm/unknown-model": Bad(Kind.MODEL_GONE),
    "vllm/prompt-too-long": Bad(Kind.CONTEXT_TOO_LONG),
    "lm-studio/prompt-too-long-in-200": Bad(Kind.CONTEXT_TOO_LONG),
    "lm-studio/no-delta-at-all": Good("", model="some-model"),
    "lm-studio/good": Good(usage=TokenUsage(8, 2), model="some-model"),
}


class InPieces(httpx.AsyncByteStream):
    """A body that arrives in pieces of so many bytes."""

    def __init__(self, body: bytes, size: int) -> None:
        self._body, self._size = body, size

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), self._size):
            yield self._body[start : start + self._size]


async def answer_to(shape: str, piece: int) -> Answer:
    """What the adapter of the shape's vendor makes of it."""
    head, _, body = (SHAPES / f"{shape}.http").read_bytes().partition(b"\n\n")
    status, *lines = head.decode().split("\n")
    headers = [tuple(line.split(": ", 1)) for line in lines]

    def respond(_: httpx.Request) -> httpx.Response:
        return httpx.Response(int(status), headers=headers, stream=InPieces(body, piece))  # type: ignore[arg-type]

    vendor = shape.partition("/")[0]
    name = "local" if vendor in LOCAL_SERVERS else vendor
    provider = OpenAiProvider(httpx.MockTransport(respond), VENDORS[name], now_unix_s=lambda: 1_790_000_000.0)
    asked = candidate(CATALOG[name], "the-model-asked-for")
    return await collect(provider.stream(asked, completion(), connect_timeout_s=1))


def test_every_shape_has_its_meaning_and_every_vendor_its_shapes() -> None:
    files = {f"{path.parent.name}/{path.stem}" for path in SHAPES.glob("*/*.http")}

    assert files == set(EXPECTED)
    assert {shape.partition("/")[0] for shape in files} == {"groq", "openrouter", "llm7", *LOCAL_SERVERS}


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("shape", EXPECTED)
async def test_a_vendors_shape_means_the_same_however_it_arrives(shape: str, piece: int) -> None:
    answer = await answer_to(shape, piece)

    match EXPECTED[shape]:
        case Good() as good:
            end = answer.finished
            calls = [call for delta in answer.deltas for call in delta.tool_calls]
            assert (answer.text, answer.reasoning) == (good.text, good.reasoning)
            assert (end.finish_reason, end.usage, end.model) == (good.finish, good.usage, good.model)
            assert end.reported_cost_usd == good.cost_usd
            assert "".join(call.arguments for call in calls) == good.tool_arguments
            assert [call.name for call in calls if call.name] == (["clock"] if good.tool_arguments else [])
        case Bad() as bad:
            failure = answer.failure
            assert (failure.kind, answer.text) == (bad.kind, bad.text)
            assert (failure.retry_after_s, failure.usage) == (bad.retry_after_s, bad.usage)
            assert not [word for word in NOTHING_LEAKS if word in failure.message]


async def test_groqs_own_limits_are_read_from_its_headers() -> None:
    accepted = (await answer_to("groq/usage-in-x-groq", 7)).items[0]

    assert isinstance(accepted, ProviderAccepted)
    assert accepted.quota is not None
    assert (accepted.quota.remaining_requests, accepted.quota.reset_requests_s) == (998, 172.8)
    assert (accepted.quota.remaining_tokens, accepted.quota.reset_tokens_s) == (7900, 0.75)


async def test_openrouters_generation_is_known_before_its_first_chunk() -> None:
    accepted, identified = (await answer_to("openrouter/comments-and-cost", 7)).items[:2]

    assert isinstance(accepted, ProviderAccepted)
    assert isinstance(identified, ProviderIdentified)
    assert accepted.response_id == identified.response_id == "gen-1790000000-Zz"


async def test_a_model_that_llm7_puts_in_place_of_another_is_known_from_the_first_chunk() -> None:
    items = (await answer_to("llm7/another-model-answers", 7)).items

    assert ProviderIdentified("chatcmpl-llm7", "mistral-small-3.2") in items
