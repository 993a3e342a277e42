"""usage_service as one task of the test's own loop, and an event for it."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import structlog

from service_runtime.ids import uuid7
from service_runtime.process import Lifecycle
from turnpike.usage.v1 import token_usage_pb2, usage_event_pb2
from usage_service.app import serve
from usage_service.settings import UsageSettings

TENANT = str(uuid.uuid4())


class Started(Lifecycle):
    """A lifecycle that tells a test where the service listens."""

    def __init__(self) -> None:
        super().__init__()
        self.address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def ready(self, address: str = "", hint: str = "") -> None:
        super().ready(address, hint)
        self.address.set_result(address)


@asynccontextmanager
async def running_app(
    dsn: str, data_dir: Path, settings: Mapping[str, object] | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """The whole service on a database, with `settings` beside a test's usual ones; a channel to it."""
    handlers, level = logging.root.handlers[:], logging.root.level
    usual = {"database_url": dsn, "port": 0, "data_dir": data_dir, "log_level": "error"}
    lifecycle = Started()
    service = asyncio.create_task(serve(UsageSettings.model_validate(usual | dict(settings or {})), lifecycle))
    # A service that cannot start ends; the test then shows why instead of waiting for the address.
    service.add_done_callback(lambda _: lifecycle.address.cancel())
    try:
        address = await lifecycle.address
    except asyncio.CancelledError:
        await service
        raise
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel
    lifecycle.request_stop()
    await service
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


def an_event() -> usage_event_pb2.UsageEvent:
    """A new event of `TENANT`, as a router sends it."""
    event = usage_event_pb2.UsageEvent(
        event_id=str(uuid7()),
        tenant_id=TENANT,
        request_id=str(uuid7()),
        attempt=1,
        provider="groq",
        model="llama-3.3-70b-versatile",
        status=usage_event_pb2.USAGE_STATUS_SUCCESS,
        token_usage=token_usage_pb2.TokenUsage(input_tokens=1_000, output_tokens=500),
        usage_source=token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER,
        funding=token_usage_pb2.FUNDING_TENANT_KEY,
        labels={"team": "search"},
        task_type="chat",
        sequence=1,
    )
    event.latency.FromMilliseconds(400)
    return event
