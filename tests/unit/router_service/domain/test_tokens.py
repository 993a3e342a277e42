"""Estimates of token counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router_service.domain.completion import ContentDelta, Message, Role, Sampling, Tool, ToolCallDelta
from router_service.domain.tokens import OutputMeter, estimate_input_tokens, least_total_tokens, utf8_length
from tests.support.router_fakes import request


def messages(*texts: str, images: tuple[str, ...] = ()) -> tuple[Message, ...]:
    return tuple(Message(Role.USER, text, image_urls=images) for text in texts)


@given(st.text())
def test_the_length_is_that_of_utf_8(text: str) -> None:
    assert utf8_length(text) == len(text.encode())


def test_a_lone_surrogate_has_a_length_too() -> None:
    assert utf8_length("\ud800") == 3


def test_a_prompt_is_a_third_of_its_bytes_and_a_little_per_message() -> None:
    assert estimate_input_tokens(request(messages=messages("x" * 300, "y" * 301))) == 201 + 8


def test_an_image_counts_as_one_whatever_its_bytes() -> None:
    small, large = ("data:image/png;base64," + "A" * size for size in (4, 40_000))

    assert estimate_input_tokens(request(messages=messages("", images=(small,)))) == 1004
    assert estimate_input_tokens(request(messages=messages("", images=(large,)))) == 1004


def test_tools_count() -> None:
    bare = estimate_input_tokens(request())

    assert estimate_input_tokens(request(tools=(Tool("find", "d" * 296),))) == bare + 100


def test_the_callers_own_figure_decides_what_must_fit() -> None:
    assert least_total_tokens(request(messages=messages("x" * 10_000), estimated_tokens=7)) == 7


def test_without_it_the_prompt_at_its_least_and_the_asked_output_must_fit() -> None:
    asked = request(messages=messages("x" * 1000), sampling=Sampling(max_output_tokens=50))

    assert least_total_tokens(asked) == 250


@given(st.lists(st.builds(ContentDelta, text=st.text(), reasoning=st.text())))
def test_the_meter_counts_what_passes_however_it_is_cut(deltas: list[ContentDelta]) -> None:
    meter = OutputMeter()

    sizes = [meter.add(delta) for delta in deltas]

    text, reasoning = ("".join(getattr(delta, part) for delta in deltas) for part in ("text", "reasoning"))
    assert sum(sizes) == meter.total_bytes == len(text.encode()) + len(reasoning.encode())
    usage = meter.estimate(5)
    assert usage.input_tokens == 5
    assert 3 * usage.output_tokens >= len(text.encode())
    assert 3 * usage.reasoning_tokens >= len(reasoning.encode())


def test_tool_calls_are_output() -> None:
    meter = OutputMeter()

    meter.add(ContentDelta(tool_calls=(ToolCallDelta(0, "id", "find", '{"a":1}'),)))

    assert meter.estimate(0).output_tokens == 4
