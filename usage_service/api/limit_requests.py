"""Reading requests about the tenants' own limits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from google.protobuf.duration_pb2 import Duration

from turnpike.usage.v1 import quota_service_pb2 as pb
from usage_service.api.convert_limits import METRIC_FROM_PROTO
from usage_service.api.report_requests import RequestReader
from usage_service.domain import paging
from usage_service.domain.provider_names import REFUSED_BY_TURNPIKE, normalise_provider
from usage_service.domain.rate_limit import (
    COST_DECIMALS,
    MAX_COST_USD,
    MAX_COUNT,
    MAX_FIXED_WINDOW_S,
    MINUTE_S,
    MONTH_S,
    LimitKey,
    LimitMetric,
    LimitRule,
    TenantLimit,
    is_window,
)
from usage_service.metering.limit_setting import AfterLimit

DEFAULT_PAGE_SIZE = 100
MAX_TENANTS_AT_ONCE = 100  # bounds what one call takes of the event loop, and the size of its answer

_COUNT = re.compile(r"[0-9]{1,16}", re.ASCII)
_USD = re.compile(r"[0-9]{1,13}(\.[0-9]{1,6})?", re.ASCII)


class LimitReader(RequestReader):
    """Reads the fields of one request; `providers` are the catalogue names that the ledger knows."""

    def __init__(self, now: datetime, providers: frozenset[str]) -> None:
        super().__init__(now)
        self._providers = providers - {REFUSED_BY_TURNPIKE}

    def key(self, request: pb.SetLimitRequest | pb.DeleteLimitRequest) -> tuple[UUID, LimitKey]:
        """Whose limit, and which."""
        tenant_id = self.uuid("tenant_id", request.tenant_id)
        provider = normalise_provider(request.provider, self._providers)
        if provider not in self._providers:
            known = ", ".join(sorted(self._providers))
            self._refuse("provider", f"must be one of {known}, not {request.provider[:60]!r}")
        model = self.name("model", request.model)
        metric = METRIC_FROM_PROTO.get(request.metric)
        if metric is None:
            self._refuse("metric", f"must be REQUESTS, TOKENS or COST, not {request.metric}")
        return tenant_id, LimitKey(provider, model, metric or LimitMetric.REQUESTS, self._window_s(request.window))

    def limit(self, request: pb.SetLimitRequest) -> tuple[UUID, LimitRule]:
        """Whose limit, and which, with its amount."""
        tenant_id, key = self.key(request)
        amount = self._amount(key.metric, request.limit)
        return tenant_id, LimitRule(key.provider, key.metric, key.window_s, amount, key.model, is_override=True)

    def tenant_ids(self, texts: Sequence[str]) -> Sequence[UUID]:
        """The tenants of a question about many."""
        if not 1 <= len(texts) <= MAX_TENANTS_AT_ONCE:
            self._refuse(
                "tenant_ids", f"must be 1 to {MAX_TENANTS_AT_ONCE} tenants, not {len(texts)}; ask for the rest apart"
            )
            return ()
        return [self.uuid(f"tenant_ids[{index}]", text) for index, text in enumerate(texts)]

    def page_size(self, asked: int, *, default: int) -> int:
        """Entries for a page."""
        try:
            return paging.page_size(asked, default=default)
        except ValueError as error:
            self._refuse("page_size", str(error))
            return default

    def after_limit(self, token: str, fingerprint: str) -> AfterLimit | None:
        """Where the page before ended; None without a token."""
        if not token:
            return None
        try:
            texts = paging.decode(token, fingerprint=fingerprint, position_length=5).position
            tenant_id, provider, model, metric, window_s = texts
            # No window is longer than a month, and the database's integers end somewhere.
            place = LimitKey(provider, model, LimitMetric(metric), min(int(window_s), MONTH_S))
            return AfterLimit(UUID(tenant_id), place)
        except paging.BadPageToken as error:
            self._refuse("page_token", str(error))
        except ValueError:
            self._refuse("page_token", "is not a token of this method; pass next_page_token unchanged")
        return None

    def _window_s(self, window: Duration) -> int:
        seconds = window.seconds
        if window.nanos or not is_window(seconds):
            self._refuse(
                "window",
                f"must be 1 to 59 s, whole minutes up to {MAX_FIXED_WINDOW_S} s, or {MONTH_S} s for the calendar "
                f"month, not {seconds + window.nanos / 1e9:g} s",
            )
            return MINUTE_S
        return seconds

    def _amount(self, metric: LimitMetric, text: str) -> Decimal:
        if metric is LimitMetric.COST:
            if _USD.fullmatch(text) is not None and Decimal(text) <= MAX_COST_USD:
                return Decimal(text)
            self._refuse(
                "limit",
                f"must be US dollars from 0 to {MAX_COST_USD:f} with at most {COST_DECIMALS} decimals, such as "
                f'"2.50", not {text[:60]!r}',
            )
        else:
            if _COUNT.fullmatch(text) is not None and Decimal(text) <= MAX_COUNT:
                return Decimal(text)
            self._refuse("limit", f"must be a whole number from 0 to {MAX_COUNT:f}, not {text[:60]!r}")
        return Decimal(0)


def limits_fingerprint(request: pb.ListLimitsRequest) -> str:
    """What must stay the same from page to page."""
    return paging.fingerprint("ListLimits", request.tenant_id, request.provider)


def after_limit_to_position(limit: TenantLimit) -> tuple[str, ...]:
    """A limit's place as it stands in a page token."""
    rule = limit.rule
    return (str(limit.tenant_id), rule.provider, rule.model, rule.metric, str(rule.window_s))
