from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_service.providers.sse import SseDecoder, SseEvent, SseLimitExceeded
from tests.support.sse_standard import by_the_standard

LINES = st.sampled_from(
    [
        b"data: {}",
        b"data:{}",
        b"data:  two blanks",
        b"data",
        b"data:",
        b": comment",
        b"event: error",
        b"event",
        b"id: 7",
        b"retry: 10",
        b"nonsense",
        b"\xff\xfe",
        "data: a\u2028b".encode(),
        b"",
    ]
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    start = draw(st.sampled_from([b"", b"\xef\xbb\xbf", b"\xef\xbb"]))
    lines = draw(st.lists(st.tuples(LINES, ENDS), max_size=20))
    return start + b"".join(line + end for line, end in lines) + draw(st.sampled_from([b"", b"data: cut", b"\r"]))


def decode(*pieces: bytes) -> list[SseEvent]:
    decoder = SseDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)] + decoder.flush()


@given(streams(), st.data())
def test_any_split_of_the_bytes_gives_the_events_of_the_standard(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    assert decode(*pieces) == by_the_standard(stream)


@given(streams())
def test_one_byte_at_a_time_gives_the_events_of_the_standard(stream: bytes) -> None:
    assert decode(*(bytes([byte]) for byte in stream)) == by_the_standard(stream)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_are_taken_and_their_split_changes_nothing(stream: bytes, cut: int) -> None:
    assert decode(stream[:cut], stream[cut:]) == by_the_standard(stream)


def test_a_raw_line_separator_of_unicode_does_not_end_a_line() -> None:
    assert decode("data: a\u2028b\n\n".encode()) == [SseEvent("a\u2028b".encode())]


def test_an_event_that_the_end_cut_off_is_given_out() -> None:
    assert decode(b'data: {"error":1}') == [SseEvent(b'{"error":1}')]


def test_the_name_of_an_event_holds_for_that_event_only() -> None:
    assert decode(b"event: error\ndata: 1\n\ndata: 2\n\n") == [SseEvent(b"1", "error"), SseEvent(b"2")]


@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_a_line_without_an_end_is_refused_at_the_cap(piece: int) -> None:
    decoder = SseDecoder(max_line_bytes=10_000)
    for _ in range(10_000 // piece):
        assert decoder.feed(b"x" * piece) == []

    with pytest.raises(SseLimitExceeded, match="line"):
        decoder.feed(b"x" * piece)


def test_a_whole_line_over_the_cap_is_refused() -> None:
    with pytest.raises(SseLimitExceeded, match="line"):
        SseDecoder(max_line_bytes=100).feed(b"data: " + b"x" * 100 + b"\n\n")


def test_an_event_of_many_lines_is_refused_at_the_cap() -> None:
    decoder = SseDecoder(max_event_bytes=1000)

    with pytest.raises(SseLimitExceeded, match="event"):
        decoder.feed(b"data: 123456789\n" * 101)


def test_an_endless_stream_of_small_events_is_refused_at_the_cap() -> None:
    decoder = SseDecoder(max_total_bytes=1000)
    for _ in range(100):
        assert decoder.feed(b"data: 1\n\n\n")

    with pytest.raises(SseLimitExceeded, match="stream"):
        decoder.feed(b"data: 1\n\n\n")


def test_many_lines_in_small_pieces_cost_linear_work() -> None:
    decoder = SseDecoder()

    for _ in range(100_000):
        decoder.feed(b"data:x\n")  # quadratic joining would take minutes here

    assert len(decoder.flush()[0].data) == 199_999
