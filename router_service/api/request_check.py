"""What a completion's request must be: reads it part by part, and collects what is wrong under its path."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

import msgspec
from google.protobuf.message import Message as ProtoMessage

from router_service.api.convert_tenant import Checker
from router_service.domain.catalog import ProviderNames
from router_service.domain.completion import (
    Message,
    MidstreamFailurePolicy,
    ResponseFormat,
    ResponseFormatKind,
    Role,
    Sampling,
    TaskType,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
)
from turnpike.router.v1 import completion_pb2 as completion
from turnpike.router.v1 import router_service_pb2 as pb

CompletionProto = pb.StreamCompletionRequest | pb.CompleteRequest

T = TypeVar("T")

MAX_MESSAGES = 1000
MAX_TOOLS = 128  # and calls of tools in one message
MAX_CALLS = 4096  # in all messages
MAX_IMAGES = 500  # in one message: more than any vendor takes
MAX_STOPS = 4
MAX_LABELS = 16
MAX_LABEL_KEY = 64
MAX_LABEL_VALUE = 256
MAX_NAME = 200

ROLES = {
    completion.ROLE_SYSTEM: Role.SYSTEM,
    completion.ROLE_USER: Role.USER,
    completion.ROLE_ASSISTANT: Role.ASSISTANT,
    completion.ROLE_TOOL: Role.TOOL,
}
TASK_TYPES = {
    completion.TASK_TYPE_UNSPECIFIED: TaskType.CHAT,
    completion.TASK_TYPE_CHAT: TaskType.CHAT,
    completion.TASK_TYPE_CODE: TaskType.CODE,
    completion.TASK_TYPE_REASONING: TaskType.REASONING,
    completion.TASK_TYPE_SUMMARISATION: TaskType.SUMMARISATION,
    completion.TASK_TYPE_EXTRACTION: TaskType.EXTRACTION,
}
TOOL_CHOICES = {
    completion.ToolChoice.MODE_AUTO: ToolChoiceMode.AUTO,
    completion.ToolChoice.MODE_NONE: ToolChoiceMode.NONE,
    completion.ToolChoice.MODE_REQUIRED: ToolChoiceMode.REQUIRED,
    completion.ToolChoice.MODE_NAMED: ToolChoiceMode.NAMED,
}
FORMATS = {
    completion.ResponseFormat.KIND_UNSPECIFIED: ResponseFormatKind.TEXT,
    completion.ResponseFormat.KIND_TEXT: ResponseFormatKind.TEXT,
    completion.ResponseFormat.KIND_JSON_OBJECT: ResponseFormatKind.JSON_OBJECT,
    completion.ResponseFormat.KIND_JSON_SCHEMA: ResponseFormatKind.JSON_SCHEMA,
}
POLICIES = {
    completion.MIDSTREAM_FAILURE_POLICY_UNSPECIFIED: MidstreamFailurePolicy.FAIL,
    completion.MIDSTREAM_FAILURE_POLICY_FAIL: MidstreamFailurePolicy.FAIL,
    completion.MIDSTREAM_FAILURE_POLICY_RESTART: MidstreamFailurePolicy.RESTART,
}
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HTTPS = "https://"
_IMAGE_DATA = re.compile(r"data:image/[a-z0-9.+-]{1,100};base64,", re.IGNORECASE)
_BASE64 = (string.ascii_letters + string.digits + "+/=").encode()
_EFFORTS = ("", "low", "medium", "high")


@dataclass(frozen=True, slots=True)
class RequestRules:
    """What a request is checked against. `new_request_id` names a request whose caller gave it no id."""

    names: ProviderNames
    new_request_id: Callable[[], UUID]
    max_prompt_characters: int = 1_000_000


class RequestCheck(Checker):
    """Reads the parts of a request, and collects what is wrong with them under their paths."""

    def __init__(self, rules: RequestRules) -> None:
        super().__init__()
        self._rules = rules

    def not_negative(self, path: str, value: int) -> None:
        if value < 0:
            self.refuse(path, f"must not be negative, not {value}")

    def without_nul(self, path: str, text: str) -> str:
        if "\0" in text:
            self.refuse(path, "must not hold NUL characters")
        return text

    def task(self, number: completion.TaskType.ValueType) -> TaskType:
        if number not in TASK_TYPES:
            self.refuse("task_type", f"{number} is no TaskType")
        return TASK_TYPES.get(number, TaskType.CHAT)

    def midstream_policy(self, request: CompletionProto) -> MidstreamFailurePolicy:
        """The policy of a stream; a whole answer has none, because nothing is sent before its end."""
        if not isinstance(request, pb.StreamCompletionRequest):
            return MidstreamFailurePolicy.FAIL
        policy = POLICIES.get(request.on_midstream_failure)
        if policy is None:
            self.refuse("on_midstream_failure", f"{request.on_midstream_failure} is no MidstreamFailurePolicy")
        return policy or MidstreamFailurePolicy.FAIL

    def model(self, request: CompletionProto | pb.ExplainRouteRequest) -> str | None:
        if not request.HasField("model"):
            return None
        return self.text("model", request.model, limit=MAX_NAME, required=True)

    def named_provider(self, request: CompletionProto | pb.ExplainRouteRequest) -> str | None:
        """The catalogue name of the provider that the request names, if it names one."""
        return self.provider("provider", request.provider, self._rules.names) if request.HasField("provider") else None

    def messages(self, request: CompletionProto) -> tuple[Message, ...]:
        count = len(request.messages)
        if not 1 <= count <= MAX_MESSAGES:
            self.refuse("messages", f"must be 1 to {MAX_MESSAGES} messages, not {count}")
            return ()
        calls = sum([len(message.tool_calls) for message in request.messages])
        if calls > MAX_CALLS:
            self.refuse("messages", f"hold {calls} tool calls; at most {MAX_CALLS} are taken")
            return ()
        messages = tuple([self._message(i, message) for i, message in enumerate(request.messages)])
        characters = 0
        for message in messages:
            characters += len(message.content)
            for call in message.tool_calls:
                characters += len(call.arguments)
        for tool in request.tools:
            characters += len(tool.description) + len(tool.parameters_json_schema)
        if request.HasField("response_format"):
            characters += len(request.response_format.json_schema)
        if characters > self._rules.max_prompt_characters:
            most = self._rules.max_prompt_characters
            self.refuse("messages", f"hold {characters} characters with tools and schema; at most {most} are taken")
        return messages

    def _message(self, index: int, message: completion.ChatMessage) -> Message:
        role, content = ROLES.get(message.role), message.content
        others = message.name or message.tool_call_id or message.tool_calls or message.image_urls
        if role is not None and role is not Role.TOOL and content and not others and "\0" not in content:
            return Message(role, content)  # as most are: there is nothing more to check, and no path to be named
        return self._unusual_message(f"messages[{index}]", message)

    def _unusual_message(self, path: str, message: completion.ChatMessage) -> Message:
        role = ROLES.get(message.role)
        if role is None:
            self.refuse(f"{path}.role", "is required" if message.role == 0 else f"{message.role} is no Role")
            role = Role.USER
        given = message.tool_calls if self.few(f"{path}.tool_calls", len(message.tool_calls), limit=MAX_TOOLS) else ()
        calls = tuple([self._tool_call(f"{path}.tool_calls[{i}]", call) for i, call in enumerate(given)])
        if message.tool_calls and role is not Role.ASSISTANT:
            self.refuse(f"{path}.tool_calls", "belong into assistant messages only")
        if message.image_urls and role is not Role.USER:
            self.refuse(f"{path}.image_urls", "belong into user messages only")
        if role is Role.TOOL and not message.tool_call_id:
            self.refuse(f"{path}.tool_call_id", "is required for ROLE_TOOL")
        if role is not Role.TOOL and message.tool_call_id:
            self.refuse(f"{path}.tool_call_id", "belongs into tool messages only")
        # A tool may well return nothing.
        if not message.content and not message.tool_calls and not message.image_urls and role is not Role.TOOL:
            self.refuse(f"{path}.content", "is required")
        images = message.image_urls if self.few(f"{path}.image_urls", len(message.image_urls), limit=MAX_IMAGES) else ()
        for i, url in enumerate(images):
            if not _is_image_url(url):
                self.refuse(f"{path}.image_urls[{i}]", "must be an https URL or a base64 data URL of an image")
        return Message(
            role=role,
            content=self.without_nul(f"{path}.content", message.content),
            name=self.text(f"{path}.name", message.name, limit=MAX_LABEL_KEY),
            tool_calls=calls,
            tool_call_id=self.text(f"{path}.tool_call_id", message.tool_call_id),
            image_urls=tuple(images),
        )

    def _tool_call(self, path: str, call: completion.ToolCall) -> ToolCall:
        return ToolCall(
            id=self.text(f"{path}.id", call.id, required=True),
            name=self.text(f"{path}.name", call.name, required=True),
            arguments=self.without_nul(f"{path}.arguments", call.arguments),
        )

    def sampling(self, sampling: completion.Sampling) -> Sampling:
        checked = Sampling(
            temperature=_optional(sampling, "temperature", sampling.temperature),
            top_p=_optional(sampling, "top_p", sampling.top_p),
            max_output_tokens=_optional(sampling, "max_output_tokens", sampling.max_output_tokens),
            stop=tuple(sampling.stop),
            seed=_optional(sampling, "seed", sampling.seed),
            presence_penalty=_optional(sampling, "presence_penalty", sampling.presence_penalty),
            frequency_penalty=_optional(sampling, "frequency_penalty", sampling.frequency_penalty),
            reasoning_effort=sampling.reasoning_effort,
        )
        self._range("temperature", checked.temperature, 0.0, 2.0)
        self._range("presence_penalty", checked.presence_penalty, -2.0, 2.0)
        self._range("frequency_penalty", checked.frequency_penalty, -2.0, 2.0)
        if checked.top_p is not None and not 0.0 < checked.top_p <= 1.0:
            self.refuse("sampling.top_p", f"must be over 0 and at most 1, not {checked.top_p}")
        if checked.max_output_tokens is not None and checked.max_output_tokens < 1:
            self.refuse("sampling.max_output_tokens", f"must be at least 1, not {checked.max_output_tokens}")
        if len(checked.stop) > MAX_STOPS:
            self.refuse("sampling.stop", f"must be at most {MAX_STOPS} texts, not {len(checked.stop)}")
        for i, stop in enumerate(checked.stop[:MAX_STOPS]):
            if not stop or "\0" in stop or len(stop) > MAX_NAME:
                self.refuse(f"sampling.stop[{i}]", f"must be 1 to {MAX_NAME} characters without NUL")
        if checked.reasoning_effort not in _EFFORTS:
            self.refuse("sampling.reasoning_effort", "must be low, medium, high or empty")
        return checked

    def _range(self, field: str, value: float | None, least: float, most: float) -> None:
        # NaN is in no range.
        if value is not None and not least <= value <= most:
            self.refuse(f"sampling.{field}", f"must be {least:g} to {most:g}, not {value}")

    def tools(self, request: CompletionProto) -> tuple[Tool, ...]:
        if not request.tools:
            return ()
        if len(request.tools) > MAX_TOOLS:
            self.refuse("tools", f"must be at most {MAX_TOOLS}, not {len(request.tools)}")
            return ()
        seen: set[str] = set()
        for i, tool in enumerate(request.tools):
            path = f"tools[{i}]"
            if not _TOOL_NAME.fullmatch(tool.name):
                self.refuse(f"{path}.name", "must be 1 to 64 letters, digits, dots, hyphens or underscores")
            elif tool.name in seen:
                self.refuse(f"{path}.name", f"{tool.name} is there twice")
            seen.add(tool.name)
            self.without_nul(f"{path}.description", tool.description)
            if tool.parameters_json_schema:
                self._json_object(f"{path}.parameters_json_schema", tool.parameters_json_schema)
        return tuple(
            Tool(tool.name, tool.description, tool.parameters_json_schema, tool.strict) for tool in request.tools
        )

    def tool_choice(self, request: CompletionProto, tools: tuple[Tool, ...]) -> ToolChoice | None:
        choice = request.tool_choice
        if choice.mode == completion.ToolChoice.MODE_UNSPECIFIED:
            if choice.name:
                self.refuse("tool_choice.mode", "must be MODE_NAMED where a tool is named")
            return None
        mode = TOOL_CHOICES.get(choice.mode)
        if mode is None:
            self.refuse("tool_choice.mode", f"{choice.mode} is no ToolChoice.Mode")
            return None
        if mode is ToolChoiceMode.NAMED and choice.name not in {tool.name for tool in tools}:
            self.refuse("tool_choice.name", f"{choice.name[:50]!r} is not among the tools")
        if mode is ToolChoiceMode.REQUIRED and not tools:
            self.refuse("tool_choice.mode", "asks for a tool, but there are none")
        if mode is not ToolChoiceMode.NAMED and choice.name:
            self.refuse("tool_choice.name", "belongs to MODE_NAMED only")
        return ToolChoice(mode, choice.name)

    def response_format(self, request: CompletionProto) -> ResponseFormat | None:
        if not request.HasField("response_format"):
            return None
        form = request.response_format
        kind = FORMATS.get(form.kind)
        if kind is None:
            self.refuse("response_format.kind", f"{form.kind} is no ResponseFormat.Kind")
            return None
        if kind is ResponseFormatKind.JSON_SCHEMA:
            self._json_object("response_format.json_schema", form.json_schema)
        elif form.json_schema:
            self.refuse("response_format.json_schema", "belongs to KIND_JSON_SCHEMA only")
        return ResponseFormat(
            kind,
            schema_name=self.text("response_format.schema_name", form.schema_name, limit=MAX_LABEL_KEY),
            json_schema=form.json_schema,
            strict=form.strict,
        )

    def labels(self, labels: Mapping[str, str]) -> dict[str, str]:
        if not labels:
            return {}
        if len(labels) > MAX_LABELS:
            self.refuse("labels", f"must be at most {MAX_LABELS}, not {len(labels)}")
            return {}
        for key, value in labels.items():
            path = f"labels[{key[:MAX_LABEL_KEY]!r}]"
            if not 1 <= len(key) <= MAX_LABEL_KEY or not key.isprintable():
                self.refuse(path, f"its key must be 1 to {MAX_LABEL_KEY} printable characters")
            self.text(path, value, limit=MAX_LABEL_VALUE)
        return dict(labels)

    def _json_object(self, path: str, text: str) -> None:
        most = self._rules.max_prompt_characters
        if len(text) > most:  # refused beside the messages too, but not read in vain
            self.refuse(path, f"is {len(text)} characters long; at most {most} are taken")
            return
        try:
            _read_as_object(text)
        except msgspec.ValidationError:
            self.refuse(path, "must be a JSON object")
        except msgspec.DecodeError as error:
            self.refuse(path, f"is no JSON text: {error}" if text else "is required: a JSON Schema as a JSON text")
        except RecursionError:
            self.refuse(path, "is nested too deeply")


def _is_image_url(url: str) -> bool:
    # A regular expression for all of it takes 200 ms for a megabyte of an image, this 4.
    head = _IMAGE_DATA.match(url)
    if head is None:
        return url[: len(_HTTPS)].lower() == _HTTPS and len(url) > len(_HTTPS) and url.split() == [url]
    data = url[head.end() :]
    return bool(data) and data.isascii() and not data.encode().translate(None, _BASE64)


class _AnyObject(msgspec.Struct):
    """Any JSON object: all of it is read, and nothing kept. A million characters take 13 ms, as Python objects 500."""


_read_as_object = msgspec.json.Decoder(_AnyObject).decode


def _optional(message: ProtoMessage, field: str, value: T) -> T | None:
    return value if message.HasField(field) else None
