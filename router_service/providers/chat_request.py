"""A completion request as the body of OpenAI's `POST /chat/completions`. Pure; the other half is `openai_chat`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_never

import msgspec

from router_service.domain.completion import (
    CompletionRequest,
    Message,
    ResponseFormat,
    ResponseFormatKind,
    Role,
    Sampling,
    Tool,
    ToolChoice,
    ToolChoiceMode,
)


@dataclass(frozen=True, slots=True)
class RequestDialect:
    """Where vendors differ in what they take."""

    max_tokens_field: str = "max_tokens"
    nests_reasoning_effort: bool = False  # {"reasoning": {"effort": …}} instead of "reasoning_effort"


def encode(request: CompletionRequest, model: str, dialect: RequestDialect | None = None) -> bytes:
    """The JSON body that asks `model` for a stream with usage at its end. Holds no key and no tenant."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body |= _sampling(request.sampling, dialect or RequestDialect())
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        if request.tool_choice is not None:
            body["tool_choice"] = _tool_choice(request.tool_choice)
        if request.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = request.parallel_tool_calls
    if request.response_format is not None:
        body["response_format"] = _response_format(request.response_format)
    return msgspec.json.encode(body)


def _message(message: Message) -> dict[str, Any]:
    content: object = message.content
    if message.image_urls:
        text = [{"type": "text", "text": message.content}] if message.content else []
        content = text + [{"type": "image_url", "image_url": {"url": url}} for url in message.image_urls]
    encoded: dict[str, Any] = {"role": message.role, "content": content}
    if message.name and message.role is not Role.TOOL:
        encoded["name"] = message.name
    if message.tool_call_id:
        encoded["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        encoded["content"] = content or None  # several servers reject an empty text beside tool calls
        encoded["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return encoded


def _sampling(sampling: Sampling, dialect: RequestDialect) -> dict[str, Any]:
    named: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        dialect.max_tokens_field: sampling.max_output_tokens,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    if sampling.reasoning_effort and dialect.nests_reasoning_effort:
        named["reasoning"] = {"effort": sampling.reasoning_effort}
    elif sampling.reasoning_effort:
        named["reasoning_effort"] = sampling.reasoning_effort
    return {name: value for name, value in named.items() if value is not None}


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_json_schema:
        function["parameters"] = msgspec.Raw(tool.parameters_json_schema.encode())
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice) -> object:
    match choice.mode:
        case ToolChoiceMode.AUTO | ToolChoiceMode.NONE | ToolChoiceMode.REQUIRED:
            return choice.mode.value
        case ToolChoiceMode.NAMED:
            return {"type": "function", "function": {"name": choice.name}}
        case _:
            assert_never(choice.mode)


def _response_format(wanted: ResponseFormat) -> dict[str, Any]:
    match wanted.kind:
        case ResponseFormatKind.TEXT | ResponseFormatKind.JSON_OBJECT:
            return {"type": wanted.kind.value}
        case ResponseFormatKind.JSON_SCHEMA:
            schema: dict[str, Any] = {
                "name": wanted.schema_name or "answer",
                "schema": msgspec.Raw(wanted.json_schema.encode()),
            }
            if wanted.strict:
                schema["strict"] = True
            return {"type": wanted.kind.value, "json_schema": schema}
        case _:
            assert_never(wanted.kind)
