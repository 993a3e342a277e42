from __future__ import annotations

import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from service_runtime.error_codec import ERROR_DOMAIN, from_status, internal_status, status_code, to_status
from service_runtime.errors import (
    Category,
    FieldViolation,
    InvalidRequest,
    QuotaExceeded,
    QuotaViolation,
    ServiceError,
)


def details(status: status_pb2.Status) -> list[str]:
    return [detail.type_url.rpartition(".")[2] for detail in status.details]


@pytest.mark.parametrize("category", Category)
def test_every_category_has_the_code_of_its_name_and_comes_back_as_it_went(category: Category) -> None:
    sent = ServiceError(category, "SOME_REASON", "what and how", metadata={"a": "b"}, retry_after_s=0.25)

    received = from_status(to_status(sent))

    assert status_code(category).name == category.name
    assert (received.category, received.reason, received.message) == (category, "SOME_REASON", "what and how")
    assert (received.metadata, received.retry_after_s) == ({"a": "b"}, 0.25)


def test_each_error_says_its_reason_and_domain_first() -> None:
    info = error_details_pb2.ErrorInfo()
    status = to_status(ServiceError(Category.NOT_FOUND, "UNKNOWN_TENANT", "no such tenant"))

    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("UNKNOWN_TENANT", ERROR_DOMAIN)


def test_violations_come_back_with_their_class() -> None:
    bad = InvalidRequest([FieldViolation("a.b", "is empty"), FieldViolation("c", "is negative")])
    over = QuotaExceeded([QuotaViolation("tenant:1", "10 per minute")], retry_after_s=3.0)

    bad_again, over_again = from_status(to_status(bad)), from_status(to_status(over))

    assert isinstance(bad_again, InvalidRequest)
    assert bad_again.violations == bad.violations
    assert isinstance(over_again, QuotaExceeded)
    assert (over_again.violations, over_again.retry_after_s) == (over.violations, 3.0)


def test_a_detail_of_the_domain_goes_through_the_services_own_functions() -> None:
    def detail_to_proto(detail: object) -> Message:
        return StringValue(value=str(detail))

    def detail_from_any(detail: any_pb2.Any) -> object | None:
        value = StringValue()
        return value.value if detail.Unpack(value) else None

    sent = ServiceError(Category.ABORTED, "STREAM_INTERRUPTED", "cut", detail="3 attempts")

    assert from_status(to_status(sent, detail_to_proto), detail_from_any).detail == "3 attempts"


def test_a_status_that_would_not_fit_into_a_header_loses_its_last_details_but_not_its_reason() -> None:
    sent = ServiceError(Category.ABORTED, "X", "x" * 5000, retry_after_s=1, detail="d" * 10_000)

    status = to_status(sent, lambda detail: StringValue(value=str(detail)))

    assert status.ByteSize() <= 4096
    assert details(status) == ["ErrorInfo", "RetryInfo"]


@given(descriptions=st.lists(st.text(max_size=3000), min_size=1, max_size=60))
def test_no_error_is_too_large_for_a_header(descriptions: list[str]) -> None:
    error = InvalidRequest([FieldViolation(f"f{number}", text) for number, text in enumerate(descriptions)])

    assert to_status(error).ByteSize() <= 4096


def test_secrets_are_taken_out_of_everything_that_is_sent() -> None:
    secret = "sk-CANARY-12345678"
    bad = InvalidRequest.at("base_url", f"holds {secret}")
    other = ServiceError(Category.UNAVAILABLE, "X", f"said {secret}", metadata={"said": secret})

    for error in (bad, other):
        assert b"CANARY" not in to_status(error).SerializeToString()


def test_a_bug_says_its_reference_only() -> None:
    status = internal_status("abc")

    assert (status.code, status.message) == (grpc.StatusCode.INTERNAL.value[0], "internal error, ref abc")


@pytest.mark.parametrize(
    ("code", "category"),
    [
        (grpc.StatusCode.INTERNAL, Category.UNAVAILABLE),
        (grpc.StatusCode.UNKNOWN, Category.UNAVAILABLE),
        (grpc.StatusCode.DATA_LOSS, Category.UNAVAILABLE),
        (grpc.StatusCode.UNIMPLEMENTED, Category.FAILED_PRECONDITION),
        (grpc.StatusCode.OUT_OF_RANGE, Category.INVALID_ARGUMENT),
    ],
)
def test_codes_that_we_never_send_are_understood(code: grpc.StatusCode, category: Category) -> None:
    error = from_status(status_pb2.Status(code=code.value[0], message="m"))

    assert (error.category, error.reason, error.message) == (category, code.name, "m")


def test_a_code_of_the_future_is_taken_for_an_outage() -> None:
    assert from_status(status_pb2.Status(code=99)).category is Category.UNAVAILABLE
