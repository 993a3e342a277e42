"""How many calls are taken up at a time, by gRPC's real core."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from structlog.testing import capture_logs

from service_runtime import accepting
from service_runtime.overload import Gate, Saturation
from tests.integration.service_runtime.echo import SERVICE, Echo, echo_server

CALLS = 64
UNARY = f"/{SERVICE}/Unary"
REQUEST = StringValue(value="x").SerializeToString()


class LongTurns:
    """Makes every turn of the running event loop take a while, as many busy streams do, and counts them."""

    def __init__(self) -> None:
        self.number = 0
        self._next: asyncio.Handle | None = None

    @contextmanager
    def going_on(self) -> Iterator[None]:
        self._turn()
        try:
            yield
        finally:
            assert self._next is not None
            self._next.cancel()

    def _turn(self) -> None:
        self.number += 1
        time.sleep(0.005)
        self._next = asyncio.get_running_loop().call_soon(self._turn)


async def taken_up_by_turn() -> Counter[int]:
    """How many of many calls that come together a server takes up in each turn of a busy event loop."""
    turns, by_turn = LongTurns(), Counter[int]()

    async def note_down(text: str, _context: Any) -> str:
        by_turn[turns.number] += 1
        return text

    echo = Echo()
    echo.unary = note_down
    gate = Gate(Saturation())  # gives the method a queue of its own
    async with echo_server(echo, gate_of={UNARY: gate}.get) as (server, _):
        with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            unary: Any = channel.unary_unary(UNARY)
            await asyncio.to_thread(unary, REQUEST, timeout=60)  # connects
            by_turn.clear()
            with turns.going_on():
                calls = [unary.future(REQUEST, timeout=60) for _ in range(CALLS)]
                for call in calls:
                    await asyncio.to_thread(call.result)
    return by_turn


async def test_where_turns_take_long_several_calls_are_taken_up_in_one() -> None:
    by_turn = await taken_up_by_turn()

    assert by_turn.total() == CALLS
    assert len(by_turn) < CALLS / 2, "in each of these turns a call was taken up"


async def test_with_a_library_that_it_was_not_made_for_calls_are_taken_up_as_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accepting, "KNOWN_VERSION", "0.")

    with capture_logs() as logs:
        by_turn = await taken_up_by_turn()

    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["grpc.one_call_at_a_time"]
    assert by_turn.total() == CALLS


def test_the_installed_library_is_the_one_that_it_was_made_for() -> None:
    assert grpc.__version__.startswith(accepting.KNOWN_VERSION), (
        f"grpcio {grpc.__version__} takes up calls in its own way now: look whether that is several at a time, then "
        "remove service_runtime/accepting.py or mend it"
    )
