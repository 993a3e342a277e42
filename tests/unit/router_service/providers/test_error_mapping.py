from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_service.domain.errors import FailureKind as Kind
from router_service.domain.errors import ProviderError
from router_service.providers.error_mapping import error_from_response, error_from_stream, sentence

NOW = 1_790_000_000.0
CANARY = "sk-or-v1-CANARY0123456789"


def from_response(status: int, body: object, **headers: str) -> ProviderError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lowered = {name.replace("_", "-"): value for name, value in headers.items()}
    return error_from_response(status, lowered, data, now_unix_s=NOW)


def groq(message: str, code: str | None = None, kind: str = "invalid_request_error") -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "code": code}}


def openrouter(status: int, message: str, error_type: str | None = None, **metadata: object) -> dict[str, object]:
    return {"error": {"code": status, "message": message, "metadata": {"error_type": error_type, **metadata}}}


def unavailable(code: str, **availability: object) -> dict[str, object]:
    return {"error": {"message": "no", "http_status": 404, "availability": {"code": code, **availability}}}


TPM = (
    "Request too large for model `m` in organization `org_01` service tier `on_demand` on tokens per minute (TPM):"
    " Limit 6000, Requested 12328, please reduce your message size and try again."
)
TOO_LONG = "This model's maximum context length is 8192 tokens. Please reduce the length of the messages."

CASES = [
    # Groq
    (400, groq("The model `x` has been decommissioned", "model_decommissioned"), Kind.MODEL_GONE),
    (
        400,
        groq("Please reduce the length of the messages or completion.", "context_length_exceeded"),
        Kind.CONTEXT_TOO_LONG,
    ),
    (400, groq("Failed to call a function.", "tool_use_failed"), Kind.MODEL_MISBEHAVED),
    (400, groq("Failed to generate JSON.", "json_validate_failed"), Kind.MODEL_MISBEHAVED),
    (400, groq("property 'x' is unsupported"), Kind.BAD_REQUEST),
    (401, groq("Invalid API Key", "invalid_api_key"), Kind.KEY_REJECTED),
    (403, groq("Forbidden"), Kind.NOT_ALLOWED),
    (404, groq("The model `x` does not exist or you do not have access to it.", "model_not_found"), Kind.MODEL_GONE),
    (413, groq(TPM, "rate_limit_exceeded", "tokens"), Kind.REQUEST_TOO_LARGE),
    (422, groq("hallucinated"), Kind.BAD_REQUEST),
    (424, groq("failed dependency"), Kind.UPSTREAM_BROKEN),
    (429, groq("Rate limit reached for model `m`", "rate_limit_exceeded", "tokens"), Kind.RATE_LIMITED),
    (498, groq("flex tier capacity exceeded"), Kind.OVERLOADED),
    # OpenRouter
    (400, openrouter(400, "x is not a valid model ID", "not_found"), Kind.MODEL_GONE),
    (400, openrouter(400, "too long", "context_length_exceeded"), Kind.CONTEXT_TOO_LONG),
    (400, openrouter(400, TOO_LONG, "invalid_request"), Kind.CONTEXT_TOO_LONG),
    (400, openrouter(400, "bad prompt", "invalid_prompt"), Kind.BAD_REQUEST),
    (400, openrouter(400, "bad image", "image_too_large"), Kind.BAD_REQUEST),
    (401, openrouter(401, "User not found.", "authentication"), Kind.KEY_REJECTED),
    (402, openrouter(402, "Insufficient credits"), Kind.NO_CREDIT),
    (403, openrouter(403, "flagged", None, reasons=["hate"], flagged_input="secret prompt"), Kind.CONTENT_REFUSED),
    (403, openrouter(403, "no", "content_policy_violation"), Kind.CONTENT_REFUSED),
    (403, openrouter(403, "only available in the US", "permission_denied"), Kind.NOT_ALLOWED),
    (404, unavailable("no_endpoints"), Kind.MODEL_GONE),
    (404, unavailable("model_deprecated"), Kind.MODEL_GONE),
    (403, unavailable("region_restricted"), Kind.NOT_ALLOWED),
    (404, unavailable("privacy_restricted"), Kind.NOT_ALLOWED),
    (429, unavailable("capacity_exhausted"), Kind.OVERLOADED),
    (503, unavailable("temporarily_unavailable"), Kind.OVERLOADED),
    (408, openrouter(408, "timeout", "timeout"), Kind.UPSTREAM_BROKEN),
    (502, openrouter(502, "down", "provider_unavailable"), Kind.UPSTREAM_BROKEN),
    (524, {"error": {"code": 524, "message": "x"}}, Kind.UPSTREAM_BROKEN),
    (529, openrouter(529, "overloaded", "provider_overloaded"), Kind.OVERLOADED),
    # LLM7, OpenAI
    (402, {"detail": "upgrade required"}, Kind.NO_CREDIT),
    (429, groq("You exceeded your current quota", "insufficient_quota"), Kind.NO_CREDIT),
    # servers of people's own
    (401, {"error": "Unauthorized"}, Kind.KEY_REJECTED),
    (401, {"detail": "Invalid API key"}, Kind.KEY_REJECTED),
    (
        404,
        {"error": {"message": "model 'x' not found, try pulling it first", "type": "not_found_error"}},
        Kind.MODEL_GONE,
    ),
    (404, {"message": "The model `x` does not exist.", "type": "NotFoundError", "code": 404}, Kind.MODEL_GONE),
    (
        400,
        {"error": {"code": 400, "message": "x", "type": "exceed_context_size_error", "n_ctx": 512}},
        Kind.CONTEXT_TOO_LONG,
    ),
    (400, {"error": {"message": TOO_LONG, "type": "BadRequestError", "code": 400}}, Kind.CONTEXT_TOO_LONG),
    (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}, Kind.OVERLOADED),
    (503, {"error": {"message": "server busy, please try again"}}, Kind.OVERLOADED),
    (500, {"error": {"message": "parse error", "type": "server_error", "code": 500}}, Kind.UPSTREAM_BROKEN),
    # no JSON, wrong statuses
    (502, b"<html><body>Bad Gateway: invalid api key</body></html>", Kind.UPSTREAM_BROKEN),
    (500, b"", Kind.UPSTREAM_BROKEN),
    (429, b"slow down", Kind.RATE_LIMITED),
    (413, b"", Kind.REQUEST_TOO_LARGE),
    (418, b"", Kind.NOT_ALLOWED),
    (307, b"", Kind.PROTOCOL_VIOLATION),
    (101, b"", Kind.PROTOCOL_VIOLATION),
    (304, b"", Kind.PROTOCOL_VIOLATION),
]


@pytest.mark.parametrize(("status", "body", "kind"), CASES)
def test_every_known_answer_has_its_kind(status: int, body: object, kind: Kind) -> None:
    error = from_response(status, body)

    assert (error.kind, error.status) == (kind, status)
    assert error.may_have_reached_provider


@pytest.mark.parametrize(
    ("body", "headers", "wait_s"),
    [
        (groq("Please try again in 5.289s. Visit us", "rate_limit_exceeded"), {}, 5.289),
        (groq("Please try again in 1m47.5s.", "rate_limit_exceeded"), {}, 107.5),
        (groq("x"), {"retry_after": "3"}, 3.0),
        (unavailable("capacity_exhausted", retry_after=12), {}, 12.0),
        (groq("x"), {"x_ratelimit_remaining_tokens": "0", "x_ratelimit_reset_tokens": "7s"}, 7.0),
        (groq("x"), {"x_ratelimit_remaining_tokens": "5", "x_ratelimit_reset_tokens": "7s"}, None),
    ],
)
def test_the_wait_is_found_wherever_the_provider_says_it(
    body: object, headers: dict[str, str], wait_s: float | None
) -> None:
    assert from_response(429, body, **headers).retry_after_s == wait_s


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422, 429, 500, 503])
@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": f"Incorrect API key provided: {CANARY}", "code": CANARY, "type": CANARY.lower()}},
        {"error": f"bad key {CANARY}"},
        {"detail": CANARY},
        openrouter(403, CANARY, CANARY, flagged_input=CANARY),
        CANARY.encode(),
    ],
)
def test_nothing_that_the_provider_wrote_is_in_the_message(status: int, body: object) -> None:
    message = from_response(status, body).message

    assert "canary" not in message.lower()
    assert len(message) <= 200


def test_a_code_of_plain_words_is_shown() -> None:
    error = from_response(429, groq("x", "rate_limit_exceeded"))

    assert error.message == "the provider's rate limit for this key is reached (HTTP 429, rate_limit_exceeded)"


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        ({"message": "x", "code": "rate_limit_exceeded"}, Kind.RATE_LIMITED),
        ({"message": "x", "code": 429}, Kind.RATE_LIMITED),
        ({"message": "x", "code": "429"}, Kind.RATE_LIMITED),
        ({"message": "x", "code": 502}, Kind.UPSTREAM_BROKEN),
        ({"message": "x", "code": "tool_use_failed", "status_code": 400}, Kind.MODEL_MISBEHAVED),
        ("The model is over capacity", Kind.OVERLOADED),
        ("Trying to keep the first 9000 tokens when context length is 4096", Kind.CONTEXT_TOO_LONG),
        ({"message": "no idea"}, Kind.UPSTREAM_BROKEN),
        (True, Kind.UPSTREAM_BROKEN),
        ([1], Kind.UPSTREAM_BROKEN),
    ],
)
def test_an_error_inside_the_answer_has_its_kind_until_content_came(payload: object, kind: Kind) -> None:
    assert error_from_stream(payload, after_content=False).kind is kind
    assert error_from_stream(payload, after_content=True).kind is Kind.STREAM_BROKEN


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "code", "message", "metadata", "type", "availability", "detail", "retry_after"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.integers(100, 999), JSON_VALUES)
def test_no_body_breaks_the_mapping(status: int, body: object) -> None:
    error = from_response(status, body)

    assert error.retry_after_s is None or error.retry_after_s >= 0


@given(st.integers(100, 999), st.binary(max_size=200))
def test_no_bytes_break_the_mapping(status: int, body: bytes) -> None:
    assert from_response(status, body).kind in Kind


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_a_sentence(kind: Kind) -> None:
    assert sentence(kind)
