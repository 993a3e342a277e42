"""Page sizes and page tokens."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_service.domain import paging
from usage_service.domain.paging import BadPageToken, PageToken

MARK = paging.fingerprint("errors", "tenant", "filter")
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=50)


def token_of(*parts: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


@pytest.mark.parametrize(("asked", "size"), [(0, 50), (1, 1), (999, 999), (1000, 1000)])
def test_a_page_has_the_asked_size_or_the_default(asked: int, size: int) -> None:
    assert paging.page_size(asked, default=50) == size


@pytest.mark.parametrize("asked", [-1, 1001, 2**31 - 1])
def test_an_absurd_page_size_is_refused(asked: int) -> None:
    with pytest.raises(ValueError, match=f"must be 1 to 1000, or 0 for 50, not {asked}"):
        paging.page_size(asked, default=50)


@given(st.lists(texts, max_size=6))
def test_a_token_is_read_as_it_was_written(position: list[str]) -> None:
    token = PageToken(MARK, tuple(position))

    assert paging.decode(paging.encode(token), fingerprint=MARK, position_length=len(position)) == token


def test_a_token_of_a_request_with_another_filter_is_refused() -> None:
    token = paging.encode(PageToken(MARK, ("a",)))

    with pytest.raises(BadPageToken, match="other fields"):
        paging.decode(token, fingerprint=paging.fingerprint("errors", "tenant", "changed"), position_length=1)


def test_the_fingerprint_keeps_neighbouring_fields_apart() -> None:
    assert paging.fingerprint("errors", "ab", "c") != paging.fingerprint("errors", "a", "bc")


@pytest.mark.parametrize(
    "text",
    [
        "not base64!",
        "AAAA",
        "é",
        base64.urlsafe_b64encode(b"{}").decode(),
        base64.urlsafe_b64encode(b"[]").decode(),
        base64.urlsafe_b64encode(b"[" * 3000).decode(),
        "A" * 5000,
        token_of(1, MARK),
        token_of(1, MARK, "a", "b"),
        token_of(1, MARK, 7),
        token_of(1, MARK, None),
        token_of(1, MARK, "a\x00"),
        token_of(1),
    ],
)
def test_a_garbled_token_is_refused(text: str) -> None:
    with pytest.raises(BadPageToken, match="next_page_token unchanged"):
        paging.decode(text, fingerprint=MARK, position_length=1)


def test_a_token_of_another_version_is_refused_with_the_remedy() -> None:
    with pytest.raises(BadPageToken, match="start again without a token"):
        paging.decode(token_of(2, MARK, "a"), fingerprint=MARK, position_length=1)


@given(st.text(max_size=200))
def test_no_text_makes_reading_a_token_fail_otherwise(text: str) -> None:
    with pytest.raises(BadPageToken):
        paging.decode(text, fingerprint=MARK, position_length=1)
