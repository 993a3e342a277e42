"""From a failed RPC to the error that says so. The only module that reads status details."""

from __future__ import annotations

from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from turnpike.router.v1 import completion_pb2
from turnpike_client.completion_codec import attempts_from_proto, tokens_from_proto
from turnpike_client.enums import UsageSource, from_wire
from turnpike_client.errors import (
    AccessDenied,
    AllTargetsFailed,
    AlreadyExists,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    FailedPrecondition,
    Failure,
    FieldViolation,
    InvalidRequest,
    NoProvider,
    NotFound,
    ProviderKeyRejected,
    QuotaViolation,
    RateLimited,
    ServerFault,
    ServerUnreachable,
    StreamInterrupted,
    TenantConfigInvalid,
    TurnpikeError,
    Unavailable,
    UnknownTenant,
)
from turnpike_client.wire import span

DOMAIN = "turnpike"
DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"

_BY_REASON: dict[str, type[TurnpikeError]] = {
    "UNKNOWN_TENANT": UnknownTenant,
    "TENANT_CONFIG_INVALID": TenantConfigInvalid,
    "NO_PROVIDER": NoProvider,
    "PROVIDER_KEY_REJECTED": ProviderKeyRejected,
    "ALL_TARGETS_FAILED": AllTargetsFailed,
    "STREAM_INTERRUPTED": StreamInterrupted,
}

_BY_CODE: dict[str, type[TurnpikeError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "ABORTED": Conflict,
    "PERMISSION_DENIED": AccessDenied,
    "UNAUTHENTICATED": AccessDenied,
    "FAILED_PRECONDITION": FailedPrecondition,
    "RESOURCE_EXHAUSTED": RateLimited,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "UNAVAILABLE": Unavailable,
    "CANCELLED": Cancelled,
}

# What gRPC itself says when the time is over on this side.
_GRPC_DEADLINE = "Deadline Exceeded"
# What gRPC itself says of a call that the other side's core ended; a call that ends here raises no error of an RPC.
_GRPC_CANCELLED = "CANCELLED"
# What gRPC itself says when it could not connect at all, as opposed to losing a connection.
_NEVER_CONNECTED = ("failed to connect", "connection refused", "dns resolution failed", "name resolution")


def from_rpc_error(error: grpc.aio.AioRpcError, target: str) -> TurnpikeError:
    """The error for a failed RPC to `target`."""
    status = _status(error)
    facts = _facts(status) if status else {}
    code = error.code().name
    message = error.details() or code
    if code == "UNAVAILABLE" and not facts.get("reason"):
        message = _unreachable(message, target)
        return ServerUnreachable(Failure(code, message, request_id=_request_id(error), target=target))
    if code == "CANCELLED" and message == _GRPC_CANCELLED and not facts.get("reason"):
        message = f"{target} let this call go, as it does when too many wait; retry in a second or later"
    if message == _GRPC_DEADLINE:
        message = f"{target} did not answer in time; it may be overloaded or frozen"
    failure = Failure(code, message, request_id=_request_id(error), target=target, **facts)
    return error_type(code, failure.reason)(failure)


def from_status(status: status_pb2.Status, target: str) -> Failure:
    """What a status inside an answer, such as that of one item of a batch, says."""
    code = code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "UNKNOWN"
    return Failure(code, status.message or code, target=target, **_facts(status))


def error_type(code: str, reason: str) -> type[TurnpikeError]:
    """The class of error for a status and reason; a status that nobody should send is a fault of the server."""
    return _BY_REASON.get(reason) or _BY_CODE.get(code, ServerFault)


def _unreachable(details: str, target: str) -> str:
    if any(sign in details.lower() for sign in _NEVER_CONNECTED):
        return f"no server at {target}"
    return f"lost the connection to {target}: {details}"


def _metadata(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    return dict(error.trailing_metadata() or ())


def _request_id(error: grpc.aio.AioRpcError) -> str:
    return str(_metadata(error).get(REQUEST_ID_KEY, ""))


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    """The rich status of an RPC, or None when there is none that can be read: the plain one then has to do."""
    details = _metadata(error).get(DETAILS_KEY)
    if details is None:
        return None
    try:
        return status_pb2.Status.FromString(details)
    except DecodeError:
        return None


def _facts(status: status_pb2.Status) -> dict[str, Any]:
    """The fields of a `Failure` that the details of a status fill."""
    facts: dict[str, Any] = {}
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
            if info.domain == DOMAIN:
                facts |= {"reason": info.reason, "metadata": dict(info.metadata)}
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest.FromString(detail.value)
            facts["field_violations"] = tuple(FieldViolation(v.field, v.description) for v in bad.field_violations)
        elif detail.Is(error_details_pb2.QuotaFailure.DESCRIPTOR):
            quota = error_details_pb2.QuotaFailure.FromString(detail.value)
            facts["quota_violations"] = tuple(QuotaViolation(v.subject, v.description) for v in quota.violations)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            facts["retry_after"] = span(error_details_pb2.RetryInfo.FromString(detail.value).retry_delay)
        elif detail.Is(completion_pb2.CompletionFailure.DESCRIPTOR):
            facts |= _completion_failure(completion_pb2.CompletionFailure.FromString(detail.value))
    return facts


def _completion_failure(failed: completion_pb2.CompletionFailure) -> dict[str, Any]:
    return {
        "attempts": attempts_from_proto(failed.attempts),
        "partial_tokens": tokens_from_proto(failed.partial_usage) if failed.HasField("partial_usage") else None,
        "usage_source": from_wire(UsageSource, failed.usage_source),
    }
