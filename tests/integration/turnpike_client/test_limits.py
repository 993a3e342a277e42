from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from turnpike_client import CALENDAR_MONTH, LimitMetric, NotFound, UsageClient

TENANT = "5b4c2a10-5f0e-4a53-9d5c-0f3a6f6f2b11"
MINUTE = timedelta(minutes=1)


async def test_a_limit_is_set_changed_listed_and_deleted(usage: UsageClient) -> None:
    limits = usage.own_limits

    first = await limits.set(TENANT, "groq", LimitMetric.REQUESTS, MINUTE, 30)
    changed = await limits.set(TENANT, "groq", LimitMetric.REQUESTS, MINUTE, 60)
    budget = await limits.set(TENANT, "groq", LimitMetric.COST, CALENDAR_MONTH, Decimal("1E2"), model="m")
    listed = [limit async for limit in limits.list(tenant_id=TENANT, page_size=1)]
    removed = await limits.delete(TENANT, "groq", LimitMetric.REQUESTS, MINUTE)

    assert (first.previous, changed.previous, changed.limit.limit) == (None, Decimal(30), Decimal(60))
    assert (budget.limit.limit, budget.limit.window, budget.limit.model) == (Decimal(100), CALENDAR_MONTH, "m")
    assert listed == [changed.limit, budget.limit]
    assert removed == changed.limit
    assert [limit async for limit in limits.list(provider="llm7")] == []


async def test_a_limit_that_does_not_exist_cannot_be_deleted(usage: UsageClient) -> None:
    with pytest.raises(NotFound, match="no such limit"):
        await usage.own_limits.delete(TENANT, "groq", LimitMetric.TOKENS, MINUTE)
