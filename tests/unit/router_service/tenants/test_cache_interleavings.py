"""However reads, writes and notifications interleave, nobody is served what was outdated before he asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Literal
from uuid import UUID

from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from router_service.domain.tenant import Tenant
from router_service.tenants.cache import TenantCache
from router_service.tenants.metrics import TenantMetrics

ACME = UUID(int=1)
Step = Literal["get", "write and notify", "write and put", "write and poll", "expire", "let others run"]
STEPS: tuple[Step, ...] = ("get", "write and notify", "write and put", "write and poll", "expire", "let others run")


class SlowSource:
    """One tenant. Each read looks at the row at a moment of its own, and answers at a later one.

    Fewer reads are slow than a load tries: one that is overtaken every time answers with what it has.
    """

    def __init__(self, delays: list[tuple[int, int]]) -> None:
        self.version = 1
        self._delays: Iterator[tuple[int, int]] = iter(delays)

    async def tenant(self, tenant_id: UUID) -> Tenant | None:
        before, after = next(self._delays, (0, 0))
        for _ in range(before):
            await asyncio.sleep(0)
        found = Tenant(tenant_id, "", self.version)
        for _ in range(after):
            await asyncio.sleep(0)
        return found

    async def versions(self, tenant_ids: list[UUID]) -> Mapping[UUID, int]:
        return dict.fromkeys(tenant_ids, self.version)


class Play:
    """Plays steps against a cache. `told` is the newest version that the cache was told of."""

    def __init__(self, delays: list[tuple[int, int]]) -> None:
        self.now_s = 0.0
        self.told = 0
        self.source = SlowSource(delays)
        self.cache = TenantCache(
            self.source,
            unknown_tenant=lambda tenant_id: Tenant(tenant_id, "", 0),
            ttl_s=300,
            max_entries=10,
            now_s=lambda: self.now_s,
            jitter=lambda: 0.0,
            metrics=TenantMetrics(CollectorRegistry()),
            outdated_wait_s=60,
        )
        self.answers: list[tuple[int, asyncio.Task[Tenant]]] = []

    async def step(self, step: Step) -> None:
        match step:
            case "get":
                self.answers.append((self.told, asyncio.create_task(self.cache.get(ACME))))
                await self.others()
            case "write and notify":
                self.source.version += 1
                self.cache.on_notification(f"{ACME} {self.source.version}")
                self.told = self.source.version
            case "write and put":
                self.source.version += 1
                self.cache.put(Tenant(ACME, "", self.source.version))
                self.told = self.source.version
            case "write and poll":
                self.source.version += 1
                await self.cache.poll_versions()
            case "expire":
                self.now_s += 301
            case "let others run":
                await self.others()

    async def others(self) -> None:
        """Let every task take the steps that a request and its read need to begin."""
        for _ in range(2):
            await asyncio.sleep(0)


@example(steps=["get", "expire", "get", "write and notify"], delays=[])  # told between a read's end and its callback
@settings(max_examples=500, deadline=None)
@given(
    steps=st.lists(st.sampled_from(STEPS), min_size=3, max_size=40),
    delays=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=5, max_size=9),
)
def test_nobody_is_served_what_was_known_to_be_outdated_when_he_asked(
    steps: list[Step], delays: list[tuple[int, int]]
) -> None:
    async def play() -> None:
        game = Play(delays)
        for step in steps:
            await game.step(step)
        served = [(told, (await answer).version) for told, answer in game.answers]
        game.cache.invalidate(ACME)

        assert [pair for pair in served if pair[1] < pair[0]] == []
        assert (await game.cache.get(ACME)).version == game.source.version

    asyncio.run(play())
