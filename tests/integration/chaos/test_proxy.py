"""The fault proxy carries bytes unchanged until it is told otherwise, and again once it is healed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.proxy import HEAL, Link, start

DATA = bytes(range(256)) * 64


@dataclass
class Wire:
    """A link to a server that sends back what it gets, and its port."""

    link: Link
    port: int

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def echo(self, data: bytes = DATA) -> bytes:
        """What comes back, up to the end of the connection or as much as was sent."""
        reader, writer = await self.open()
        try:
            writer.write(data)
            answer = b""
            while len(answer) < len(data) and (piece := await reader.read(65536)):
                answer += piece
            return answer
        finally:
            writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@pytest.fixture(params=["tcp", "unix"])
async def wire(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Wire]:
    if request.param == "tcp":
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        upstream = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    else:
        upstream = str(tmp_path / "socket")
        server = await asyncio.start_unix_server(echo, upstream)
    link = Link(upstream)
    listeners, ports = await start({"link": link})
    yield Wire(link, ports["link"])
    for listener in (server, *listeners):
        listener.close()
    await link.close()
    for listener in (server, *listeners):
        await listener.wait_closed()


async def test_a_closed_link_carries_nothing_any_more(wire: Wire) -> None:
    reader, writer = await wire.open()
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"

    await wire.link.close()

    assert not wire.link.connections
    with pytest.raises(ConnectionError):
        await reader.readexactly(1)
    writer.close()


async def test_bytes_are_carried_unchanged(wire: Wire) -> None:
    assert await wire.echo() == DATA


async def test_latency_delays_and_changes_nothing(wire: Wire) -> None:
    wire.link.set("latency", 20)

    assert await wire.echo() == DATA


async def test_a_blackhole_holds_everything_back_until_it_heals(wire: Wire) -> None:
    wire.link.set("blackhole", 0)
    answer = asyncio.create_task(wire.echo())
    done, _ = await asyncio.wait([answer], timeout=0.2)
    assert not done

    wire.link.set(HEAL, 0)

    assert await answer == DATA


async def test_a_reset_ends_open_connections_and_refuses_new_ones(wire: Wire) -> None:
    reader, writer = await wire.open()
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"

    wire.link.set("reset", 0)

    with pytest.raises(ConnectionError):
        await reader.readexactly(1)
    with pytest.raises(ConnectionError):
        await wire.echo()
    writer.close()


async def test_refusing_leaves_open_connections_alone(wire: Wire) -> None:
    reader, writer = await wire.open()
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"

    wire.link.set("refuse", 0)

    with pytest.raises(ConnectionError):
        await wire.echo()
    writer.write(b"y")
    assert await reader.readexactly(1) == b"y"
    writer.close()


async def test_a_truncated_connection_ends_in_the_middle(wire: Wire) -> None:
    wire.link.set("truncate", 0)

    assert len(await wire.echo()) < len(DATA)


async def test_of_a_corrupted_piece_one_bit_is_not_what_it_was(wire: Wire) -> None:
    wire.link.set("corrupt", 1)

    answer = await wire.echo(b"\0" * 100)

    assert sum(byte.bit_count() for byte in answer) == 1
