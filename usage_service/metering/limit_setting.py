"""Keep the tenants' own limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol
from uuid import UUID

from service_runtime.errors import Category, ServiceError
from usage_service.domain.rate_limit import LimitKey, LimitRule, TenantLimit

# CheckRateLimitStatus answers with all of a tenant's limits at once.
MAX_LIMITS_PER_TENANT = 500


@dataclass(frozen=True, slots=True)
class AfterLimit:
    """The last entry of a page of limits."""

    tenant_id: UUID
    key: LimitKey


@dataclass(frozen=True, slots=True)
class LimitSet:
    """A limit as it stands after it was set; `previous` is what it was, None when there was none."""

    limit: TenantLimit
    previous: Decimal | None


class LimitTable(Protocol):
    """The limits as they are stored. All methods raise `ServiceError` UNAVAILABLE."""

    async def set(self, tenant_id: UUID, rule: LimitRule, *, most: int) -> LimitSet | None:
        """Set a limit; None, and nothing changed, when it would be a new one and the tenant has `most` already."""
        ...

    async def delete(self, tenant_id: UUID, key: LimitKey) -> TenantLimit | None:
        """Remove a limit; None when there is none."""
        ...

    async def page(
        self, *, tenant_id: UUID | None, provider: str, after: AfterLimit | None, limit: int
    ) -> Sequence[TenantLimit]:
        """At most `limit` limits after `after`, by tenant and key; those of a tenant and a provider where given."""
        ...


class LimitSetting:
    """Sets, lists and removes the tenants' own limits."""

    def __init__(self, table: LimitTable) -> None:
        self._table = table

    async def set(self, tenant_id: UUID, rule: LimitRule) -> LimitSet:
        """Set a limit. Raises ServiceError FAILED_PRECONDITION TOO_MANY_LIMITS when the tenant has 500 others."""
        done = await self._table.set(tenant_id, rule, most=MAX_LIMITS_PER_TENANT)
        if done is None:
            raise ServiceError(
                Category.FAILED_PRECONDITION,
                "TOO_MANY_LIMITS",
                f"tenant {tenant_id} has {MAX_LIMITS_PER_TENANT} limits, which is the most; delete one that it no "
                "longer needs",
                metadata={"tenant_id": str(tenant_id)},
            )
        return done

    async def delete(self, tenant_id: UUID, key: LimitKey) -> TenantLimit:
        """Remove a limit. Raises ServiceError NOT_FOUND UNKNOWN_LIMIT."""
        removed = await self._table.delete(tenant_id, key)
        if removed is None:
            raise ServiceError(
                Category.NOT_FOUND,
                "UNKNOWN_LIMIT",
                f"tenant {tenant_id} has no limit of its own on {key.metric} per {key.window_s} s at {key.provider} "
                f"for {key.model or 'all models together'}; ListLimits shows those that it has",
                metadata={"tenant_id": str(tenant_id)},
            )
        return removed

    async def page(
        self, *, tenant_id: UUID | None, provider: str, after: AfterLimit | None, limit: int
    ) -> Sequence[TenantLimit]:
        """At most `limit` limits after `after`, by tenant and key."""
        return await self._table.page(tenant_id=tenant_id, provider=provider, after=after, limit=limit)
