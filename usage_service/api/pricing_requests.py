"""Reading PricingService requests: every bad field is found and named before anything is asked of the books."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from service_runtime.errors import FieldViolation, InvalidRequest
from turnpike.usage.v1 import pricing_service_pb2 as pb
from usage_service.api.convert_reports import instant_from_proto
from usage_service.domain import paging
from usage_service.domain.pricing import MAX_USD_PER_MILLION, PRICE_DECIMALS, Rates, TokenCounts
from usage_service.domain.provider_names import REFUSED_BY_TURNPIKE, normalise_provider
from usage_service.domain.usage_event import MAX_NAME_CHARACTERS, MAX_TOKENS
from usage_service.domain.window import Window
from usage_service.metering.repricing import AfterAdjustment, RepriceJob, RepriceScope, RowPosition

OPERATOR = "operator"
MAX_SOURCE_CHARACTERS = 100
MAX_REASON_CHARACTERS = 500
MAX_REPRICED_ROWS = 100_000
DEFAULT_REPRICED_ROWS = 20_000

# Their entries follow other rules: those from the vendors' list are brought up to date without being asked.
_RESERVED_SOURCES = frozenset({"seed", "genai-prices"})
_EARLIEST_PRICE = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST_PRICE_AHEAD = timedelta(days=5 * 366)
# Usage may lie a little ahead of the clock; a day is more than any setting allows.
_BEYOND_ALL_USAGE = timedelta(days=1)

_USD_PER_MILLION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,9})?", re.ASCII)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_COUNT = re.compile(r"[0-9]{1,18}", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TOKEN_FIELDS = ("input_tokens", "output_tokens", "cached_read_tokens", "cached_write_tokens", "reasoning_tokens")


@dataclass(frozen=True, slots=True)
class PriceToSet:
    """A price that somebody wants in the book."""

    provider: str
    model: str
    rates: Rates
    effective_at: datetime | None
    replace: bool
    source: str


class PricingReader:
    """Reads the fields of one request and collects what is wrong; `done` raises it all at once.

    `providers` are the catalogue names that usage can have. A bad field reads as a harmless stand-in.
    """

    def __init__(self, providers: frozenset[str], now: datetime) -> None:
        self._providers = providers
        self._now = now
        self._violations: list[FieldViolation] = []

    def done(self) -> None:
        """Raise InvalidRequest when any field was bad."""
        if self._violations:
            raise InvalidRequest(self._violations)

    def refuse(self, field: str, description: str) -> None:
        """Note that a field is bad."""
        self._violations.append(FieldViolation(field, description))

    def known_provider(self, text: str) -> str:
        """The catalogue name of a provider that can have usage with a price."""
        provider = normalise_provider(text, self._providers)
        if provider not in self._providers:
            self.refuse("provider", f"must be one of {', '.join(sorted(self._providers))}, not {text[:60]!r}")
        return provider

    def model(self, text: str) -> str:
        """A model's name, or "*"."""
        if not 1 <= len(text) <= MAX_NAME_CHARACTERS:
            self.refuse("model", f"must have 1 to {MAX_NAME_CHARACTERS} characters, not {len(text)}")
        elif "\x00" in text:
            self.refuse("model", "must not hold the character U+0000, which no name in the ledger has")
        else:
            return text
        return "*"

    def tokens(self, request: pb.CalculateCostRequest) -> TokenCounts:
        """Tokens by class."""
        counts = {field: int(getattr(request, field)) for field in _TOKEN_FIELDS}
        for field, number in counts.items():
            if not 0 <= number <= MAX_TOKENS:
                self.refuse(field, f"must lie between 0 and {MAX_TOKENS}, not {number}")
        return TokenCounts(**counts)

    def instant(self, field: str, timestamp: Timestamp) -> datetime:
        """A point in time."""
        try:
            return instant_from_proto(timestamp)
        except ValueError as error:
            self.refuse(field, str(error))
            return self._now

    def as_of(self, request: pb.CalculateCostRequest | pb.ListPricesRequest) -> datetime:
        """The time that is asked about; now when nothing is said."""
        return self.instant("as_of_time", request.as_of_time) if request.HasField("as_of_time") else self._now

    def price(self, request: pb.SetPriceRequest) -> PriceToSet:
        """A price with everything that belongs to it."""
        provider = self.known_provider(request.provider)
        if provider == REFUSED_BY_TURNPIKE:
            self.refuse("provider", f"must not be {provider!r}: it stands for requests that reached no provider")
        if request.model != request.model.strip():
            self.refuse("model", f"must not begin or end with a space: {request.model[:60]!r}")
        if not 0 <= request.max_prompt_tokens <= MAX_TOKENS:
            self.refuse("max_prompt_tokens", f"must lie between 0 and {MAX_TOKENS}, not {request.max_prompt_tokens}")
        return PriceToSet(
            provider,
            self.model(request.model),
            Rates(
                input_usd=self._usd("input_usd_per_million", request.input_usd_per_million),
                output_usd=self._usd("output_usd_per_million", request.output_usd_per_million),
                cached_read_usd=self._own_usd("cached_read_usd_per_million", request.cached_read_usd_per_million),
                cached_write_usd=self._own_usd("cached_write_usd_per_million", request.cached_write_usd_per_million),
                reasoning_usd=self._own_usd("reasoning_usd_per_million", request.reasoning_usd_per_million),
                max_prompt_tokens=request.max_prompt_tokens or None,
            ),
            self._effective_at(request),
            request.replace,
            self._source(request.source),
        )

    def page_size(self, asked: int, *, default: int) -> int:
        """Entries for a page."""
        try:
            return paging.page_size(asked, default=default)
        except ValueError as error:
            self.refuse("page_size", str(error))
            return default

    def position(self, token: str, *, fingerprint: str, length: int) -> tuple[str, ...] | None:
        """Where the page before ended, as texts; None without a token."""
        if not token:
            return None
        try:
            return paging.decode(token, fingerprint=fingerprint, position_length=length).position
        except paging.BadPageToken as error:
            self.refuse("page_token", str(error))
            return None

    def uuid(self, field: str, text: str) -> UUID | None:
        """A UUID; None when nothing was said."""
        if text and _UUID.fullmatch(text) is None:
            self.refuse(field, f"must be a UUID such as 018f3c3e-7a1b-7c1d-8e2f-0123456789ab, not {text[:60]!r}")
        elif text:
            return UUID(text)
        return None

    def _usd(self, field: str, text: str) -> Decimal:
        if not text:
            self.refuse(field, 'must be said; "0" is a price')
        elif _USD_PER_MILLION.fullmatch(text) is None or Decimal(text) > MAX_USD_PER_MILLION:
            self.refuse(
                field,
                f"must be US dollars per million tokens from 0 to {MAX_USD_PER_MILLION} with at most {PRICE_DECIMALS} "
                f'decimals, such as "0.59", not {text[:60]!r}',
            )
        else:
            return Decimal(text)
        return Decimal(0)

    def _own_usd(self, field: str, text: str) -> Decimal | None:
        return self._usd(field, text) if text else None

    def _effective_at(self, request: pb.SetPriceRequest) -> datetime | None:
        if not request.HasField("effective_time"):
            return None
        instant, latest = self.instant("effective_time", request.effective_time), self._now + _LATEST_PRICE_AHEAD
        if not _EARLIEST_PRICE <= instant <= latest:
            self.refuse(
                "effective_time",
                f"must lie between {_EARLIEST_PRICE:%Y-%m-%d} and {latest:%Y-%m-%d}, not {instant.isoformat()}",
            )
        return instant

    def _source(self, text: str) -> str:
        if len(text) > MAX_SOURCE_CHARACTERS or "\x00" in text:
            self.refuse("source", f"must have at most {MAX_SOURCE_CHARACTERS} characters and no U+0000")
        elif text.partition(" ")[0].lower() in _RESERVED_SOURCES:
            self.refuse("source", f"must not begin with {text.partition(' ')[0]!r}, which marks prices of other origin")
        return text or OPERATOR


@dataclass(frozen=True, slots=True)
class RepriceCall:
    """One call of a run: the run, where it goes on, how far, and what its tokens carry."""

    job: RepriceJob
    after: RowPosition | None
    max_rows: int
    fingerprint: str

    def next_token(self, rest: RowPosition) -> str:
        """The token of the call that goes on at `rest`."""
        end = self.job.scope.window.end
        position = (
            _to_text(end),
            str(self.job.job_id),
            str(rest.tenant_id),
            _to_text(rest.used_at),
            str(rest.event_id),
        )
        return paging.encode(paging.PageToken(self.fingerprint, position))


def reprice_call(reader: PricingReader, request: pb.RepriceRequest, *, now: datetime, new_id: UUID) -> RepriceCall:
    """Read a request; from the second call on the run's id and end are those that the first one resolved."""
    tenant_id = reader.uuid("tenant_id", request.tenant_id)
    provider = reader.known_provider(request.provider) if request.provider else ""
    model = reader.model(request.model) if request.model else ""
    if not request.HasField("start_time"):
        reader.refuse("start_time", "must say from when on usage is priced anew")
    start = reader.instant("start_time", request.start_time)
    end = reader.instant("end_time", request.end_time) if request.HasField("end_time") else now + _BEYOND_ALL_USAGE
    if end <= start:
        reader.refuse("end_time", f"must be after start_time {start.isoformat()}, not {end.isoformat()}")
        start = end - _BEYOND_ALL_USAGE
    if request.apply and not request.reason.strip():
        reader.refuse("reason", "must say why, with apply: it stands in every adjustment")
    if len(request.reason) > MAX_REASON_CHARACTERS or "\x00" in request.reason:
        reader.refuse("reason", f"must have at most {MAX_REASON_CHARACTERS} characters and no U+0000")
    if not 0 <= request.max_rows <= MAX_REPRICED_ROWS:
        reader.refuse("max_rows", f"must be 1 to {MAX_REPRICED_ROWS}, or 0 for {DEFAULT_REPRICED_ROWS}")
    job_id = reader.uuid("job_id", request.job_id) or new_id
    job = RepriceJob(
        RepriceScope(Window(start, end), tenant_id, provider, model), job_id, request.reason, request.apply
    )
    call = RepriceCall(job, None, request.max_rows or DEFAULT_REPRICED_ROWS, _fingerprint(request))
    texts = reader.position(request.page_token, fingerprint=call.fingerprint, length=5)
    if texts is None:
        return call
    try:
        return _resumed(call, texts)
    except ValueError:
        reader.refuse("page_token", "is not a token of this method; pass next_page_token unchanged")
        return call


def _resumed(call: RepriceCall, texts: tuple[str, ...]) -> RepriceCall:
    end, job_id, tenant_id, used_at, event_id = texts
    scope = replace(call.job.scope, window=Window(call.job.scope.window.start, _from_text(end)))
    after = RowPosition(UUID(tenant_id), _from_text(used_at), UUID(event_id))
    if scope.tenant_id not in (None, after.tenant_id):
        raise ValueError(tenant_id)
    return replace(call, job=replace(call.job, scope=scope, job_id=UUID(job_id)), after=after)


def adjustment_position(texts: tuple[str, ...]) -> AfterAdjustment:
    """From usage time, event id and revision. Raises ValueError."""
    used_at, event_id, revision = texts
    return AfterAdjustment(_from_text(used_at), UUID(event_id), min(_count(revision), 2**31 - 1))


def _fingerprint(request: pb.RepriceRequest) -> str:
    fields = pb.RepriceRequest()
    fields.CopyFrom(request)
    fields.ClearField("max_rows")  # may differ from call to call
    fields.ClearField("page_token")
    return paging.fingerprint("Reprice", fields.SerializeToString(deterministic=True).hex())


def _to_text(instant: datetime) -> str:
    return str((instant - _EPOCH) // timedelta(microseconds=1))


def _from_text(text: str) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=_count(text))
    except OverflowError as error:
        raise ValueError(text) from error


def _count(text: str) -> int:
    if _COUNT.fullmatch(text) is None:
        raise ValueError(text)
    return int(text)
