"""The yardstick: the proxy that one writes first. grpc.aio, httpx as it comes, one message per delta, no accounting.

    python -m tests.bench.naive http://127.0.0.1:8080/v1

Prints its port as the only line of its output, and serves until its input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc
import httpx

from turnpike.router.v1 import completion_pb2, router_service_pb2, router_service_pb2_grpc


class NaiveRouter(router_service_pb2_grpc.RouterServiceServicer):
    """Passes completions on to one provider: no tenants, no scoring, no failover, no books."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def StreamCompletion(
        self, request: router_service_pb2.StreamCompletionRequest, context: Any
    ) -> AsyncIterator[router_service_pb2.StreamCompletionResponse]:
        index = 0
        usage: dict[str, int] = {}
        async with self._client.stream("POST", self._url, json=_body(request, stream=True)) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                chunk = json.loads(line[6:])
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    if text := choice["delta"].get("content"):
                        delta = completion_pb2.ContentDelta(index=index, text=text)
                        yield router_service_pb2.StreamCompletionResponse(delta=delta)
                        index += 1
        yield router_service_pb2.StreamCompletionResponse(result=_result(request.model, usage))

    async def Complete(
        self, request: router_service_pb2.CompleteRequest, context: Any
    ) -> router_service_pb2.CompleteResponse:
        answer = await self._client.post(self._url, json=_body(request, stream=False))
        answer.raise_for_status()
        whole = answer.json()
        result = _result(request.model, whole["usage"])
        result.content = whole["choices"][0]["message"]["content"]
        return router_service_pb2.CompleteResponse(result=result)

    async def ExplainRoute(self, request: router_service_pb2.ExplainRouteRequest, context: Any) -> NoReturn:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the naive proxy has one route")
        raise AssertionError("abort returned")

    async def ListProviders(self, request: router_service_pb2.ListProvidersRequest, context: Any) -> NoReturn:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the naive proxy has one provider")
        raise AssertionError("abort returned")


def _body(
    request: router_service_pb2.StreamCompletionRequest | router_service_pb2.CompleteRequest, *, stream: bool
) -> dict[str, object]:
    messages = [{"role": "user", "content": message.content} for message in request.messages]
    return {"model": request.model, "messages": messages, "stream": stream}


def _result(model: str, usage: dict[str, int]) -> completion_pb2.CompletionResult:
    return completion_pb2.CompletionResult(
        model=model,
        finish_reason=completion_pb2.FINISH_REASON_STOP,
        input_tokens=usage.get("prompt_tokens", 0),
        output_tokens=usage.get("completion_tokens", 0),
    )


async def _serve(base_url: str) -> None:
    async with httpx.AsyncClient() as client:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        servicer = NaiveRouter(client, f"{base_url}/chat/completions")
        router_service_pb2_grpc.add_RouterServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await server.stop(1)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
