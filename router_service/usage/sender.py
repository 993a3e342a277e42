"""Carries the journal to usage_service: at least once, in batches, for as long as it takes.

Two lanes take turns: one sends the oldest events, the other, while there is a backlog, the newest, so that an outage's
backlog does not keep live figures waiting. Nothing is dropped for its age. An event leaves the journal only when
usage_service has said that it is stored, or that it never can be.

A backlog is sent as fast as it goes while the router has nothing else to do. Beside requests it is sent in smaller
batches, one at a time, at the pace that `RightOfWay` finds bearable for them, as long as it shrinks all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from router_service.usage import pacing
from router_service.usage.encode import record_usage_request
from router_service.usage.journal import NONE, JournalledEvent, SqliteJournal
from router_service.usage.metrics import SenderMetrics
from router_service.usage.pacing import PaceSettings
from router_service.usage.right_of_way import Batches, RightOfWay
from service_runtime.faults import CrashPoint, Sabotage, crash_point, is_armed, is_sabotaged
from turnpike.usage.v1 import usage_service_pb2

_log = structlog.get_logger(__name__)

MAX_BATCH_BYTES = 1 << 20  # usage_service takes 8 MiB; a batch that it refuses for its size would be resent for ever

_RECORD_USAGE = "/turnpike.usage.v1.UsageService/RecordUsage"
_LEAVING_S = 0.1  # that a batch takes at most to leave the process; waited for only where it shall die afterwards
_LOOKS_EVERY_S = 2.0  # whether the backlog shrinks
_LONGEST_ASKED_PAUSE_S = 300.0  # what an answer may ask for; beyond that it is taken for a mistake
_DONE = frozenset({usage_service_pb2.RECORD_DISPOSITION_ACCEPTED, usage_service_pb2.RECORD_DISPOSITION_DUPLICATE})
_BURIED = {
    usage_service_pb2.RECORD_DISPOSITION_CONFLICT: "conflict",
    usage_service_pb2.RECORD_DISPOSITION_REJECTED: "rejected",
}


@dataclass(frozen=True, slots=True)
class SenderSettings:
    """How the sender paces itself. Counts are events, times are seconds."""

    batch_size: int = 500
    batch_size_beside_requests: int = 128
    beside_requests: PaceSettings = pacing.DEFAULT
    gather_s: float = 0.2  # how long a first event waits for others to travel with
    call_timeout_s: float = 5.0
    first_backoff_s: float = 0.2
    max_backoff_s: float = 30.0


@dataclass(slots=True)
class _State:
    """When the next batch may go: after failures with full jitter, or when usage_service asked for room.

    `in_flight` holds the sequences of events that a lane is sending, so that the other lane leaves them alone.
    `waited` events waited at `looked_at_s`, and `settled` have come since; the backlog shrinks when fewer wait now.
    """

    not_before_s: float = 0.0
    failures: int = 0
    in_flight: set[int] = field(default_factory=set)
    looked_at_s: float = 0.0
    waited: int = 0
    settled: int = 0
    arriving_per_s: float = 0.0
    shrinks: bool = True


class UsageSender:
    """Sends until it is stopped. One lane for the oldest events and one for the newest."""

    def __init__(
        self,
        journal: SqliteJournal,
        channel: grpc.aio.Channel,
        *,
        router_id: str,
        metrics: SenderMetrics,
        settings: SenderSettings = SenderSettings(),
        right_of_way: RightOfWay | None = None,
        now_s: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`right_of_way` is shared by all that sends in one process; None for one that sends alone."""
        self._journal = journal
        # The journal holds events as they travel, so the request goes out as bytes: the same ones on every resend.
        self._record_usage: grpc.aio.UnaryUnaryMultiCallable[bytes, usage_service_pb2.RecordUsageResponse] = (
            channel.unary_unary(_RECORD_USAGE, response_deserializer=usage_service_pb2.RecordUsageResponse.FromString)
        )
        self._router_id = router_id
        self._metrics = metrics
        self._settings = settings
        self._now_s = now_s
        self._jitter = jitter
        self._state = _State()
        self._news = (asyncio.Event(), asyncio.Event())  # one per lane
        self._owns_right_of_way = right_of_way is None
        self._right_of_way = right_of_way or RightOfWay.beside(journal, metrics, settings=settings.beside_requests)
        self._stop_asked = asyncio.Event()
        self._ends_when_empty = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to send, first what an earlier run left behind."""
        self._journal.on_settled(self._settled)
        oldest, newest = self._news
        self._tasks = [
            asyncio.create_task(self._lane(oldest, newest_first=False), name="usage sender, oldest"),
            asyncio.create_task(self._lane(newest, newest_first=True), name="usage sender, newest"),
        ]

    async def stop(self, drain_timeout_s: float) -> None:
        """Send what is there, for at most `drain_timeout_s`; what is left waits in the journal for the next start.

        Gives up early when usage_service fails once more.
        """
        self._stop_asked.set()
        self._wake()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=drain_timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._owns_right_of_way:
            await self._right_of_way.close()

    async def drain(self, within_s: float) -> None:
        """Send what is there, in so many seconds at most, giving way to requests all the while; then be stopped."""
        self._ends_when_empty = True
        self._wake()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)
        await self.stop(0.0)

    def _settled(self, count: int) -> None:
        self._state.settled += count
        self._wake()

    def _wake(self) -> None:
        for news in self._news:
            news.set()

    async def _lane(self, news: asyncio.Event, *, newest_first: bool) -> None:
        while True:
            # Cleared before the journal is read: what is settled while it is read must not go unnoticed.
            news.clear()
            is_last_try = self._stop_asked.is_set() or self._ends_when_empty
            found_something = True
            try:
                found_something = await self._send_one_batch(newest_first=newest_first)
            except Exception as error:  # noqa: BLE001 - the lane must outlive whatever one batch does
                _log.exception("usage.send_failed", error=type(error).__name__)
                self._slow_down(0.0)
            if is_last_try and (not found_something or self._state.failures):
                return
            if not found_something:
                await news.wait()
                await self._pause(self._settings.gather_s)
            await self._pause(self._state.not_before_s - self._now_s())

    async def _send_one_batch(self, *, newest_first: bool) -> bool:
        """False when this lane has nothing to send."""
        if not self._gives_way():
            return await self._send_up_to(self._settings.batch_size, newest_first=newest_first) > 0
        settings, arriving_per_s = self._settings, self._state.arriving_per_s
        batches = Batches(settings.batch_size_beside_requests, settings.batch_size, arriving_per_s)
        async with self._right_of_way.turn(batches, self._pause) as turn:
            turn.sent = await self._send_up_to(turn.size, newest_first=newest_first)
        return turn.sent > 0

    def _gives_way(self) -> bool:
        """Whether there is a backlog that shrinks all the same, and there are requests."""
        now_s, waiting, state = self._now_s(), self._journal.waiting, self._state
        since_s = now_s - state.looked_at_s
        if state.failures or since_s >= _LOOKS_EVERY_S:
            is_known = not state.failures and since_s < 2 * _LOOKS_EVERY_S
            # What it grew by while nothing could be sent says nothing of how fast it is sent now.
            state.shrinks = not is_known or waiting <= state.waited
            if not state.failures:
                state.arriving_per_s = state.settled / since_s
            state.looked_at_s, state.waited, state.settled = now_s, waiting, 0
        is_backlog = waiting >= self._settings.batch_size
        return is_backlog and state.shrinks and self._right_of_way.is_taken and not self._stop_asked.is_set()

    async def _send_up_to(self, size: int, *, newest_first: bool) -> int:
        """How many events the batch had."""
        batch = await self._next_batch(size, newest_first=newest_first)
        if batch:
            await self._send(batch)
        return len(batch)

    async def _next_batch(self, size: int, *, newest_first: bool) -> list[JournalledEvent]:
        others = self._state.in_flight
        if newest_first and self._journal.waiting < size + len(others):
            return []  # no backlog: the other lane has it all
        but = (min(others), max(others)) if others else NONE
        events = await (self._journal.newest(size, but=but) if newest_first else self._journal.oldest(size, but=but))
        # The other lane may have read at the same time.
        batch = _up_to(size, [event for event in events if event.sequence not in others])
        self._state.in_flight.update(event.sequence for event in batch)
        return batch

    async def _send(self, batch: list[JournalledEvent]) -> None:
        try:
            request = record_usage_request(
                self._router_id, self._journal.epoch, [(event.payload, event.sequence) for event in batch]
            )
            if is_sabotaged(Sabotage.REMOVE_BEFORE_ACKNOWLEDGEMENT):
                await self._journal.remove([event.sequence for event in batch])
            crash_point(CrashPoint.SENDER_BEFORE_SEND)
            call = self._record_usage(request, timeout=self._settings.call_timeout_s)
            if is_armed(CrashPoint.SENDER_AFTER_SEND):
                await asyncio.sleep(_LEAVING_S)
            crash_point(CrashPoint.SENDER_AFTER_SEND)
            response = await call
            crash_point(CrashPoint.SENDER_AFTER_ACKNOWLEDGEMENT)
        except grpc.aio.AioRpcError as error:
            self._metrics.send_failures.labels(error.code().name).inc()
            if self._state.failures == 0:
                _log.warning("usage.unreachable", code=error.code().name, waiting_in_batch=len(batch))
            self._slow_down(_retry_after_s(error))
            return
        else:
            await self._settle(batch, response)
        finally:
            self._state.in_flight.difference_update(event.sequence for event in batch)

    async def _settle(self, batch: list[JournalledEvent], response: usage_service_pb2.RecordUsageResponse) -> None:
        results = list(zip(batch, response.results, strict=False))
        dispositions = [result.disposition for _, result in results]
        done = [entry.sequence for entry, disposition in zip(batch, dispositions, strict=False) if disposition in _DONE]
        buried: list[tuple[int, str]] = []
        for entry, result in results if len(done) < len(batch) else ():
            if reason := _BURIED.get(result.disposition):
                buried.append((entry.sequence, reason))
                _log.error("usage.refused", event_id=result.event_id, reason=reason, error=result.error.message)
        for disposition, count in Counter(dispositions).items():
            self._metrics.sent[_name(disposition),].inc(count)
        if done:
            await self._journal.remove(done)
        if buried:
            await self._journal.bury(buried)
        asked_pause_s = response.min_send_interval.ToTimedelta().total_seconds()
        if len(done) + len(buried) < len(batch):
            self._slow_down(asked_pause_s)
            return
        if self._state.failures:
            _log.info("usage.reachable_again", after_failures=self._state.failures)
        self._state.failures = 0
        self._metrics.backoff_seconds.set(0)
        self._state.not_before_s = self._now_s() + min(asked_pause_s, _LONGEST_ASKED_PAUSE_S)

    def _slow_down(self, at_least_s: float) -> None:
        """Wait longer with each failure, with full jitter so that routers do not come back all at once."""
        ceiling_s = min(
            self._settings.max_backoff_s, self._settings.first_backoff_s * 2.0 ** min(self._state.failures, 20)
        )
        pause_s = max(min(at_least_s, _LONGEST_ASKED_PAUSE_S), ceiling_s * self._jitter())
        self._state.failures += 1
        self._state.not_before_s = self._now_s() + pause_s
        self._metrics.backoff_seconds.set(pause_s)
        self._wake()  # what one lane could not send is the other's as well

    async def _pause(self, pause_s: float) -> None:
        """Sleep, unless the sender is asked to stop: then there is no time to lose."""
        if pause_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stop_asked.wait()


def _up_to(count: int, events: list[JournalledEvent]) -> list[JournalledEvent]:
    """As many events from the front as fit into one batch; at least one, however large."""
    batch: list[JournalledEvent] = []
    size_bytes = 0
    for event in events[:count]:
        size_bytes += len(event.payload)
        if batch and size_bytes > MAX_BATCH_BYTES:
            break
        batch.append(event)
    return batch


def _name(disposition: int) -> str:
    """A label for the metric; a value of a later version of the contract is `unknown`, and such an event is resent."""
    known = usage_service_pb2.RecordDisposition.DESCRIPTOR.values_by_number.get(disposition)
    return "unknown" if known is None else known.name.lower()


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
