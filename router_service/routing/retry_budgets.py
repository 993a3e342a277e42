"""What the router's requests spend on further attempts: of all tenants together, and of each by itself.

Together, so that load is never multiplied. By itself, so that a tenant whose requests all fail spends three quarters of
what they are worth, and never what another tenant needs to reach a provider that is well.
"""

from __future__ import annotations

from enum import Enum
from uuid import UUID

from router_service.domain.retry_budget import RetryBudget
from router_service.routing.scoreboard import Recent

OWN_SHARE = 0.75


class Further(Enum):
    """What a further attempt is to the budget."""

    RETRY = "retry"
    FAILOVER = "failover"
    STRAGGLER = "straggler"  # a failover away from what is kept out by now: free


class RetryBudgets:
    """The common budget and those of the tenants seen last. Times are seconds of one steady clock."""

    def __init__(self, *, max_tenants: int) -> None:
        self._common = RetryBudget()
        self._of_tenants: Recent[UUID, RetryBudget] = Recent(max_tenants)

    def request_arrived(self, tenant_id: UUID, now: float) -> None:
        self._put(tenant_id, self._common.request_arrived(now), self._of(tenant_id).request_arrived(now))

    def allow(self, further: Further, tenant_id: UUID, now: float) -> bool:
        """Whether both budgets have room for such an attempt."""
        common, own = self._common, self._of(tenant_id)
        match further:
            case Further.STRAGGLER:
                return True
            case Further.FAILOVER:
                return common.allows_failover(now) and own.allows_failover(now, share=OWN_SHARE)
            case Further.RETRY:
                return common.allows_retry(now) and own.allows_retry(now)

    def spend(self, further: Further, tenant_id: UUID, now: float) -> None:
        """Count an attempt that begins."""
        common, own = self._common, self._of(tenant_id)
        match further:
            case Further.STRAGGLER:
                pass
            case Further.FAILOVER:
                self._put(tenant_id, common.failed_over(now), own.failed_over(now))
            case Further.RETRY:
                self._put(tenant_id, common.retried(now), own.retried(now))

    def _of(self, tenant_id: UUID) -> RetryBudget:
        return self._of_tenants.get(tenant_id) or RetryBudget()

    def _put(self, tenant_id: UUID, common: RetryBudget, own: RetryBudget) -> None:
        self._common = common
        self._of_tenants.put(tenant_id, own)
