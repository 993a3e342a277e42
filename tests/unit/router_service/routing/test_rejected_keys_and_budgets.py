"""S6: requests that a tenant's rejected key refuses ask nothing of any provider, and widen nobody's budget."""

from __future__ import annotations

from uuid import UUID

import pytest

from router_service.domain.errors import FailureKind
from router_service.routing import router
from router_service.routing.retry_budgets import RetryBudgets
from tests.support.router_fakes import FakeProvider, World, failure
from tests.unit.router_service.routing.asking import failure_of


async def test_only_requests_that_reach_a_provider_count_towards_the_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[UUID] = []

    class Counting(RetryBudgets):
        def request_arrived(self, tenant_id: UUID, now: float) -> None:
            counted.append(tenant_id)
            super().request_arrived(tenant_id, now)

    monkeypatch.setattr(router, "RetryBudgets", Counting)
    provider = FakeProvider([failure(FailureKind.KEY_REJECTED)])
    world = World({"groq": provider})

    errors = [await failure_of(world.router) for _ in range(20)]

    assert {error.reason for error in errors} == {"PROVIDER_KEY_REJECTED"}
    assert len(counted) == len(provider.calls) == 1
