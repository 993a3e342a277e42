"""Taking up calls, in two turns of the event loop each instead of the library's four.

grpc.aio takes up the calls of a method one after the other. A turn takes as long as everything that is ready, so where
a process has much else to do, calls wait for seconds in the queue of gRPC's core, seen by nobody: with 800 streams open
that brought 3,000 messages a second, turns took 50 ms. Of a thousand streams begun one after the other the last
hundredth had its first token 4.3 and 3.6 s after it was meant to begin by the library's way, 2.4 and 2.8 s by this one,
by turns. Of 64 calls that come together the last is taken up after 111 turns, not 276.

In a flood this also decides how many calls are in progress: the turns that one takes over those between two that are
taken up. With four calls taken up at a time the thousand streams gained nothing more (2.4 s), while a flood of five
times the peak let in so many that in three floods of four 6 to 42 % came too late, and refusals took 240 to
870 ms (p99). By one at a time, as here, none came late and they took 6 to 10 ms, as they do by the library's way.

The library has no other place to say so than inside. It rests on grpcio 1.85, and with any other the library's own way
is kept: a later one may be quicker by itself (https://github.com/grpc/grpc/pull/43461), and then this goes.
"""

# ruff: noqa: SLF001 - see above

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import grpc
import structlog
from grpc._cython import cygrpc
from grpc.aio import _server as aio

log = structlog.get_logger(__name__)

KNOWN_VERSION = "1.85."


def server(
    *, interceptors: Sequence[grpc.aio.ServerInterceptor], options: Sequence[tuple[str, Any]]
) -> grpc.aio.Server:
    """As `grpc.aio.server`."""
    if not grpc.__version__.startswith(KNOWN_VERSION):
        log.warning("grpc.calls_taken_up_slowly", version=grpc.__version__, known=KNOWN_VERSION)
        return grpc.aio.server(interceptors=interceptors, options=options)
    return cast("grpc.aio.Server", _Server(interceptors, options))  # it is one, but not by its stubs


class _Server(aio.Server):
    """The library's server around ours."""

    def __init__(self, interceptors: Sequence[grpc.aio.ServerInterceptor], options: Sequence[tuple[str, Any]]) -> None:
        # In place of the library's, which would make a server of core that nobody ever ends.
        self._loop = cygrpc.get_working_loop()
        self._server = _TakesUpItself(self._loop, tuple(interceptors), tuple(options))


class _TakesUpItself(cygrpc.AioServer):  # type: ignore[misc]  # has no stubs
    """Answers the library's wish for the next call of a method by taking up this one and all that follow."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, interceptors: Sequence[Any], options: Sequence[tuple[str, Any]]
    ) -> None:
        self._event_loop = loop
        self._interceptors_of_calls = interceptors
        self._generic: list[Any] = []
        self._by_name: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[Any]] = set()  # the loop itself only has weak references
        super().__init__(loop, None, [], interceptors, options, None)

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        super().add_generic_rpc_handlers(handlers)
        self._generic.extend(handlers)

    def add_registered_method_handlers(self, handlers: dict[str, Any]) -> None:
        super().add_registered_method_handlers(handlers)
        self._by_name.update(handlers)

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Future[Any]:
        """The library's hook, called once for each method when the server starts; None is for all that have no queue.

        A method's future only ever ends with what ended its loop.
        """
        if method is None:
            ours: asyncio.Future[Any] = super()._make_request_call_future(None)
            return ours
        failed = self._event_loop.create_future()
        self._begin(self._take_up(method, failed))
        return failed

    async def _take_up(self, method: bytes, failed: asyncio.Future[Any]) -> None:
        """Take up one call after the other until the server stops."""
        name, loop = method.decode(), self._event_loop
        resolver = cygrpc._MethodResolver(self._generic, self._by_name)
        while True:
            try:
                state = await self._request_registered_call(method)
            except cygrpc._RequestCallError:
                if not self.is_running():
                    return
                continue
            except Exception as error:
                if not failed.done():
                    failed.set_exception(error)
                raise
            handled = cygrpc._handle_rpc(name, resolver, self._interceptors_of_calls, state, loop, False)
            self._begin(cygrpc._schedule_rpc_coro(handled, state, loop, name))

    def _begin(self, coroutine: Any) -> None:
        task = self._event_loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
