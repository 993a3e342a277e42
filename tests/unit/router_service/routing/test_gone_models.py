"""The operator learns of a model that a provider gave up: once by the log, each time by a metric."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from structlog.testing import capture_logs

from router_service.domain.errors import FailureKind
from service_runtime.errors import ServiceError
from tests.support.router_fakes import FakeProvider, Until, World, failure, request


def warnings(lines: Sequence[Mapping[str, Any]]) -> list[tuple[object, object]]:
    return [(line["provider"], line["model"]) for line in lines if line["event"] == "provider.model_gone"]


def counted(world: World, model: str) -> float | None:
    return world.registry.get_sample_value("turnpike_router_models_gone_total", {"provider": "groq", "model": model})


async def events_of(world: World, **asked: object) -> None:
    with suppress(ServiceError):
        async for _ in await world.router.stream(request(**asked), deadline_s=None):
            pass


async def test_a_model_of_the_catalogue_that_is_gone_is_told_once_and_counted_each_time() -> None:
    both_are_asked = asyncio.Event()
    groq = FakeProvider([Until(both_are_asked), failure(FailureKind.MODEL_GONE)])
    world = World({"groq": groq, "llm7": FakeProvider()})
    model = world.catalog["groq"].default_model

    with capture_logs() as lines:
        async with asyncio.TaskGroup() as requests:
            for _ in range(2):
                requests.create_task(events_of(world))
            while len(groq.calls) < 2:
                await asyncio.sleep(0)
            both_are_asked.set()

    assert warnings(lines) == [("groq", model)]
    assert counted(world, model) == 2


async def test_a_name_that_a_caller_made_up_is_not_the_operators_to_mend() -> None:
    groq = FakeProvider([failure(FailureKind.MODEL_GONE)])
    world = World({"groq": groq})

    with capture_logs() as lines:
        await events_of(world, model="made-up", provider="groq")

    assert [call.model.name for call in groq.calls] == ["made-up"]
    assert warnings(lines) == []
    assert counted(world, "made-up") is None
