from __future__ import annotations

import json
from typing import Any

import pytest

from turnpike.router.v1 import completion_pb2, router_service_pb2
from turnpike_client import (
    CompletionOptions,
    ResponseFormat,
    ResponseKind,
    TaskType,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
    assistant,
    system,
    tool_result,
    user,
)
from turnpike_client.completion_codec import completion_arguments, completion_from_proto


def request(messages: Any = "Hi", **options: Any) -> router_service_pb2.CompleteRequest:
    return router_service_pb2.CompleteRequest(**completion_arguments("tenant", messages, options))  # type: ignore[arg-type]


def test_a_plain_text_is_one_message_of_the_user() -> None:
    [message] = request("Hi").messages

    assert (message.role, message.content) == (completion_pb2.ROLE_USER, "Hi")


def test_a_conversation_keeps_roles_calls_and_images() -> None:
    call = ToolCall("c1", "weather", "{}")

    sent = request(
        [
            system("Be brief"),
            user("Look", image_urls=["https://example.com/cat.png"]),
            assistant("", tool_calls=[call]),
            tool_result("c1", "rain"),
        ]
    )

    assert [message.role for message in sent.messages] == [
        completion_pb2.ROLE_SYSTEM,
        completion_pb2.ROLE_USER,
        completion_pb2.ROLE_ASSISTANT,
        completion_pb2.ROLE_TOOL,
    ]
    assert list(sent.messages[1].image_urls) == ["https://example.com/cat.png"]
    assert sent.messages[2].tool_calls[0].name == "weather"
    assert sent.messages[3].tool_call_id == "c1"


def test_every_option_reaches_the_request() -> None:
    options: dict[str, Any] = {
        "task_type": TaskType.CODE,
        "model": "m",
        "provider": "groq",
        "temperature": 0.0,
        "top_p": 0.5,
        "max_output_tokens": 7,
        "stop": ["END"],
        "seed": 0,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "reasoning_effort": "low",
        "tools": [Tool("weather", "tells it", {"type": "object"}, strict=True)],
        "tool_choice": ToolChoice(ToolChoiceMode.NAMED, "weather"),
        "parallel_tool_calls": False,
        "response_format": ResponseFormat(ResponseKind.JSON_SCHEMA, "answer", {"type": "object"}, strict=True),
        "estimated_tokens": 11,
        "endpoint": "search",
        "user_id": "u1",
        "request_id": "r1",
        "labels": {"team": "red"},
        "min_config_version": 3,
    }
    assert options.keys() == CompletionOptions.__optional_keys__

    sent = request(**options)

    assert {field.name for field, _ in sent.ListFields()} == {
        field.name for field in router_service_pb2.CompleteRequest.DESCRIPTOR.fields
    }
    assert {field.name for field, _ in sent.sampling.ListFields()} == {
        field.name for field in completion_pb2.Sampling.DESCRIPTOR.fields
    }
    assert sent.task_type == completion_pb2.TASK_TYPE_CODE
    assert sent.tool_choice.mode == completion_pb2.ToolChoice.MODE_NAMED
    assert json.loads(sent.tools[0].parameters_json_schema) == {"type": "object"}
    assert json.loads(sent.response_format.json_schema) == {"type": "object"}
    assert sent.HasField("parallel_tool_calls")


def test_an_option_that_is_not_named_is_left_to_the_provider() -> None:
    sent = request()

    assert not sent.HasField("sampling")
    assert not sent.HasField("model")
    assert not sent.HasField("provider")


def test_a_misspelt_option_is_refused() -> None:
    with pytest.raises(TypeError, match="no completion option 'temprature'"):
        request(temprature=0.5)


def test_an_unknown_price_is_none_and_no_content_means_no_first_token() -> None:
    completion = completion_from_proto(completion_pb2.CompletionResult(provider="groq"))

    assert completion.cost_usd is None
    assert completion.time_to_first_token is None
