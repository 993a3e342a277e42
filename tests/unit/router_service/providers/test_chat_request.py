from __future__ import annotations

import json
from typing import Any

import pytest

from router_service.domain.completion import (
    CompletionRequest,
    Message,
    ResponseFormat,
    ResponseFormatKind,
    Role,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
)
from router_service.providers.chat_request import RequestDialect, encode
from tests.support.provider_requests import completion

WEATHER = Tool("weather", "Tells the weather", '{"type":"object","properties":{"city":{"type":"string"}}}', strict=True)


def body(request: CompletionRequest, dialect: RequestDialect | None = None) -> dict[str, Any]:
    decoded = json.loads(encode(request, "some/model", dialect))
    assert isinstance(decoded, dict)
    return decoded


def test_the_smallest_request_asks_for_a_stream_with_usage_and_nothing_else() -> None:
    assert body(completion("Hi")) == {
        "model": "some/model",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_nothing_of_the_tenant_goes_to_the_provider() -> None:
    encoded = encode(completion(user_id="user-7", endpoint="/chat", labels={"team": "red"}), "m")

    assert not any(word in encoded for word in (b"user-7", b"red", b"/chat", b"00000000-0000"))


def test_every_sampling_parameter_has_its_place_and_zero_is_a_value() -> None:
    sampling = Sampling(0.0, 0.9, 100, ("END",), 0, -0.5, 0.0, "low")

    sent = body(completion(sampling=sampling))

    assert {name: sent[name] for name in sent if name not in {"model", "messages", "stream", "stream_options"}} == {
        "temperature": 0.0,
        "top_p": 0.9,
        "max_tokens": 100,
        "stop": ["END"],
        "seed": 0,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.0,
        "reasoning_effort": "low",
    }


def test_a_dialect_renames_what_it_deviates_in() -> None:
    sampling = Sampling(max_output_tokens=5, reasoning_effort="high")

    sent = body(completion(sampling=sampling), RequestDialect("max_completion_tokens", nests_reasoning_effort=True))

    assert sent["max_completion_tokens"] == 5
    assert sent["reasoning"] == {"effort": "high"}
    assert not sent.keys() & {"max_tokens", "reasoning_effort"}


def test_images_become_parts_beside_the_text() -> None:
    message = Message(Role.USER, "What is it?", image_urls=("https://a/b.png", "data:image/png;base64,AA"))

    assert body(completion(messages=(message,)))["messages"][0]["content"] == [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": "https://a/b.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
    ]


def test_a_conversation_with_tools_keeps_calls_and_results_together() -> None:
    messages = (
        Message(Role.SYSTEM, "Be brief"),
        Message(Role.USER, "Weather?", name="ann"),
        Message(Role.ASSISTANT, "", tool_calls=(ToolCall("c1", "weather", '{"city":"Bern"'),)),
        Message(Role.TOOL, "sunny", name="weather", tool_call_id="c1"),
    )

    function = {"name": "weather", "arguments": '{"city":"Bern"'}
    assert body(completion(messages=messages))["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Weather?", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (ToolChoice(ToolChoiceMode.AUTO), "auto"),
        (ToolChoice(ToolChoiceMode.NONE), "none"),
        (ToolChoice(ToolChoiceMode.REQUIRED), "required"),
        (ToolChoice(ToolChoiceMode.NAMED, "weather"), {"type": "function", "function": {"name": "weather"}}),
    ],
)
def test_tools_go_out_with_schema_and_choice(choice: ToolChoice, sent: object) -> None:
    request = completion(tools=(WEATHER, Tool("stop")), tool_choice=choice, parallel_tool_calls=False)

    encoded = body(request)

    assert encoded["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "Tells the weather",
                "parameters": json.loads(WEATHER.parameters_json_schema),
                "strict": True,
            },
        },
        {"type": "function", "function": {"name": "stop"}},
    ]
    assert (encoded["tool_choice"], encoded["parallel_tool_calls"]) == (sent, False)


def test_a_tool_choice_without_tools_is_left_out() -> None:
    assert "tool_choice" not in body(completion(tool_choice=ToolChoice(ToolChoiceMode.NONE)))


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (ResponseFormat(ResponseFormatKind.TEXT), {"type": "text"}),
        (ResponseFormat(ResponseFormatKind.JSON_OBJECT), {"type": "json_object"}),
        (
            ResponseFormat(ResponseFormatKind.JSON_SCHEMA, "person", '{"type":"object"}', strict=True),
            {"type": "json_schema", "json_schema": {"name": "person", "schema": {"type": "object"}, "strict": True}},
        ),
        (
            ResponseFormat(ResponseFormatKind.JSON_SCHEMA, "", "{}"),
            {"type": "json_schema", "json_schema": {"name": "answer", "schema": {}}},
        ),
    ],
)
def test_the_form_of_the_answer_goes_out(wanted: ResponseFormat, sent: object) -> None:
    assert body(completion(response_format=wanted))["response_format"] == sent
