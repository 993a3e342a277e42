"""A small service of strings, for tests of the server around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from service_runtime.grpc_server import GrpcServer
from service_runtime.interceptors import BoundaryLimits
from service_runtime.metrics import Metrics

SERVICE = "test.v1.Echo"
METHODS = ("Unary", "Generate", "Write")


class Echo:
    """Three methods, one per way to write a handler; each does what the test gave it."""

    def __init__(self) -> None:
        self.unary: Callable[[str, Any], Awaitable[str]] = self._same
        self.generate: Callable[[str, Any], AsyncIterator[str]] = self._letters
        self.write: Callable[[str, Any], Awaitable[None]] = self._write_letters

    async def _same(self, text: str, context: Any) -> str:
        return text

    async def _letters(self, text: str, context: Any) -> AsyncIterator[str]:
        for letter in text:
            yield letter

    async def _write_letters(self, text: str, context: Any) -> None:
        for letter in text:
            await context.write(StringValue(value=letter))

    async def Unary(self, request: StringValue, context: Any) -> StringValue:
        return StringValue(value=await self.unary(request.value, context))

    async def Generate(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        async for text in self.generate(request.value, context):
            yield StringValue(value=text)

    async def Write(self, request: StringValue, context: Any) -> None:
        await self.write(request.value, context)

    def register(self, server: grpc.aio.Server) -> None:
        coding: dict[str, Any] = {
            "request_deserializer": StringValue.FromString,
            "response_serializer": StringValue.SerializeToString,
        }
        handlers: dict[str, Any] = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.Unary, **coding),
            "Generate": grpc.unary_stream_rpc_method_handler(self.Generate, **coding),
            "Write": grpc.unary_stream_rpc_method_handler(self.Write, **coding),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        server.add_registered_method_handlers(SERVICE, handlers)  # as generated code does, too


def doing(unary: Callable[[str, Any], Awaitable[str]]) -> Echo:
    """A service each of whose methods does what `unary` does, and answers so."""
    echo = Echo()

    async def generate(text: str, context: Any) -> AsyncIterator[str]:
        yield await unary(text, context)

    async def write(text: str, context: Any) -> None:
        await context.write(StringValue(value=await unary(text, context)))

    echo.unary, echo.generate, echo.write = unary, generate, write
    return echo


def raising(error: Exception) -> Echo:
    """A service each of whose methods raises `error`."""
    echo = Echo()

    async def unary(text: str, context: Any) -> str:
        raise error

    async def generate(text: str, context: Any) -> AsyncIterator[str]:
        for letter in text:  # which makes it a generator
            yield letter
        raise error

    async def write(text: str, context: Any) -> None:
        raise error

    echo.unary, echo.generate, echo.write = unary, generate, write
    return echo


class Client:
    """Calls an Echo service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        coding: dict[str, Any] = {
            "request_serializer": StringValue.SerializeToString,
            "response_deserializer": StringValue.FromString,
        }
        self._methods: dict[str, Any] = {
            "Unary": channel.unary_unary(f"/{SERVICE}/Unary", **coding),
            "Generate": channel.unary_stream(f"/{SERVICE}/Generate", **coding),
            "Write": channel.unary_stream(f"/{SERVICE}/Write", **coding),
        }

    def call(self, method: str, text: str = "", **options: Any) -> Any:
        """The call object: for looking at metadata, and for cancelling."""
        return self._methods[method](StringValue(value=text), **options)

    async def finish(self, method: str, text: str = "", **options: Any) -> list[str]:
        """All answers of a call."""
        return await self.drain(self.call(method, text, **options))

    async def drain(self, call: Any) -> list[str]:
        """All answers of a call that has been made."""
        if isinstance(call, grpc.aio.UnaryUnaryCall):
            return [(await call).value]
        return [message.value async for message in call]

    async def failure(self, method: str, text: str = "", **options: Any) -> grpc.aio.AioRpcError:
        """The error that the call ends with."""
        try:
            answers = await self.finish(method, text, **options)
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError(f"succeeded with {answers}")


@asynccontextmanager
async def echo_server(
    echo: Echo, *, metrics: Metrics | None = None, limits: BoundaryLimits | None = None, **options: Any
) -> AsyncIterator[tuple[GrpcServer, Client]]:
    """A serving server on a free port, and a client of it."""
    server = GrpcServer(host="127.0.0.1", port=0, metrics=metrics or Metrics(), limits=limits, **options)
    server.add(SERVICE, echo.register)
    await server.start()
    server.set_serving(True)
    try:
        async with grpc.aio.insecure_channel(
            server.address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            yield server, Client(channel)
    finally:
        await server.drain(grace_s=0)


def handled(metrics: Metrics, method: str, code: str) -> float:
    """How many calls of a method have ended with a status code."""
    labels = {"service": SERVICE, "method": method, "code": code}
    return metrics.registry.get_sample_value("grpc_server_handled_total", labels) or 0.0


async def eventually(condition: Callable[[], bool]) -> None:
    """Return when `condition` holds; fail after half a minute."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)
