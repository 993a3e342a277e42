"""Bulkheads: how many requests may run at once, so that one tenant or one provider cannot take the router from all."""

from __future__ import annotations

from collections import Counter
from typing import TypeVar
from uuid import UUID

from router_service.domain.completion import CompletionRequest
from service_runtime.errors import Category, QuotaExceeded, QuotaViolation, ServiceError

K = TypeVar("K")

RETRY_AFTER_FULL_S = 1.0


class Admission:
    """Counts what runs, per tenant and per provider, and knows every request by its id."""

    def __init__(self, *, max_running_per_tenant: int, max_running_per_provider: int) -> None:
        self._max_per_tenant = max_running_per_tenant
        self._max_per_provider = max_running_per_provider
        self._requests: set[tuple[UUID, UUID]] = set()
        self._tenants: Counter[UUID] = Counter()
        self._providers: Counter[str] = Counter()

    @property
    def running(self) -> int:
        return len(self._requests)

    def check(self, request: CompletionRequest) -> None:
        """Whether there is a place for the request, without taking it.

        Raises ServiceError ABORTED REQUEST_IN_FLIGHT while a request with the same id runs, and QuotaExceeded when the
        tenant has too many running.
        """
        key = (request.tenant_id, request.request_id)
        if key in self._requests:
            raise ServiceError(
                Category.ABORTED,
                "REQUEST_IN_FLIGHT",
                f"request {request.request_id} is still running: wait for its end, or use another request_id",
                metadata={"request_id": str(request.request_id)},
            )
        if self._tenants.get(request.tenant_id, 0) >= self._max_per_tenant:
            description = f"the tenant has {self._max_per_tenant} completions running, which is the most at once"
            raise QuotaExceeded(
                [QuotaViolation(f"tenant:{request.tenant_id}", description)], retry_after_s=RETRY_AFTER_FULL_S
            )

    def enter(self, request: CompletionRequest) -> None:
        """Count in a request that was checked a moment ago, with nothing awaited since."""
        self._requests.add((request.tenant_id, request.request_id))
        self._tenants[request.tenant_id] += 1

    def leave(self, request: CompletionRequest) -> None:
        self._requests.discard((request.tenant_id, request.request_id))
        _count_down(self._tenants, request.tenant_id)

    def enter_provider(self, provider: str) -> bool:
        """Take a place at the provider; False when all are taken."""
        if self._providers.get(provider, 0) >= self._max_per_provider:
            return False
        self._providers[provider] += 1
        return True

    def leave_provider(self, provider: str) -> None:
        _count_down(self._providers, provider)

    def all_busy(self, request: CompletionRequest) -> QuotaExceeded:
        """The error of a request all of whose providers are full."""
        description = f"every usable provider has {self._max_per_provider} attempts running, which is the most at once"
        return QuotaExceeded(
            [QuotaViolation(f"tenant:{request.tenant_id}", description)], retry_after_s=RETRY_AFTER_FULL_S
        )


def _count_down(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
