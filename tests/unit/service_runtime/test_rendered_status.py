"""A status from memory says what one that is made anew says, whatever was said before."""

from __future__ import annotations

import secrets

import grpc
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from service_runtime.error_codec import from_status, to_status
from service_runtime.errors import Category, InvalidRequest, QuotaExceeded, QuotaViolation, ServiceError
from service_runtime.redaction import REDACTED, REDACTOR
from service_runtime.rendered_status import RenderedStatus, StatusRenderer

FEW_WORDS = st.sampled_from(["", "no such tenant", "wait 5 s", "x" * 900, "é" * 900])


def detail_to_proto(detail: object) -> Message:
    return StringValue(value=str(detail))


@st.composite
def errors(draw: st.DrawFn) -> ServiceError:
    """Errors of few kinds, so that many are said twice, in a part or in the whole."""
    retry_after_s = draw(st.none() | st.floats(0.0, 90.0))
    match draw(st.sampled_from(["plain", "plain", "plain", "invalid", "quota", "with detail"])):
        case "invalid":
            return InvalidRequest.at("messages", draw(FEW_WORDS))
        case "quota":
            return QuotaExceeded([QuotaViolation("tenant:1", draw(FEW_WORDS))], retry_after_s=retry_after_s)
        case kind:
            return ServiceError(
                draw(st.sampled_from([Category.UNAVAILABLE, Category.FAILED_PRECONDITION])),
                draw(st.sampled_from(["PROVIDER_KEY_REJECTED", "ALL_TARGETS_FAILED"])),
                draw(FEW_WORDS),
                metadata=draw(st.dictionaries(st.sampled_from(["provider", "funding"]), FEW_WORDS)),
                retry_after_s=retry_after_s,
                detail="3 attempts" if kind == "with detail" else None,
            )


def read(rendered: RenderedStatus) -> tuple[grpc.StatusCode, str, status_pb2.Status]:
    return rendered.code, rendered.message, status_pb2.Status.FromString(rendered.details)


@given(said=st.lists(errors(), max_size=12))
def test_whatever_was_said_before_a_status_says_what_the_codec_says(said: list[ServiceError]) -> None:
    renderer = StatusRenderer(detail_to_proto)

    for error in said:
        anew = to_status(error, detail_to_proto)
        assert read(renderer.render(error)) == (grpc.StatusCode[error.category.name], anew.message, anew)


def test_the_time_to_wait_counts_down_behind_the_same_words() -> None:
    renderer = StatusRenderer(None)
    said = [ServiceError(Category.UNAVAILABLE, "X", "wait", retry_after_s=left_s) for left_s in (5.0, 4.999, 0.0)]

    told = [from_status(read(renderer.render(error))[2]).retry_after_s for error in said]

    assert told == [5.0, 4.999, 0.0]


def test_a_secret_that_becomes_known_is_kept_out_of_what_was_said_before() -> None:
    secret = f"canary{secrets.token_hex(16)}"
    renderer = StatusRenderer(None)
    error = ServiceError(Category.UNAVAILABLE, "X", f"said {secret}", metadata={"said": secret})
    renderer.render(error)

    REDACTOR.register(secret)
    again = renderer.render(error)

    assert again.message == f"said {REDACTED}"
    assert secret.encode() not in again.details


def test_what_nobody_repeats_is_forgotten() -> None:
    renderer = StatusRenderer(None)

    for number in range(2000):
        renderer.render(ServiceError(Category.NOT_FOUND, "X", f"no tenant {number}"))

    assert len(renderer._kept) <= 500
