"""Attempts as the usage events that travel to the ledger.

A field appended to a serialised message is a field of that message, and the last of several counts. So what is known
before an attempt begins is serialised once, and its end, its number and whatever follows is appended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import islice

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from router_service.domain.usage import (
    AttemptOpened,
    AttemptSettled,
    AttemptStatus,
    Funding,
    LateUsage,
    TokenUsage,
    UsageSource,
)
from turnpike.usage.v1 import token_usage_pb2, usage_event_pb2, usage_service_pb2

_STATUS = {
    AttemptStatus.SUCCESS: usage_event_pb2.USAGE_STATUS_SUCCESS,
    AttemptStatus.ERROR: usage_event_pb2.USAGE_STATUS_ERROR,
    AttemptStatus.RATE_LIMIT: usage_event_pb2.USAGE_STATUS_RATE_LIMIT,
    AttemptStatus.CANCELLED: usage_event_pb2.USAGE_STATUS_CANCELLED,
    AttemptStatus.INTERRUPTED: usage_event_pb2.USAGE_STATUS_INTERRUPTED,
}
_SOURCE = {
    UsageSource.PROVIDER: token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER,
    UsageSource.PROVIDER_LATE: token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER_LATE,
    UsageSource.COUNTED: token_usage_pb2.TOKEN_USAGE_SOURCE_COUNTED,
    UsageSource.ESTIMATED: token_usage_pb2.TOKEN_USAGE_SOURCE_ESTIMATED,
    UsageSource.NONE: token_usage_pb2.TOKEN_USAGE_SOURCE_NONE,
}
_FUNDING = {
    None: token_usage_pb2.FUNDING_UNSPECIFIED,
    Funding.TENANT_KEY: token_usage_pb2.FUNDING_TENANT_KEY,
    Funding.SYSTEM_KEY: token_usage_pb2.FUNDING_SYSTEM_KEY,
}
_EVENTS_TAG = bytes([3 << 3 | 2])  # RecordUsageRequest.events: field 3, length-delimited
_SEQUENCE_TAG = bytes([(21 << 3) & 0x7F | 0x80, 21 << 3 >> 7])  # UsageEvent.sequence: field 21, varint
_INTERRUPTED = usage_event_pb2.UsageEvent(
    status=usage_event_pb2.USAGE_STATUS_INTERRUPTED,
    error_class="interrupted",
    error_message="the router stopped while the attempt was running",
    usage_source=token_usage_pb2.TOKEN_USAGE_SOURCE_ESTIMATED,
).SerializeToString()
_ABSORBED = bytes([13 << 3, 1])  # UsageEvent.absorbed: field 13, varint; appended, as the sequence is
# What usage_service takes. An event beyond it would be refused for ever, and its tokens would be free.
_MAX_NAME, _MAX_MESSAGE, _MAX_DECISION = 200, 500, 2000
_MAX_LABELS, _MAX_LABEL_KEY, _MAX_LABEL_VALUE = 16, 64, 256
_MAX_USD = Decimal(10) ** 12
_LEDGER_UNIT = Decimal("0.000000000001")


def opened_fields(opened: AttemptOpened) -> bytes:
    """What is known of an attempt before it begins, serialised: every event of it begins with these bytes."""
    event = usage_event_pb2.UsageEvent(
        event_id=str(opened.event_id),
        tenant_id=str(opened.tenant_id),
        request_id=str(opened.request_id),
        attempt=opened.attempt,
        provider=opened.provider,
        model=_storable(opened.model, _MAX_NAME),
        endpoint=_storable(opened.endpoint, _MAX_NAME),
        user_id=_storable(opened.user_id, _MAX_NAME),
        funding=_FUNDING[opened.funding],
        task_type=opened.task_type,
        # Half a JSON text is worse than none.
        decision=opened.decision if len(opened.decision) <= _MAX_DECISION else "",
    )
    for key, value in islice(opened.labels.items(), _MAX_LABELS):
        event.labels[_storable(key, _MAX_LABEL_KEY)] = _storable(value, _MAX_LABEL_VALUE)
    return event.SerializeToString()


def interrupted_event(fields: bytes, estimated_input_tokens: int) -> bytes:
    """What the ledger shall hold if the router dies before the attempt ends: the prompt, by estimate.

    A serialised UsageEvent, as all events here; `fields` as from `opened_fields`.
    """
    event = usage_event_pb2.UsageEvent()
    event.token_usage.input_tokens = estimated_input_tokens
    return fields + _INTERRUPTED + event.SerializeToString()


def with_one_outcome(payloads: Sequence[bytes]) -> list[bytes]:
    """Serialised events of attempts that died together, those that a later attempt had taken over from as absorbed.

    An attempt is opened before the one that it follows is settled, so a router can die with both of them running.
    """
    places = [_place(payload) for payload in payloads]
    last: dict[str, int] = {}
    for request_id, attempt in places:
        last[request_id] = max(last.get(request_id, 0), attempt)
    return [
        payload + _ABSORBED if attempt < last[request_id] else payload
        for payload, (request_id, attempt) in zip(payloads, places, strict=True)
    ]


def _place(payload: bytes) -> tuple[str, int]:
    """Request and attempt of a serialised event; what cannot be read stands alone, for the ledger to refuse."""
    try:
        event = usage_event_pb2.UsageEvent.FromString(payload)
    except DecodeError:
        return "", 0
    return event.request_id, event.attempt


def settled_event(fields: bytes, settled: AttemptSettled) -> bytes:
    """How the attempt ended; `fields` as from `opened_fields`.

    A model that is named again at the end takes the place of the one in `fields`.
    """
    usage, first_token_s, cost_usd = settled.usage, settled.time_to_first_token_s, settled.reported_cost_usd
    ended = usage_event_pb2.UsageEvent(
        status=_STATUS[settled.status],
        error_class=settled.error_class,
        error_message=_storable(settled.error_message, _MAX_MESSAGE),
        absorbed=settled.absorbed,
        usage_source=_SOURCE[settled.usage_source],
        provider_reported_cost_usd="" if cost_usd is None else _usd(cost_usd),
    )
    if usage is not None:
        _fill_token_usage(ended.token_usage, usage)
    _fill_duration(ended.latency, settled.latency_s)
    if first_token_s is not None:
        _fill_duration(ended.time_to_first_token, first_token_s)
    answering, asked_for = _storable(settled.model, _MAX_NAME), _storable(settled.opened.model, _MAX_NAME)
    if answering and answering != asked_for:
        ended.model, ended.requested_model = answering, asked_for
    return fields + ended.SerializeToString()


def amended_event(payload: bytes, late: LateUsage) -> bytes:
    """A serialised settled event with what the provider said afterwards in place of the estimate."""
    event = usage_event_pb2.UsageEvent.FromString(payload)
    event.usage_source = token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER_LATE
    _fill_token_usage(event.token_usage, late.usage)
    if late.reported_cost_usd is not None:
        event.provider_reported_cost_usd = _usd(late.reported_cost_usd)
    model = _storable(late.model, _MAX_NAME)
    if model and model != event.model:
        asked_for = event.requested_model or event.model
        event.model = model
        event.requested_model = asked_for if asked_for != model else ""
    return event.SerializeToString()


def record_usage_request(router_id: str, epoch: str, events: Iterable[tuple[bytes, int]]) -> bytes:
    """A serialised RecordUsageRequest of serialised events, each with its sequence.

    No event is parsed: it travels as it was frozen, with fields that this version does not know.
    """
    head = usage_service_pb2.RecordUsageRequest(router_id=router_id, epoch=epoch).SerializeToString()
    parts = [head]
    for payload, sequence in events:
        number = _SEQUENCE_TAG + _varint(sequence)
        parts += [_EVENTS_TAG, _varint(len(payload) + len(number)), payload, number]
    return b"".join(parts)


def _fill_token_usage(counts: token_usage_pb2.TokenUsage, usage: TokenUsage) -> None:
    """The five disjoint classes. Zeros are set as well: a message that is absent says that nothing is known."""
    counts.input_tokens = usage.input_tokens
    counts.output_tokens = usage.output_tokens
    counts.cached_read_tokens = usage.cached_read_tokens
    counts.cached_write_tokens = usage.cached_write_tokens
    counts.reasoning_tokens = usage.reasoning_tokens


def _storable(text: str, limit: int) -> str:
    """Text from outside, fit for the wire and the ledger: no lone surrogates, no NUL, not too long."""
    if text.isascii() and "\x00" not in text:
        return text[:limit]
    return text.encode("utf-8", errors="replace").decode().replace("\x00", "")[:limit]


def _usd(amount: Decimal) -> str:
    """A provider's own figure with the ledger's 12 decimals; empty when it is no amount of money."""
    if not amount.is_finite() or not 0 <= amount < _MAX_USD:
        return ""
    return format(amount.quantize(_LEDGER_UNIT), "f")


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _fill_duration(duration: Duration, seconds: float) -> None:
    whole = int(seconds)
    duration.seconds, duration.nanos = whole, int((seconds - whole) * 1_000_000) * 1000
