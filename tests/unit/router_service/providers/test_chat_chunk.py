from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_service.providers.chat_chunk import decode_chunk, decode_together
from router_service.providers.loose_json import NotJson

TEXTS = st.sampled_from(["", "a", "}", "{", "}{", '"', "\n", "é", "\ud800"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.fixed_dictionaries({}, optional={"id": VALUES, "choices": VALUES, "usage": VALUES, "other": VALUES})
WRITTEN = OBJECTS.map(lambda value: json.dumps(value).encode())
PIECES = st.sampled_from(
    [b"{}", b"{}{}", b'{"id":"a"', b',"model":"b"}', b'{"id":{}', b"}", b'{"id":"', b'"}', b"[DONE]", b"", b"{}\n{}"]
)


def chunk(text: str) -> bytes:
    return json.dumps({"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"content": text}}]}).encode()


def one_by_one(data: list[bytes]) -> list[Any] | None:
    try:
        return [decode_chunk(each) for each in data]
    except NotJson:
        return None


def test_usual_chunks_that_came_together_are_decoded_together() -> None:
    data = [chunk(text) for text in ("a", "}", "é", '"\n{')]

    assert decode_together(data) == one_by_one(data) != []


@given(st.lists(WRITTEN | PIECES, min_size=1, max_size=5))
def test_what_is_decoded_together_is_what_it_is_one_by_one(data: list[bytes]) -> None:
    together = decode_together(data)

    assert together in ([], one_by_one(data))


@pytest.mark.parametrize(
    "data",
    [
        [b'{"id":"a",', b'"model":"b"}'],
        [b'{"id":"a",', b'"model":"b"}{}'],  # as many values as events, none of which is one
        [b'{"id":{}', b"}{}"],
        [b'{"id":"}', b'{"}', b"{}{}"],
        [b"{}\n{}", b"{}", b"{"],
        [b"{}{}", b"{}"],
        [b"{}", b"[DONE]"],
        [b"{}", b""],
    ],
)
def test_chunks_that_are_not_one_value_each_are_left_to_be_decoded_one_by_one(data: list[bytes]) -> None:
    assert decode_together(data) == []


@pytest.mark.parametrize("odd", [b'{"id":5,', b'{"id":NaN,', b'{"id":"\\ud800",'])
def test_an_odd_chunk_is_read_only_if_it_is_short(odd: bytes) -> None:
    junk = b'"choices":[],"other":[' + b"[]," * 300_000 + b"1]}"

    assert decode_chunk(odd + b'"choices":[],"model":"m"}').model == "m"
    with pytest.raises(NotJson, match="too long"):
        decode_chunk(odd + junk)
    assert decode_chunk(b"{" + junk).choices == []
