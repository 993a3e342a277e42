"""The one place that knows what our errors are in gRPC: status codes and `google.rpc` details, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from service_runtime.errors import (
    Category,
    FieldViolation,
    InvalidRequest,
    QuotaExceeded,
    QuotaViolation,
    ServiceError,
)
from service_runtime.redaction import REDACTOR

ERROR_DOMAIN = "turnpike"
STATUS_DETAILS_KEY = "grpc-status-details-bin"

MessageT = TypeVar("MessageT", bound=Message)
DetailToProto = Callable[[object], Message | None]
DetailFromAny = Callable[[any_pb2.Any], object | None]

# The status travels in a header, base64-coded; many clients take 8 KiB of headers and then report something else.
MAX_STATUS_BYTES = 4096
_MAX_MESSAGE_CHARACTERS = 1000
_MAX_VIOLATIONS = 20

_CATEGORY_OF_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: Category.INVALID_ARGUMENT,
    grpc.StatusCode.OUT_OF_RANGE: Category.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND: Category.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: Category.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED: Category.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED: Category.UNAUTHENTICATED,
    grpc.StatusCode.FAILED_PRECONDITION: Category.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED: Category.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Category.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED: Category.ABORTED,
    grpc.StatusCode.UNAVAILABLE: Category.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Category.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED: Category.CANCELLED,
    # The other side has a bug or lost something; to us it is away.
    grpc.StatusCode.INTERNAL: Category.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN: Category.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS: Category.UNAVAILABLE,
}


def status_code(category: Category) -> grpc.StatusCode:
    """The gRPC status code of a category."""
    return grpc.StatusCode[category.name]  # each category is named after its code


def to_status(error: ServiceError, detail_to_proto: DetailToProto | None = None) -> status_pb2.Status:
    """The error as `google.rpc.Status`, for an RPC's end or an item of a batch.

    Details: always ErrorInfo; BadRequest, QuotaFailure and RetryInfo where the error has them; then what
    `detail_to_proto` makes of `error.detail`. Secrets are taken out of the message and of violations. Details that
    would make the status too large for a header are left out, the last first.
    """
    code = status_code(error.category)
    details = _details(error, detail_to_proto)
    status = _packed(code, error.message, details)
    while status.ByteSize() > MAX_STATUS_BYTES and details:
        details.pop()
        status = _packed(code, error.message, details)
    return status


def retry_info(retry_after_s: float) -> error_details_pb2.RetryInfo:
    """The detail that says when to come again."""
    delay = duration_pb2.Duration()
    delay.FromMicroseconds(round(retry_after_s * 1_000_000))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def internal_status(reference: str) -> status_pb2.Status:
    """The answer to a bug of ours: it says nothing but where in the logs to look."""
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=ERROR_DOMAIN, metadata={"ref": reference})
    return _packed(grpc.StatusCode.INTERNAL, f"internal error, ref {reference}", [info])


def from_rpc_error(error: grpc.RpcError, detail_from_any: DetailFromAny | None = None) -> ServiceError:
    """What a failed call to a service of ours said, as the error that it raised there.

    `detail_from_any` is asked for each detail that is none of `google.rpc`; its first answer becomes `detail`. A
    status without ErrorInfo has the name of its code as reason.
    """
    code: grpc.StatusCode = error.code()
    status = status_pb2.Status(code=code.value[0], message=error.details() or "")
    trailing: Iterable[tuple[str, Any]] = error.trailing_metadata() or ()  # type: ignore[assignment] # pairs, in truth
    for key, value in trailing:
        if key == STATUS_DETAILS_KEY:
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break  # what the plain status says is enough
    return from_status(status, detail_from_any)


def from_status(status: status_pb2.Status, detail_from_any: DetailFromAny | None = None) -> ServiceError:
    """The error in a status that is not OK, such as that of an item of a batch."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info = _first(error_details_pb2.ErrorInfo(), status)
    retry = _first(error_details_pb2.RetryInfo(), status)
    retry_after_s = retry.retry_delay.ToTimedelta().total_seconds() if retry is not None else None
    bad_request = _first(error_details_pb2.BadRequest(), status)
    quota = _first(error_details_pb2.QuotaFailure(), status)
    detail = next(_domain_details(status.details, detail_from_any), None) if detail_from_any is not None else None
    error: ServiceError
    if bad_request is not None and bad_request.field_violations:
        error = InvalidRequest([FieldViolation(bad.field, bad.description) for bad in bad_request.field_violations])
    elif quota is not None and quota.violations:
        violations = [QuotaViolation(over.subject, over.description) for over in quota.violations]
        error = QuotaExceeded(violations, retry_after_s=retry_after_s)
    else:
        error = ServiceError(_CATEGORY_OF_CODE.get(code, Category.UNAVAILABLE), code.name, status.message)
        error.retry_after_s = retry_after_s
    if info is not None:
        error.reason, error.metadata = info.reason, dict(info.metadata)
    error.detail = detail
    return error


_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def _details(error: ServiceError, detail_to_proto: DetailToProto | None) -> list[Message]:
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=_redacted(error.metadata))
    details: list[Message] = [info]
    if error.retry_after_s is not None:
        details.append(retry_info(error.retry_after_s))
    if isinstance(error, InvalidRequest):
        details.append(_bad_request(error))
    if isinstance(error, QuotaExceeded):
        details.append(_quota_failure(error))
    if error.detail is not None and detail_to_proto is not None:
        detail = detail_to_proto(error.detail)
        if detail is not None:
            details.append(detail)
    return details


def _bad_request(error: InvalidRequest) -> error_details_pb2.BadRequest:
    violations = [
        error_details_pb2.BadRequest.FieldViolation(field=bad.field, description=_clean(bad.description))
        for bad in error.violations[:_MAX_VIOLATIONS]
    ]
    return error_details_pb2.BadRequest(field_violations=violations)


def _quota_failure(error: QuotaExceeded) -> error_details_pb2.QuotaFailure:
    violations = [
        error_details_pb2.QuotaFailure.Violation(subject=over.subject, description=_clean(over.description))
        for over in error.violations[:_MAX_VIOLATIONS]
    ]
    return error_details_pb2.QuotaFailure(violations=violations)


def _packed(code: grpc.StatusCode, message: str, details: Iterable[Message]) -> status_pb2.Status:
    status = status_pb2.Status(code=code.value[0], message=_clean(message))
    for detail in details:
        status.details.add().Pack(detail)
    return status


def _redacted(metadata: dict[str, str]) -> dict[str, str]:
    return {name: _clean(value) for name, value in metadata.items()}


def _clean(text: str) -> str:
    return REDACTOR.redact(text)[:_MAX_MESSAGE_CHARACTERS]


def _first(empty: MessageT, status: status_pb2.Status) -> MessageT | None:
    """The first detail of the kind of `empty`, read into it."""
    return next((empty for detail in status.details if detail.Unpack(empty)), None)


def _domain_details(details: Iterable[any_pb2.Any], detail_from_any: DetailFromAny) -> Iterator[Any]:
    for detail in details:
        if not detail.type_url.startswith("type.googleapis.com/google.rpc."):
            found = detail_from_any(detail)
            if found is not None:
                yield found
