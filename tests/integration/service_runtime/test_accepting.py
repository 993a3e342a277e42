"""How soon calls are taken up from gRPC's real core."""

from __future__ import annotations

import asyncio
import time
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


async def turns_to_take_up_many() -> int:
    """After how many turns of a busy event loop a server has taken up all of the calls that came together."""
    turns, taken_up_in = LongTurns(), list[int]()

    async def note_down(text: str, _context: Any) -> str:
        taken_up_in.append(turns.number)
        return text

    echo = Echo()
    echo.unary = note_down
    gate = Gate(Saturation())  # gives the method a queue of its own
    async with echo_server(echo, gate_of={UNARY: gate}.get) as (server, _):
        with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            unary: Any = channel.unary_unary(UNARY)
            await asyncio.to_thread(unary, REQUEST, timeout=60)  # connects
            taken_up_in.clear()
            with turns.going_on():
                calls = [unary.future(REQUEST, timeout=60) for _ in range(CALLS)]
                for call in calls:
                    await asyncio.to_thread(call.result)
    assert len(taken_up_in) == CALLS
    return taken_up_in[-1] - taken_up_in[0]


async def test_calls_are_taken_up_in_fewer_turns_than_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = await turns_to_take_up_many()

    monkeypatch.setattr(accepting, "KNOWN_VERSION", "0.")
    with capture_logs() as logs:
        by_the_library = await turns_to_take_up_many()

    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["grpc.calls_taken_up_slowly"]
    assert ours < by_the_library * 0.75


def test_the_installed_library_is_the_one_that_it_was_made_for() -> None:
    assert grpc.__version__.startswith(accepting.KNOWN_VERSION), (
        f"grpcio {grpc.__version__} takes up calls in its own way now: look whether that is as soon as by ours, then "
        "remove service_runtime/accepting.py or mend it"
    )
