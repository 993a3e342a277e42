"""The closed choices of the contract as strings, and how each maps to its number on the wire.

A number that this client does not know, or that means "not stated", becomes the value that is safest for the reader:
an unknown limit level is CRITICAL, an unknown price is UNPRICED.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar, cast

from turnpike.router.v1 import completion_pb2, tenant_service_pb2
from turnpike.usage.v1 import audit_service_pb2, quota_service_pb2, token_usage_pb2, usage_event_pb2, usage_service_pb2


class Role(StrEnum):
    """Who speaks in a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class TaskType(StrEnum):
    """What a completion is for; steers the ranking of providers and models."""

    CHAT = "chat"
    CODE = "code"
    REASONING = "reasoning"
    SUMMARISATION = "summarisation"
    EXTRACTION = "extraction"


class ToolChoiceMode(StrEnum):
    """How it is decided whether the model calls a tool."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"
    NAMED = "named"


class ResponseKind(StrEnum):
    """Form of an answer."""

    TEXT = "text"
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"


class MidstreamFailure(StrEnum):
    """What to do when a provider fails after content was seen: end with an error, or begin again."""

    FAIL = "fail"
    RESTART = "restart"


class FinishReason(StrEnum):
    """Why the model stopped."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    UNKNOWN = "unknown"


class Funding(StrEnum):
    """Whose provider key pays. NONE: no provider was called."""

    NONE = "none"
    TENANT_KEY = "tenant_key"
    SYSTEM_KEY = "system_key"


class UsageStatus(StrEnum):
    """How an attempt at a provider ended."""

    SUCCESS = "success"
    ERROR = "error"
    RATE_LIMIT = "rate_limit"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    UNKNOWN = "unknown"


class UsageSource(StrEnum):
    """How sure token counts are, from reported by the provider down to nothing known."""

    PROVIDER = "provider"
    PROVIDER_LATE = "provider_late"
    COUNTED = "counted"
    ESTIMATED = "estimated"
    NONE = "none"


class PricingState(StrEnum):
    """Whether a price was known. UNPRICED is not zero: the cost is unknown."""

    PRICED = "priced"
    UNPRICED = "unpriced"
    NOTHING_CONSUMED = "nothing_consumed"


class AttemptFilter(StrEnum):
    """Which attempts a report counts."""

    ALL = "all"
    USER_VISIBLE = "user_visible"
    ABSORBED = "absorbed"


class UsageGrouping(StrEnum):
    """What a report adds up apart."""

    NONE = "none"
    PROVIDER = "provider"
    MODEL = "model"


class TimeStep(StrEnum):
    """Unit of a time series' steps. AUTO leaves the length to the service."""

    AUTO = "auto"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"


class ErrorCause(StrEnum):
    """What is to blame for a failure, and so who can mend it."""

    PROVIDER = "provider"
    NETWORK = "network"
    KEY = "key"
    REQUEST = "request"
    LIMIT = "limit"
    CALLER = "caller"
    TURNPIKE = "turnpike"
    UNKNOWN = "unknown"


class LedgerCheck(StrEnum):
    """What an audit of the ledger checks."""

    MINUTE_ROLLUP = "minute_rollup"
    HOUR_ROLLUP = "hour_rollup"
    DAY_ROLLUP = "day_rollup"
    COST = "cost"
    ADJUSTMENTS = "adjustments"
    ROW = "row"
    FINAL_ATTEMPT = "final_attempt"
    DUPLICATE_EVENT = "duplicate_event"
    DUPLICATE_SEQUENCE = "duplicate_sequence"
    SEQUENCE_GAP = "sequence_gap"
    OPEN_ATTEMPT = "open_attempt"
    UNKNOWN = "unknown"


class RecordDisposition(StrEnum):
    """What became of a usage event. RETRY: send it again with the same id."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    REJECTED = "rejected"
    RETRY = "retry"


class LimitMetric(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    COST = "cost"
    UNKNOWN = "unknown"


class LimitLevel(StrEnum):
    """How close usage is to a limit."""

    HEALTHY = "healthy"
    NORMAL = "normal"
    WARNING = "warning"
    CRITICAL = "critical"


class TokenState(StrEnum):
    """State of a stored provider key."""

    STORED = "stored"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNREADABLE = "unreadable"
    UNKNOWN = "unknown"


class TokenVerdict(StrEnum):
    """What a provider said of a key."""

    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"


_Choice = TypeVar("_Choice", bound=StrEnum)

# Each choice: prefix and numbers of its names on the wire, and what stands for 0 and for numbers that are news to us.
_WIRE: dict[type[StrEnum], tuple[str, dict[str, int], StrEnum | None]] = {
    Role: ("ROLE_", dict(completion_pb2.Role.items()), None),
    TaskType: ("TASK_TYPE_", dict(completion_pb2.TaskType.items()), None),
    ToolChoiceMode: ("MODE_", dict(completion_pb2.ToolChoice.Mode.items()), None),
    ResponseKind: ("KIND_", dict(completion_pb2.ResponseFormat.Kind.items()), None),
    MidstreamFailure: ("MIDSTREAM_FAILURE_POLICY_", dict(completion_pb2.MidstreamFailurePolicy.items()), None),
    FinishReason: ("FINISH_REASON_", dict(completion_pb2.FinishReason.items()), FinishReason.UNKNOWN),
    Funding: ("FUNDING_", dict(token_usage_pb2.Funding.items()), Funding.NONE),
    UsageStatus: ("USAGE_STATUS_", dict(usage_event_pb2.UsageStatus.items()), UsageStatus.UNKNOWN),
    UsageSource: ("TOKEN_USAGE_SOURCE_", dict(token_usage_pb2.TokenUsageSource.items()), UsageSource.NONE),
    PricingState: ("PRICING_STATE_", dict(token_usage_pb2.PricingState.items()), PricingState.UNPRICED),
    AttemptFilter: ("ATTEMPT_FILTER_", dict(usage_service_pb2.AttemptFilter.items()), AttemptFilter.ALL),
    UsageGrouping: ("USAGE_GROUPING_", dict(usage_service_pb2.UsageGrouping.items()), UsageGrouping.NONE),
    TimeStep: ("TIME_STEP_", dict(usage_service_pb2.TimeStep.items()), TimeStep.AUTO),
    ErrorCause: ("ERROR_CAUSE_", dict(usage_service_pb2.ErrorCause.items()), ErrorCause.UNKNOWN),
    LedgerCheck: ("LEDGER_CHECK_", dict(audit_service_pb2.LedgerCheck.items()), LedgerCheck.UNKNOWN),
    RecordDisposition: (
        "RECORD_DISPOSITION_",
        dict(usage_service_pb2.RecordDisposition.items()),
        RecordDisposition.RETRY,
    ),
    LimitMetric: ("LIMIT_METRIC_", dict(quota_service_pb2.LimitMetric.items()), LimitMetric.UNKNOWN),
    LimitLevel: ("LIMIT_LEVEL_", dict(quota_service_pb2.LimitLevel.items()), LimitLevel.CRITICAL),
    TokenState: ("PROVIDER_TOKEN_STATE_", dict(tenant_service_pb2.ProviderTokenState.items()), TokenState.UNKNOWN),
    TokenVerdict: ("TOKEN_VERDICT_", dict(tenant_service_pb2.TokenVerdict.items()), TokenVerdict.UNKNOWN),
}


def to_wire(choice: StrEnum) -> int:
    """The number of `choice` on the wire; 0 for a choice that only stands for "not stated"."""
    prefix, numbers, _ = _WIRE[type(choice)]
    return numbers.get(prefix + choice.name, 0)


def from_wire(choices: type[_Choice], number: int) -> _Choice:
    """The choice with this number, or the safest one when the number is 0 or unknown to this client."""
    prefix, numbers, fallback = _WIRE[choices]
    for choice in choices:
        if numbers.get(prefix + choice.name) == number:
            return choice
    if fallback is None:
        raise ValueError(f"{number} is no {choices.__name__} that this client knows; update turnpike-client")
    return cast("_Choice", fallback)


def choice_types() -> tuple[type[StrEnum], ...]:
    """Every choice that crosses the wire."""
    return tuple(_WIRE)


def numbers_of(choices: type[StrEnum]) -> dict[str, int]:
    """The contract's own names and numbers for a choice."""
    return dict(_WIRE[choices][1])
