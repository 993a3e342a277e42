"""Carries the journal to usage_service: at least once, in batches, for as long as it takes.

Two lanes take turns: one sends the oldest events, the other, while there is a backlog, the newest, so that an outage's
backlog does not keep live figures waiting. Nothing is dropped for its age. An event leaves the journal only when
usage_service has said that it is stored, or that it never can be.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from router_service.usage.journal import JournalledEvent, SqliteJournal
from router_service.usage.metrics import UsageMetrics
from turnpike.usage.v1 import usage_event_pb2, usage_service_pb2, usage_service_pb2_grpc

_log = structlog.get_logger(__name__)

_DONE = frozenset({usage_service_pb2.RECORD_DISPOSITION_ACCEPTED, usage_service_pb2.RECORD_DISPOSITION_DUPLICATE})
_BURIED = {
    usage_service_pb2.RECORD_DISPOSITION_CONFLICT: "conflict",
    usage_service_pb2.RECORD_DISPOSITION_REJECTED: "rejected",
}


@dataclass(frozen=True, slots=True)
class SenderSettings:
    """How the sender paces itself. Counts are events, times are seconds."""

    batch_size: int = 500
    gather_s: float = 0.05  # how long a first event waits for others to travel with
    call_timeout_s: float = 5.0
    first_backoff_s: float = 0.2
    max_backoff_s: float = 30.0


@dataclass(slots=True)
class _Pace:
    """When the next batch may go: after failures with full jitter, or when usage_service asked for room."""

    not_before_s: float = 0.0
    failures: int = 0
    in_flight: set[int] = field(default_factory=set)


class UsageSender:
    """Sends until it is stopped. One lane for the oldest events and one for the newest."""

    def __init__(
        self,
        journal: SqliteJournal,
        channel: grpc.aio.Channel,
        *,
        router_id: str,
        metrics: UsageMetrics,
        settings: SenderSettings = SenderSettings(),
        now_s: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._journal = journal
        self._stub = usage_service_pb2_grpc.UsageServiceStub(channel)
        self._router_id = router_id
        self._metrics = metrics
        self._settings = settings
        self._now_s = now_s
        self._jitter = jitter
        self._pace = _Pace()
        self._something_new = asyncio.Event()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to send, first what an earlier run left behind."""
        self._journal.on_settled(self._something_new.set)
        self._something_new.set()
        self._tasks = [
            asyncio.create_task(self._lane(newest_first=False), name="usage sender, oldest"),
            asyncio.create_task(self._lane(newest_first=True), name="usage sender, newest"),
        ]

    async def stop(self, drain_timeout_s: float) -> None:
        """Send what is there, for at most `drain_timeout_s`; what is left waits in the journal for the next start."""
        self._stopping = True
        self._something_new.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=drain_timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _lane(self, *, newest_first: bool) -> None:
        while True:
            try:
                batch = await self._next_batch(newest_first=newest_first)
                if batch:
                    await self._send(batch)
                elif self._stopping:
                    return
                else:
                    await self._wait_for_more()
            except Exception as error:  # noqa: BLE001 - the lane must outlive whatever one batch does
                _log.exception("usage.send_failed", error=type(error).__name__)
                self._slow_down(0.0)
            if self._stopping and self._pace.failures:
                return
            await self._wait_for_turn()

    async def _next_batch(self, *, newest_first: bool) -> list[JournalledEvent]:
        size = self._settings.batch_size
        limit = size + len(self._pace.in_flight)
        events = await (self._journal.newest(limit) if newest_first else self._journal.oldest(limit))
        if newest_first and len(events) < limit:
            return []  # no backlog: the other lane has it all
        batch = [event for event in events if event.sequence not in self._pace.in_flight][:size]
        self._pace.in_flight.update(event.sequence for event in batch)
        return batch

    async def _send(self, batch: list[JournalledEvent]) -> None:
        try:
            request = usage_service_pb2.RecordUsageRequest(
                router_id=self._router_id, epoch=self._journal.epoch, events=[_event(entry) for entry in batch]
            )
            response = await self._stub.RecordUsage(request, timeout=self._settings.call_timeout_s)
        except grpc.aio.AioRpcError as error:
            self._metrics.send_failures.labels(error.code().name).inc()
            if self._pace.failures == 0:
                _log.warning("usage.unreachable", code=error.code().name, waiting_in_batch=len(batch))
            self._slow_down(_retry_after_s(error))
            return
        else:
            await self._settle(batch, response)
        finally:
            self._pace.in_flight.difference_update(event.sequence for event in batch)

    async def _settle(self, batch: list[JournalledEvent], response: usage_service_pb2.RecordUsageResponse) -> None:
        done: list[int] = []
        buried: list[tuple[int, str]] = []
        for entry, result in zip(batch, response.results, strict=False):
            self._metrics.sent.labels(usage_service_pb2.RecordDisposition.Name(result.disposition).lower()).inc()
            if result.disposition in _DONE:
                done.append(entry.sequence)
            elif reason := _BURIED.get(result.disposition):
                buried.append((entry.sequence, reason))
                _log.error("usage.refused", event_id=result.event_id, reason=reason, error=result.error.message)
        if done:
            await self._journal.remove(done)
        if buried:
            await self._journal.bury(buried)
        if len(done) + len(buried) < len(batch):
            self._slow_down(0.0)
            return
        if self._pace.failures:
            _log.info("usage.reachable_again", after_failures=self._pace.failures)
        self._pace.failures = 0
        self._metrics.backoff_seconds.set(0)
        self._pace.not_before_s = self._now_s() + response.min_send_interval.ToTimedelta().total_seconds()

    def _slow_down(self, at_least_s: float) -> None:
        """Wait longer with each failure, with full jitter so that routers do not come back all at once."""
        ceiling_s = min(
            self._settings.max_backoff_s, self._settings.first_backoff_s * 2.0 ** min(self._pace.failures, 20)
        )
        pause_s = max(at_least_s, ceiling_s * self._jitter())
        self._pace.failures += 1
        self._pace.not_before_s = self._now_s() + pause_s
        self._metrics.backoff_seconds.set(pause_s)

    async def _wait_for_turn(self) -> None:
        pause_s = self._pace.not_before_s - self._now_s()
        if pause_s > 0:
            await asyncio.sleep(pause_s)

    async def _wait_for_more(self) -> None:
        self._something_new.clear()
        await self._something_new.wait()
        if not self._stopping:
            await asyncio.sleep(self._settings.gather_s)


def _event(entry: JournalledEvent) -> usage_event_pb2.UsageEvent:
    """The event as it was frozen, with its number; the same bytes on every resend."""
    event = usage_event_pb2.UsageEvent.FromString(entry.payload)
    event.sequence = entry.sequence
    return event


def _retry_after_s(error: grpc.aio.AioRpcError) -> float:
    """What usage_service asked for; 0 when it asked for nothing."""
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError has what it reads
    except (ValueError, DecodeError):
        return 0.0
    retry = error_details_pb2.RetryInfo()
    for detail in status.details if status is not None else ():
        if detail.Unpack(retry):
            return float(retry.retry_delay.ToTimedelta().total_seconds())
    return 0.0
