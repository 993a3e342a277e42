"""The queue to a caller: bounded, in order, and joined while the caller is slow."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_service.domain.completion import (
    CompletionResult,
    ContentDelta,
    FinishReason,
    IndexedDelta,
    RouteChosen,
    StreamRestarted,
    ToolCall,
    ToolCallDelta,
)
from router_service.domain.usage import TokenUsage, UsageSource
from router_service.routing.sinks import DELTA_OVERHEAD, Gathering, Handover
from service_runtime.errors import Category, ServiceError

ID = UUID(int=1)
ROUTE = RouteChosen(ID, "groq", "m", 1, None, 1)
RESULT = CompletionResult(
    ID, "groq", "m", "m", FinishReason.STOP, TokenUsage(), UsageSource.NONE, Decimal(0), 0.0, None, (), None, 1
)
ERROR = ServiceError(Category.UNAVAILABLE, "GONE", "gone")


async def taken(handover: Handover) -> list[object]:
    events: list[object] = []
    while True:
        try:
            events.append(await handover.take())
        except StopAsyncIteration:
            return events


async def test_adjacent_deltas_join_while_nobody_reads() -> None:
    handover = Handover(max_unread=10_000)
    handover.put(ContentDelta(reasoning="hm"), 2)
    handover.put(ContentDelta(text="a"), 1)
    handover.put(ContentDelta(text="b"), 1)
    handover.finish(RESULT)

    assert await taken(handover) == [IndexedDelta(0, ContentDelta(text="ab", reasoning="hm")), RESULT]


async def test_a_delta_alone_goes_out_as_it_came() -> None:
    handover = Handover(max_unread=10_000)
    delta = ContentDelta(text="a")
    handover.put(delta, 1)

    event = await handover.take()

    assert isinstance(event, IndexedDelta)
    assert event.content is delta


async def test_deltas_do_not_join_over_what_stands_between_them() -> None:
    handover = Handover(max_unread=10_000)
    handover.put(ContentDelta(text="a"), 1)
    handover.restarted(2, "stream_broken")
    handover.route_chosen(ROUTE)
    handover.put(ContentDelta(text="b"), 1)
    handover.finish(RESULT)

    assert await taken(handover) == [
        IndexedDelta(0, ContentDelta(text="a")),
        StreamRestarted(2, "stream_broken", discard_through_index=0),
        ROUTE,
        IndexedDelta(1, ContentDelta(text="b")),
        RESULT,
    ]


async def test_reasoning_after_text_stands_apart() -> None:
    handover = Handover(max_unread=10_000)
    handover.put(ContentDelta(text="a"), 1)
    handover.put(ContentDelta(reasoning="hm"), 2)
    handover.finish(RESULT)

    assert [type(event) for event in await taken(handover)] == [IndexedDelta, IndexedDelta, CompletionResult]


async def test_parts_of_a_tool_call_join() -> None:
    handover = Handover(max_unread=10_000)
    handover.put(ContentDelta(tool_calls=(ToolCallDelta(0, "c", "f", '{"a"'),)), 5)
    handover.put(ContentDelta(tool_calls=(ToolCallDelta(0, arguments=":1}"), ToolCallDelta(1, "d", "g"))), 5)

    event = await handover.take()

    assert isinstance(event, IndexedDelta)
    assert event.content.tool_calls == (ToolCallDelta(0, "c", "f", '{"a":1}'), ToolCallDelta(1, "d", "g"))


parts = st.one_of(
    st.builds(ContentDelta, text=st.text(min_size=1)), st.builds(ContentDelta, reasoning=st.text(min_size=1))
)


@given(st.lists(st.tuples(parts, st.booleans())))
def test_nothing_is_lost_and_the_order_of_reasoning_and_text_is_kept(steps: list[tuple[ContentDelta, bool]]) -> None:
    async def run() -> list[tuple[str, str]]:
        handover, received = Handover(max_unread=1 << 30), []
        for delta, is_read in steps:
            handover.put(delta, 1)
            if is_read:
                received.append(await handover.take())
        handover.finish(RESULT)
        received += await taken(handover)  # type: ignore[arg-type]  # of events
        deltas = [event for event in received if isinstance(event, IndexedDelta)]
        assert [delta.index for delta in deltas] == list(range(len(deltas)))
        return spelled([delta.content for delta in deltas])

    assert asyncio.run(run()) == spelled([delta for delta, _ in steps])


def spelled(deltas: list[ContentDelta]) -> list[tuple[str, str]]:
    """Every character with its kind, in the order in which a reader sees them."""
    return [
        (kind, character)
        for delta in deltas
        for kind, content in (("reasoning", delta.reasoning), ("text", delta.text))
        for character in content
    ]


async def test_a_full_queue_says_so_and_opens_again_when_half_is_read() -> None:
    handover = Handover(max_unread=1000)
    while handover.put(ContentDelta(text="x" * 100), 100):
        pass
    waiting = asyncio.create_task(handover.room())
    await asyncio.sleep(0)
    assert not waiting.done()

    await handover.take()

    await waiting


async def test_tiny_deltas_are_bounded_by_their_number() -> None:
    handover = Handover(max_unread=1000)

    count = 1
    while handover.put(ContentDelta(text="x"), 1):
        count += 1

    assert count == -(-1000 // (1 + DELTA_OVERHEAD))


@pytest.mark.parametrize("ending", ["abandon", "fail"])
async def test_a_writer_that_waits_is_freed_by_the_end(ending: str) -> None:
    handover = Handover(max_unread=10)
    handover.put(ContentDelta(text="x" * 100), 100)
    waiting = asyncio.create_task(handover.room())
    await asyncio.sleep(0)

    if ending == "abandon":
        handover.abandon()
    else:
        handover.fail(ERROR)

    await waiting
    assert handover.put(ContentDelta(text="x"), 1)


async def test_what_came_before_an_error_is_read_before_it() -> None:
    handover = Handover(max_unread=1000)
    handover.put(ContentDelta(text="a"), 1)
    handover.fail(ERROR)
    handover.fail(ValueError("too late"))
    handover.finish(RESULT)

    assert isinstance(await handover.take(), IndexedDelta)
    with pytest.raises(ServiceError):
        await handover.take()


async def test_a_reader_that_waits_is_woken_by_each_event() -> None:
    handover = Handover(max_unread=1000)
    reading = asyncio.create_task(taken(handover))
    await asyncio.sleep(0)
    handover.route_chosen(ROUTE)
    await asyncio.sleep(0)
    handover.finish(RESULT)

    assert await reading == [ROUTE, RESULT]


async def test_a_whole_answer_forgets_the_attempts_before() -> None:
    gathering = Gathering()
    gathering.put(ContentDelta(text="wrong", tool_calls=(ToolCallDelta(0, "c", "f"),)), 5)
    gathering.route_chosen(RouteChosen(ID, "llm7", "m", 2, None, 1))
    gathering.put(ContentDelta(tool_calls=(ToolCallDelta(1, "d", "g", "{"), ToolCallDelta(0, "e", "h"))), 5)
    gathering.put(ContentDelta(tool_calls=(ToolCallDelta(1, arguments="}"),)), 5)
    gathering.finish(RESULT)

    _, whole = await gathering.result()

    assert whole.content == ""
    assert whole.tool_calls == (ToolCall("e", "h", ""), ToolCall("d", "g", "{}"))


async def test_a_whole_answer_ends_once() -> None:
    gathering = Gathering()
    gathering.fail(ERROR)
    gathering.finish(RESULT)

    with pytest.raises(ServiceError):
        await gathering.result()
