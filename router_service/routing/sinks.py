"""Where a request's events go: to a caller who reads a stream, or into one whole answer.

One writer (the pump) and one reader (the caller). Both kinds hold a bounded number of bytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

import msgspec

from router_service.domain.completion import (
    CompletionResult,
    ContentDelta,
    IndexedDelta,
    RouteChosen,
    RouterEvent,
    StreamRestarted,
    ToolCall,
    ToolCallDelta,
)

DELTA_OVERHEAD = 64  # bytes that a waiting delta is charged beyond its text, so that tiny ones are bounded too


class Sink(Protocol):
    """What the pump writes into. After `abandon` everything is accepted and nothing is kept."""

    @property
    def content_was_sent(self) -> bool:
        """Whether content is out of our hands, so that another attempt would repeat it."""
        ...

    def route_chosen(self, event: RouteChosen) -> None:
        """Tell of a new attempt. Content of an attempt before that was not sent is void."""
        ...

    def put(self, delta: ContentDelta, size: int) -> bool:
        """Hand on content of `size` bytes; False when the writer should wait for `room`."""
        ...

    async def room(self) -> None:
        """Wait until the reader has caught up, or has left."""
        ...

    def restarted(self, attempt: int, reason: str) -> None:
        """Tell that everything so far is void."""
        ...

    def finish(self, result: CompletionResult) -> None:
        """End well. Only the first ending counts."""
        ...

    def fail(self, error: Exception) -> None:
        """End with an error. Only the first ending counts."""
        ...

    def abandon(self) -> None:
        """The reader has left."""
        ...


class _Restart(msgspec.Struct, frozen=True):
    attempt: int
    reason: str


class _Batch:
    """Adjacent deltas that wait for the reader and go out as one."""

    __slots__ = ("deltas", "last_phase", "size")

    def __init__(self, delta: ContentDelta, size: int) -> None:
        self.deltas = [delta]
        self.size = size
        self.last_phase = _last_phase(delta)

    def join(self, delta: ContentDelta, size: int) -> bool:
        """Take a delta in if the order within one message still tells the truth; False if it must stand apart."""
        if _first_phase(delta) < self.last_phase:
            return False
        self.deltas.append(delta)
        self.size += size
        self.last_phase = _last_phase(delta)
        return True

    def whole(self) -> ContentDelta:
        if len(self.deltas) == 1:
            return self.deltas[0]
        calls = _ToolCalls()
        for delta in self.deltas:
            calls.add(delta.tool_calls)
        return ContentDelta(
            text="".join([delta.text for delta in self.deltas]),
            reasoning="".join([delta.reasoning for delta in self.deltas]),
            tool_calls=calls.parts(),
        )


class Handover:
    """A bounded queue to a caller who reads a stream. Deltas join while the caller is slow; `take` numbers them."""

    def __init__(self, *, max_unread: int) -> None:
        self._max_unread = max_unread
        self._waiting: deque[_Batch | RouteChosen | _Restart | CompletionResult] = deque()
        self._unread = 0
        self._next_index = 0
        self._error: Exception | None = None
        self._is_ended = False
        self._content_was_sent = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    @property
    def content_was_sent(self) -> bool:
        return self._content_was_sent

    def route_chosen(self, event: RouteChosen) -> None:
        self._append(event)

    def put(self, delta: ContentDelta, size: int) -> bool:
        self._content_was_sent = True
        if self._is_ended:
            return True
        charge = size + DELTA_OVERHEAD
        self._unread += charge
        last = self._waiting[-1] if self._waiting else None
        if not (isinstance(last, _Batch) and last.join(delta, charge)):
            self._waiting.append(_Batch(delta, charge))
        _wake(self._reader)
        return self._unread < self._max_unread

    async def room(self) -> None:
        while self._unread >= self._max_unread // 2 and not self._is_ended:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer

    def restarted(self, attempt: int, reason: str) -> None:
        self._append(_Restart(attempt, reason))

    def finish(self, result: CompletionResult) -> None:
        self._append(result)
        self._is_ended = True

    def fail(self, error: Exception) -> None:
        if not self._is_ended:
            self._error = error
            self._is_ended = True
            _wake(self._reader)
            _wake(self._writer)

    def abandon(self) -> None:
        self._is_ended = True
        self._waiting.clear()
        self._unread = 0
        _wake(self._writer)

    async def take(self) -> RouterEvent:
        """The next event. Raises the error that the request ended with, StopAsyncIteration after the result."""
        while not self._waiting:
            if self._error is not None:
                raise self._error
            if self._is_ended:
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        event = self._waiting.popleft()
        if isinstance(event, _Batch):
            return self._numbered(event)
        if isinstance(event, _Restart):
            return StreamRestarted(event.attempt, event.reason, discard_through_index=self._next_index - 1)
        return event

    def _numbered(self, batch: _Batch) -> IndexedDelta:
        self._unread -= batch.size
        if self._unread < self._max_unread // 2:
            _wake(self._writer)
        index = self._next_index
        self._next_index += 1
        return IndexedDelta(index, batch.whole())

    def _append(self, event: RouteChosen | _Restart | CompletionResult) -> None:
        if not self._is_ended:
            self._waiting.append(event)
            _wake(self._reader)


class WholeAnswer(msgspec.Struct, frozen=True):
    """The content of a completion in one piece."""

    content: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]


class Gathering:
    """Collects a whole answer. Nothing is sent before the end, so an attempt that breaks leaves no trace."""

    content_was_sent = False

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls = _ToolCalls()
        self._end: asyncio.Future[CompletionResult] = asyncio.get_running_loop().create_future()

    def route_chosen(self, event: RouteChosen) -> None:
        if event.attempt > 1:
            self._clear()

    def put(self, delta: ContentDelta, size: int) -> bool:  # noqa: ARG002 - the attempt bounds a whole answer's size
        if not self._end.done():
            self._texts.append(delta.text)
            self._reasoning.append(delta.reasoning)
            self._calls.add(delta.tool_calls)
        return True

    async def room(self) -> None:
        """There always is."""

    def restarted(self, attempt: int, reason: str) -> None:
        raise AssertionError(f"nothing was sent that attempt {attempt} could void ({reason})")

    def finish(self, result: CompletionResult) -> None:
        if not self._end.done():
            self._end.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self._end.done():
            self._end.set_exception(error)

    def abandon(self) -> None:
        self._end.cancel()
        self._clear()

    async def result(self) -> tuple[CompletionResult, WholeAnswer]:
        """Wait for the end. Raises the error that the request ended with."""
        result = await self._end
        return result, WholeAnswer("".join(self._texts), "".join(self._reasoning), self._calls.whole())

    def _clear(self) -> None:
        self._texts, self._reasoning, self._calls = [], [], _ToolCalls()


class _ToolCalls:
    """Joins parts of tool calls, adjacent ones of the same call into one."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[tuple[ToolCallDelta, list[str]]] = []

    def add(self, deltas: tuple[ToolCallDelta, ...]) -> None:
        for delta in deltas:
            last = self._parts[-1] if self._parts else None
            if last is not None and last[0].index == delta.index and not (delta.id or delta.name):
                last[1].append(delta.arguments)
            else:
                self._parts.append((delta, [delta.arguments]))

    def parts(self) -> tuple[ToolCallDelta, ...]:
        return tuple(
            ToolCallDelta(head.index, head.id, head.name, "".join(arguments)) for head, arguments in self._parts
        )

    def whole(self) -> tuple[ToolCall, ...]:
        """The calls in order of their index, parts that were interleaved brought together."""
        ids: dict[int, str] = {}
        names: dict[int, str] = {}
        texts: dict[int, list[str]] = {}
        for head, arguments in self._parts:
            ids[head.index] = ids.get(head.index) or head.id
            names[head.index] = names.get(head.index) or head.name
            texts.setdefault(head.index, []).extend(arguments)
        return tuple(ToolCall(ids[index], names[index], "".join(texts[index])) for index in sorted(texts))


def _first_phase(delta: ContentDelta) -> int:
    return 0 if delta.reasoning else 1 if delta.text else 2


def _last_phase(delta: ContentDelta) -> int:
    return 2 if delta.tool_calls else 1 if delta.text else 0


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
