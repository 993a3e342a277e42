"""Asking a router over fakes, and what its books say afterwards."""

from __future__ import annotations

from contextlib import closing

import pytest

from router_service.domain.catalog import Clocks
from router_service.domain.completion import (
    CompletionRequest,
    RouterEvent,
)
from router_service.domain.usage import AttemptStatus
from router_service.routing.router import Router
from service_runtime.errors import ServiceError
from tests.support.router_fakes import (
    World,
    request,
)

IMPATIENT = Clocks(first_content_s=0.02, content_gap_s=0.02, total_s=5.0)


async def events_of(
    router: Router, asked: CompletionRequest | None = None, *, deadline_s: float | None = None
) -> list[RouterEvent]:
    with closing(await router.stream(asked or request(), deadline_s=deadline_s)) as events:
        return [event async for event in events]


async def failure_of(
    router: Router, asked: CompletionRequest | None = None, *, deadline_s: float | None = None
) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await events_of(router, asked, deadline_s=deadline_s)
    return caught.value


def rows(world: World) -> list[tuple[str, int, AttemptStatus, bool]]:
    return [(r.opened.provider, r.opened.attempt, r.status, r.absorbed) for r in world.journal.rows]


async def leave_after(world: World, count: int) -> None:
    """Read `count` events, then leave."""
    with closing(await world.router.stream(request(), deadline_s=None)) as events:
        for _ in range(count):
            await anext(events)
