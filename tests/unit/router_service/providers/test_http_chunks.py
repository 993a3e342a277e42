from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_service.providers.http_chunks import bytes_missing, whole_chunks

# What could be taken for chunks stands in some of them.
MISLEADING = st.lists(st.sampled_from([b"\r\n", b"1", b"0\r\n\r\n", b"5\r\nhello\r\n"]), min_size=1, max_size=4)
CONTENTS = st.lists(st.binary(min_size=1, max_size=40) | MISLEADING.map(b"".join), max_size=8)


def coded(contents: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(content), content) for content in contents)


@given(CONTENTS, st.binary(max_size=8))
def test_ordinary_chunks_are_taken_up_to_the_first_other_byte(contents: list[bytes], before: bytes) -> None:
    data = before + coded(contents)

    assert whole_chunks(data + b"0\r\n\r\n", len(before)) == (contents, len(data))


@given(CONTENTS.filter(bool), st.data())
def test_a_chunk_that_is_cut_off_says_what_it_lacks(contents: list[bytes], data: st.DataObject) -> None:
    whole = coded(contents)
    last = len(coded(contents[:-1]))
    cut = data.draw(st.integers(whole.index(b"\n", last) + 1, len(whole) - 1))

    assert whole_chunks(whole[:cut], 0) == (contents[:-1], last)
    assert bytes_missing(whole[:cut], last) == len(whole) - cut


@pytest.mark.parametrize(
    "other",
    [
        *(b"", b"5", b"5\r", b"0\r\n\r\n", b"000\r\n\r\n", b"5;name=value\r\nhello\r\n", b"5 \r\nhello\r\n"),
        *(b"-5\r\nhello\r\n", b"+5\r\nhello\r\n", b"0x5\r\nhello\r\n", b"1_0\r\n" + b"x" * 16 + b"\r\n"),
        *(b"\r\nhello\r\n", b"5\nhello\n", b"5\r\nhello!\r\n", b"fffffff\r\nhello", b"\xd9\xa5\r\nhello\r\n"),
    ],
)
def test_what_is_no_ordinary_chunk_is_left_to_the_parser(other: bytes) -> None:
    assert whole_chunks(b"2\r\nab\r\n" + other, 0) == ([b"ab"], 7)
    assert bytes_missing(b"2\r\nab\r\n" + other, 7) is None


def test_sizes_are_read_in_both_cases_and_with_leading_zeros() -> None:
    assert whole_chunks(b"00A\r\n0123456789\r\na\r\n0123456789\r\n", 0) == ([b"0123456789"] * 2, 32)
