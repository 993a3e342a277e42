"""What every command shares: where the services are, and how a coroutine is run to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from turnpike_client.connection import DEFAULT_ROUTER, DEFAULT_USAGE, resolved
from turnpike_client.router_client import RouterClient
from turnpike_client.usage_client import UsageClient

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Session:
    """The services' addresses; `runner` is `asyncio.run` except where a test has a loop already."""

    router: str = DEFAULT_ROUTER
    usage: str = DEFAULT_USAGE
    runner: Callable[[Coroutine[Any, Any, Any]], Any] = asyncio.run

    def run(self, work: Coroutine[Any, Any, _Value]) -> _Value:
        """Run `work` to its end and return what it returns."""
        value: _Value = self.runner(work)
        return value

    @asynccontextmanager
    async def router_client(self) -> AsyncIterator[RouterClient]:
        """A client of the router."""
        async with RouterClient(self.router) as client:
            yield client

    @asynccontextmanager
    async def usage_client(self) -> AsyncIterator[UsageClient]:
        """A client of the usage service."""
        async with UsageClient(self.usage) as client:
            yield client


pass_session = click.make_pass_decorator(Session)


def target(explicit: str | None, environ: Mapping[str, str], port_variable: str, default: str) -> str:
    """Where a service is: as said, else on this machine at the port that its own variable names, else the default.

    The services read the same variable, so that a second instance and its command line agree on it.
    """
    if explicit:
        try:
            resolved(explicit)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        return explicit
    port = environ.get(port_variable, "").strip()
    if not port:
        return default
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise click.UsageError(f"{port_variable} is {port!r}; it must be a port from 1 to 65535")
    return f"127.0.0.1:{port}"
