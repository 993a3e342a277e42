"""The chunks of OpenAI's chat stream as typed values, read fast when they are as they should be, else generously.

Every text in them is fit for UTF-8: the fast decoder takes no other, the generous one replaces what is not.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from router_service.providers.loose_json import NotJson, decode_loosely, text_of


class Function(msgspec.Struct, gc=False):
    """A part of a function call."""

    name: str | None = None
    arguments: str | None = None


class CallPart(msgspec.Struct, gc=False):
    """A part of a tool call. Some vendors leave `index` out."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Delta(msgspec.Struct, gc=False):
    """What a choice adds. Vendors name reasoning in two ways."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallPart] | None = None


class Choice(msgspec.Struct, gc=False):
    """One choice of the chunk: with `delta` in a stream, with `message` in a whole answer."""

    index: int | None = 0
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None
    error: Any = None


class Chunk(msgspec.Struct, gc=False):
    """One event's data. What may take any form is Any here and is judged where it is used."""

    id: str | None = None
    model: str | None = None
    choices: list[Choice] | None = None
    usage: Any = None
    x_groq: Any = None
    timings: Any = None
    error: Any = None
    detail: Any = None


_decoder: Final = msgspec.json.Decoder(Chunk)
_decode_typed: Final = _decoder.decode
_decode_lines: Final = _decoder.decode_lines


def decode_chunk(data: bytes) -> Chunk:
    """The chunk in `data`; fields of a wrong type count as absent. Raises `NotJson` when there is no JSON object."""
    try:
        return _decode_typed(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _chunk_from_any(decode_loosely(data))


def decode_together(data: list[bytes]) -> list[Chunk]:
    """The chunks in the `data` of events that came together, one of each; none where they must be decoded one by one.

    One step for a burst: of 53 chunks it takes 26 us instead of 45.
    """
    lines = b"\n".join(data)
    borders = len(data) - 1
    # Neither is a line end ever part of a text, nor "}{" of a value. So nothing spans two events that end and begin so,
    # and as many values as there are events are one of each.
    if not (lines.count(b"\n") == lines.count(b"}\n{") == borders and lines[:1] == b"{" and lines[-1:] == b"}"):
        return []
    try:
        chunks = _decode_lines(lines)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []
    return chunks if len(chunks) == len(data) else []


def lone_text(chunk: Chunk) -> str | None:
    """The text of a chunk that brings text and nothing else but its id and model, as nearly all do; None of another.

    Then nothing else of it has to be looked at: a burst of 53 takes 19 us instead of 37.
    """
    choices = chunk.choices
    if (
        choices is None
        or len(choices) != 1
        or chunk.usage is not None
        or chunk.error is not None
        or chunk.x_groq is not None
        or chunk.timings is not None
    ):
        return None
    choice = choices[0]
    delta = choice.delta
    if delta is None or choice.index or choice.finish_reason is not None or choice.error is not None:
        return None
    if delta.reasoning is not None or delta.reasoning_content is not None or delta.tool_calls is not None:
        return None
    return delta.content or None


def _chunk_from_any(value: object) -> Chunk:
    if not isinstance(value, dict):
        raise NotJson("not a JSON object")
    choices = value.get("choices")
    return Chunk(
        id=text_of(value.get("id")),
        model=text_of(value.get("model")),
        choices=[_choice(choice) for choice in choices if isinstance(choice, dict)]
        if isinstance(choices, list)
        else None,
        usage=value.get("usage"),
        x_groq=value.get("x_groq"),
        timings=value.get("timings"),
        error=value.get("error"),
        detail=value.get("detail"),
    )


def _choice(value: dict[str, Any]) -> Choice:
    index = value.get("index")
    return Choice(
        index=index if isinstance(index, int) else 0,
        delta=_delta(value.get("delta")),
        message=_delta(value.get("message")),
        finish_reason=text_of(value.get("finish_reason")),
        error=value.get("error"),
    )


def _delta(value: object) -> Delta | None:
    if not isinstance(value, dict):
        return None
    calls = value.get("tool_calls")
    return Delta(
        content=_content(value.get("content")),
        reasoning=text_of(value.get("reasoning")),
        reasoning_content=text_of(value.get("reasoning_content")),
        tool_calls=[_call(call) for call in calls if isinstance(call, dict)] if isinstance(calls, list) else None,
    )


def _content(value: object) -> str:
    if isinstance(value, list):  # the form of content parts, which some servers also stream
        return "".join(text_of(part.get("text")) for part in value if isinstance(part, dict))
    return text_of(value)


def _call(value: dict[str, Any]) -> CallPart:
    function = value.get("function")
    index = value.get("index")
    if isinstance(index, str) and index.isascii() and index.isdigit() and len(index) < 10:
        index = int(index)
    return CallPart(
        index=index if isinstance(index, int) and not isinstance(index, bool) else None,
        id=text_of(value.get("id")),
        function=Function(name=text_of(function.get("name")), arguments=_arguments(function.get("arguments")))
        if isinstance(function, dict)
        else None,
    )


def _arguments(value: object) -> str:
    if isinstance(value, dict | list):  # an object where its text belongs
        return json.dumps(value)
    return text_of(value)
