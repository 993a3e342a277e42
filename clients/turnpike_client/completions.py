"""What a caller says to the router, and what it hears back.

Values that come from the router keep the message they were made from in `proto`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypedDict

from turnpike.router.v1 import completion_pb2, router_service_pb2
from turnpike_client.enums import (
    FinishReason,
    Funding,
    PricingState,
    ResponseKind,
    Role,
    TaskType,
    ToolChoiceMode,
    UsageSource,
    UsageStatus,
)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the model. `arguments` is the model's own JSON text, which may be invalid."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation; `system`, `user`, `assistant` and `tool_result` make the usual ones."""

    role: Role
    content: str = ""
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    image_urls: tuple[str, ...] = ()


def system(content: str) -> ChatMessage:
    """Instructions to the model."""
    return ChatMessage(Role.SYSTEM, content)


def user(content: str, *, image_urls: Sequence[str] = ()) -> ChatMessage:
    """What the user says, with images as https or data URLs."""
    return ChatMessage(Role.USER, content, image_urls=tuple(image_urls))


def assistant(content: str, *, tool_calls: Sequence[ToolCall] = ()) -> ChatMessage:
    """What the model said before."""
    return ChatMessage(Role.ASSISTANT, content, tool_calls=tuple(tool_calls))


def tool_result(tool_call_id: str, content: str) -> ChatMessage:
    """What a tool that the model called gave back."""
    return ChatMessage(Role.TOOL, content, tool_call_id=tool_call_id)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. `parameters` is a JSON Schema; empty means no arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which tool the model shall call; `name` goes with ToolChoiceMode.NAMED."""

    mode: ToolChoiceMode
    name: str = ""


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """Form of the answer; `schema_name`, `schema` and `strict` go with ResponseKind.JSON_SCHEMA."""

    kind: ResponseKind
    schema_name: str = ""
    schema: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


class CompletionOptions(TypedDict, total=False):
    """What a completion may be told beside its tenant and messages. What is left out, others decide."""

    task_type: TaskType
    model: str
    provider: str
    temperature: float  # 0 to 2
    top_p: float  # over 0, up to 1
    max_output_tokens: int  # at least 1
    stop: Sequence[str]  # up to 4
    seed: int
    presence_penalty: float  # -2 to 2
    frequency_penalty: float  # -2 to 2
    reasoning_effort: str  # "low", "medium" or "high"
    tools: Sequence[Tool]
    tool_choice: ToolChoice
    parallel_tool_calls: bool
    response_format: ResponseFormat
    estimated_tokens: int  # prompt and completion together
    endpoint: str  # the caller's own feature, for the ledger
    user_id: str  # the caller's own user, for the ledger
    request_id: str  # UUID
    labels: Mapping[str, str]  # for the ledger
    min_config_version: int


@dataclass(frozen=True, slots=True)
class RouteChosen:
    """A candidate was chosen and is being called; `attempt` counts from 1."""

    request_id: str
    provider: str
    model: str
    attempt: int
    funding: Funding
    config_version: int
    proto: completion_pb2.RouteChosen = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of tool call number `index`; `id` and `name` stand in its first part only."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """Content that arrived together; `index` counts the stream's deltas from 0."""

    index: int
    text: str
    reasoning: str
    tool_calls: tuple[ToolCallDelta, ...]
    proto: completion_pb2.ContentDelta = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class StreamRestarted:
    """The provider failed and another begins: discard every delta up to and including `discard_through_index`."""

    attempt: int
    reason: str
    discard_through_index: int
    proto: completion_pb2.StreamRestarted = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a request; `error_class` and `error_message` are empty on success."""

    number: int
    provider: str
    model: str
    funding: Funding
    status: UsageStatus
    error_class: str
    error_message: str
    latency: timedelta
    usage_event_id: str


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens in disjoint classes: each token is counted once, so that `total` is their sum."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_read_tokens: int = 0
    cached_write_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total(self) -> int:
        """Tokens of all classes."""
        return self.prompt + self.completion

    @property
    def prompt(self) -> int:
        """Tokens of the prompt, cached or not."""
        return self.input_tokens + self.cached_read_tokens + self.cached_write_tokens

    @property
    def completion(self) -> int:
        """Tokens of the answer, reasoning included."""
        return self.output_tokens + self.reasoning_tokens


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion that succeeded, whole: text, reasoning and tool calls, whether it was streamed or not.

    `cost_usd` is None when no price is known; the ledger's own figure is the one that counts. `latency` and
    `time_to_first_token` count from the request's arrival at the router; the latter is None when there was no content.
    """

    request_id: str
    provider: str
    model: str
    requested_model: str
    content: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    tokens: TokenUsage
    usage_source: UsageSource
    cost_usd: Decimal | None
    pricing_state: PricingState
    latency: timedelta
    time_to_first_token: timedelta | None
    attempts: tuple[Attempt, ...]
    funding: Funding
    config_version: int
    proto: completion_pb2.CompletionResult = field(repr=False, compare=False)


StreamEvent = RouteChosen | ContentDelta | StreamRestarted | Completion


@dataclass(frozen=True, slots=True)
class ScoreTerm:
    """One term of a score: how well the candidate does (0 to 1), how much it counts, and on what evidence."""

    name: str
    value: float
    weight: float
    evidence: str


@dataclass(frozen=True, slots=True)
class RankedCandidate:
    """A candidate that would be tried; rank 1 first."""

    rank: int
    provider: str
    model: str
    funding: Funding
    score: float
    terms: tuple[ScoreTerm, ...]


@dataclass(frozen=True, slots=True)
class ExcludedCandidate:
    """A candidate that would not be tried; `model` is empty when the whole provider is excluded."""

    provider: str
    model: str
    reason: str
    explanation: str


@dataclass(frozen=True, slots=True)
class RouteExplanation:
    """How a request would be routed."""

    candidates: tuple[RankedCandidate, ...]
    excluded: tuple[ExcludedCandidate, ...]
    auto_failover: bool
    config_version: int
    proto: router_service_pb2.ExplainRouteResponse = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the catalogue. A context window of None is unknown; `retirement_date` is YYYY-MM-DD or empty."""

    name: str
    context_window_tokens: int | None
    supports_tools: bool
    supports_json: bool
    supports_vision: bool
    retirement_date: str
    retired: bool
    is_default: bool


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider of the catalogue, and whether it can be used now."""

    name: str
    display_name: str
    usable: bool
    unusable_reason: str
    funding: Funding
    needs_key: bool
    breaker_state: str
    models: tuple[Model, ...]
    proto: router_service_pb2.ProviderInfo = field(repr=False, compare=False)
