"""Answers that are cut into pieces at any byte and sent at any pace, each a function of its seed alone.

What a provider sends and how it ends is so known to whoever asks it: `plan_of` is the script and the expectation.
"""

from __future__ import annotations

import enum
import json
import random
from dataclasses import dataclass
from itertools import accumulate

WORDS = (
    "tok ",
    "ü",
    "€uro ",
    "😀",
    "漢字 ",
    "a",
    "\u2028",
    "0\r\n\r\n",
    "data: x\n\n",
    'quo"te ',
)  # as JSON or as UTF-8
LONGEST_PAUSE_MS = 60  # a read window and a half
MOST_PAUSES_MS = 300


class Ending(enum.Enum):
    """What becomes of the connection after the last byte."""

    KEPT = "kept"
    CLOSED = "closed"
    RESET = "reset"


@dataclass(frozen=True)
class Plan:
    """One answer: `pieces` are bytes with the milliseconds to wait before each.

    `is_whole`: it comes to its `[DONE]`. `text` is what its whole events say, of a broken one as far as they are sent.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    pieces: tuple[tuple[float, bytes], ...]
    ending: Ending
    is_whole: bool


def plan_of(seed: int) -> Plan:
    """The answer of a seed: mostly short and whole, some long, some without their end, some broken off anywhere."""
    luck = random.Random(seed)
    texts = _texts(luck)
    prompt_tokens = luck.randrange(1, 500)
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(texts)}
    events = [_event(luck, {"choices": [{"index": 0, "delta": {"content": text}}]}) for text in texts]
    events.append(_event(luck, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    events.append(_event(luck, {"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
    fate = luck.choices(["kept", "closing", "endless", "broken"], [5, 2, 2, 4])[0]
    wire, ends = _framed(luck, events, is_last=fate != "kept", has_end=fate != "endless")
    ending = Ending.KEPT if fate == "kept" else Ending.CLOSED
    if fate == "broken":
        wire = wire[: luck.randrange(ends[len(texts)])]  # before the finish reason is there
        texts = [text for text, end in zip(texts, ends, strict=False) if end <= len(wire)]
        ending = luck.choice([Ending.CLOSED, Ending.RESET])
    pieces = _pieces(luck, wire)
    return Plan("".join(texts), prompt_tokens, usage["completion_tokens"], pieces, ending, fate != "broken")


def _texts(luck: random.Random) -> list[str]:
    if luck.random() < 0.1:
        return [luck.choice(WORDS) * luck.randrange(200, 1_000) for _ in range(luck.randrange(20, 60))]
    return [f"{luck.choice(WORDS)}{number} " for number in range(luck.randrange(1, 25))]


def _event(luck: random.Random, payload: object) -> bytes:
    line_end = luck.choice([b"\n", b"\n", b"\n", b"\r\n"])
    data = json.dumps({"id": "timed", "model": "timed", **payload}, ensure_ascii=luck.random() < 0.5)  # type: ignore[dict-item]
    return b"data: " + data.encode() + 2 * line_end


def _framed(luck: random.Random, events: list[bytes], *, is_last: bool, has_end: bool) -> tuple[bytes, list[int]]:
    """The answer as it goes over the wire, and where in it each event ends."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + (b"Connection: close\r\n" if is_last else b"")
    body = b"".join(events)
    if has_end and luck.random() < 0.2:
        head += b"Content-Length: %d\r\n\r\n" % len(body)
        return head + body, [len(head) + end for end in accumulate(map(len, events))]
    wire = bytearray(head + b"Transfer-Encoding: chunked\r\n\r\n")
    ends = []
    for event in events:
        parts = [event]
        if luck.random() < 0.3 and len(event) > 1:
            cut = luck.randrange(1, len(event))
            parts = [event[:cut], event[cut:]]
        for part in parts:
            extension = b";name=value" if luck.random() < 0.05 else b""
            wire += b"%x%b\r\n%b\r\n" % (len(part), extension, part)
        ends.append(len(wire) - 2)  # the chunk's own line end tells nothing more
    return bytes(wire) + (b"0\r\n\r\n" if has_end else b""), ends


def _pieces(luck: random.Random, wire: bytes) -> tuple[tuple[float, bytes], ...]:
    cuts = sorted(luck.randrange(len(wire) + 1) for _ in range(luck.choice([0, 3, 10, 25])))
    left_ms = float(MOST_PAUSES_MS)
    pieces = []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        pause_ms = min(left_ms, luck.choice([0.0, 6.0, float(LONGEST_PAUSE_MS)]) * luck.random())
        left_ms -= pause_ms
        pieces.append((pause_ms, wire[start:end]))
    return tuple(pieces)
