"""Putting a stream's deltas together to the whole answer. Pure: events in, values out."""

from __future__ import annotations

from dataclasses import replace

from turnpike_client.completions import Completion, ContentDelta, StreamRestarted, ToolCall


class Assembler:
    """Collects deltas, forgets the ones that a restart voids, and completes the final result with the rest."""

    def __init__(self) -> None:
        self._deltas: list[ContentDelta] = []

    def add(self, delta: ContentDelta) -> None:
        """Take the next delta."""
        self._deltas.append(delta)

    def restart(self, event: StreamRestarted) -> None:
        """Forget what the restart voids."""
        self._deltas = [delta for delta in self._deltas if delta.index > event.discard_through_index]

    def text(self) -> str:
        """The text so far."""
        return "".join(delta.text for delta in self._deltas)

    def reasoning(self) -> str:
        """The reasoning so far."""
        return "".join(delta.reasoning for delta in self._deltas)

    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls so far, by their number. A part without id or name continues the call of the same number."""
        calls: dict[int, ToolCall] = {}
        for delta in self._deltas:
            for part in delta.tool_calls:
                call = calls.get(part.index, ToolCall("", "", ""))
                calls[part.index] = ToolCall(
                    call.id or part.id, call.name or part.name, call.arguments + part.arguments
                )
        return tuple(calls[index] for index in sorted(calls))

    def complete(self, result: Completion) -> Completion:
        """`result` with everything that was streamed before it."""
        return replace(result, content=self.text(), reasoning=self.reasoning(), tool_calls=self.tool_calls())
