"""Selections that are kept: who could serve a tenant's requests changes with its configuration, not with the request.

The first request of a configuration selects for all that ask for the same and fit the same windows. For a tenant with
one provider of five that is 4 us instead of 25, for one with keys for all of them 4 instead of 40.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from msgspec.structs import replace

from router_service.domain.catalog import ProviderSpec
from router_service.domain.selection import Needs, Selection, select
from router_service.domain.tenant import Credential, Tenant
from router_service.routing.scoreboard import Recent

_Key = tuple[UUID, str | None, str | None, bool, bool, bool]


@dataclass(frozen=True, slots=True)
class _Kept:
    """A selection for requests of no length; it holds for any that fits the least window of its candidates."""

    tenant: Tenant
    today: date
    selection: Selection
    least_window_tokens: float


class Selections:
    """Selects for a tenant, from memory where that gives the same."""

    def __init__(
        self,
        catalog: Mapping[str, ProviderSpec],
        system_credentials: Mapping[str, Credential],
        *,
        max_entries: int = 10_000,
    ) -> None:
        self._catalog = catalog
        self._system_credentials = system_credentials
        self._kept: Recent[_Key, _Kept] = Recent(max_entries)

    def of(self, tenant: Tenant, needs: Needs, today: date) -> Selection:
        """What `select` gives for them."""
        key = (tenant.id, needs.model, needs.provider, needs.tools, needs.json, needs.vision)
        kept = self._kept.get(key)
        # The very same object, not only the same version: a row that was made anew begins with version 1 again.
        if kept is None or kept.tenant is not tenant or kept.today != today:
            kept = self._keep(key, tenant, needs, today)
        if needs.total_tokens <= kept.least_window_tokens:
            return kept.selection
        return self._select(tenant, needs, today)

    def _keep(self, key: _Key, tenant: Tenant, needs: Needs, today: date) -> _Kept:
        selection = self._select(tenant, replace(needs, total_tokens=0), today)
        windows = [candidate.model.context_window_tokens for candidate in selection.candidates]
        kept = _Kept(tenant, today, selection, min((w for w in windows if w is not None), default=float("inf")))
        self._kept.put(key, kept)
        return kept

    def _select(self, tenant: Tenant, needs: Needs, today: date) -> Selection:
        return select(tenant, self._catalog, self._system_credentials, needs, today=today)
