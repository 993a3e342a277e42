"""A provider whose behaviour tests choose: a raw HTTP/1.1 server on 127.0.0.1 that speaks the OpenAI wire.

In a test's own loop:

    async with ScriptedProvider() as provider:
        provider.script("openai/gpt-oss-120b", "status?code=503", "ok?n=3")   # first request, then all others
        ... provider.base_url ... provider.served

As a process of its own, so that it outlives what it is used by:

    python -m tests.support.provider_server --port-file PORT --log-file LOG     (or `ProviderProcess`)

A model whose name is a script (`provider_scripts`) needs no preparation; any other model gets `default_script`.
The provider keeps its own account of what it served: the truth that a ledger is compared with.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from service_runtime import become
from tests.support.provider_scripts import behaviour_of

GENERATION = "gen"  # the name under which enquiries after generations are scripted
JSON = {"Content-Type": "application/json"}


@dataclass
class Served:
    """One request as the provider saw it. The key is kept only as its hash."""

    number: int
    method: str
    path: str
    model: str = ""
    script: str = ""
    key_sha256: str = ""
    status: int = 0
    tokens_generated: int = 0
    outcome: str = "open"  # then complete, client_left, broken_off
    reported: dict[str, Any] = field(default_factory=dict)  # the usage that it said, or would have said, it billed

    request: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


class ClientLeft(Exception):
    """The other side closed the connection before the answer was whole."""


class Connection:
    """One request on one connection: the `Exchange` of `provider_scripts`."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, served: Served, *, deaf: bool = False
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._served = served
        self._deaf = deaf
        self.model = served.model
        self.request = served.request
        self.is_usable = True

    async def begin(self, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self._served.status = status
        lines = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked", **(headers or {})}
        await self._write(self._head(status, lines))

    async def send(self, data: bytes) -> None:
        if data:
            await self._write(b"%x\r\n%b\r\n" % (len(data), data))

    async def token(self, data: bytes) -> None:
        self._served.tokens_generated += 1
        try:
            await self.send(data)
        except ClientLeft:
            if not self._deaf:  # a deaf provider goes on generating, and billing, for nobody
                raise

    async def raw(self, data: bytes, split: int = 1 << 20) -> None:
        for start in range(0, len(data), split):
            await self._write(data[start : start + split])
            await asyncio.sleep(0)  # each piece is a segment of its own: asyncio has switched Nagle off

    async def end(self) -> None:
        await self._write(b"0\r\n\r\n")

    def bill(self, usage: dict[str, Any]) -> None:
        self._served.reported = usage

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._served.status = status
        await self._write(self._head(status, {"Content-Length": str(len(body)), **(headers or {})}) + body)

    async def wait_until_the_client_leaves(self) -> None:
        await self._reader.read()
        raise ClientLeft

    def reset(self) -> None:
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        self.is_usable = False

    def hang_up(self) -> None:
        self._writer.close()
        self.is_usable = False

    def _head(self, status: int, headers: Mapping[str, str]) -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {status} Scripted\r\n{lines}\r\n".encode()

    async def _write(self, data: bytes) -> None:
        if self._writer.is_closing():
            raise ClientLeft
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError:
            raise ClientLeft from None


class ScriptedProvider:
    """The server. `served` lists every request in order of arrival; `connections_accepted` counts connections."""

    def __init__(
        self,
        *,
        accepted_keys: Iterable[str] | None = None,
        default_script: str = "ok",
        log_file: Path | None = None,
        models: Iterable[str] = ("scripted-small", "scripted-large"),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.served: list[Served] = []
        self.connections_accepted = 0
        self.port = 0  # of the last start; a second start may ask for it again
        self.accepted_keys = set(accepted_keys) if accepted_keys is not None else None
        self.default_script = default_script
        self._models = tuple(models)
        self._scripts: dict[str, list[str]] = {}
        self._log_file = log_file
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port, ssl=self._tls)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def stop(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def base_url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1"

    @property
    def open_connections(self) -> int:
        return len(self._tasks)

    @property
    def completions(self) -> list[Served]:
        """The requests for completions among `served`."""
        return [served for served in self.served if served.path.endswith("/chat/completions")]

    @property
    def enquiries(self) -> list[Served]:
        """The enquiries after generations among `served`."""
        return [served for served in self.served if served.model == GENERATION]

    def script(self, model: str, *scripts: str) -> None:
        """Serve the next requests for `model` by `scripts` in turn; the last one stays."""
        for script in scripts:
            if behaviour_of(script) is None:
                raise ValueError(f"there is no behaviour {script!r}")
        self._scripts[model] = list(scripts)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections_accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client is gone, or the test is over
        finally:
            self._tasks.discard(task)
            writer.close()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; whether the connection can take another."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        key = headers.pop("authorization", "").removeprefix("Bearer ")
        served = Served(len(self.served) + 1, method, path, headers=headers)
        served.key_sha256 = hashlib.sha256(key.encode()).hexdigest() if key else ""
        self.served.append(served)
        connection = Connection(reader, writer, served)
        try:
            await self._answer(connection, served, key, body)
            served.outcome = "complete" if connection.is_usable else "broken_off"
        except (ClientLeft, ConnectionError):
            served.outcome = "client_left"
            return False
        finally:
            self._log(served)
        return connection.is_usable

    async def _answer(self, connection: Connection, served: Served, key: str, body: bytes) -> None:
        if served.path == "/control/script":
            wanted = json.loads(body)
            self.script(wanted["model"], *wanted["scripts"])
            await connection.whole(200, b"{}", JSON)
            return
        if self.accepted_keys is not None and key not in self.accepted_keys:
            # Real ones echo a part; the whole is the worst that a client has to keep to itself.
            error = {"message": f"Incorrect API key provided: {key}", "type": "invalid_request_error"}
            await connection.whole(401, json.dumps({"error": error | {"code": "invalid_api_key"}}).encode(), JSON)
            return
        match (served.method, served.path.removeprefix("/v1")):
            case ("GET", "/models"):
                models = {"object": "list", "data": [{"id": name, "object": "model"} for name in self._models]}
                await connection.whole(200, json.dumps(models).encode(), JSON)
            case ("GET", "/key"):
                await connection.whole(200, json.dumps({"data": {"limit_remaining": 4.2}}).encode(), JSON)
            case ("GET", path) if path.startswith("/generation?id="):
                served.model = GENERATION
                await self._follow(connection, served, self._next_script(GENERATION, "status?code=404"))
            case ("POST", "/chat/completions"):
                await self._complete(connection, served, json.loads(body))
            case _:
                await connection.whole(404, json.dumps({"error": {"message": "no such path"}}).encode(), JSON)

    async def _complete(self, connection: Connection, served: Served, request: dict[str, Any]) -> None:
        served.request = connection.request = request
        served.model = connection.model = str(request.get("model"))
        await self._follow(connection, served, self._next_script(served.model, self.default_script))

    async def _follow(self, connection: Connection, served: Served, script: str) -> None:
        served.script = script
        found = behaviour_of(served.script)
        assert found is not None, f"the default script {served.script!r} is none"
        behaviour, options = found
        connection._deaf = bool(options.integer("deaf", 0))
        await behaviour(connection, options)

    def _next_script(self, model: str, default: str) -> str:
        scripts = self._scripts.get(model)
        if scripts:
            return scripts.pop(0) if len(scripts) > 1 else scripts[0]
        return model if behaviour_of(model) is not None else default

    def _log(self, served: Served) -> None:
        if self._log_file is None:
            return
        line = {name: value for name, value in asdict(served).items() if name not in {"request", "headers"}}
        with self._log_file.open("a") as file:  # one line per request, when its answer has ended
            file.write(json.dumps(line) + "\n")


def read_log(path: Path) -> list[Served]:
    """What a provider's log file says so far."""
    return [Served(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


class ProviderProcess:
    """A scripted provider in a process of its own, with its files in `directory`."""

    def __init__(self, directory: Path, *arguments: str, module: str = __name__) -> None:
        """`module` is what runs: this one, or one that serves in another way and takes the same two files."""
        self._module = module
        self._port_file = directory / "provider.port"
        self._log_file = directory / "provider.jsonl"
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        files = ["--port-file", str(self._port_file), "--log-file", str(self._log_file)]
        program = [sys.executable, "-m", self._module, *files, *self._arguments]
        # Whatever becomes of the tester, its provider does not outlive it.
        command = become.command_line(program, parent_dies=signal.SIGKILL)
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        give_up_at = time.monotonic() + 20
        while not (self._port_file.exists() and self._port_file.read_text().endswith("\n")):
            assert self._process.poll() is None, "the provider's process has ended"
            assert time.monotonic() < give_up_at, "the provider's process does not come up"
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(10)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{int(self._port_file.read_text())}/v1"

    @property
    def served(self) -> list[Served]:
        return read_log(self._log_file)

    def script(self, model: str, *scripts: str) -> None:
        """As `ScriptedProvider.script`."""
        body = json.dumps({"model": model, "scripts": scripts}).encode()
        request = urllib.request.Request(self.base_url.removesuffix("/v1") + "/control/script", body)
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200

    def wait_for(self, requests: int, *, within_s: float = 10.0) -> list[Served]:
        """`served`, once it holds that many: an answer is logged a moment after its last byte."""
        give_up_at = time.monotonic() + within_s
        while len(served := self.served) < requests:
            assert time.monotonic() < give_up_at, f"the provider served {len(served)} requests, not {requests}"
            time.sleep(0.01)
        return served


async def _serve(arguments: argparse.Namespace) -> None:
    provider = ScriptedProvider(
        accepted_keys=arguments.accept_key or None,
        default_script=arguments.default_script,
        log_file=arguments.log_file,
    )
    await provider.start(arguments.port)
    arguments.port_file.write_text(f"{provider.port}\n")
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await stop.wait()
    await provider.stop()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="a provider whose behaviour is chosen by the model's name")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--port-file", type=Path, required=True, help="the port is written here once it listens")
    parser.add_argument("--log-file", type=Path, help="JSON lines, one per request served")
    parser.add_argument("--accept-key", action="append", help="accept only these keys; may be repeated")
    parser.add_argument("--default-script", default="ok", help="for models whose names are no scripts")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
