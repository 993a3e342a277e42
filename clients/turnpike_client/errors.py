"""What can go wrong, as one tree; every call of this package raises these and nothing of gRPC.

    TurnpikeError               message, code, reason, metadata, request_id, attempts
    ├── InvalidRequest          bad input, with the path of every bad field
    ├── NotFound
    │   └── UnknownTenant
    ├── AlreadyExists
    ├── Conflict                someone else was first: other version, or a request with the same id is running
    ├── AccessDenied
    ├── FailedPrecondition
    │   ├── TenantConfigInvalid
    │   ├── NoProvider
    │   └── ProviderKeyRejected
    ├── RateLimited             retry_after, violations
    ├── DeadlineExceeded
    ├── Unavailable             retry_after
    │   ├── ServerUnreachable   target: nobody answers there
    │   ├── AllTargetsFailed
    │   └── StreamInterrupted   partial_tokens, usage_source
    ├── Cancelled               the call was cancelled by the server or a proxy
    ├── ServerFault             a bug on the other side, with a reference for its operator
    └── UsageNotRecorded        event, disposition

Cancelling the awaiting task raises asyncio.CancelledError as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from turnpike_client.completions import Attempt, TokenUsage
from turnpike_client.enums import RecordDisposition, UsageSource


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad field: its path in the request, and what is wrong with it."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """One exceeded limit: whose, and which."""

    subject: str
    description: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Everything that a failed call said about itself.

    `code` is the name of the gRPC status; `reason` is stable and UPPER_SNAKE_CASE, or empty when no service of ours
    answered; `request_id` is what the server's logs know the call by; `attempts` are those of a failed completion.
    """

    code: str
    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    attempts: tuple[Attempt, ...] = ()
    retry_after: timedelta | None = None
    field_violations: tuple[FieldViolation, ...] = ()
    quota_violations: tuple[QuotaViolation, ...] = ()
    partial_tokens: TokenUsage | None = None
    usage_source: UsageSource = UsageSource.NONE
    target: str = ""


class TurnpikeError(Exception):
    """A call failed. `failure` holds all that is known; the properties name the parts that every failure has."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure

    @property
    def message(self) -> str:
        """One line that names the value and the remedy."""
        return self.failure.message

    @property
    def code(self) -> str:
        """Name of the gRPC status, such as "NOT_FOUND"."""
        return self.failure.code

    @property
    def reason(self) -> str:
        """Stable reason, such as "UNKNOWN_TENANT"; empty when no service of ours answered."""
        return self.failure.reason

    @property
    def metadata(self) -> Mapping[str, str]:
        """Further facts by name."""
        return self.failure.metadata

    @property
    def request_id(self) -> str:
        """What the server's logs know the call by."""
        return self.failure.request_id

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """What a failed completion tried."""
        return self.failure.attempts


class InvalidRequest(TurnpikeError):
    """The request is malformed."""

    @property
    def violations(self) -> tuple[FieldViolation, ...]:
        """Every bad field."""
        return self.failure.field_violations


class NotFound(TurnpikeError):
    """There is no such thing."""


class UnknownTenant(NotFound):
    """There is no such tenant."""


class AlreadyExists(TurnpikeError):
    """The id is taken."""


class Conflict(TurnpikeError):
    """Somebody else was first; read again and decide."""


class AccessDenied(TurnpikeError):
    """The caller is not known, or may not do this."""


class FailedPrecondition(TurnpikeError):
    """Something must be put right before this can succeed; the message says what."""


class TenantConfigInvalid(FailedPrecondition):
    """The tenant's configuration cannot be used."""


class NoProvider(FailedPrecondition):
    """No provider can serve the request."""


class ProviderKeyRejected(FailedPrecondition):
    """The provider does not accept the tenant's key."""


class RateLimited(TurnpikeError):
    """A limit was hit, or the server has no room."""

    @property
    def retry_after(self) -> timedelta | None:
        """How long to wait, if the server said."""
        return self.failure.retry_after

    @property
    def violations(self) -> tuple[QuotaViolation, ...]:
        """The limits that were hit."""
        return self.failure.quota_violations


class DeadlineExceeded(TurnpikeError):
    """Time ran out. Whether the call had an effect is unknown."""


class Unavailable(TurnpikeError):
    """A service or what it needs is not there at the moment."""

    @property
    def retry_after(self) -> timedelta | None:
        """How long to wait, if the server said."""
        return self.failure.retry_after


class ServerUnreachable(Unavailable):
    """Nobody answers at the address, or the connection to it broke; what a broken call had done is unknown."""

    @property
    def target(self) -> str:
        """The address."""
        return self.failure.target


class AllTargetsFailed(Unavailable):
    """Every provider that was tried failed; `attempts` says how."""


class StreamInterrupted(Unavailable):
    """A stream ended before its result, after content was seen: what was shown is not the whole answer."""

    @property
    def partial_tokens(self) -> TokenUsage | None:
        """What the stream consumed, if the server said."""
        return self.failure.partial_tokens

    @property
    def usage_source(self) -> UsageSource:
        """How sure that is."""
        return self.failure.usage_source


class Cancelled(TurnpikeError):
    """The call was cancelled, but not by its caller; where no reason is given, too many waited: retry later."""


class ServerFault(TurnpikeError):
    """A bug on the other side; the message holds a reference for its operator."""


class UsageNotRecorded(TurnpikeError):
    """The ledger did not store an event. For RETRY, record `event` again; for CONFLICT and REJECTED that is futile."""

    def __init__(self, failure: Failure, event: object, disposition: RecordDisposition) -> None:
        super().__init__(failure)
        self.event = event
        self.disposition = disposition
