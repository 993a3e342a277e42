"""The taxonomy of provider failures as a table: what a provider does, what a caller sees, what the books say.

Each row is one request of a tenant of its own. Its first provider follows the row's script; then there is a second one
that answers well, unless the row has none. A script is a model's name, and made unique by the row's number, so that no
row shares a route, a breaker or a key with another.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from email.utils import formatdate

from router_service.domain.errors import FailureKind as Kind

GOOD = "ok?n=4"
GOOD_TEXT = "tok0 tok1 tok2 tok3 "
LARGE_WINDOW = "google/gemini-3.8-flash"  # served by the provider's default script
HALF = "tok0 tok1 "
SETUP = ("FAILED_PRECONDITION", "NO_PROVIDER")
RATE = ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
FAR_AWAY = formatdate(4_000_000_000, usegmt=True).replace(" ", "+")


class Call(enum.Enum):
    """How the request is made."""

    STREAM = "stream"
    RESTARTED = "stream, with restarts"
    WHOLE = "whole"


@dataclass(frozen=True)
class Row:
    """One failure and everything that follows from it.

    `other` is the second provider's model; empty: there is none. `tries` is how often the first provider is asked.
    `code` and `reason` are those of the error, empty when the second one answers. `text` came before the failure.
    `retry_after_s` is what the error's RetryInfo says. `usage_source` is that of the first row in the ledger.
    """

    kind: Kind
    script: str
    other: str = GOOD
    tries: int = 1
    code: str = ""
    reason: str = ""
    text: str = ""
    retry_after_s: float | None = None
    usage_source: str = "NONE"
    call: Call = Call.STREAM
    first: str = "groq"
    has_own_key: bool = True
    other_has_own_key: bool = True

    @property
    def name(self) -> str:
        """What a test is called after."""
        alone = "" if self.other else ", alone"
        return f"{self.kind.value}: {self.script[:60]}{alone}, {self.call.value}"

    @property
    def second(self) -> str:
        return "openrouter" if self.first == "groq" else "groq"

    def alone(self, code: str = "UNAVAILABLE", reason: str = "ALL_TARGETS_FAILED", *, tries: int = 1) -> Row:
        """The same without a second provider."""
        return replace(self, other="", code=code, reason=reason, tries=tries)

    def refused_for_the_key(self) -> Row:
        return replace(self, code="FAILED_PRECONDITION", reason="PROVIDER_KEY_REJECTED")

    def waiting(self, seconds: float) -> Row:
        return replace(self, retry_after_s=seconds)


def _final(kind: Kind, script: str, reason: str, code: str = "INVALID_ARGUMENT") -> Row:
    return Row(kind, script, code=code, reason=reason)


def _broken(script: str, *, usage_source: str = "ESTIMATED", kind: Kind = Kind.STREAM_BROKEN) -> list[Row]:
    """A stream that breaks after content: the caller's choice decides, and both attempts are accounted."""
    row = Row(kind, script, text=HALF, usage_source=usage_source)
    return [
        replace(row, code="UNAVAILABLE", reason="STREAM_INTERRUPTED"),
        replace(row, call=Call.RESTARTED),
        replace(row, call=Call.WHOLE),
    ]


_KEYS = [
    Row(Kind.KEY_REJECTED, "status?code=401&error=invalid_api_key").refused_for_the_key(),
    Row(Kind.KEY_REJECTED, "status?code=401&shape=string&message=Unauthorized").refused_for_the_key(),
    Row(Kind.KEY_REJECTED, "status?code=401&shape=detail&message=Invalid+API+key").refused_for_the_key(),
    Row(Kind.KEY_REJECTED, "status?code=401", has_own_key=False),
    Row(Kind.NO_CREDIT, "status?code=402&error=payment_required"),
    Row(Kind.NO_CREDIT, "status?code=402&shape=detail&message=upgrade+required"),
    Row(Kind.NO_CREDIT, "status?code=429&error=insufficient_quota"),
    Row(Kind.NO_CREDIT, "status?code=402", other_has_own_key=False).refused_for_the_key(),
    Row(Kind.NO_CREDIT, "status?code=402", first="openrouter", has_own_key=False),
]
_REQUESTS = [
    _final(Kind.BAD_REQUEST, "status?code=400", "PROVIDER_REFUSED_REQUEST"),
    _final(Kind.BAD_REQUEST, "status?code=422&error=unprocessable", "PROVIDER_REFUSED_REQUEST"),
    _final(Kind.CONTENT_REFUSED, "status?code=403&error=content_policy_violation", "CONTENT_REFUSED"),
    _final(Kind.CONTENT_REFUSED, "status?code=403&message=flagged+by+moderation", "CONTENT_REFUSED"),
    _final(Kind.CONTEXT_TOO_LONG, "status?code=400&error=context_length_exceeded", "CONTEXT_LENGTH"),
    Row(Kind.CONTEXT_TOO_LONG, "status?code=400&type=exceed_context_size_error", other=LARGE_WINDOW),
    Row(Kind.CONTEXT_TOO_LONG, "status?code=400&message=maximum+context+length+is+8192", other=LARGE_WINDOW),
    Row(Kind.REQUEST_TOO_LARGE, "status?code=413&error=rate_limit_exceeded&type=tokens"),
    Row(Kind.REQUEST_TOO_LARGE, "status?code=413").alone(code="INVALID_ARGUMENT", reason="REQUEST_TOO_LARGE"),
    Row(Kind.NOT_ALLOWED, "status?code=403"),
    Row(Kind.NOT_ALLOWED, "status?code=403&error=region_restricted").alone(*SETUP),
    Row(Kind.MODEL_GONE, "status?code=400&error=model_decommissioned"),
    Row(Kind.MODEL_GONE, "status?code=404&error=model_not_found"),
    Row(Kind.MODEL_GONE, "status?code=404&message=model+x+not+found,+try+pulling+it+first").alone(*SETUP),
    Row(Kind.MODEL_MISBEHAVED, "status?code=400&error=tool_use_failed", tries=2),
    Row(Kind.MODEL_MISBEHAVED, "error?shape=groq-event&error=json_validate_failed", tries=2, usage_source="ESTIMATED"),
    Row(Kind.MODEL_MISBEHAVED, "ok?n=0", tries=2, usage_source="PROVIDER"),
]
_LIMITS = [
    Row(Kind.RATE_LIMITED, "status?code=429"),
    Row(Kind.RATE_LIMITED, "status?code=429&retry_after=30"),
    Row(Kind.RATE_LIMITED, "error?shape=choice&error=rate_limit_exceeded", usage_source="ESTIMATED"),
    Row(Kind.RATE_LIMITED, "status?code=429&retry_after=30").alone(*RATE).waiting(30),
    Row(Kind.RATE_LIMITED, "status?code=429&retry_after=1000000000").alone(*RATE).waiting(60),
    Row(Kind.RATE_LIMITED, f"status?code=429&retry_after={FAR_AWAY}").alone(*RATE).waiting(60),
    Row(Kind.RATE_LIMITED, "status?code=429&message=Please+try+again+in+5.289s.").alone(*RATE).waiting(5.289),
    Row(Kind.RATE_LIMITED, "status?code=429&reset_tokens=1m2.5s").alone(*RATE).waiting(60),
    Row(Kind.RATE_LIMITED, "status?code=429&retry_after=-1").alone(*RATE, tries=2).waiting(0),
    Row(Kind.OVERLOADED, "status?code=503"),
    Row(Kind.OVERLOADED, "status?code=498"),
    Row(Kind.OVERLOADED, "status?code=529&error=provider_overloaded"),
    Row(Kind.OVERLOADED, "error?shape=x_groq&message=over+capacity", usage_source="ESTIMATED"),
    Row(Kind.OVERLOADED, "status?code=503&retry_after=20").alone().waiting(20),
    Row(Kind.OVERLOADED, "status?code=503&shape=html").alone(tries=2),
]
_UPSTREAM = [
    *(Row(Kind.UPSTREAM_BROKEN, f"status?code={code}") for code in (500, 502, 504, 520, 524)),
    Row(Kind.UPSTREAM_BROKEN, "gzip?code=500&mib=1"),
    *(
        Row(Kind.UPSTREAM_BROKEN, f"error?shape={shape}", usage_source="ESTIMATED")
        for shape in ("object", "string", "detail", "finish")
    ),
    Row(Kind.UPSTREAM_BROKEN, "cut", usage_source="ESTIMATED"),
    Row(Kind.UPSTREAM_BROKEN, "cut?done=1", usage_source="ESTIMATED"),
    Row(Kind.UPSTREAM_BROKEN, "status?code=500&retry_after=0").alone(tries=2).waiting(0),
    replace(_final(Kind.BAD_REQUEST, "error?shape=openrouter", "PROVIDER_REFUSED_REQUEST"), usage_source="PROVIDER"),
    replace(
        Row(Kind.CONTEXT_TOO_LONG, "error?shape=json&error=context_length_exceeded", other=LARGE_WINDOW),
        usage_source="ESTIMATED",
    ),
    Row(Kind.PROTOCOL_VIOLATION, "garbage?kind=json", usage_source="ESTIMATED"),
    Row(Kind.PROTOCOL_VIOLATION, "garbage?kind=html", usage_source="ESTIMATED"),
    Row(Kind.PROTOCOL_VIOLATION, "gzip?mib=1", usage_source="ESTIMATED"),
    Row(Kind.PROTOCOL_VIOLATION, "redirect"),
    Row(Kind.PROTOCOL_VIOLATION, "whole?pad=5000000", usage_source="ESTIMATED").alone(tries=2),
]
_TRANSPORT = [
    Row(Kind.CONNECT_FAILED, "ok", first="local", tries=0, has_own_key=False),
    Row(Kind.CONNECT_FAILED, "ok", first="local", has_own_key=False).alone(tries=0),
    *(
        Row(Kind.TRANSPORT_FAILED, script, usage_source="ESTIMATED")
        for script in ("reset?headers=0", "close?headers=0", "reset?pause_ms=20", "close", "huge-headers?size=300000")
    ),
    Row(Kind.TRANSPORT_FAILED, "reset?headers=0", usage_source="ESTIMATED").alone(),
    *(
        Row(Kind.TIMED_OUT, script, usage_source="ESTIMATED")
        for script in ("silence", "silence?headers=0", "trickle?gap_ms=50", "trickle?what=empty&gap_ms=50")
    ),
    Row(Kind.TIMED_OUT, "silence", usage_source="ESTIMATED").alone(),
    Row(Kind.POLICY_REFUSED, "ok", first="llm7", tries=0, has_own_key=False),
    Row(Kind.POLICY_REFUSED, "ok", first="llm7", tries=0, has_own_key=False).alone(*SETUP, tries=0),
]
_MIDSTREAM = [
    *_broken("cut?after=2"),
    *_broken("cut?after=2&done=1"),
    *_broken("reset?after=2&pause_ms=100"),
    *_broken("close?after=2"),
    *_broken("close?after=2&gap_ms=10"),  # while what may come next is held back by a read window
    *_broken("garbage?kind=json&after=2"),
    *_broken("ok?n=2&finish=eos", usage_source="PROVIDER"),
    *_broken("error?after=2&shape=openrouter", usage_source="PROVIDER"),
    *(row for shape in ("object", "groq-event", "x_groq") for row in _broken(f"error?after=2&shape={shape}")),
    *(_broken(f"error?after=2&shape={shape}")[0] for shape in ("string", "detail", "finish", "choice")),
    *_broken("silence?after=2", kind=Kind.TIMED_OUT),
    _broken("trickle?after=2&gap_ms=50", kind=Kind.TIMED_OUT)[0],
]

ROWS = tuple(
    replace(row, script=f"{row.script}{'&' if '?' in row.script else '?'}row={number}")
    for number, row in enumerate([*_KEYS, *_REQUESTS, *_LIMITS, *_UPSTREAM, *_TRANSPORT, *_MIDSTREAM])
)
