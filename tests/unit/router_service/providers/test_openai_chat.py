from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router_service.domain.completion import ContentDelta, FinishReason, ProviderFinished, ToolCallDelta
from router_service.domain.errors import FailureKind, ProviderError
from router_service.domain.usage import TokenUsage
from router_service.providers.openai_chat import ChatDecoder
from router_service.providers.sse import SseEvent

DONE = SseEvent(b"[DONE]")


def data(payload: Any, name: str = "") -> SseEvent:
    return SseEvent(payload if isinstance(payload, bytes) else json.dumps(payload).encode(), name)


def chunk(finish: Any = None, *, model: str = "m", **delta: Any) -> dict[str, Any]:
    return {"id": "gen-1", "model": model, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def call(index: int | None = 0, call_id: Any = None, name: Any = None, arguments: Any = None) -> dict[str, Any]:
    return {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def read(*arrivals: list[Any]) -> tuple[list[ContentDelta], ProviderFinished | ProviderError]:
    """What a provider's stream would give for these arrivals, and its end."""
    decoder = ChatDecoder()
    deltas: list[ContentDelta] = []
    for arrival in arrivals:
        deltas += decoder.feed([item if isinstance(item, SseEvent) else data(item) for item in arrival])
        if decoder.is_over:
            break
    try:
        return deltas, decoder.finish()
    except ProviderError as error:
        return deltas, error


def finished(*arrivals: list[Any]) -> ProviderFinished:
    end = read(*arrivals)[1]
    assert isinstance(end, ProviderFinished), end
    return end


def failed(*arrivals: list[Any]) -> ProviderError:
    end = read(*arrivals)[1]
    assert isinstance(end, ProviderError), end
    return end


USAGE = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
COUNTED = TokenUsage(10, 4)


# ── content ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_arrives_together_is_one_delta() -> None:
    deltas, _ = read([chunk(reasoning="a"), chunk(reasoning="b"), chunk(content="c"), chunk(content="d")])

    assert deltas == [ContentDelta(text="cd", reasoning="ab")]


def test_what_arrives_apart_stays_apart() -> None:
    deltas, _ = read([chunk(content="a")], [chunk(content="b")])

    assert deltas == [ContentDelta("a"), ContentDelta("b")]


def test_another_order_within_an_arrival_is_kept_by_several_deltas() -> None:
    deltas, _ = read(
        [
            chunk(content="a"),
            chunk(reasoning="b"),
            chunk(content="c"),
            chunk(tool_calls=[call(0, "i", "f", "{")]),
            chunk(content="d"),
        ]
    )

    assert deltas == [
        ContentDelta("a"),
        ContentDelta("c", "b", (ToolCallDelta(0, "i", "f", "{"),)),
        ContentDelta("d"),
    ]


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning": "why"},
        {"reasoning_content": "why"},
        {"reasoning": "why", "reasoning_content": "why"},
        {"reasoning": "why", "content": None, "role": "assistant", "channel": "analysis"},
    ],
)
def test_reasoning_is_read_under_both_of_its_names_and_once(delta: dict[str, Any]) -> None:
    assert read([chunk(**delta)])[0] == [ContentDelta(reasoning="why")]


@pytest.mark.parametrize(
    "silent", [{"content": ""}, {"content": None}, {"role": "assistant"}, {}, {"tool_calls": []}, {"tool_calls": [{}]}]
)
def test_signs_of_life_are_no_content(silent: dict[str, Any]) -> None:
    assert read([chunk(**silent)], [{"choices": []}], [{}])[0] == []


def test_a_tool_call_in_parts_is_joined_within_an_arrival() -> None:
    parts = [call(0, "i", "f", ""), call(0, None, None, '{"a"'), call(0, None, None, ":1}")]

    assert read([chunk(tool_calls=[part]) for part in parts])[0] == [
        ContentDelta(tool_calls=(ToolCallDelta(0, "i", "f", '{"a":1}'),))
    ]


def test_id_and_name_that_a_vendor_repeats_are_given_once() -> None:
    deltas, _ = read([chunk(tool_calls=[call(0, "i", "f", "{")])], [chunk(tool_calls=[call(0, "i", "f", "}")])])

    assert [delta.tool_calls[0] for delta in deltas] == [ToolCallDelta(0, "i", "f", "{"), ToolCallDelta(0, "", "", "}")]


def test_calls_are_numbered_densely_whatever_the_vendor_counts() -> None:
    deltas, _ = read([chunk(tool_calls=[call(7, "i", "f", "1"), call(900, "j", "g", "2"), call(7, None, None, "3")])])

    assert deltas[0].tool_calls == (
        ToolCallDelta(0, "i", "f", "1"),
        ToolCallDelta(1, "j", "g", "2"),
        ToolCallDelta(0, "", "", "3"),
    )


def test_calls_without_an_index_are_told_apart_by_their_ids() -> None:
    parts = [call(None, "i", "f", "1"), call(None, None, None, "2"), call(None, "j", "g", "3")]

    assert read([chunk(tool_calls=parts)])[0][0].tool_calls == (
        ToolCallDelta(0, "i", "f", "12"),
        ToolCallDelta(1, "j", "g", "3"),
    )


@pytest.mark.parametrize("odd", [[], [{"index": 0}] * 300_000])
def test_an_endless_number_of_tool_calls_is_a_fault(odd: list[Any]) -> None:
    calls = [call(number, f"i{number}", "f", "") for number in range(1000)]

    deltas, end = read([chunk(tool_calls=calls + odd)])

    assert len(deltas[0].tool_calls) == 128
    assert isinstance(end, ProviderError)
    assert end.kind is FailureKind.STREAM_BROKEN


def test_other_choices_than_the_first_are_left_out() -> None:
    second = {"index": 1, "delta": {"content": "no"}, "finish_reason": "stop"}

    assert read([{"choices": [second]}])[0] == []


# ── usage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "ends",
    [
        [chunk("stop", content="x"), {"choices": [], "usage": USAGE}],
        [chunk("stop", content="x") | {"usage": USAGE}],
        [chunk("stop", content="x") | {"x_groq": {"id": "req", "usage": USAGE}}],
        [chunk("stop", content="x") | {"usage": USAGE, "x_groq": {"usage": USAGE}}, {"choices": [], "usage": USAGE}],
        [chunk("stop", content="x") | {"timings": {"prompt_n": 10, "cache_n": 0, "predicted_n": 4}}],
        [
            chunk(content="x") | {"usage": {"prompt_tokens": 10, "completion_tokens": 1}},
            chunk("stop") | {"usage": USAGE},
        ],
        [chunk("stop", content="x") | {"usage": USAGE}, {"choices": [], "usage": None}],
        [chunk("stop", content="x") | {"usage": USAGE}, {"choices": [], "usage": {}}],
        [chunk("stop", content="x"), chunk(content="") | {"usage": USAGE}],
    ],
)
def test_usage_is_found_wherever_it_stands_and_never_added(ends: list[Any]) -> None:
    assert finished([*ends, DONE]).usage == COUNTED


def test_a_last_report_of_zero_wins() -> None:
    zero = {"prompt_tokens": 0, "completion_tokens": 0}

    assert finished([chunk("stop", content="x") | {"usage": USAGE}, {"usage": zero}]).usage == TokenUsage()


def test_no_report_is_none() -> None:
    assert finished([chunk("stop", content="x"), DONE]).usage is None


def test_the_cost_that_openrouter_names_is_kept_to_the_digit() -> None:
    usage = USAGE | {"cost": 0.00001234, "cost_details": {"upstream_inference_cost": None}}

    assert finished([chunk("stop", content="x") | {"usage": usage}, DONE]).reported_cost_usd == Decimal("0.00001234")


def test_the_model_that_answered_is_the_one_of_the_reply() -> None:
    end = finished([chunk(model="asked", content="x"), chunk("stop", model="served\x00\n")])

    assert (end.model, end.response_id) == ("served", "gen-1")


# ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("tool_calls", FinishReason.TOOL_CALLS),
        ("function_call", FinishReason.TOOL_CALLS),
        ("content_filter", FinishReason.CONTENT_FILTER),
    ],
)
@pytest.mark.parametrize("end", [[DONE], []])
def test_a_valid_finish_reason_and_the_end_are_success(word: str, reason: FinishReason, end: list[Any]) -> None:
    assert finished([chunk(content="x"), chunk(word), *end]).finish_reason is reason


def test_a_finish_reason_on_two_chunks_is_one_end() -> None:
    assert finished([chunk("stop", content="x"), chunk("stop") | {"usage": USAGE}, DONE]).usage == COUNTED


@pytest.mark.parametrize("end", [[DONE], [], [chunk("gave_up")], [chunk(""), DONE]])
def test_content_without_a_valid_finish_reason_is_a_broken_stream(end: list[Any]) -> None:
    assert failed([chunk(content="x"), *end]).kind is FailureKind.STREAM_BROKEN


@pytest.mark.parametrize("end", [[DONE], [], [SseEvent(b"")], [{"choices": []}], [chunk(role="assistant"), DONE]])
def test_an_end_without_any_answer_is_a_broken_provider(end: list[Any]) -> None:
    assert failed(end).kind is FailureKind.UPSTREAM_BROKEN


def test_a_stop_without_content_is_an_end_that_whoever_knows_the_request_may_judge() -> None:
    end = finished([chunk("stop") | {"usage": USAGE}, DONE])

    assert (end.finish_reason, end.usage) == (FinishReason.STOP, COUNTED)


def test_a_length_limit_that_hidden_reasoning_used_up_is_an_answer() -> None:
    assert finished([chunk("length"), DONE]).finish_reason is FinishReason.LENGTH


def test_nothing_is_read_after_done() -> None:
    assert read([chunk("stop", content="x"), DONE, chunk(content="y")])[0] == [ContentDelta("x")]


# ── errors inside the answer ────────────────────────────────────────────────────────────────────────────────────────

ERRORS = [
    {"error": {"message": "boom", "code": "server_error"}},
    {"error": "boom"},
    {"detail": "boom"},
    chunk() | {"error": {"code": 502, "message": "boom"}},
    chunk() | {"x_groq": {"error": "boom"}},
    chunk("error"),
    {"choices": [{"index": 0, "delta": {}, "error": {"message": "boom"}}]},
    {"choices": [{"index": 0, "message": {"content": ""}, "finish_reason": "error"}]},
    data({"error": {"message": "boom"}}, name="error"),
    data(b"boom", name="error"),
    data({"message": "boom"}, name="error"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_object_fails_before_content_so_that_another_can_serve(error: Any) -> None:
    assert failed([error, DONE]).kind is FailureKind.UPSTREAM_BROKEN


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_object_after_content_breaks_the_stream_and_keeps_the_content(error: Any) -> None:
    deltas, end = read([chunk(content="x"), chunk("stop"), error, DONE])

    assert deltas == [ContentDelta("x")]
    assert isinstance(end, ProviderError)
    assert end.kind is FailureKind.STREAM_BROKEN
    assert "boom" not in end.message


def test_the_recorded_error_of_openrouter_keeps_its_usage() -> None:
    error = {"error": {"code": 400, "message": "Token limit reached"}, "usage": USAGE | {"cost": 0.01}}

    failure = failed([chunk("length", content="x"), chunk() | error, DONE])

    assert failure.kind is FailureKind.STREAM_BROKEN
    assert (failure.usage, failure.reported_cost_usd, failure.model) == (COUNTED, Decimal("0.01"), "m")


def test_the_recorded_tool_error_of_groq_is_a_misbehaving_model() -> None:
    error = {"message": "x", "type": "invalid_request_error", "code": "tool_use_failed", "status_code": 400}

    assert failed([chunk(role="assistant"), data({"error": error}, "error")]).kind is FailureKind.MODEL_MISBEHAVED


@pytest.mark.parametrize("nothing", [None, "", {}, [], False])
def test_an_empty_error_is_no_error(nothing: Any) -> None:
    assert finished([chunk("stop", content="x") | {"error": nothing}]).finish_reason is FinishReason.STOP


# ── strangers' bytes ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("junk", [b"{not json", b"[1,2]", b"7", b'"x"', b"\xff\xfe", b'{"choices":' + b"[" * 100_000])
def test_an_event_that_is_no_json_object_is_a_fault(junk: bytes) -> None:
    assert failed([data(junk)]).kind is FailureKind.PROTOCOL_VIOLATION
    assert failed([chunk(content="x"), data(junk)]).kind is FailureKind.STREAM_BROKEN


def test_a_last_event_that_the_end_cut_off_does_no_harm() -> None:
    decoder = ChatDecoder()
    decoder.feed([data(chunk("stop", content="x"))])

    decoder.feed([data(b'{"choices":[],"usa')], may_be_cut=True)

    assert decoder.finish().finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("odd", "text"),
    [
        (b'{"choices":[{"delta":{"content":"a\\ud800b"}}]}', "a?b"),
        (b'{"choices":[{"delta":{"content":"a\\u0000b"}}]}', "a\x00b"),
        (b'{"choices":[{"delta":{"content":"a\xffb"}}]}', "a\ufffdb"),
        (b'{"choices":[{"delta":{"content":"ok"}}],"x":NaN}', "ok"),
        (b'{"choices":[{"delta":{"content":"ok"}}],"x":' + b"9" * 5000 + b"}", "ok"),
        (b'{"choices":[{"delta":{"content":"ok"}}],"usage":{"prompt_tokens":-Infinity}}', "ok"),
        (b'{"choices":[{"index":"0","delta":{"content":"ok"}}],"created":"now","id":5,"model":null}', "ok"),
        (b'{"choices":[{"delta":{"content":[{"type":"text","text":"ok"}]}}]}', "ok"),
        (b'{"choices":[{"delta":{"content":"no"},"delta":{"content":"ok"}}]}', "ok"),
        (b'{"choices":[null,{"delta":{"content":"ok"},"finish_reason":7}]}', "ok"),
        (b'{"choices":{"0":1}}', ""),
        (b'{"choices":[{"delta":"text"}]}', ""),
        (b'{"choices":[{"delta":{"content":5}}],"usage":"lots","x_groq":[1],"timings":[],"error":null}', ""),
    ],
)
def test_surprises_cost_at_most_the_field_they_are_in(odd: bytes, text: str) -> None:
    decoder = ChatDecoder()

    deltas = decoder.feed([data(odd)])

    assert decoder.failure is None
    assert "".join(delta.text for delta in deltas) == text
    text.encode()


FIELDS = st.sampled_from(
    [
        *("choices", "delta", "message", "content", "tool_calls", "index", "id", "function", "name", "arguments"),
        *("usage", "x_groq", "timings", "prompt_tokens", "completion_tokens", "cost"),
        *("error", "detail", "finish_reason"),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=5),
    max_leaves=30,
)


@given(st.lists(JSON | st.builds(chunk, JSON, content=JSON, tool_calls=JSON, reasoning=JSON), max_size=6))
@example([{"choices": [{"index": 10**30, "delta": {"tool_calls": [{"index": -1, "function": {"arguments": {}}}]}}]}])
def test_no_json_breaks_the_decoder(payloads: list[Any]) -> None:
    deltas, end = read([data(json.dumps(payload).encode()) for payload in payloads])

    for delta in deltas:
        assert delta != ContentDelta()
        (delta.text + delta.reasoning + "".join(call.arguments for call in delta.tool_calls)).encode()
    if isinstance(end, ProviderFinished) and end.usage is not None:
        assert 0 <= end.usage.total_tokens < 1 << 63


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_no_bytes_break_the_decoder(payloads: list[bytes]) -> None:
    read([data(payload) for payload in payloads])


@given(st.lists(st.sampled_from(["reasoning", "content"]), max_size=12), st.data())
def test_content_survives_any_grouping_into_arrivals(kinds: list[str], draw: st.DataObject) -> None:
    events = [data(chunk(**{kind: f"<{number}>"})) for number, kind in enumerate(kinds)]
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(events)), max_size=4)))
    arrivals = [events[start:end] for start, end in zip([0, *cuts], [*cuts, len(events)], strict=True)]

    deltas, _ = read(*arrivals)

    parts = [part for delta in deltas for part in (delta.reasoning, delta.text)]
    assert "".join(parts) == "".join(f"<{number}>" for number in range(len(kinds)))


PLAIN = st.builds(chunk, st.none(), content=st.text(max_size=3))
ODD = st.builds(
    chunk,
    st.sampled_from([None, "stop", ""]),
    model=st.sampled_from(["m", "n", ""]),
    content=st.sampled_from(["x", "", None, ["y"]]),
    reasoning=st.sampled_from([None, "", "why"]),
    tool_calls=st.sampled_from([None, [], [call(0, "i", "f", "{")]]),
)
SECOND = st.builds(lambda choices: {"id": "gen-2", "choices": choices}, st.lists(st.just({"index": 1}), max_size=2))


@given(st.lists(PLAIN | ODD | SECOND, max_size=8))
def test_a_chunk_of_nothing_but_text_is_taken_as_it_would_be_with_an_empty_report_beside_it(chunks: list[Any]) -> None:
    deltas, end = read([*chunks, DONE])
    same_deltas, same_end = read([*({**each, "timings": {}} for each in chunks), DONE])

    assert deltas == same_deltas
    assert (type(end), str(end)) == (type(same_end), str(same_end))
