"""The journal's records, read from the pages of its file without SQLite: what is left when SQLite gives up.

SQLite finds a row through every page above it; damage to one of those, the first page before all, hides rows whose own
bytes are as they were written. Here each page is looked at by itself, and a record is known by its checksum. Pages that
are no longer in use may hold records of attempts that the ledger has long; it knows them again by their ids.
The format is described in sqlite.org/fileformat.html.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_TABLE_LEAF, _INDEX_LEAF, _INDEX_INNER = 0x0D, 0x0A, 0x02
_FILE_HEADER_BYTES = 100  # on the first page, before the page's own
_ID_BYTES = 16
_MAX_RECORD_BYTES = 1 << 20

Value = bytes | int | float | None


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A record with a good checksum. `is_settled`: it stood in the outbox or was held; else its attempt ran."""

    event_id: bytes
    payload: bytes
    is_settled: bool


def records(pages: Mapping[int, bytes]) -> Iterator[RawRecord]:
    """Every record of the tables `opened`, `held` and `outbox`, in the order of the pages, numbered from 1."""
    for number in sorted(pages):
        page = pages[number]
        for cell in _cells(page, _FILE_HEADER_BYTES if number == 1 else 0):
            content = _content(cell, page, pages)
            if content is not None and (record := _record(_values(content))) is not None:
                yield record


def split(content: bytes, page_bytes: int) -> dict[int, bytes]:
    """A database file as pages by number; a last one that was cut short is filled up with zeros."""
    return {
        at // page_bytes + 1: content[at : at + page_bytes].ljust(page_bytes, b"\0")
        for at in range(0, len(content), page_bytes)
    }


@dataclass(frozen=True, slots=True)
class _Cell:
    """Where a cell's content begins on its page, how long it is, and how much of it is on the page."""

    start: int
    size: int
    local: int


def _cells(page: bytes, offset: int) -> Iterator[_Cell]:
    kind = page[offset]
    if kind not in {_TABLE_LEAF, _INDEX_LEAF, _INDEX_INNER}:
        return
    (count,) = struct.unpack_from(">H", page, offset + 3)
    first = offset + (12 if kind == _INDEX_INNER else 8)
    for at in range(first, min(first + 2 * count, len(page) - 1), 2):
        (start,) = struct.unpack_from(">H", page, at)
        if not first < start < len(page) - 4:
            continue
        if kind == _INDEX_INNER:
            start += 4  # the page below comes first
        size, start = _varint(page, start)
        if kind == _TABLE_LEAF:
            _, start = _varint(page, start)
        if 0 < size <= _MAX_RECORD_BYTES:
            yield _Cell(start, size, _local_bytes(size, len(page), is_table=kind == _TABLE_LEAF))


def _local_bytes(size: int, page_bytes: int, *, is_table: bool) -> int:
    """How much of a record stands on its own page; the rest overflows."""
    most = page_bytes - 35 if is_table else (page_bytes - 12) * 64 // 255 - 23
    if size <= most:
        return size
    least = (page_bytes - 12) * 32 // 255 - 23
    balanced = least + (size - least) % (page_bytes - 4)
    return balanced if balanced <= most else least


def _content(cell: _Cell, page: bytes, pages: Mapping[int, bytes]) -> bytes | None:
    """A cell's content with what overflowed to other pages; None when it leads nowhere."""
    end = cell.start + cell.local
    if end > len(page):
        return None
    parts, left = [page[cell.start : end]], cell.size - cell.local
    if left == 0:
        return parts[0]
    following = page[end : end + 4]
    visited: set[int] = set()
    while left > 0:
        number = int.from_bytes(following, "big")
        overflow = pages.get(number)
        if overflow is None or number in visited:
            return None
        visited.add(number)
        parts.append(overflow[4 : 4 + left])
        left -= len(parts[-1])
        following = overflow[:4]
    return b"".join(parts)


def _values(content: bytes) -> list[Value]:
    """The columns of a record; empty when they do not fit together."""
    header_bytes, at = _varint(content, 0)
    if not at <= header_bytes <= min(len(content), 100):
        return []
    types: list[int] = []
    while at < header_bytes:
        kind, at = _varint(content, at)
        types.append(kind)
    values: list[Value] = []
    at = header_bytes
    for kind in types:
        size = _SIZES.get(kind, (kind - 12) // 2 if kind >= 12 else -1)
        if size < 0 or at + size > len(content):
            return []
        values.append(_value(kind, content[at : at + size]))
        at += size
    return values


_SIZES = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 7: 8, 8: 0, 9: 0}


def _value(kind: int, raw: bytes) -> Value:
    if kind == 0:
        return None
    if kind == 7:
        return float(struct.unpack(">d", raw)[0])
    if kind in {8, 9}:
        return kind - 8
    return raw if kind >= 12 else int.from_bytes(raw, "big", signed=True)


def _record(values: list[Value]) -> RawRecord | None:
    match values:
        case [bytes(event_id), bytes(payload), int(crc)]:  # opened
            is_settled = False
        case [bytes(event_id), bytes(payload), int(crc), bytes(), float() | int()]:  # held
            is_settled = True
        case [None, bytes(event_id), bytes(payload), int(crc), float() | int()]:  # outbox
            is_settled = True
        case _:
            return None
    if len(event_id) != _ID_BYTES or zlib.crc32(payload) != crc:
        return None
    return RawRecord(event_id, payload, is_settled)


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of one to nine bytes and where it ends; past the end of the content its bytes are zero."""
    number = 0
    for step in range(8):
        byte = content[at + step] if at + step < len(content) else 0
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            return number, at + step + 1
    last = content[at + 8] if at + 8 < len(content) else 0
    return number << 8 | last, at + 9
