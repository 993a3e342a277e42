from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from turnpike.router.v1 import completion_pb2 as pb
from turnpike_client.assembly import Assembler
from turnpike_client.completion_codec import completion_from_proto, delta_from_proto, restart_from_proto
from turnpike_client.completions import ToolCall

TEXTS = st.lists(st.text(max_size=5), max_size=6)


def add(answer: Assembler, index: int, **content: Any) -> None:
    answer.add(delta_from_proto(pb.ContentDelta(index=index, **content)))


@given(TEXTS, TEXTS)
def test_only_what_follows_the_last_restart_is_in_the_answer(voided: list[str], kept: list[str]) -> None:
    answer = Assembler()

    for index, text in enumerate(voided):
        add(answer, index, text=text, reasoning=text)
    answer.restart(restart_from_proto(pb.StreamRestarted(attempt=2, discard_through_index=len(voided) - 1)))
    for index, text in enumerate(kept, start=len(voided)):
        add(answer, index, text=text, reasoning=text)

    assert answer.text() == "".join(kept)
    assert answer.reasoning() == "".join(kept)


def test_tool_calls_are_put_together_from_their_parts_in_the_order_of_their_numbers() -> None:
    answer = Assembler()

    add(answer, 0, tool_calls=[pb.ToolCallDelta(index=1, id="b", name="time", arguments="{}")])
    add(answer, 1, tool_calls=[pb.ToolCallDelta(index=0, id="a", name="weather", arguments='{"city"')])
    add(answer, 2, tool_calls=[pb.ToolCallDelta(index=0, arguments=': "Bonn"}')])

    assert answer.tool_calls() == (ToolCall("a", "weather", '{"city": "Bonn"}'), ToolCall("b", "time", "{}"))


def test_the_result_is_completed_with_what_was_streamed() -> None:
    answer = Assembler()
    add(answer, 0, reasoning="think")
    add(answer, 1, text="Hel")
    add(answer, 2, text="lo")

    completion = answer.complete(completion_from_proto(pb.CompletionResult(provider="groq")))

    assert (completion.provider, completion.reasoning, completion.content) == ("groq", "think", "Hello")
