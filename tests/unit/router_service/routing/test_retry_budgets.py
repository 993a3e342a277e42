"""S2 and S6: what one tenant spends on further attempts is bounded by its own requests and by those of all."""

from __future__ import annotations

from uuid import UUID

import pytest

from router_service.domain.retry_budget import FURTHER_FLOOR, RETRY_FLOOR
from router_service.routing.retry_budgets import Further, RetryBudgets

A, B = UUID(int=1), UUID(int=2)


@pytest.fixture
def budgets() -> RetryBudgets:
    return RetryBudgets(max_tenants=10)


def spent(budgets: RetryBudgets, tenant: UUID, further: Further, most: int) -> int:
    """How many of `most` such attempts the budget grants."""
    granted = 0
    for _ in range(most):
        if budgets.allow(further, tenant, 1.0):
            budgets.spend(further, tenant, 1.0)
            granted += 1
    return granted


def arrive(budgets: RetryBudgets, tenant: UUID, requests: int) -> None:
    for _ in range(requests):
        budgets.request_arrived(tenant, 1.0)


def test_a_tenant_spends_its_own_share_only(budgets: RetryBudgets) -> None:
    arrive(budgets, A, 1000)
    arrive(budgets, B, 1000)

    assert spent(budgets, A, Further.FAILOVER, 1000) == 150
    assert spent(budgets, B, Further.FAILOVER, 1000) == 150


def test_a_flood_of_one_tenant_leaves_room_for_a_single_request_of_another(budgets: RetryBudgets) -> None:
    arrive(budgets, A, 1000)
    spent(budgets, A, Further.FAILOVER, 1000)

    arrive(budgets, B, 1)

    assert spent(budgets, B, Further.FAILOVER, 1) == 1


def test_all_together_spend_what_all_together_ask(budgets: RetryBudgets) -> None:
    tenants = [UUID(int=number) for number in range(10)]
    for tenant in tenants:
        arrive(budgets, tenant, 1)

    assert sum(spent(budgets, tenant, Further.RETRY, 10) for tenant in tenants) == RETRY_FLOOR
    assert sum(spent(budgets, tenant, Further.FAILOVER, 10) for tenant in tenants) == FURTHER_FLOOR - RETRY_FLOOR


def test_stragglers_are_free(budgets: RetryBudgets) -> None:
    assert spent(budgets, A, Further.STRAGGLER, 500) == 500
    assert spent(budgets, A, Further.RETRY, 500) == RETRY_FLOOR
