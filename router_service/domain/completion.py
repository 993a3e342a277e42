"""A completion: what the caller asks, what a provider says, and what the router tells the caller.

All of them are Structs, for the reason that stands in `usage`; `msgspec.structs.replace` is what changes a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

import msgspec

from router_service.domain.usage import AttemptStatus, Funding, TokenUsage, UsageSource


class Role(StrEnum):
    """Who speaks. The values stand on the providers' wire."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class TaskType(StrEnum):
    """What the completion is for."""

    CHAT = "chat"
    CODE = "code"
    REASONING = "reasoning"
    SUMMARISATION = "summarisation"
    EXTRACTION = "extraction"


class FinishReason(StrEnum):
    """Why the model stopped. Nothing else ends an answer well."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class MidstreamFailurePolicy(StrEnum):
    """What to do when a provider fails after the caller has seen content."""

    FAIL = "fail"
    RESTART = "restart"


# ── what the caller asks ──────────────────────────────────────────────────────────────────────────────────────────


class ToolCall(msgspec.Struct, frozen=True):
    """A complete call of a tool. `arguments` is the model's own text and may be invalid JSON."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True):
    """One message of the conversation."""

    role: Role
    content: str
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    image_urls: tuple[str, ...] = ()


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call. `parameters_json_schema` is a valid JSON object text, or empty."""

    name: str
    description: str = ""
    parameters_json_schema: str = ""
    strict: bool = False


class ToolChoiceMode(StrEnum):
    """How the model chooses a tool. The values stand on the providers' wire, except NAMED."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"
    NAMED = "named"


class ToolChoice(msgspec.Struct, frozen=True):
    """Which tool the model shall call; `name` only with NAMED."""

    mode: ToolChoiceMode
    name: str = ""


class ResponseFormatKind(StrEnum):
    """Form of the answer. The values stand on the providers' wire."""

    TEXT = "text"
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"


class ResponseFormat(msgspec.Struct, frozen=True):
    """Form of the answer. `json_schema` is a valid JSON object text, only with JSON_SCHEMA."""

    kind: ResponseFormatKind
    schema_name: str = ""
    json_schema: str = ""
    strict: bool = False


class Sampling(msgspec.Struct, frozen=True):
    """Parameters of the model's sampling; None leaves one to the provider."""

    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    reasoning_effort: str = ""


class CompletionRequest(msgspec.Struct, frozen=True):
    """A completion that was checked at the boundary: nobody below `api` checks it again.

    `provider` is a catalogue name, already normalised. `estimated_tokens` is 0 when the caller gave none.
    """

    tenant_id: UUID
    request_id: UUID
    messages: tuple[Message, ...]
    task_type: TaskType = TaskType.CHAT
    estimated_tokens: int = 0
    endpoint: str = ""
    user_id: str = ""
    model: str | None = None
    provider: str | None = None
    sampling: Sampling = Sampling()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    min_config_version: int = 0
    on_midstream_failure: MidstreamFailurePolicy = MidstreamFailurePolicy.FAIL


# ── what a provider says ──────────────────────────────────────────────────────────────────────────────────────────


class QuotaHeaders(msgspec.Struct, frozen=True):
    """What a provider's response headers say of the key's own limits; None where they say nothing."""

    remaining_requests: int | None = None
    remaining_tokens: int | None = None
    limit_requests: int | None = None
    limit_tokens: int | None = None
    reset_requests_s: float | None = None
    reset_tokens_s: float | None = None


class ProviderAccepted(msgspec.Struct, frozen=True):
    """The provider answered 200 and its body begins. Not content yet. `response_id` is empty when no header has it."""

    quota: QuotaHeaders | None = None
    response_id: str = ""


class ProviderIdentified(msgspec.Struct, frozen=True):
    """The answer's first chunk says which it is and which model gives it; empty where it does not.

    Comes once, ahead of the content, so that an answer that breaks off is still known by both.
    """

    response_id: str = ""
    model: str = ""


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A part of a tool call; `id` and `name` only in the first part of a call."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class ContentDelta(msgspec.Struct, frozen=True):
    """Content that arrived together. Never empty. Reasoning comes before text, and text before tool calls."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class ProviderFinished(msgspec.Struct, frozen=True):
    """The provider ended its answer with a valid finish reason. Always the last item of its stream.

    `usage` is None when the provider reported none. `model` is the one that answered; empty when it did not say.
    `response_id` is the provider's own id of the answer.
    """

    finish_reason: FinishReason
    usage: TokenUsage | None
    model: str = ""
    response_id: str = ""
    reported_cost_usd: Decimal | None = None


ProviderItem = ProviderAccepted | ProviderIdentified | ContentDelta | ProviderFinished


# ── what the router tells the caller ──────────────────────────────────────────────────────────────────────────────


class RouteChosen(msgspec.Struct, frozen=True):
    """A candidate was chosen and is being called."""

    request_id: UUID
    provider: str
    model: str
    attempt: int
    funding: Funding | None
    config_version: int


class IndexedDelta(msgspec.Struct, frozen=True):
    """Content on its way to the caller, numbered from 0 within the stream."""

    index: int
    content: ContentDelta


class StreamRestarted(msgspec.Struct, frozen=True):
    """Everything up to and including `discard_through_index` is void; attempt number `attempt` begins."""

    attempt: int
    reason: str
    discard_through_index: int


class AttemptSummary(msgspec.Struct, frozen=True):
    """One attempt as the caller may see it: no secret, no provider text."""

    attempt: int
    provider: str
    model: str
    funding: Funding | None
    status: AttemptStatus
    latency_s: float
    usage_event_id: UUID
    error_class: str = ""
    error_message: str = ""


class CompletionResult(msgspec.Struct, frozen=True):
    """A completion that succeeded. `cost_usd` is None when no price is known, which is not the same as zero."""

    request_id: UUID
    provider: str
    model: str
    requested_model: str
    finish_reason: FinishReason
    usage: TokenUsage
    usage_source: UsageSource
    cost_usd: Decimal | None
    latency_s: float
    time_to_first_token_s: float | None
    attempts: tuple[AttemptSummary, ...]
    funding: Funding | None
    config_version: int


class CompletionFailure(msgspec.Struct, frozen=True):
    """What a failed completion tried and consumed; travels as detail of its error."""

    request_id: UUID
    attempts: tuple[AttemptSummary, ...]
    partial_usage: TokenUsage | None = None
    usage_source: UsageSource = UsageSource.NONE


RouterEvent = RouteChosen | IndexedDelta | StreamRestarted | CompletionResult
