"""The chunked coding of HTTP/1.1 where it is ordinary: whole chunks without extensions. The rest is left to a parser.

Pure. Servers send a chunk for each delta, so a burst is dozens of small ones: to take the ordinary ones apart here
costs a third of what it costs to have a parser call back for the begin, the content and the end of each.
"""

from __future__ import annotations

import re
from typing import Final

_LINE_END: Final = b"\r\n"
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,6})\r\n")


def whole_chunks(data: bytes, start: int) -> tuple[list[bytes], int]:
    """What the ordinary chunks from `start` on hold, and where the first bytes begin that are no such chunk.

    Those are a chunk that `data` cuts off, one with an extension, the last one, which is empty, or nothing valid.
    """
    contents, start = _well_cut_chunks(data, start)
    while (line := _SIZE_LINE.match(data, start)) is not None:
        begin = line.end()
        end = begin + int(line[1], 16)
        if end == begin or data[end : end + 2] != b"\r\n":
            break
        contents.append(data[begin:end])
        start = end + 2
    return contents, start


def _well_cut_chunks(data: bytes, start: int) -> tuple[list[bytes], int]:
    """The same in one step for all chunks, as long as no line end is in any of them; none of them else.

    Of a burst of 54 it takes 12 us, and one after the other 38.
    """
    parts = data[start:].split(_LINE_END)
    contents = parts[1:-1:2]  # each behind its size; behind the last line end is nothing, or what is cut off
    if contents and not contents[-1]:
        contents.pop()  # the last chunk
    sizes = parts[0 : 2 * len(contents) : 2]
    true_sizes = [b"%x" % size for size in map(len, contents)]
    if b" ".join(sizes).lower() != b" ".join(true_sizes) or b"" in contents:
        return [], start
    return contents, len(data) - len(_LINE_END.join(parts[2 * len(contents) :]))


def bytes_missing(data: bytes, start: int) -> int | None:
    """How many more bytes the ordinary chunk has that begins at `start` and is cut off; None where none begins."""
    line = _SIZE_LINE.match(data, start)
    if line is None:
        return None
    size = int(line[1], 16)
    missing = line.end() + size + 2 - len(data)
    return missing if size and missing > 0 else None
