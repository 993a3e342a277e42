"""Between the error vocabulary and gRPC: the only place that knows both.

Every error travels as `google.rpc.Status` with `ErrorInfo`; bad input adds `BadRequest`, a limit `QuotaFailure`, and
whatever may be retried `RetryInfo`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import grpc
from google.protobuf.any_pb2 import Any as AnyProto
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from service_runtime.errors import Category, InvalidRequest, QuotaExceeded, ServiceError

DOMAIN = "turnpike"

DetailToProto = Callable[[object], Message | None]
"""Turns the domain value in `ServiceError.detail` into a message of the service's contract."""

CODES: dict[Category, grpc.StatusCode] = {
    Category.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Category.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Category.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Category.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Category.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Category.FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Category.RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Category.ABORTED: grpc.StatusCode.ABORTED,
    Category.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Category.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Category.CANCELLED: grpc.StatusCode.CANCELLED,
}


def no_details(_detail: object) -> Message | None:
    """For a service whose errors carry no values of its domain."""
    return None


def to_status(error: ServiceError, detail_to_proto: DetailToProto = no_details) -> status_pb2.Status:
    """The error as it travels."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if isinstance(error, InvalidRequest):
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=entry.field, description=entry.description)
                    for entry in error.violations
                ]
            )
        )
    if isinstance(error, QuotaExceeded):
        details.append(
            error_details_pb2.QuotaFailure(
                violations=[
                    error_details_pb2.QuotaFailure.Violation(subject=entry.subject, description=entry.description)
                    for entry in error.violations
                ]
            )
        )
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(timedelta(seconds=error.retry_after_s))
        details.append(retry)
    if error.detail is not None and (extra := detail_to_proto(error.detail)) is not None:
        details.append(extra)
    return status_pb2.Status(
        code=CODES[error.category].value[0], message=error.message, details=[_packed(detail) for detail in details]
    )


def internal_status(reference: str) -> status_pb2.Status:
    """What the caller learns of a bug of ours: a reference to find it in the log, and nothing else."""
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"ref": reference})
    return status_pb2.Status(
        code=code_pb2.INTERNAL, message=f"internal error, ref {reference}", details=[_packed(info)]
    )


def _packed(message: Message) -> AnyProto:
    packed = AnyProto()
    packed.Pack(message)
    return packed
