"""What a provider's error means: from status, headers and body to the one vocabulary of failures. Pure.

The body decides before the status where it is more precise, because vendors use the same status for different things:
Groq says 400 for a model that is gone and 413 for a rate limit, OpenRouter 400 for a model that it never had. Nothing
of the body's text leaves this module: it may echo a key, a prompt or another tenant's account.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from router_service.domain.errors import FailureKind, ProviderError
from router_service.providers.loose_json import NotJson, decode_loosely, seconds_of, text_of
from router_service.providers.quota_headers import parse_go_duration_s, parse_quota, parse_retry_after_s

T = TypeVar("T")

_KIND_BY_CODE: Final[Mapping[str, FailureKind]] = {
    code: kind
    for kind, codes in {
        FailureKind.KEY_REJECTED: "authentication authentication_error invalid_api_key invalid_authentication",
        FailureKind.NO_CREDIT: "payment_required insufficient_quota insufficient_credits billing_hard_limit_reached",
        FailureKind.CONTEXT_TOO_LONG: (
            "context_length_exceeded exceed_context_size_error token_limit_exceeded max_tokens_exceeded"
        ),
        FailureKind.BAD_REQUEST: (
            "invalid_request invalid_prompt string_too_long unprocessable precondition_failed invalid_image"
        ),
        FailureKind.CONTENT_REFUSED: "content_policy_violation content_filter refusal moderation moderation_blocked",
        FailureKind.NOT_ALLOWED: (
            "permission_denied permission_error region_restricted privacy_restricted constraint_filtered"
        ),
        FailureKind.MODEL_GONE: (
            "model_decommissioned model_not_found model_deprecated model_unavailable_upstream no_endpoints"
            " wrong_endpoint free_variant_ended not_found not_found_error notfounderror"
        ),
        FailureKind.MODEL_MISBEHAVED: "tool_use_failed json_validate_failed",
        FailureKind.REQUEST_TOO_LARGE: "payload_too_large request_too_large",
        FailureKind.RATE_LIMITED: "rate_limit_exceeded rate_limit_error too_many_requests",
        FailureKind.OVERLOADED: (
            "provider_overloaded overloaded_error overloaded capacity_exhausted capacity_exceeded"
            " temporarily_unavailable unavailable_error service_unavailable engine_overloaded"
        ),
        FailureKind.UPSTREAM_BROKEN: (
            "provider_unavailable server server_error internal_server_error api_error timeout internalservererror"
        ),
    }.items()
    for code in codes.split()
}

# Statuses that mean one thing whatever the body says.
_KIND_BY_PLAIN_STATUS: Final[Mapping[int, FailureKind]] = {
    401: FailureKind.KEY_REJECTED,
    402: FailureKind.NO_CREDIT,
    407: FailureKind.UPSTREAM_BROKEN,
    498: FailureKind.OVERLOADED,
    529: FailureKind.OVERLOADED,
}
# Statuses that decide where no code of the body has.
_KIND_BY_STATUS: Final[Mapping[int, FailureKind]] = {
    400: FailureKind.BAD_REQUEST,
    403: FailureKind.NOT_ALLOWED,
    404: FailureKind.MODEL_GONE,
    408: FailureKind.UPSTREAM_BROKEN,
    409: FailureKind.UPSTREAM_BROKEN,
    410: FailureKind.MODEL_GONE,
    413: FailureKind.REQUEST_TOO_LARGE,
    422: FailureKind.BAD_REQUEST,
    424: FailureKind.UPSTREAM_BROKEN,
    425: FailureKind.UPSTREAM_BROKEN,
    429: FailureKind.RATE_LIMITED,
    499: FailureKind.UPSTREAM_BROKEN,
    503: FailureKind.OVERLOADED,
}
_LEAST_SAID: Final = frozenset({None, FailureKind.BAD_REQUEST, FailureKind.UPSTREAM_BROKEN})
_SENTENCES: Final[Mapping[FailureKind, str]] = {
    FailureKind.KEY_REJECTED: "the provider rejected the key",
    FailureKind.NO_CREDIT: "the key's account has no credit",
    FailureKind.BAD_REQUEST: "the provider rejected the request",
    FailureKind.CONTENT_REFUSED: "the provider refused the content",
    FailureKind.NOT_ALLOWED: "the key may not use this model here",
    FailureKind.CONTEXT_TOO_LONG: "the prompt does not fit the model's context window",
    FailureKind.REQUEST_TOO_LARGE: "the request is too large for the key's tier",
    FailureKind.MODEL_GONE: "the provider no longer serves this model",
    FailureKind.MODEL_MISBEHAVED: "the model's answer was unusable",
    FailureKind.RATE_LIMITED: "the provider's rate limit for this key is reached",
    FailureKind.OVERLOADED: "the provider is overloaded",
    FailureKind.UPSTREAM_BROKEN: "the provider failed",
    FailureKind.PROTOCOL_VIOLATION: "the provider's answer is not what its protocol promises",
    FailureKind.CONNECT_FAILED: "no connection to the provider",
    FailureKind.TRANSPORT_FAILED: "the connection to the provider broke before its answer",
    FailureKind.TIMED_OUT: "the provider was silent for too long",
    FailureKind.STREAM_BROKEN: "the provider's answer broke off",
    FailureKind.POLICY_REFUSED: "policy forbids connecting to the provider's address",
}

# The texts of vendors that send no code. Matched against lower case; bounded input, linear patterns.
_CONTEXT_TEXT: Final = re.compile(
    r"context (?:length|window|size)|maximum context|prompt is too long|input is too long|too many tokens"
    r"|reduce the length of the (?:messages|prompt|input)|exceeds the (?:available )?context|token limit"
)
_LIMIT_TEXT: Final = re.compile(r"rate.?limit|too many requests|tokens per (?:minute|day)|requests per (?:minute|day)")
_KEY_TEXT: Final = re.compile(r"api key not valid|(?:invalid|incorrect|missing) api.?key|unauthori[sz]ed")
_CREDIT_TEXT: Final = re.compile(r"upgrade required|insufficient (?:credit|balance|funds)|payment required")
_GONE_TEXT: Final = re.compile(r"model .{0,200}(?:not found|does not exist|decommissioned)|try pulling it first")
_BUSY_TEXT: Final = re.compile(r"over capacity|overloaded|server busy|loading model|at capacity")
_MODERATION_TEXT: Final = re.compile(r"moderation|flagged|content policy|guardrail|safety")
_TRY_AGAIN: Final = re.compile(r"try again in ([0-9hms.]{1,40})")
_PATTERNS: Final = (
    (_KEY_TEXT, FailureKind.KEY_REJECTED),
    (_CREDIT_TEXT, FailureKind.NO_CREDIT),
    (_LIMIT_TEXT, FailureKind.RATE_LIMITED),  # before the context: a limit on tokens per minute speaks of tokens too
    (_CONTEXT_TEXT, FailureKind.CONTEXT_TOO_LONG),
    (_GONE_TEXT, FailureKind.MODEL_GONE),
    (_BUSY_TEXT, FailureKind.OVERLOADED),
)
# Only such a code is shown: words of lower-case letters can hardly be a key.
_SHOWABLE_CODE: Final = re.compile(r"[a-z]{2,24}(?:_[a-z]{2,24}){0,4}")


@dataclass(frozen=True, slots=True)
class ErrorFacts:
    """What an error object says, in whichever shape it came. `codes` are lower case, the most precise first.

    `text` is the vendor's own, lower case and cut: for patterns only, never for a message. `status` is one that the
    body itself names.
    """

    codes: tuple[str, ...] = ()
    text: str = ""
    status: int | None = None
    retry_after_s: float | None = None
    was_flagged: bool = False


def sentence(kind: FailureKind) -> str:
    """What a failure of this kind is, in words that hold no secret."""
    return _SENTENCES[kind]


def read_error(payload: object) -> ErrorFacts:
    """The facts in an error: an object with `error`, the error object itself, `detail`, or a bare text."""
    match payload:
        case {"error": dict() | str() as error} if error:
            inner: object = error
        case {"detail": dict() | str() as detail}:
            inner = detail
        case _:
            inner = payload
    if isinstance(inner, str):
        return _facts_of_text(inner)
    if not isinstance(inner, dict):
        return ErrorFacts()
    outer: dict[str, Any] = payload if isinstance(payload, dict) else {}
    metadata = _object(inner.get("metadata"))
    availability = _object(inner.get("availability")) or _object(outer.get("availability"))
    codes = [
        availability.get("code"),
        inner.get("code"),
        metadata.get("error_type"),
        inner.get("error_type"),
        inner.get("type"),
    ]
    retry_after_s = _first(seconds_of(source.get("retry_after")) for source in (availability, metadata, inner))
    of_text = _facts_of_text(text_of(inner.get("message")))
    return ErrorFacts(
        codes=tuple(code.lower()[:64] for code in codes if isinstance(code, str)),
        text=of_text.text,
        status=_first(_status(inner.get(name)) for name in ("code", "status_code", "http_status", "status")),
        retry_after_s=retry_after_s if retry_after_s is not None else of_text.retry_after_s,
        was_flagged=bool(metadata.get("flagged_input") or metadata.get("reasons")),
    )


def classify(status: int | None, facts: ErrorFacts) -> FailureKind:
    """The failure's kind. `status` is the HTTP status, or None for an error inside an answer that began well."""
    status = status if status is not None else facts.status
    if status is not None and status in _KIND_BY_PLAIN_STATUS:
        return _KIND_BY_PLAIN_STATUS[status]
    if facts.was_flagged and status in {400, 403, None}:
        return FailureKind.CONTENT_REFUSED
    kind = _first(_KIND_BY_CODE.get(code) for code in facts.codes)
    if kind in _LEAST_SAID:  # "invalid_request" and "api_error" are the least that a vendor can say
        kind = _kind_of_text(status, facts.text) or kind
    if status == 413 and kind is not FailureKind.CONTEXT_TOO_LONG:
        return FailureKind.REQUEST_TOO_LARGE  # Groq calls it a rate limit, but waiting never helps
    if kind is not None:
        return kind
    if any("image" in code for code in facts.codes):
        return FailureKind.BAD_REQUEST
    return _kind_of_status(status)


def error_from_response(status: int, headers: Mapping[str, str], body: bytes, *, now_unix_s: float) -> ProviderError:
    """The error of a response whose status is no 2xx. `headers` by lower-case name; `body` may be cut off anywhere."""
    try:
        facts = read_error(decode_loosely(body))
    except NotJson:
        # An HTML page of a proxy says nothing reliable; a plain sentence may.
        facts = ErrorFacts() if b"<" in body[:200] else _facts_of_text(body[:4096].decode("utf-8", "replace"))
    kind = classify(status, facts)
    quota = parse_quota(headers, now_unix_s=now_unix_s)
    wait_s = parse_retry_after_s(headers, now_unix_s=now_unix_s)
    if wait_s is None:
        wait_s = facts.retry_after_s
    if wait_s is None and quota is not None and kind is FailureKind.RATE_LIMITED:
        exhausted = [
            reset_s
            for remaining, reset_s in (
                (quota.remaining_requests, quota.reset_requests_s),
                (quota.remaining_tokens, quota.reset_tokens_s),
            )
            if remaining == 0 and reset_s is not None
        ]
        wait_s = max(exhausted, default=None)
    return ProviderError(kind, _message(kind, status, facts), status=status, retry_after_s=wait_s, quota=quota)


def error_from_stream(payload: object, *, after_content: bool) -> ProviderError:
    """The error of an error object inside an answer that began well. After content it is always STREAM_BROKEN."""
    facts = read_error(payload)
    cause = classify(None, facts)
    kind = FailureKind.STREAM_BROKEN if after_content else cause
    message = _message(cause, None, facts)
    if after_content:
        message = f"{sentence(kind)}: {message}"
    return ProviderError(kind, message, status=200, retry_after_s=facts.retry_after_s, cause=cause)


def _message(kind: FailureKind, status: int | None, facts: ErrorFacts) -> str:
    notes = [f"HTTP {status}"] if status is not None else []
    code = _first(code for code in facts.codes if code in _KIND_BY_CODE or _SHOWABLE_CODE.fullmatch(code))
    if code is not None:
        notes.append(code)
    return sentence(kind) + (f" ({', '.join(notes)})" if notes else "")


def _kind_of_text(status: int | None, text: str) -> FailureKind | None:
    if status in {400, 403} and _MODERATION_TEXT.search(text):
        return FailureKind.CONTENT_REFUSED
    if status is not None and status not in {400, 404, 413, 422} and status < 500:
        return None  # such a status is precise enough
    return _first(kind for pattern, kind in _PATTERNS if pattern.search(text))


def _kind_of_status(status: int | None) -> FailureKind:
    if status is None:
        return FailureKind.UPSTREAM_BROKEN
    if status in _KIND_BY_STATUS:
        return _KIND_BY_STATUS[status]
    if status < 400:
        return FailureKind.PROTOCOL_VIOLATION  # redirects are not followed, and nothing but 200 was asked for
    # An unknown 4xx is this provider's own opinion; another may think otherwise.
    return FailureKind.NOT_ALLOWED if status < 500 else FailureKind.UPSTREAM_BROKEN


def _facts_of_text(text: str) -> ErrorFacts:
    lowered = text[:4096].lower()
    match = _TRY_AGAIN.search(lowered)
    return ErrorFacts(text=lowered, retry_after_s=parse_go_duration_s(match[1].rstrip(".")) if match else None)


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _status(value: object) -> int | None:
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdigit():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599 else None


def _first(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)
