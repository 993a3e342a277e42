"""OpenAI's chat stream, read: from events to content, usage and an honest end. Pure; `chat_request` writes requests.

An answer has succeeded when a valid finish reason was seen, no error object was seen, and the stream came to its end.
`[DONE]` alone proves nothing: vendors send it after errors, and in place of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from operator import attrgetter
from typing import Final

from router_service.domain.completion import (
    ContentDelta,
    FinishReason,
    ProviderFinished,
    ProviderIdentified,
    ToolCallDelta,
)
from router_service.domain.errors import FailureKind, ProviderError
from router_service.domain.usage import TokenUsage
from router_service.providers.chat_chunk import CallPart, Choice, Chunk, decode_chunk, decode_together, lone_text
from router_service.providers.error_mapping import error_from_stream, sentence
from router_service.providers.loose_json import NotJson, decode_loosely, label_of
from router_service.providers.sse import SseEvent
from router_service.providers.token_counts import cost_from_usage, usage_from_openai, usage_from_timings

_FINISH_REASONS: Final[Mapping[str, FinishReason]] = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}
_DONE: Final = b"[DONE]"
_name_of: Final = attrgetter("name")
_NOTHING: Final[Mapping[str, object]] = {}
_MAX_TOOL_CALLS: Final = 128
_MAX_TOOL_LABEL: Final = 1024


class ChatDecoder:
    """Takes the events of one answer, gives its content, and says at the end how it ended.

    After every `feed` ask `failure`: content that came before an error is handed out first. Then `is_over` says that
    nothing more is to be read, and `finish` gives the result.
    """

    def __init__(self) -> None:
        self.failure: ProviderError | None = None
        self.is_over = False
        self._content = _Coalescer()
        self._saw_event = False
        self._has_identified = False
        self._finish_reason: FinishReason | None = None
        self._model = ""
        self._stated_model = ""
        self._response_id = ""
        self._usage: TokenUsage | None = None
        self._usage_of_groq: TokenUsage | None = None
        self._usage_of_timings: TokenUsage | None = None
        self._cost_usd: Decimal | None = None

    def identity(self) -> tuple[ProviderIdentified, ...]:
        """Which answer this is and which model gives it: given once, as soon as a chunk has said so."""
        if self._has_identified or not (self._response_id or self._model):
            return ()
        self._has_identified = True
        return (ProviderIdentified(self._response_id, self._model),)

    @property
    def has_content(self) -> bool:
        """Whether any content was handed out, reasoning and tool calls included."""
        return self._content.has_given

    @property
    def expects_content(self) -> bool:
        """Whether more content may come: neither a finish reason nor an error nor the end was seen."""
        return self._finish_reason is None and not self.is_over

    def feed(self, events: Sequence[SseEvent], *, may_be_cut: bool = False) -> list[ContentDelta]:
        """The content of `events`, joined as far as its order allows. Never raises.

        `may_be_cut` says that the last event is what the end of the stream left over: nonsense there is no fault.
        """
        usual = _usual_chunks(events)
        self._saw_event = self._saw_event or bool(usual)
        self._take_chunks(usual)
        for event in events[len(usual) :]:
            if self.is_over:
                break
            chunk = self._chunk_of(event, may_be_cut=may_be_cut)
            if chunk is not None:
                self._take_chunks([chunk])
        return self._content.take()

    def finish(self) -> ProviderFinished:
        """The result of an answer whose stream has ended. Raises the `ProviderError` of one that did not end well."""
        if self.failure is not None:
            raise self.failure
        if self._finish_reason is None:
            if self.has_content:
                raise self._error(FailureKind.STREAM_BROKEN, "it ended without a finish reason")
            what = "it ended without an answer" if self._saw_event else "it was empty"
            raise self._error(FailureKind.UPSTREAM_BROKEN, what)
        return ProviderFinished(
            finish_reason=self._finish_reason,
            usage=self._reported_usage(),
            model=self._model,
            response_id=self._response_id,
            reported_cost_usd=self._cost_usd,
        )

    def broken(self, kind: FailureKind, why: str, *, may_have_reached_provider: bool = True) -> ProviderError:
        """The error of an answer that broke off outside of its events: STREAM_BROKEN once there was content."""
        kind = FailureKind.STREAM_BROKEN if self.has_content else kind
        return self._error(kind, why, may_have_reached_provider=may_have_reached_provider)

    def _chunk_of(self, event: SseEvent, *, may_be_cut: bool) -> Chunk | None:
        """The chunk that `event` brings; None where it brings none, after what it says instead was taken."""
        data = event.data.strip()
        if not data:
            return None
        self._saw_event = True
        if data == _DONE:
            self.is_over = True
            return None
        if event.name == "error":
            self._fail(_payload_of(data))
            return None
        try:
            return decode_chunk(data)
        except NotJson:
            if not may_be_cut:
                self._stop(self.broken(FailureKind.PROTOCOL_VIOLATION, "an event is not JSON"))
            return None

    def _take_chunks(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            if self.is_over:
                break
            text = lone_text(chunk)
            if text is None or chunk.model != self._stated_model or not self._response_id:
                self._take_chunk(chunk)
            else:
                self._content.add_text(text)

    def _take_chunk(self, chunk: Chunk) -> None:
        if chunk.model and chunk.model != self._stated_model:  # each chunk repeats it
            self._stated_model = chunk.model
            self._model = label_of(chunk.model)
        if chunk.id and not self._response_id:
            self._response_id = label_of(chunk.id)
        groq = chunk.x_groq if isinstance(chunk.x_groq, dict) else _NOTHING
        if chunk.usage is not None or groq or chunk.timings is not None:
            self._take_usage(chunk, groq.get("usage"))
        choice = _first_choice(chunk)
        if choice is not None:
            self._take_choice(choice)
        error = chunk.error or groq.get("error") or (choice is not None and choice.error)
        if not error and chunk.detail and choice is None:
            error = {"detail": chunk.detail}
        if not error and choice is not None and choice.finish_reason == "error":
            error = {"type": "server_error"}
        if error:
            self._fail(error)

    def _take_choice(self, choice: Choice) -> None:
        delta = choice.delta or choice.message
        if delta is not None:
            reasoning = delta.reasoning or delta.reasoning_content
            if reasoning:
                self._content.add_reasoning(reasoning)
            if delta.content:
                self._content.add_text(delta.content)
            if delta.tool_calls:
                parts = delta.tool_calls[:_MAX_TOOL_CALLS]
                if not all(map(self._content.add_tool_call, parts)) or len(parts) < len(delta.tool_calls):
                    self._stop(self.broken(FailureKind.PROTOCOL_VIOLATION, f"over {_MAX_TOOL_CALLS} tool calls"))
                    return
        if choice.finish_reason:
            self._finish_reason = _FINISH_REASONS.get(choice.finish_reason)

    def _take_usage(self, chunk: Chunk, of_groq: object) -> None:
        # The last report wins; reports are totals so far and are never added.
        if chunk.usage is not None:
            self._usage = usage_from_openai(chunk.usage) or self._usage
            cost_usd = cost_from_usage(chunk.usage)
            self._cost_usd = self._cost_usd if cost_usd is None else cost_usd
        if of_groq is not None:
            self._usage_of_groq = usage_from_openai(of_groq) or self._usage_of_groq
        if chunk.timings is not None:
            self._usage_of_timings = usage_from_timings(chunk.timings) or self._usage_of_timings

    def _reported_usage(self) -> TokenUsage | None:
        return self._usage or self._usage_of_groq or self._usage_of_timings

    def _fail(self, payload: object) -> None:
        self._stop(error_from_stream(payload, after_content=self.has_content))

    def _stop(self, error: ProviderError) -> None:
        self._tell_consumption(error)
        self.failure = error
        self.is_over = True

    def _error(self, kind: FailureKind, why: str, *, may_have_reached_provider: bool = True) -> ProviderError:
        error = ProviderError(
            kind, f"{sentence(kind)}: {why}", status=200, may_have_reached_provider=may_have_reached_provider
        )
        self._tell_consumption(error)
        return error

    def _tell_consumption(self, error: ProviderError) -> None:
        error.usage = self._reported_usage()
        error.reported_cost_usd = self._cost_usd
        error.model = self._model


class _Coalescer:
    """Joins content that arrived together, without changing its order: reasoning, then text, then tool calls."""

    def __init__(self) -> None:
        self.has_given = False
        self._done: list[ContentDelta] = []
        self._reasoning: list[str] = []
        self._text: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self._numbers: dict[int | str, int] = {}  # the vendor's index, or the id where it sends none → ours, dense
        self._last_number = 0
        self._named: set[int] = set()
        self._identified: set[int] = set()

    def add_reasoning(self, text: str) -> None:
        if self._text or self._calls:
            self._cut()
        self._reasoning.append(text)
        self.has_given = True

    def add_text(self, text: str) -> None:
        if self._calls:
            self._cut()
        self._text.append(text)
        self.has_given = True

    def add_tool_call(self, part: CallPart) -> bool:
        """Add a part of a tool call; False when there are too many calls to go on."""
        number = self._number(part)
        if number is None:
            return False
        # Some vendors repeat id and name in every part; only the first part of a call has them here.
        call_id = (part.id or "")[:_MAX_TOOL_LABEL] if number not in self._identified else ""
        function = part.function
        name = (function.name or "")[:_MAX_TOOL_LABEL] if function is not None and number not in self._named else ""
        arguments = (function.arguments or "") if function is not None else ""
        if call_id:
            self._identified.add(number)
        if name:
            self._named.add(number)
        last = self._calls[-1] if self._calls else None
        if last is not None and last.index == number and not call_id and not name:
            self._calls[-1] = ToolCallDelta(number, last.id, last.name, last.arguments + arguments)
        elif call_id or name or arguments:
            self._calls.append(ToolCallDelta(number, call_id, name, arguments))
            self.has_given = True
        return True

    def take(self) -> list[ContentDelta]:
        """Everything that was added since the last time."""
        if self._reasoning or self._text or self._calls:
            self._cut()
        done, self._done = self._done, []
        return done

    def _cut(self) -> None:
        self._done.append(ContentDelta("".join(self._text), "".join(self._reasoning), tuple(self._calls)))
        self._reasoning.clear()
        self._text.clear()
        self._calls.clear()

    def _number(self, part: CallPart) -> int | None:
        key: int | str
        if part.index is not None:
            key = part.index
        elif part.id:
            key = part.id
        else:
            return self._last_number if self._numbers else self._new_number("")
        known = self._numbers.get(key)
        number = known if known is not None else self._new_number(key)
        if number is not None:
            self._last_number = number
        return number

    def _new_number(self, key: int | str) -> int | None:
        if len(self._numbers) == _MAX_TOOL_CALLS:
            return None
        return self._numbers.setdefault(key, len(self._numbers))


def _usual_chunks(events: Sequence[SseEvent]) -> list[Chunk]:
    """The chunks of all events up to the `[DONE]`, where these are several and all as they should be; else none."""
    is_done = bool(events) and events[-1].data == _DONE
    usual = events[:-1] if is_done else events
    if len(usual) < 2 or any(map(_name_of, usual)):
        return []
    return decode_together([event.data for event in usual])


def _first_choice(chunk: Chunk) -> Choice | None:
    choices = chunk.choices
    if not choices:
        return None
    if not choices[0].index:
        return choices[0]
    return next((choice for choice in choices if not choice.index), None)


def _payload_of(data: bytes) -> object:
    try:
        return decode_loosely(data)
    except NotJson:
        return data[:4096].decode("utf-8", "replace")
