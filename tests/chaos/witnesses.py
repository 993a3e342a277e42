"""What three witnesses say of a run: the callers' history, the provider's own log, and the tables.

Nothing here knows a service. Histories and logs are JSON lines that were flushed one by one, so that a witness who was
killed leaves at most half a line behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Tokens:
    """Five disjoint classes."""

    input: int = 0
    output: int = 0
    cached_read: int = 0
    cached_write: int = 0
    reasoning: int = 0

    @property
    def total(self) -> int:
        return self.input + self.output + self.cached_read + self.cached_write + self.reasoning

    @property
    def as_reported(self) -> tuple[int, int]:
        """Prompt and completion, which is how providers count."""
        return self.input + self.cached_read + self.cached_write, self.output + self.reasoning


@dataclass(frozen=True, slots=True)
class SeenAttempt:
    """An attempt that the caller was told of."""

    number: int
    event_id: str
    status: str


@dataclass(frozen=True, slots=True)
class Final:
    """The final message that a caller saw. `cost_usd` is '' when the caller saw none."""

    provider: str
    model: str
    tokens: Tokens
    cost_usd: str


@dataclass(frozen=True, slots=True)
class Call:
    """One request as its caller wrote it down. `outcome` is '' when the caller died before it knew.

    Outcomes: result, cancelled, or the reason or code of the error. `text_is_right` is None where there was no result.
    """

    request_id: str
    tenant_id: str
    router: str
    mode: str
    began_at: float
    outcome: str = ""
    last_event: str = ""
    ended_at: float = 0.0
    final: Final | None = None
    attempts: tuple[SeenAttempt, ...] = ()
    text_is_right: bool | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """One request as the provider logged it. `reported` is prompt and completion tokens; None when it never came to
    reporting. Times are wall-clock seconds.
    """

    request_id: str
    model: str
    tokens_generated: int
    reported: tuple[int, int] | None
    began_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the ledger."""

    id: str
    request_id: str
    tenant_id: str
    attempt: int
    provider: str
    model: str
    status: str
    absorbed: bool
    usage_source: str
    tokens: Tokens
    total_tokens: int
    cost_usd: Decimal | None
    router_id: str
    epoch: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Books:
    """What the tables say: rows, what was kept aside instead of stored, and where a rollup differs from its rows."""

    rows: Sequence[Row]
    kept_aside: Sequence[str] = ()
    rollup_differences: Sequence[str] = ()


def read_history(path: Path) -> list[Call]:
    """The requests of one client: a line when each began, and one when its end was known."""
    calls: dict[str, Call] = {}
    for line in _lines(path):
        if line["event"] == "begin":
            calls[line["id"]] = Call(line["id"], line["tenant"], line["router"], line["mode"], line["at"])
        else:
            began = calls[line["id"]]
            calls[line["id"]] = Call(
                began.request_id,
                began.tenant_id,
                began.router,
                began.mode,
                began.began_at,
                outcome=line["outcome"],
                last_event=line["last_event"],
                ended_at=line["at"],
                final=_final(line["final"]) if line["final"] else None,
                attempts=tuple(SeenAttempt(*attempt) for attempt in line["attempts"]),
                text_is_right=line["text_is_right"],
            )
    return list(calls.values())


def read_provider_log(path: Path) -> list[Served]:
    """The completions that the provider worked on."""
    return [
        Served(
            line["request_id"],
            line["model"],
            line["tokens_generated"],
            _reported(line["reported"]),
            line["began_at"],
            line["ended_at"],
        )
        for line in _lines(path)
        if line["request_id"]
    ]


def successes(lines: Iterable[Mapping[str, Any]]) -> Iterator[tuple[float, str]]:
    """When a caller saw a result, and from which router, among lines of a history."""
    for line in lines:
        if line["event"] == "end" and line["outcome"] == "result":
            yield line["at"], line["router"]


def parse_line(text: str) -> dict[str, Any] | None:
    """One line of a log; None for the half line of a witness who was killed."""
    try:
        line: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8").splitlines():
        if (line := parse_line(text)) is not None:
            yield line


def _final(final: Mapping[str, Any]) -> Final:
    return Final(final["provider"], final["model"], Tokens(*final["tokens"]), final["cost_usd"])


def _reported(usage: Mapping[str, int]) -> tuple[int, int] | None:
    return (usage["prompt_tokens"], usage["completion_tokens"]) if usage else None
