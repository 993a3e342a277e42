"""The one vocabulary of errors that crosses an RPC boundary.

    ServiceError                category, reason, message, metadata, retry_after_s
    ├── InvalidRequest          bad input, with the path of every bad field
    └── QuotaExceeded           a limit was hit, with subject and description of each

Code raises these; `error_codec` alone knows what they are in gRPC. An exception that is not one of them is a bug and
reaches the caller as `INTERNAL, internal error, ref <id>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class Category(Enum):
    """What kind of failure it is, in the terms of RPC status codes."""

    INVALID_ARGUMENT = "invalid_argument"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    PERMISSION_DENIED = "permission_denied"
    UNAUTHENTICATED = "unauthenticated"
    FAILED_PRECONDITION = "failed_precondition"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    ABORTED = "aborted"
    UNAVAILABLE = "unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"


class ServiceError(Exception):
    """A failure that the caller of an RPC is told about.

    `reason` is UPPER_SNAKE_CASE and stable; `message` names the value and the remedy, and holds no secret;
    `metadata` goes into `google.rpc.ErrorInfo`; `retry_after_s` becomes `google.rpc.RetryInfo`; `detail` is a value of
    the service's domain that the service's own `detail_to_proto` turns into a further detail message.
    """

    def __init__(
        self,
        category: Category,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        detail: object | None = None,
    ) -> None:
        super().__init__(message)
        self.category = category
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        self.detail = detail


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad field: its path in the request, such as `messages[2].role`, and what is wrong with it."""

    field: str
    description: str


class InvalidRequest(ServiceError):
    """The request is malformed. Lists every bad field that was found, not only the first."""

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__(Category.INVALID_ARGUMENT, "INVALID_REQUEST", f"{first.field}: {first.description}{more}")
        self.violations = tuple(violations)

    @classmethod
    def at(cls, field: str, description: str) -> InvalidRequest:
        """One bad field."""
        return cls([FieldViolation(field, description)])


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """One exceeded limit: whose, such as `tenant:4f2…`, and which."""

    subject: str
    description: str


class QuotaExceeded(ServiceError):
    """A limit of Turnpike's own was hit."""

    def __init__(self, violations: Sequence[QuotaViolation], *, retry_after_s: float | None) -> None:
        super().__init__(
            Category.RESOURCE_EXHAUSTED, "RATE_LIMITED", violations[0].description, retry_after_s=retry_after_s
        )
        self.violations = tuple(violations)
