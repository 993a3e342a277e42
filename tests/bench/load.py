"""The load, in a process of its own: takes one command per line of its input, as JSON, and answers each with a line.

Closed loop for what saturates, open loop for latency: a request's time counts from when it was meant to start, so that
a slow server cannot slow the load down and look good. Answers stay bytes where they can: the client shares the machine
with what is measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import grpc
import uvloop
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from service_runtime.ids import uuid7
from tests.bench.direct import DirectClient
from turnpike.router.v1 import completion_pb2, router_service_pb2
from turnpike.usage.v1 import token_usage_pb2, usage_event_pb2, usage_service_pb2

CHANNELS: Final = 4
_TIMEOUT_S: Final = 30.0
_TENANTS: Final = tuple(f"00000000-0000-4000-8000-{tenant:012d}" for tenant in range(20))  # whom `ingest` has events of
# The first byte of a StreamCompletionResponse is the tag of its event: field number and wire type.
_DELTA_TAG: Final = router_service_pb2.StreamCompletionResponse(delta=completion_pb2.ContentDelta(text="x"))
_FIRST_BYTE_OF_DELTA: Final = _DELTA_TAG.SerializeToString()[0]
_RESULT_TAG: Final = router_service_pb2.StreamCompletionResponse(result=completion_pb2.CompletionResult(model="x"))
_FIRST_BYTE_OF_RESULT: Final = _RESULT_TAG.SerializeToString()[0]

_Call = Callable[[int], Awaitable[float]]
_Method = Callable[..., Any]  # the multicallables of grpc.aio, whose types want serializers


class CompletionClient:
    """Completions through a router, spread over channels and tenants in turn."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], tenants: Sequence[str], model: str) -> None:
        service = "/turnpike.router.v1.RouterService"
        self.messages = 0  # that streams have brought
        # Neither serializer nor deserializer: bytes in, bytes out.
        self._streams: list[_Method] = [channel.unary_stream(f"{service}/StreamCompletion") for channel in channels]
        self._unaries: list[_Method] = [channel.unary_unary(f"{service}/Complete") for channel in channels]
        message = completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="Tell me about turnpikes.")
        # A CompleteRequest has the same fields, so the same bytes.
        self._requests = [
            router_service_pb2.StreamCompletionRequest(
                tenant_id=tenant, messages=[message], model=model, provider="local", endpoint="/bench"
            ).SerializeToString()
            for tenant in tenants
        ]

    async def stream(self, number: int) -> float:
        """One stream to its result; when its first content came, on the monotonic clock."""
        method = self._streams[number % len(self._streams)]
        call = method(self._requests[number % len(self._requests)], timeout=_TIMEOUT_S)
        first_s = 0.0
        message = b""
        async for message in call:
            self.messages += 1
            if not first_s and message[0] == _FIRST_BYTE_OF_DELTA:
                first_s = time.monotonic()
        if not first_s or message[0] != _FIRST_BYTE_OF_RESULT:
            raise ValueError("a stream without content or without a result at its end")
        return first_s

    async def complete(self, number: int) -> float:
        """One whole answer; when it was there."""
        method = self._unaries[number % len(self._unaries)]
        answer = await method(self._requests[number % len(self._requests)], timeout=_TIMEOUT_S)
        if not answer:
            raise ValueError("an empty answer")
        return time.monotonic()


async def closed_loop(call: _Call, *, count: int, in_flight: int) -> Mapping[str, Any]:
    """`count` calls with `in_flight` at once: seconds that they took together."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await call(number)

    started_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(in_flight, count)):
            group.create_task(worker())
    return {"count": count, "seconds": time.monotonic() - started_s}


async def open_loop(call: _Call, *, count: int, rate_per_s: float) -> Mapping[str, Any]:
    """`count` calls, `rate_per_s` of them begun each second: milliseconds from the intended start to the first content,
    and to the end.
    """
    loop_started_s = time.monotonic() + 0.05

    async def one(number: int) -> tuple[float, float]:
        intended_s = loop_started_s + number / rate_per_s
        await asyncio.sleep(max(0.0, intended_s - time.monotonic()))
        first_s = await call(number)
        return (first_s - intended_s) * 1_000, (time.monotonic() - intended_s) * 1_000

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(count)]
    first_content_ms, whole_ms = zip(*(task.result() for task in tasks), strict=True)
    return {"count": count, "first_content_ms": sorted(first_content_ms), "whole_ms": sorted(whole_ms)}


async def ingest(channel: grpc.aio.Channel, *, batches: int, events: int, in_flight: int) -> Mapping[str, Any]:
    """`batches` of `events` new events each, made before the clock starts: seconds until the ledger has stored all."""
    method: _Method = channel.unary_unary("/turnpike.usage.v1.UsageService/RecordUsage")
    requests = [_batch(number, events) for number in range(batches)]

    async def record(number: int) -> float:
        answer = usage_service_pb2.RecordUsageResponse.FromString(await method(requests[number], timeout=_TIMEOUT_S))
        stored = [result.disposition for result in answer.results]
        if stored != [usage_service_pb2.RECORD_DISPOSITION_ACCEPTED] * events:
            raise ValueError(f"not all events were accepted: {answer.results[0]}")
        return time.monotonic()

    return await closed_loop(record, count=batches, in_flight=in_flight)


async def report(channel: grpc.aio.Channel, *, name: str, count: int, days: int) -> Mapping[str, Any]:
    """`count` times one report of UsageService over the last `days`, one at a time, for the tenants of `ingest` in
    turn: milliseconds of each call, ascending.
    """
    method: _Method = channel.unary_unary(f"/turnpike.usage.v1.UsageService/{name}")
    until = Timestamp()
    until.GetCurrentTime()
    since = Timestamp(seconds=until.seconds - 86_400 * days)
    # Every report's request has tenant and window in the same fields, so one message serves for all.
    requests = [
        usage_service_pb2.GetTenantUsageStatsRequest(
            tenant_id=tenant, start_time=since, end_time=until
        ).SerializeToString()
        for tenant in _TENANTS
    ]
    took_ms: list[float] = []
    for number in range(count):
        started_s = time.monotonic()
        answer = await method(requests[number % len(requests)], timeout=_TIMEOUT_S)
        took_ms.append((time.monotonic() - started_s) * 1_000)
        if not answer:
            raise ValueError(f"{name} has nothing to report")
    return {"count": count, "took_ms": sorted(took_ms)}


def _batch(number: int, events: int) -> bytes:
    return usage_service_pb2.RecordUsageRequest(
        router_id="bench",
        epoch="bench",
        events=[
            usage_event_pb2.UsageEvent(
                event_id=str(uuid7()),
                tenant_id=_TENANTS[index % len(_TENANTS)],
                request_id=str(uuid7()),
                attempt=1,
                provider=("groq", "openrouter")[index % 2],
                model="openai/gpt-oss-120b",
                requested_model="openai/gpt-oss-120b",
                endpoint="/bench",
                status=usage_event_pb2.USAGE_STATUS_SUCCESS,
                token_usage=token_usage_pb2.TokenUsage(input_tokens=1_000 + index, output_tokens=50),
                usage_source=token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER,
                funding=token_usage_pb2.FUNDING_SYSTEM_KEY,
                latency=Duration(nanos=500_000_000 + 1_000_000 * (index % 400)),
                time_to_first_token=Duration(nanos=50_000_000),
                sequence=number * events + index + 1,
                task_type="chat",
            )
            for index in range(events)
        ],
    ).SerializeToString()


class Load:
    """Carries out commands; keeps its channels and connections between them."""

    def __init__(self) -> None:
        self._channels: dict[str, list[grpc.aio.Channel]] = {}
        self._direct: dict[tuple[str, str], DirectClient] = {}

    async def carry_out(self, command: dict[str, Any]) -> Mapping[str, Any]:
        """Do what one line of the input says."""
        kind, target = command.pop("kind"), command.pop("target")
        if kind == "ingest":
            return await ingest(self._channels_to(target)[0], **command)
        if kind == "report":
            return await report(self._channels_to(target)[0], **command)
        method, model, tenants = command.pop("method"), command.pop("model"), command.pop("tenants", ())
        loop = open_loop if kind == "open" else closed_loop
        if method == "direct":
            direct = self._direct.setdefault((target, model), DirectClient(target, model))
            return await loop(lambda _: direct.call(), **command)
        channels = self._channels_to(target, command.pop("channels", CHANNELS))
        client = CompletionClient(channels, tenants, model)
        answer = await loop(client.complete if method == "complete" else client.stream, **command)
        return {**answer, "messages": client.messages}

    def _channels_to(self, target: str, count: int = CHANNELS) -> Sequence[grpc.aio.Channel]:
        # Without a pool of its own every channel would share one connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = self._channels.setdefault(target, [])
        while len(channels) < count:
            channels.append(grpc.aio.insecure_channel(target, options=options))
        return channels[:count]

    async def close(self) -> None:
        for channels in self._channels.values():
            for channel in channels:
                await channel.close()


async def _serve() -> None:
    load = Load()
    loop = asyncio.get_running_loop()
    print(json.dumps({"ready": True}), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            answer = await load.carry_out(json.loads(line))
        except BaseExceptionGroup as group:
            answer = {"failure": f"{len(group.exceptions)} calls failed, the first with {group.exceptions[0]!r}"}
        print(json.dumps(answer), flush=True)
    await load.close()


if __name__ == "__main__":
    uvloop.run(_serve())
