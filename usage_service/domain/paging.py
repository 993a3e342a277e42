"""Page sizes and page tokens.

A token says where the page before ended and which window the first page resolved, so that "the last 24 hours" stays
the same while a caller turns pages. It also carries a fingerprint of the request: a token used with another filter is
refused instead of answering from the wrong place. Tokens are opaque but hold no secret and grant nothing: the tenant
is part of the fingerprint and every value in a token is checked like any other input.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

MAX_PAGE_SIZE = 1000
MAX_TOKEN_CHARS = 4096  # the longest position, a failure's labels, is about 1200 characters

_VERSION = 1


class BadPageToken(ValueError):
    """A page token that this service did not give out, gave out in another version, or for another request."""


@dataclass(frozen=True, slots=True)
class PageToken:
    """Where the next page begins: after the entry whose sort key is `position`."""

    fingerprint: str
    position: tuple[str, ...]


def page_size(asked: int, *, default: int) -> int:
    """The number of entries for a page: `default` for 0. Raises ValueError when negative or over 1000."""
    if not 0 <= asked <= MAX_PAGE_SIZE:
        raise ValueError(f"must be 1 to {MAX_PAGE_SIZE}, or 0 for {default or 'all'}, not {asked}")
    return asked or default


def fingerprint(report: str, *fields: str) -> str:
    """A short hash of everything that must stay the same from page to page."""
    text = json.dumps([report, *fields])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encode(token: PageToken) -> str:
    """The token as the caller sees it."""
    text = json.dumps([_VERSION, token.fingerprint, *token.position], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode()


def decode(text: str, *, fingerprint: str, position_length: int) -> PageToken:
    """Read a token that must belong to the request with this `fingerprint`. Raises BadPageToken."""
    parts = _parts(text)
    if parts[0] != _VERSION:
        raise BadPageToken("comes from another version of this service; start again without a token")
    if len(parts) != position_length + 2 or not all(_is_text(part) for part in parts[1:]):
        raise BadPageToken("is not a token of this method; pass next_page_token unchanged")
    if parts[1] != fingerprint:
        raise BadPageToken("belongs to a request with other fields; repeat those of the first page, or start again")
    return PageToken(fingerprint, tuple(str(part) for part in parts[2:]))


def _is_text(part: object) -> bool:
    # U+0000 is in nothing that the ledger holds, and Postgres refuses to compare with it.
    return isinstance(part, str) and "\x00" not in part


def _parts(text: str) -> Sequence[object]:
    garbled = "is not a page token; pass next_page_token unchanged"
    if len(text) > MAX_TOKEN_CHARS:
        raise BadPageToken(garbled)
    try:
        parts = json.loads(base64.b64decode(text.encode(), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise BadPageToken(garbled) from error
    if not isinstance(parts, list) or not parts:
        raise BadPageToken(garbled)
    return parts
