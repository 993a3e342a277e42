"""One attempt at a provider: as a router reports it, and as the ledger may store it.

    ReportedEvent ── validate() ──▶ UsageEvent            every field is in range
                                └─▶ tuple of Violation    all that is wrong, not only the first

The usage time is the millisecond in the event's id, which is what makes a resent event find its own row again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

from usage_service.domain.pricing import LEDGER_DECIMALS, TokenCounts
from usage_service.domain.provider_names import CATALOGUE_PROVIDERS, REFUSED_BY_TURNPIKE

MAX_TOKENS = 10**12
MAX_ATTEMPT = 1_000
MAX_NAME_CHARACTERS = 200
MAX_ERROR_MESSAGE_CHARACTERS = 500
MAX_DECISION_CHARACTERS = 2_000
MAX_LABELS = 16
MAX_LABEL_KEY_CHARACTERS = 64
MAX_LABEL_VALUE_CHARACTERS = 256
MAX_DURATION_MS = 7 * 24 * 3_600 * 1_000
MAX_SEQUENCE = 2**63 - 1

# Without a group: a repeated one takes three times as long to match.
_UUID_CHARACTERS = 36
_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}", re.ASCII)
_USD = re.compile(r"[0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?", re.ASCII)
_MAX_USD = Decimal(10) ** 12
_ROUNDING = Context(prec=200, rounding=ROUND_HALF_EVEN)
_LEDGER_UNIT = Decimal(1).scaleb(-LEDGER_DECIMALS)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class AttemptStatus(StrEnum):
    """How an attempt ended. The values stand in the ledger."""

    SUCCESS = "success"
    ERROR = "error"
    RATE_LIMIT = "rate_limit"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


class UsageSource(StrEnum):
    """Where token counts come from, from most to least certain. The values stand in the ledger."""

    PROVIDER = "provider"
    PROVIDER_LATE = "provider_late"
    COUNTED = "counted"
    ESTIMATED = "estimated"
    NONE = "none"


class Funding(StrEnum):
    """Whose key paid. The values stand in the ledger."""

    NO_KEY = ""
    TENANT_KEY = "tenant_key"
    SYSTEM_KEY = "system_key"


@dataclass(frozen=True, slots=True)
class Violation:
    """One bad field: its path within the event, such as `token_usage.input_tokens`, and what is wrong with it."""

    field: str
    description: str


class ReportedEvent(NamedTuple):
    """An event as it was sent: nothing is checked yet.

    `status`, `usage_source` and `funding` are None when they are missing or not known here. Durations are whole
    milliseconds, None when absent. (A frozen dataclass of so many fields takes 2.5 us longer to make, for each event;
    arguments by name another 1.5 us, so where speed counts they go by place.)
    """

    event_id: str
    tenant_id: str
    request_id: str
    attempt: int
    provider: str
    model: str
    requested_model: str
    endpoint: str
    user_id: str
    status: AttemptStatus | None
    error_class: str
    error_message: str
    absorbed: bool
    tokens: TokenCounts
    usage_source: UsageSource | None
    funding: Funding | None
    latency_ms: int | None
    first_token_ms: int | None
    provider_reported_cost_usd: str
    labels: Mapping[str, str]
    sequence: int
    task_type: str
    decision: str


class UsageEvent(NamedTuple):
    """An event that the ledger may store. `used_at` is the millisecond in its id, in UTC.

    The ids in `reported` are UUIDs too, as text. `id_bits` is the event's as a number, which is the same however the
    text is spelt; a UUID is made of it only where one is wanted, because that takes longer than all else here.
    """

    id_bits: int
    tenant_id: UUID
    used_at: datetime
    status: AttemptStatus
    usage_source: UsageSource
    funding: Funding
    provider_cost_usd: Decimal | None
    reported: ReportedEvent

    @property
    def event_id(self) -> UUID:
        return UUID(int=self.id_bits)

    @property
    def key(self) -> int:
        """What tells rows apart, as the ledger's primary key does: the id within its tenant, as one number.

        The same id of another tenant is another event: whoever knows an id cannot keep its owner's event out.
        """
        return self.id_bits << 128 | self.tenant_id.int

    @property
    def tokens(self) -> TokenCounts:
        return self.reported.tokens


@dataclass(frozen=True, slots=True)
class EventRules:
    """What the ledger accepts: known providers, and usage times from `oldest_age` ago to `newest_ahead` from now."""

    oldest_age: timedelta = timedelta(days=35)
    newest_ahead: timedelta = timedelta(minutes=5)
    providers: frozenset[str] = CATALOGUE_PROVIDERS

    def at(self, now: datetime) -> Acceptance:
        """The rules as they apply to what arrives now."""
        oldest, newest = now - self.oldest_age, now + self.newest_ahead
        return Acceptance(self.providers, _unix_ms(oldest), _unix_ms(newest))


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What is accepted at a moment: known providers, and usage times in milliseconds since 1970, both included."""

    providers: frozenset[str]
    oldest_unix_ms: int
    newest_unix_ms: int


def validate(event: ReportedEvent, accepted: Acceptance) -> UsageEvent | tuple[Violation, ...]:
    """The event with every field parsed and in range, or everything that is wrong with it."""
    found: list[Violation] = []
    id_bits = _uuid_bits("event_id", event.event_id, found)
    tenant_id = _known_uuid(event.tenant_id) if len(event.tenant_id) == _UUID_CHARACTERS else None
    if tenant_id is None:
        _check_uuid("tenant_id", event.tenant_id, found)
    _check_uuid("request_id", event.request_id, found)
    used_at = None if id_bits is None else _usage_time(id_bits, accepted, found)
    if not _is_in_bounds(event, accepted):
        _check_texts(event, accepted, found)
        _check_numbers(event, found)
    if event.labels:
        _check_labels(event.labels, found)
    provider_cost_usd = _usd(event.provider_reported_cost_usd, found) if event.provider_reported_cost_usd else None
    if event.status is None:
        found.append(Violation("status", "must be SUCCESS, ERROR, RATE_LIMIT, CANCELLED or INTERRUPTED"))
    if event.usage_source is None:
        found.append(Violation("usage_source", "must be PROVIDER, PROVIDER_LATE, COUNTED, ESTIMATED or NONE"))
    if event.funding is None:
        found.append(Violation("funding", "must be TENANT_KEY, SYSTEM_KEY or, when no key was used, absent"))
    if (
        found
        or id_bits is None
        or tenant_id is None
        or used_at is None
        or event.status is None
        or event.usage_source is None
        or event.funding is None
    ):
        return tuple(found)
    return UsageEvent(
        id_bits, tenant_id, used_at, event.status, event.usage_source, event.funding, provider_cost_usd, event
    )


def _instant(unix_ms: int) -> datetime:
    # By place: with `milliseconds=` the sum takes half as long again.
    return _EPOCH + timedelta(0, unix_ms // 1_000, unix_ms % 1_000 * 1_000)


def _check_uuid(field: str, text: str, found: list[Violation]) -> bool:
    # By a pattern: UUID() also takes braces, URNs and misplaced hyphens, a second spelling of the same id.
    if _UUID.fullmatch(text) is not None:
        return True
    found.append(Violation(field, f"must be a UUID such as 018f3c3e-7a1b-7c1d-8e2f-0123456789ab, not {text[:60]!r}"))
    return False


def _uuid_bits(field: str, text: str, found: list[Violation]) -> int | None:
    return int(text.replace("-", ""), 16) if _check_uuid(field, text, found) else None


@lru_cache(maxsize=4_096)
def _known_uuid(text: str) -> UUID | None:
    """The UUID; None when it is none. Remembered, because a batch names few tenants many times; so of no long text."""
    bits = _uuid_bits("", text, [])
    return None if bits is None else UUID(int=bits)


def _usage_time(id_bits: int, accepted: Acceptance, found: list[Violation]) -> datetime | None:
    if (id_bits >> 76) & 0xF != 7 or (id_bits >> 62) & 0b11 != 0b10:
        found.append(
            Violation(
                "event_id",
                f"must be a UUIDv7, whose first 48 bits are the usage time, not {UUID(int=id_bits)}",
            )
        )
        return None
    unix_ms = id_bits >> 80
    # Compared as milliseconds: 48 bits reach past the last year that datetime knows.
    if not accepted.oldest_unix_ms <= unix_ms <= accepted.newest_unix_ms:
        oldest, newest = (_instant(ms).isoformat() for ms in (accepted.oldest_unix_ms, accepted.newest_unix_ms))
        found.append(
            Violation("event_id", f"its time, {unix_ms} ms after 1970, must lie between {oldest} and {newest}")
        )
        return None
    return _instant(unix_ms)


def _unix_ms(instant: datetime) -> int:
    return (instant - _EPOCH) // timedelta(milliseconds=1)


def _is_in_bounds(event: ReportedEvent, accepted: Acceptance) -> bool:
    """Whether the checks of texts and numbers would find nothing; in one expression, at a sixth of their time."""
    (
        _, _, _, attempt, provider, model, requested_model, endpoint, user_id, _, error_class, error_message, _,
        (input_tokens, output_tokens, cached_read_tokens, cached_write_tokens, reasoning_tokens), _, _,
        latency_ms, first_token_ms, _, _, sequence, task_type, decision,
    ) = event  # fmt: skip
    return (
        provider in accepted.providers
        and (0 < len(model) <= MAX_NAME_CHARACTERS)
        and len(requested_model) <= MAX_NAME_CHARACTERS
        and len(endpoint) <= MAX_NAME_CHARACTERS
        and len(user_id) <= MAX_NAME_CHARACTERS
        and len(error_class) <= MAX_NAME_CHARACTERS
        and len(error_message) <= MAX_ERROR_MESSAGE_CHARACTERS
        and len(task_type) <= MAX_NAME_CHARACTERS
        and len(decision) <= MAX_DECISION_CHARACTERS
        and "\x00"
        not in f"{model}{requested_model}{endpoint}{user_id}{error_class}{error_message}{task_type}{decision}"
        and 1 <= attempt <= MAX_ATTEMPT
        and 0 <= sequence <= MAX_SEQUENCE
        and 0 <= input_tokens <= MAX_TOKENS
        and 0 <= output_tokens <= MAX_TOKENS
        and 0 <= cached_read_tokens <= MAX_TOKENS
        and 0 <= cached_write_tokens <= MAX_TOKENS
        and 0 <= reasoning_tokens <= MAX_TOKENS
        and (latency_ms is None or 0 <= latency_ms <= MAX_DURATION_MS)
        and (first_token_ms is None or 0 <= first_token_ms <= MAX_DURATION_MS)
    )


def _check_texts(event: ReportedEvent, accepted: Acceptance, found: list[Violation]) -> None:
    if event.provider not in accepted.providers:
        known = ", ".join(sorted(accepted.providers))
        found.append(Violation("provider", f"must be one of {known}, not {event.provider[:60]!r}"))
    # A request that Turnpike refused may have named no model.
    if not event.model and event.provider != REFUSED_BY_TURNPIKE:
        found.append(
            Violation("model", "must name the model that answered, or the requested one when nothing answered")
        )
    for field, text, most in (
        ("model", event.model, MAX_NAME_CHARACTERS),
        ("requested_model", event.requested_model, MAX_NAME_CHARACTERS),
        ("endpoint", event.endpoint, MAX_NAME_CHARACTERS),
        ("user_id", event.user_id, MAX_NAME_CHARACTERS),
        ("error_class", event.error_class, MAX_NAME_CHARACTERS),
        ("error_message", event.error_message, MAX_ERROR_MESSAGE_CHARACTERS),
        ("task_type", event.task_type, MAX_NAME_CHARACTERS),
        ("decision", event.decision, MAX_DECISION_CHARACTERS),
    ):
        if text:
            _check_text(field, text, most, found)


def _check_text(field: str, text: str, most: int, found: list[Violation]) -> None:
    if len(text) > most:
        found.append(Violation(field, f"must have at most {most} characters, not {len(text)}"))
    if "\x00" in text:
        found.append(Violation(field, "must not hold the character U+0000, which Postgres cannot store"))


def _check_numbers(event: ReportedEvent, found: list[Violation]) -> None:
    tokens = event.tokens
    for field, number, least, most in (
        ("attempt", event.attempt, 1, MAX_ATTEMPT),
        ("sequence", event.sequence, 0, MAX_SEQUENCE),
        ("token_usage.input_tokens", tokens.input_tokens, 0, MAX_TOKENS),
        ("token_usage.output_tokens", tokens.output_tokens, 0, MAX_TOKENS),
        ("token_usage.cached_read_tokens", tokens.cached_read_tokens, 0, MAX_TOKENS),
        ("token_usage.cached_write_tokens", tokens.cached_write_tokens, 0, MAX_TOKENS),
        ("token_usage.reasoning_tokens", tokens.reasoning_tokens, 0, MAX_TOKENS),
        ("latency", event.latency_ms, 0, MAX_DURATION_MS),
        ("time_to_first_token", event.first_token_ms, 0, MAX_DURATION_MS),
    ):
        if number is not None and not least <= number <= most:
            unit = " ms" if field in {"latency", "time_to_first_token"} else ""
            found.append(Violation(field, f"must lie between {least} and {most}{unit}, not {number}{unit}"))


def _check_labels(labels: Mapping[str, str], found: list[Violation]) -> None:
    if len(labels) > MAX_LABELS:
        found.append(Violation("labels", f"must have at most {MAX_LABELS} entries, not {len(labels)}"))
        return
    for key, value in labels.items():
        if (
            0 < len(key) <= MAX_LABEL_KEY_CHARACTERS
            and len(value) <= MAX_LABEL_VALUE_CHARACTERS
            and ("\x00" not in f"{key}{value}")
        ):
            continue
        if not key:
            found.append(Violation("labels", "must not have an empty key"))
        path = f"labels[{key[:MAX_LABEL_KEY_CHARACTERS]!r}]"
        _check_text(path, key, MAX_LABEL_KEY_CHARACTERS, found)
        _check_text(path, value, MAX_LABEL_VALUE_CHARACTERS, found)


def _usd(text: str, found: list[Violation]) -> Decimal | None:
    field = "provider_reported_cost_usd"
    if _USD.fullmatch(text) is None:
        found.append(Violation(field, f'must be a decimal number of US dollars such as "0.000217", not {text[:60]!r}'))
        return None
    amount = Decimal(text)
    if amount >= _MAX_USD:
        found.append(Violation(field, f"must be below {_MAX_USD:f} US dollars, not {text[:60]}"))
        return None
    return amount.quantize(_LEDGER_UNIT, context=_ROUNDING)
