"""Everything that a run consists of, started once: database, services, provider, proxy, clients, tenants."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import plan
from tests.chaos.disk import Disk, small_disk
from tests.chaos.postgres import socket_of
from tests.chaos.processes import ChaosFailed, Program
from tests.support.ports import free_ports
from tests.support.provider_server import ProviderProcess
from turnpike_client import InferenceConfig, RouterClient, TurnpikeError, Unavailable, UsageClient

_METRICS_OFFSET = 1000
_TENANTS = 5
_WORKERS = 8
# Models whose prices the contract names and which are not retired, and one that nobody has a price for.
_PREFERRED_MODELS = {"openrouter": "deepseek/deepseek-r1", "llm7": "gpt-4o-mini", "groq": "chaos-unpriced"}
SABOTAGE_VARIABLE = "TURNPIKE_FAULTS"


class Proxy:
    """The process between all others; see `proxy`."""

    def __init__(self, links: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.proxy", json.dumps(links)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.ports: dict[str, int] = json.loads(self._read())

    def set(self, link: str, fault: str, value: int = 0) -> None:
        """Let a link misbehave, or `heal` it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"link": link, "fault": fault, "value": value}).encode() + b"\n")
        self._process.stdin.flush()
        self._read()

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._process.stdout.close()

    def _read(self) -> bytes:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise ChaosFailed(f"the proxy has ended with exit code {self._process.wait(5)}")
        return line


@dataclass
class Site:
    """The parts of a run. Routers are `router-a` and `router-b`; only the second one's disk can be full."""

    directory: Path
    seed: int
    think_s: float
    sabotage: str = ""
    programs: dict[str, Program] = field(default_factory=dict)
    router_ports: dict[str, int] = field(default_factory=dict)
    usage_port: int = field(default_factory=free_ports)
    tenants: list[str] = field(default_factory=list)
    client_number: int = 0
    _provider: ProviderProcess | None = None
    _proxy: Proxy | None = None
    _disk: Disk | None = None

    @property
    def disk(self) -> Disk:
        assert self._disk is not None
        return self._disk

    @property
    def proxy(self) -> Proxy:
        assert self._proxy is not None
        return self._proxy

    @property
    def provider_log(self) -> Path:
        return self.directory / "provider.jsonl"

    @property
    def histories(self) -> list[Path]:
        return sorted(self.directory.glob("history-*.jsonl"))

    @property
    def postgres_directory(self) -> Path:
        return self.directory / "postgres"

    @property
    def dsn(self) -> str:
        """The database past the proxy, for the checker."""
        return (self.postgres_directory / "dsn").read_text()

    async def start(self) -> None:
        """Start everything, the database first, and make the tenants."""
        self._disk = small_disk(self.directory / "router-b" / "journal")
        self.programs["postgres"] = Program(
            "postgres", "tests.chaos.postgres", [str(self.postgres_directory)], directory=self.directory
        )
        if not await self.programs["postgres"].start():
            raise ChaosFailed(f"Postgres does not start:\n{self.programs['postgres'].tail()}")
        self._provider = ProviderProcess(self.directory, module="tests.chaos.provider").__enter__()
        provider = self._provider.base_url.removeprefix("http://").removesuffix("/v1")
        database = socket_of(self.postgres_directory)
        self._proxy = Proxy(
            dict.fromkeys(plan.PROVIDER_LINKS, provider)
            | dict.fromkeys(plan.USAGE_LINKS, f"127.0.0.1:{self.usage_port}")
            | dict.fromkeys(plan.POSTGRES_LINKS, database)
        )
        self._add_usage()
        for router, usage_link in zip(plan.ROUTERS, plan.USAGE_LINKS, strict=True):
            self._add_router(router, usage_link)
        for name in plan.SERVICES:
            if not await self.programs[name].start():
                raise ChaosFailed(f"{name} does not start:\n{self.programs[name].tail()}")
        await self._make_tenants()
        for name in plan.CLIENTS:
            self.launch_client(name)

    def launch_client(self, name: str) -> None:
        """A client with a history of its own: a killed one leaves half a line."""
        self.client_number += 1
        history = self.directory / f"history-{self.client_number:03}.jsonl"
        arguments = ["--history", str(history), "--seed", str(self.seed * 1000 + self.client_number)]
        arguments += ["--workers", str(_WORKERS), "--think-s", str(self.think_s), "--tenants", *self.tenants]
        arguments += ["--routers", *(f"{router}=127.0.0.1:{port}" for router, port in self.router_ports.items())]
        program = Program(name, "tests.chaos.load", arguments, directory=self.directory)
        program.launch()
        program.is_wanted = True
        self.programs[name] = program

    async def waiting_events(self) -> int | None:
        """Events in both journals that the ledger has not acknowledged; None while a router does not say."""
        try:
            return sum([await asyncio.to_thread(_waiting, port) for port in self.router_ports.values()])
        except (OSError, ValueError):
            return None

    async def rotate_key(self, tenant_id: str) -> None:
        """Give a tenant another provider key, through any router that answers."""
        key = f"sk-chaos-{uuid.uuid4()}"
        await self._administer(lambda client: client.tenants.set_token(tenant_id, "openrouter", key))

    async def reload(self, tenant_id: str, preferred: str) -> None:
        """Change a tenant's configuration, through any router that answers."""
        await self._administer(lambda client: client.tenants.update(tenant_id, preferred_provider=preferred))

    async def audit(self) -> list[str]:
        """What the ledger finds wrong with itself: VerifyLedger must come to the checker's verdict."""
        async with UsageClient(f"127.0.0.1:{self.usage_port}") as client:
            audit = await client.verify()
        return [
            f"the ledger's own audit: {result.check} wrong {result.wrong}, unchecked {len(result.unchecked)}: "
            + "; ".join(map(str, result.discrepancies[:3]))
            for result in audit.results
            if not result.is_right
        ]

    async def stop(self) -> None:
        """End whatever still runs and give back the disk, however the run went and whatever cannot be ended."""
        async with AsyncExitStack() as ends:
            if self._disk is not None:
                ends.callback(self._disk.close)
            if self._provider is not None:
                ends.callback(self._provider.__exit__)
            if self._proxy is not None:
                ends.callback(self._proxy.stop)
            for name, program in self.programs.items():  # the last one is ended first
                ends.callback(program.kill)
                if name == "postgres" and program.is_running:
                    ends.push_async_callback(program.stop)
                ends.callback(program.signal, signal.SIGCONT)

    def _add_usage(self) -> None:
        environment = {
            "TURNPIKE_DATA_DIR": str(self.directory / "usage"),
            "TURNPIKE_DATABASE_URL": self._database("postgres-usage"),
            "USAGE_PORT": str(self.usage_port),
            **self._sabotage(),
        }
        self.programs["usage"] = Program("usage", "usage_service", directory=self.directory, environment=environment)

    def _add_router(self, name: str, usage_link: str) -> None:
        port = free_ports()
        links = {
            f"ROUTER_{link.upper()}_BASE_URL": f"http://127.0.0.1:{self.proxy.ports[link]}/v1"
            for link in plan.PROVIDER_LINKS
        }
        environment = {
            **links,
            "GROQ_API_KEY": "sk-chaos-groq-system",
            "OPENROUTER_API_KEY": "sk-chaos-openrouter-system",
            "ROUTER_ALLOWED_NETWORKS": "127.0.0.0/8",
            "TURNPIKE_DATA_DIR": str(self.directory / name),
            "TURNPIKE_DATABASE_URL": self._database("postgres-router"),
            # Both open what either seals.
            "TURNPIKE_KEY_ENCRYPTION_KEYS": "chaos:" + "A" * 43 + "=",
            "ROUTER_PORT": str(port),
            "ROUTER_USAGE_TARGET": f"127.0.0.1:{self.proxy.ports[usage_link]}",
            "ROUTER_DRAIN_GRACE_S": "5",
            **self._sabotage(),
        }
        self.router_ports[name] = port
        self.programs[name] = Program(name, "router_service", directory=self.directory, environment=environment)

    def _sabotage(self) -> dict[str, str]:
        return {SABOTAGE_VARIABLE: self.sabotage} if self.sabotage else {}

    def _database(self, link: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.proxy.ports[link]}/turnpike"

    async def _make_tenants(self) -> None:
        async with RouterClient(f"127.0.0.1:{self.router_ports['router-a']}") as client:
            for number in range(_TENANTS):
                tenant = await client.tenants.create(
                    f"Chaos {number}",
                    config=InferenceConfig(
                        preferred_provider=plan.PROVIDER_LINKS[number % len(plan.PROVIDER_LINKS)],
                        preferred_models=_PREFERRED_MODELS,
                    ),
                )
                self.tenants.append(tenant.id)

    async def _administer(self, call: Callable[[RouterClient], Awaitable[object]]) -> None:
        for port in self.router_ports.values():
            try:
                async with RouterClient(f"127.0.0.1:{port}") as client:
                    await call(client)
            except TurnpikeError as error:
                if not isinstance(error, Unavailable):
                    raise
            else:
                return


def _waiting(router_port: int) -> int:
    url = f"http://127.0.0.1:{router_port + _METRICS_OFFSET}/metrics"
    with urllib.request.urlopen(url, timeout=2) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("turnpike_router_journal_waiting_events"):
                return int(float(line.split()[-1]))
    raise ValueError("the router does not say how many events wait")
