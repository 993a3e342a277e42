"""What a handler knows of the call that it serves."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from service_runtime.call_context import current_call, current_request_id, outgoing_metadata
from tests.integration.service_runtime.echo import METHODS, Echo, doing, echo_server


@pytest.mark.parametrize("method", METHODS)
async def test_the_request_id_is_kept_passed_on_and_echoed(method: str) -> None:
    seen: list[object] = []

    async def unary(text: str, context: Any) -> str:
        seen.append((current_request_id(), outgoing_metadata()))
        return text

    async with echo_server(doing(unary)) as (_, client):
        call = client.call(method, metadata=(("x-request-id", "abc-1"),))
        await client.drain(call)
        trailing = dict(await call.trailing_metadata())

    assert seen == [("abc-1", (("x-request-id", "abc-1"),))]
    assert trailing["x-request-id"] == "abc-1"


@pytest.mark.parametrize("offered", [(), (("x-request-id", "has spaces"),), (("x-request-id", "x" * 129),)])
async def test_a_missing_or_unusable_request_id_is_replaced(offered: tuple[tuple[str, str], ...]) -> None:
    async with echo_server(Echo()) as (_, client):
        call = client.call("Unary", metadata=offered)
        trailing = dict(await call.trailing_metadata())

    assert uuid.UUID(trailing["x-request-id"]).version == 7


async def test_the_handler_learns_how_long_the_caller_will_wait() -> None:
    echo = Echo()

    async def unary(text: str, context: Any) -> str:
        call = current_call()
        assert call is not None
        return str(call.remaining_s())

    echo.unary = unary
    async with echo_server(echo) as (_, client):
        given = float((await client.finish("Unary", timeout=20))[0])
        capped = float((await client.finish("Unary", timeout=9999))[0])
        unset = float((await client.finish("Unary"))[0])

    assert 10 < given <= 21  # the wire format rounds it up
    assert 590 < capped <= 600
    assert 590 < unset <= 600
