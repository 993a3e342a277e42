"""SQLite's write-ahead log, read without SQLite: has it lost frames in its middle, and what is left without them?

SQLite reads a log up to the first frame whose checksum is wrong and takes that for the end. After a crash it is; after
a flipped bit it is not, and every commit behind it would vanish without a word. A frame's checksum continues that of
the frame before, whose result stands in the file, so each frame can be judged by itself.
The format is described in sqlite.org/walformat.html.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections import Counter
from dataclasses import dataclass

_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_MAGIC = 0x377F0682  # the lowest bit says in which byte order checksums are computed
_FORMAT_VERSION = 3_007_000
_WORD = 0xFFFFFFFF
_NATIVE_ORDER_BIT = int(sys.byteorder == "big")

Checksum = tuple[int, int]


@dataclass(frozen=True, slots=True)
class MendedLog:
    """A log without its damaged frames, with fresh checksums; and how many frames were left out."""

    content: bytes
    lost_frames: int


@dataclass(frozen=True, slots=True)
class _Header:
    magic: int
    page_bytes: int
    sequence: int
    salt: bytes
    checksum: Checksum
    is_sound: bool


@dataclass(frozen=True, slots=True)
class _Frame:
    position: bytes  # page number and, in the last frame of a commit, the size of the file in pages; 0 in the others
    page: bytes
    is_sound: bool

    @property
    def ends_commit(self) -> bool:
        return self.position[4:] != b"\0\0\0\0"


def mend(log: bytes, *, page_bytes: int) -> MendedLog | None:
    """The log without damaged frames, or None when it is as SQLite wrote it and may be left to SQLite.

    `page_bytes` is the size of the database's pages, for a log whose header is damaged. Frames behind the last sound
    commit are an unfinished write and no damage. A flipped bit in the very last commit cannot be told from that.
    """
    if len(log) < _HEADER_BYTES + _FRAME_HEADER_BYTES or not any(log[:_HEADER_BYTES]):
        return None
    header = _header(log, page_bytes)
    frames = _frames(log, header)
    end = max((index + 1 for index, frame in enumerate(frames) if frame.is_sound and frame.ends_commit), default=0)
    sound = [frame for frame in frames[:end] if frame.is_sound]
    lost = end - len(sound)
    if lost == 0 and (header.is_sound or not sound):
        return None
    return MendedLog(_written(header, sound), lost)


def committed_pages(log: bytes, *, page_bytes: int) -> dict[int, bytes]:
    """The latest content of each page, by its number, in the sound frames up to the last commit."""
    if len(log) < _HEADER_BYTES + _FRAME_HEADER_BYTES or not any(log[:_HEADER_BYTES]):
        return {}
    frames = _frames(log, _header(log, page_bytes))
    end = max((index + 1 for index, frame in enumerate(frames) if frame.is_sound and frame.ends_commit), default=0)
    return {int.from_bytes(frame.position[:4], "big"): frame.page for frame in frames[:end] if frame.is_sound}


def _header(log: bytes, page_bytes: int) -> _Header:
    magic, version, stated_page_bytes, sequence = struct.unpack(">4I", log[:16])
    first, second = struct.unpack(">2I", log[24:32])
    is_known = magic & ~1 == _MAGIC and version == _FORMAT_VERSION
    if is_known and _checksum(log[:24], (0, 0), magic) == (first, second):
        return _Header(magic, stated_page_bytes, sequence, log[16:24], (first, second), is_sound=True)
    # Every frame repeats the salt, so the frames themselves say which it is.
    step = _FRAME_HEADER_BYTES + page_bytes
    salts = Counter(log[at + 8 : at + 16] for at in range(_HEADER_BYTES, len(log) - step + 1, step))
    salt = salts.most_common(1)[0][0] if salts else log[16:24]
    return _Header(_MAGIC | _NATIVE_ORDER_BIT, page_bytes, sequence, salt, (first, second), is_sound=False)


def _frames(log: bytes, header: _Header) -> list[_Frame]:
    """All frames of the file in order; those of earlier use of the file, whose salt is another, count as not sound."""
    frames: list[_Frame] = []
    step = _FRAME_HEADER_BYTES + header.page_bytes
    seeds = {header.checksum, _checksum(log[:24], (0, 0), header.magic)}
    for at in range(_HEADER_BYTES, len(log) - step + 1, step):
        frame = log[at : at + _FRAME_HEADER_BYTES]
        page = log[at + _FRAME_HEADER_BYTES : at + step]
        stated: Checksum = struct.unpack(">2I", frame[16:24])
        computed = {_checksum(page, _checksum(frame[:8], seed, header.magic), header.magic) for seed in seeds}
        frames.append(_Frame(frame[:8], page, frame[8:16] == header.salt and stated in computed))
        # Where the stated checksum is what was damaged, the computed one leads on; after more damage only the stated.
        may_lead_on = stated not in computed and len(computed) == 1
        seeds = {stated, *computed} if may_lead_on else {stated}
    return frames


def _written(header: _Header, frames: list[_Frame]) -> bytes:
    start = struct.pack(">4I", header.magic, _FORMAT_VERSION, header.page_bytes, header.sequence) + header.salt
    checksum = _checksum(start, (0, 0), header.magic)
    parts = [start, struct.pack(">2I", *checksum)]
    for frame in frames:
        checksum = _checksum(frame.page, _checksum(frame.position, checksum, header.magic), header.magic)
        parts += [frame.position, header.salt, struct.pack(">2I", *checksum), frame.page]
    return b"".join(parts)


def _checksum(content: bytes, seed: Checksum, magic: int) -> Checksum:
    words = array("I", content)
    if magic & 1 != _NATIVE_ORDER_BIT:
        words.byteswap()
    first, second = seed
    pairs = iter(words)
    for one, two in zip(pairs, pairs, strict=True):
        first = (first + one + second) & _WORD
        second = (second + two + first) & _WORD
    return first, second
