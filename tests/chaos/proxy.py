"""A TCP proxy that misbehaves on command: one process for all links between the processes of a run.

    python -m tests.chaos.proxy '{"openrouter": "127.0.0.1:4711", "postgres": "/path/to/socket"}'

Prints one JSON line with the port of each link, then takes commands as JSON lines on its input, each answered by one:
{"link": "openrouter", "fault": "latency", "value": 80}. A fault stays until the next one; "heal" is none. It ends when
its input does.

Faults: latency (ms, both ways), blackhole (bytes and connections wait until it heals, as packets that are sent again
do), refuse (new connections are reset), reset (all connections are, each 300 ms anew), truncate (a connection that the
next bytes come in on is closed in the middle of them), corrupt (of every `value`th piece that comes back one byte is
not what it was).
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

FAULTS = ("latency", "blackhole", "refuse", "reset", "truncate", "corrupt")
HEAL = "heal"

_RESET_INTERVAL_S = 0.3
_PIECE_BYTES = 64 << 10
_CONNECT_TIMEOUT_S = 5.0


@dataclass(eq=False)
class Connection:
    """One connection and its other half."""

    caller: asyncio.StreamWriter
    upstream: asyncio.StreamWriter

    def reset(self) -> None:
        for writer in (self.caller, self.upstream):
            _reset(writer)

    def close(self) -> None:
        for writer in (self.caller, self.upstream):
            writer.close()


@dataclass(eq=False)
class Link:
    """One way from somebody to somebody: `upstream` is host:port, or the path of a Unix socket."""

    upstream: str
    fault: str = HEAL
    value: int = 0
    connections: set[Connection] = field(default_factory=set)
    _pieces: int = 0
    _serving: set[asyncio.Task[None]] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def set(self, fault: str, value: int) -> None:
        """Misbehave in another way from now on."""
        self.fault, self.value = fault, value
        self._changed.set()
        self._changed = asyncio.Event()
        if fault == "reset":
            self._reset_all()

    async def close(self) -> None:
        """Heal, end every connection, and wait until nothing is carried any more.

        Whoever only forgets a link leaves its tasks to the garbage collector in the middle of their work.
        """
        self.set(HEAL, 0)
        for connection in self.connections:
            connection.reset()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect a caller through, and carry bytes until one side has had enough."""
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            await self._serve(reader, writer)
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.fault in {"refuse", "reset"}:
            _reset(writer)
            return
        await self._until_no_blackhole()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                back, forth = await self._connect()
        except (OSError, TimeoutError):
            _reset(writer)
            return
        connection = Connection(writer, forth)
        self.connections.add(connection)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(reader, forth, connection))
                both.create_task(self._carry(back, writer, connection, may_corrupt=True))
        except* OSError:
            connection.reset()
        finally:
            self.connections.discard(connection)
            connection.close()

    async def _carry(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        connection: Connection,
        *,
        may_corrupt: bool = False,
    ) -> None:
        while piece := await source.read(_PIECE_BYTES):
            if self.fault == "latency":
                await asyncio.sleep(self.value / 1000)
            await self._until_no_blackhole()
            if self.fault == "truncate":
                sink.write(piece[: len(piece) // 2])
                connection.close()
                return
            if self.fault == "corrupt" and may_corrupt:
                piece = self._corrupted(piece)
            sink.write(piece)
            await sink.drain()
        if sink.can_write_eof() and not sink.is_closing():
            sink.write_eof()

    def _corrupted(self, piece: bytes) -> bytes:
        self._pieces += 1
        if self._pieces % max(1, self.value):
            return piece
        changed = bytearray(piece)
        place = random.randrange(len(changed))
        changed[place] ^= 1 << random.randrange(8)
        return bytes(changed)

    async def _until_no_blackhole(self) -> None:
        while self.fault == "blackhole":
            await self._changed.wait()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.upstream.startswith("/"):
            return await asyncio.open_unix_connection(self.upstream)
        host, _, port = self.upstream.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    def _reset_all(self) -> None:
        if self.fault != "reset":
            return
        for connection in self.connections:
            connection.reset()
        asyncio.get_running_loop().call_later(_RESET_INTERVAL_S, self._reset_all)


async def start(links: Mapping[str, Link]) -> tuple[list[asyncio.Server], dict[str, int]]:
    """Listen for each link on a free port of 127.0.0.1; the servers, and the ports by link."""
    servers, ports = [], {}
    for name, link in links.items():
        server = await asyncio.start_server(link.serve, "127.0.0.1", 0)
        servers.append(server)
        ports[name] = int(server.sockets[0].getsockname()[1])
    return servers, ports


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    # A Unix socket knows no RST; closing it is all there is.
    if connection is not None and connection.family != socket.AF_UNIX:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _obey(upstreams: Mapping[str, str]) -> None:
    links = {name: Link(upstream) for name, upstream in upstreams.items()}
    _, ports = await start(links)
    print(json.dumps(ports), flush=True)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        command = json.loads(line)
        link = links[command["link"]]
        link.set(command["fault"], command.get("value", 0))
        print(json.dumps({"connections": len(link.connections)}), flush=True)


if __name__ == "__main__":
    asyncio.run(_obey(json.loads(sys.argv[1])))
