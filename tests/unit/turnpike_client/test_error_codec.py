from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest

from turnpike_client import errors
from turnpike_client.completions import Attempt, TokenUsage
from turnpike_client.enums import Funding, UsageSource, UsageStatus
from turnpike_client.error_codec import DETAILS_KEY, error_type, from_rpc_error
from turnpike_client.errors import Failure, FieldViolation, QuotaViolation
from turnpike_client.testing.replies import status_of

ATTEMPT = Attempt(
    1, "groq", "m", Funding.TENANT_KEY, UsageStatus.ERROR, "overloaded", "busy", timedelta(seconds=1), "e1"
)


def rpc_error(failure: Failure, *, details: bytes | None = None) -> grpc.aio.AioRpcError:
    trailers: list[tuple[str, Any]] = [("x-request-id", failure.request_id)]
    if failure.reason or details is not None:
        trailers.append((DETAILS_KEY, details if details is not None else status_of(failure).SerializeToString()))
    code = grpc.StatusCode[failure.code]
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), failure.message)


def decode(failure: Failure) -> errors.TurnpikeError:
    return from_rpc_error(rpc_error(failure), "host:1")


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        ("INVALID_ARGUMENT", "INVALID_REQUEST", errors.InvalidRequest),
        ("NOT_FOUND", "UNKNOWN_TENANT", errors.UnknownTenant),
        ("NOT_FOUND", "SOMETHING_ELSE", errors.NotFound),
        ("ALREADY_EXISTS", "TENANT_EXISTS", errors.AlreadyExists),
        ("ABORTED", "VERSION_MISMATCH", errors.Conflict),
        ("PERMISSION_DENIED", "NOT_YOURS", errors.AccessDenied),
        ("UNAUTHENTICATED", "WHO", errors.AccessDenied),
        ("FAILED_PRECONDITION", "NO_PROVIDER", errors.NoProvider),
        ("FAILED_PRECONDITION", "PROVIDER_KEY_REJECTED", errors.ProviderKeyRejected),
        ("FAILED_PRECONDITION", "TENANT_CONFIG_INVALID", errors.TenantConfigInvalid),
        ("FAILED_PRECONDITION", "NEW_REASON", errors.FailedPrecondition),
        ("RESOURCE_EXHAUSTED", "RATE_LIMITED", errors.RateLimited),
        ("UNAVAILABLE", "ALL_TARGETS_FAILED", errors.AllTargetsFailed),
        ("UNAVAILABLE", "STREAM_INTERRUPTED", errors.StreamInterrupted),
        ("UNAVAILABLE", "DATABASE_UNAVAILABLE", errors.Unavailable),
        ("UNAVAILABLE", "", errors.ServerUnreachable),
        ("DEADLINE_EXCEEDED", "", errors.DeadlineExceeded),
        ("CANCELLED", "", errors.Cancelled),
        ("INTERNAL", "", errors.ServerFault),
        ("DATA_LOSS", "", errors.ServerFault),
    ],
)
def test_status_and_reason_decide_the_class(code: str, reason: str, expected: type[errors.TurnpikeError]) -> None:
    error = decode(Failure(code, "what happened", reason=reason))

    assert type(error) is expected
    assert (error.code, error.reason) == (code, reason)


@pytest.mark.parametrize("code", [code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_has_a_class(code: str) -> None:
    assert issubclass(error_type(code, ""), errors.TurnpikeError)


def test_every_detail_arrives() -> None:
    failure = Failure(
        "UNAVAILABLE",
        "all failed",
        reason="STREAM_INTERRUPTED",
        metadata={"tenant": "t"},
        request_id="r1",
        attempts=(ATTEMPT,),
        retry_after=timedelta(seconds=2.5),
        field_violations=(FieldViolation("a", "is bad"), FieldViolation("b", "too")),
        quota_violations=(QuotaViolation("tenant:t", "10 a minute"),),
        partial_tokens=TokenUsage(1, 2, 3, 4, 5),
        usage_source=UsageSource.ESTIMATED,
        target="host:1",
    )

    assert decode(failure).failure == failure


def test_a_server_that_never_answered_is_told_from_one_that_was_lost() -> None:
    refused = decode(Failure("UNAVAILABLE", "failed to connect to all addresses; last error: Connection refused"))
    lost = decode(Failure("UNAVAILABLE", "Socket closed"))

    assert str(refused) == "no server at host:1"
    assert str(lost) == "lost the connection to host:1: Socket closed"


def test_details_that_cannot_be_read_leave_the_plain_status() -> None:
    error = from_rpc_error(rpc_error(Failure("NOT_FOUND", "gone"), details=b"\xff\xff"), "host:1")

    assert type(error) is errors.NotFound
    assert str(error) == "gone"


def test_a_reason_of_another_domain_is_not_taken_for_ours() -> None:
    status = status_of(Failure("UNAVAILABLE", "upstream", reason="ALL_TARGETS_FAILED"))
    [info] = status.details
    info.value = info.value.replace(b"turnpike", b"mesh.dev")

    error = from_rpc_error(rpc_error(Failure("UNAVAILABLE", "upstream"), details=status.SerializeToString()), "host:1")

    assert type(error) is errors.ServerUnreachable


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = errors.__doc__ or ""
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]

    assert all(f" {cls.__name__} " in drawn or f" {cls.__name__}\n" in drawn for cls in classes)


def test_a_call_that_the_other_side_let_go_without_a_word_says_what_that_means() -> None:
    silent = decode(Failure("CANCELLED", "CANCELLED"))
    told = decode(Failure("CANCELLED", "no message was taken for 30 s; read faster", reason="READER_TOO_SLOW"))

    assert isinstance(silent, errors.Cancelled)
    assert "host:1 let this call go" in silent.failure.message
    assert told.failure.message == "no message was taken for 30 s; read faster"
