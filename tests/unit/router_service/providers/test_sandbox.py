from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_service.domain.completion import (
    CompletionRequest,
    FinishReason,
    ProviderAccepted,
    ResponseFormat,
    ResponseFormatKind,
    Sampling,
    Tool,
    ToolChoice,
    ToolChoiceMode,
)
from router_service.domain.errors import FailureKind
from router_service.domain.usage import TokenUsage
from router_service.providers.catalog import CATALOG
from router_service.providers.sandbox import LABEL, SandboxProvider, split_tokens
from router_service.routing.ports import KeyVerdict
from tests.support.provider_requests import Answer, candidate, collect, completion, credential


async def ask(request: CompletionRequest, model: str = "sandbox-small") -> Answer:
    provider = SandboxProvider(token_delay_s=0)
    return await collect(provider.stream(candidate(CATALOG["sandbox"], model, key=None), request, connect_timeout_s=1))


async def test_an_answer_is_labelled_echoes_the_question_and_streams_word_by_word() -> None:
    answer = await ask(completion("What is a turnpike?"))

    assert answer.items[0] == ProviderAccepted()
    assert answer.text.startswith(LABEL)
    assert "What is a turnpike?" in answer.text
    assert len(answer.deltas) > 20


async def test_the_same_request_gets_the_same_answer_and_counts() -> None:
    assert (await ask(completion("Hi"))).items == (await ask(completion("Hi"))).items


async def test_its_token_counts_are_exact() -> None:
    answer = await ask(completion("Hello there"), "sandbox-large")

    assert answer.finished.usage == TokenUsage(
        input_tokens=2 + 3,
        output_tokens=len([delta for delta in answer.deltas if delta.text]),
        reasoning_tokens=len([delta for delta in answer.deltas if delta.reasoning]),
    )
    assert answer.reasoning.startswith(LABEL)


@given(st.text())
def test_tokens_put_together_are_the_text(text: str) -> None:
    assert "".join(split_tokens(text)) == text


@pytest.mark.parametrize("limit", [1, 5])
async def test_the_length_limit_cuts_the_answer(limit: int) -> None:
    answer = await ask(completion("Hi", sampling=Sampling(max_output_tokens=limit)))

    assert answer.finished.finish_reason is FinishReason.LENGTH
    assert len(answer.deltas) == limit


async def test_a_stop_text_ends_the_answer_before_it() -> None:
    answer = await ask(completion("Hi", sampling=Sampling(stop=("heard",))))

    assert answer.finished.finish_reason is FinishReason.STOP
    assert answer.text == f"{LABEL} sandbox-small "


async def test_json_is_answered_with_json() -> None:
    answer = await ask(completion("Hi", response_format=ResponseFormat(ResponseFormatKind.JSON_OBJECT)))

    assert json.loads(answer.text) == {"sandbox": True, "model": "sandbox-small", "task": "chat", "echo": "Hi"}


@pytest.mark.parametrize("choice", [ToolChoice(ToolChoiceMode.REQUIRED), ToolChoice(ToolChoiceMode.NAMED, "weather")])
async def test_a_tool_that_must_be_called_is_called(choice: ToolChoice) -> None:
    answer = await ask(completion("Hi", tools=(Tool("weather"),), tool_choice=choice))

    assert answer.finished.finish_reason is FinishReason.TOOL_CALLS
    assert answer.deltas[0].tool_calls[0].name == "weather"


async def test_an_unknown_model_and_a_prompt_beyond_the_window_fail_like_anywhere() -> None:
    unknown = await ask(completion("Hi"), "sandbox-huge")
    too_long = await ask(completion("x " * 9000))

    assert unknown.failure.kind is FailureKind.MODEL_GONE
    assert too_long.failure.kind is FailureKind.CONTEXT_TOO_LONG


async def test_it_takes_any_key() -> None:
    assert (await SandboxProvider().verify_key("sandbox:", credential()))[0] is KeyVerdict.VALID
