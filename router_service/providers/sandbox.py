"""A built-in model that costs nothing and knows nothing: it lets a newcomer see a stream without any key.

Deterministic: the same request always gets the same answer with the same token counts. Every answer says what it is.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from decimal import Decimal
from typing import Final

from router_service.domain.candidate import Candidate
from router_service.domain.completion import (
    CompletionRequest,
    ContentDelta,
    FinishReason,
    ProviderAccepted,
    ProviderFinished,
    ProviderItem,
    ResponseFormatKind,
    Role,
    ToolCallDelta,
    ToolChoiceMode,
)
from router_service.domain.errors import FailureKind, ProviderError
from router_service.domain.tenant import Credential
from router_service.domain.usage import LateUsage, TokenUsage
from router_service.routing.ports import KeyVerdict

LABEL: Final = "[sandbox]"
_TOKEN: Final = re.compile(r"\s*(?:\w{1,12}|[^\w\s])|\s+")
_MESSAGE_OVERHEAD_TOKENS: Final = 3
_ECHO_TOKENS: Final = {"sandbox-small": 24, "sandbox-large": 120}


def split_tokens(text: str) -> list[str]:
    """`text` as the sandbox's tokens: words, pieces of long words and marks, each with the blanks before it."""
    return _TOKEN.findall(text)


class SandboxProvider:
    """The sandbox behind the port of every other provider. Waits `token_delay_s` before each token."""

    def __init__(self, *, token_delay_s: float = 0.02) -> None:
        self._token_delay_s = token_delay_s

    async def stream(
        self, candidate: Candidate, request: CompletionRequest, *, connect_timeout_s: float
    ) -> AsyncGenerator[ProviderItem, None]:
        """See `routing.ports.Provider.stream`. There is no connection, so `connect_timeout_s` bounds nothing."""
        del connect_timeout_s
        model = candidate.model.name
        if model not in _ECHO_TOKENS:
            names = ", ".join(_ECHO_TOKENS)
            raise ProviderError(FailureKind.MODEL_GONE, f"the sandbox has no such model; it has {names}", status=404)
        prompt_tokens = _prompt_tokens(request)
        window = candidate.model.context_window_tokens
        if window is not None and prompt_tokens >= window:
            raise ProviderError(FailureKind.CONTEXT_TOO_LONG, f"the prompt does not fit {window} tokens", status=400)
        yield ProviderAccepted()
        tool = _tool_to_call(request)
        if tool is not None:
            yield ContentDelta(tool_calls=(ToolCallDelta(0, f"sandbox-{request.request_id}", tool, "{}"),))
            yield _finished(FinishReason.TOOL_CALLS, model, prompt_tokens, len(split_tokens(tool)) + 1)
            return
        reasoning, answer, reason = _cut(_reasoning(request, model), _answer(request, model), request)
        for token in reasoning:
            await asyncio.sleep(self._token_delay_s)
            yield ContentDelta(reasoning=token)
        for token in answer:
            await asyncio.sleep(self._token_delay_s)
            yield ContentDelta(text=token)
        yield _finished(reason, model, prompt_tokens, len(answer), len(reasoning))

    async def verify_key(self, base_url: str, credential: Credential) -> tuple[KeyVerdict, str]:
        """See `routing.ports.Provider.verify_key`."""
        del base_url, credential
        return KeyVerdict.VALID, "the sandbox takes any key and needs none"

    async def late_usage(self, base_url: str, credential: Credential | None, response_id: str) -> LateUsage | None:
        """See `routing.ports.Provider.late_usage`."""
        del base_url, credential, response_id
        raise ProviderError(FailureKind.NOT_ALLOWED, "the sandbox counts as it goes", may_have_reached_provider=False)

    async def aclose(self) -> None:
        """Nothing is open."""


def _prompt_tokens(request: CompletionRequest) -> int:
    texts = [message.content for message in request.messages]
    texts += [call.arguments for message in request.messages for call in message.tool_calls]
    return sum(len(split_tokens(text)) for text in texts) + _MESSAGE_OVERHEAD_TOKENS * len(request.messages)


def _tool_to_call(request: CompletionRequest) -> str | None:
    """The tool that the caller insists on; a tool that it merely offers is not called."""
    choice = request.tool_choice
    if choice is None or not request.tools:
        return None
    if choice.mode is ToolChoiceMode.NAMED:
        return choice.name
    return request.tools[0].name if choice.mode is ToolChoiceMode.REQUIRED else None


def _reasoning(request: CompletionRequest, model: str) -> str:
    if model != "sandbox-large" and not request.sampling.reasoning_effort:
        return ""
    return f"{LABEL} The request has {len(request.messages)} message(s); the last of the user is to be echoed."


def _answer(request: CompletionRequest, model: str) -> str:
    asked = next((message.content for message in reversed(request.messages) if message.role is Role.USER), "")
    tokens = split_tokens(asked.strip())
    echo = "".join(tokens[: _ECHO_TOKENS[model]]) + ("…" if len(tokens) > _ECHO_TOKENS[model] else "")
    wanted = request.response_format
    if wanted is not None and wanted.kind is not ResponseFormatKind.TEXT:
        return json.dumps({"sandbox": True, "model": model, "task": request.task_type.value, "echo": echo})
    return (
        f"{LABEL} {model} heard a {request.task_type.value} request of {len(tokens)} tokens: {echo!r}. "
        "No real model was asked; store a provider key to get a real answer."
    )


def _cut(reasoning: str, answer: str, request: CompletionRequest) -> tuple[list[str], list[str], FinishReason]:
    ends = [answer.find(stop) for stop in request.sampling.stop if stop]
    answer = answer[: min((end for end in ends if end >= 0), default=len(answer))]
    thought, said = split_tokens(reasoning), split_tokens(answer)
    limit = request.sampling.max_output_tokens
    if limit is None or len(thought) + len(said) <= limit:
        return thought, said, FinishReason.STOP
    thought = thought[:limit]
    return thought, said[: limit - len(thought)], FinishReason.LENGTH


def _finished(
    reason: FinishReason, model: str, prompt_tokens: int, output_tokens: int, reasoning_tokens: int = 0
) -> ProviderFinished:
    usage = TokenUsage(prompt_tokens, output_tokens, reasoning_tokens=reasoning_tokens)
    return ProviderFinished(reason, usage, model=model, reported_cost_usd=Decimal(0))
