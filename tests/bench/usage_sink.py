"""A usage_service in a process of its own that takes every event at once and keeps none."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection

import uvloop

from tests.support.fake_usage_service import FakeUsageService, serving


@contextlib.contextmanager
def usage_sink() -> Iterator[str]:
    """Run it; its address."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    service = context.Process(target=_serve, args=(theirs,), daemon=True)
    service.start()
    theirs.close()  # so that the service hears of the end of the other
    try:
        yield ours.recv()
    finally:
        service.kill()
        service.join()


class _Counting(FakeUsageService):
    """Answers everything and keeps nothing: a million events would fill its memory."""

    async def RecordUsage(self, request, context):  # type: ignore[no-untyped-def]  # as the base has it
        response = await super().RecordUsage(request, context)
        self.batches.clear()
        return response


def _serve(pipe: Connection) -> None:
    async def serve() -> None:
        async with serving(_Counting()) as target:
            pipe.send(target)
            with contextlib.suppress(EOFError):
                await asyncio.to_thread(pipe.recv)  # until the bench ends, however it ends

    uvloop.run(serve())
