"""Estimates of token counts, for when nobody has counted.

Three bytes a token is deliberately on the high side of what tokenizers do with English (about four) and near what
they do with code and other scripts: an estimate that errs should rather fill a context window or a limit too early.
"""

from __future__ import annotations

from router_service.domain.completion import CompletionRequest, ContentDelta, Message
from router_service.domain.usage import TokenUsage

BYTES_PER_TOKEN = 3
BYTES_PER_TOKEN_AT_MOST = 5
TOKENS_PER_MESSAGE = 4  # role and separators in the usual chat templates
TOKENS_PER_IMAGE = 1000  # vendors charge 85 to 1600 for an image, whatever its bytes


def utf8_length(text: str) -> int:
    """Length of `text` in UTF-8 bytes, without encoding the usual ASCII."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def tokens_of_bytes(byte_count: int) -> int:
    """Estimated tokens of so many bytes of text, rounded up."""
    return -(-byte_count // BYTES_PER_TOKEN)


def estimate_input_tokens(request: CompletionRequest) -> int:
    """Estimated prompt tokens of a request: its messages, tools and schema. Image data is not counted as text."""
    images = sum(len(message.image_urls) for message in request.messages)
    return (
        tokens_of_bytes(_prompt_bytes(request)) + TOKENS_PER_MESSAGE * len(request.messages) + TOKENS_PER_IMAGE * images
    )


def least_total_tokens(request: CompletionRequest) -> int:
    """Tokens that must fit into the context window: the caller's own figure, else what the request surely needs.

    Without a figure of the caller's the estimate errs low, unlike the others here: a request is kept from a model only
    when it cannot fit. A provider that finds it too long after all says so, and failover goes on to a larger window.
    """
    if request.estimated_tokens > 0:
        return request.estimated_tokens
    return _prompt_bytes(request) // BYTES_PER_TOKEN_AT_MOST + (request.sampling.max_output_tokens or 0)


class OutputMeter:
    """Counts the bytes of an answer as they pass, for the estimate that a broken stream is charged by."""

    __slots__ = ("_reasoning_bytes", "_visible_bytes")

    def __init__(self) -> None:
        self._visible_bytes = 0
        self._reasoning_bytes = 0

    @property
    def total_bytes(self) -> int:
        return self._visible_bytes + self._reasoning_bytes

    def add(self, delta: ContentDelta) -> int:
        """Count a delta; its length in bytes."""
        visible = utf8_length(delta.text) if delta.text else 0
        for call in delta.tool_calls:
            visible += utf8_length(call.name) + utf8_length(call.arguments)
        reasoning = utf8_length(delta.reasoning) if delta.reasoning else 0
        self._visible_bytes += visible
        self._reasoning_bytes += reasoning
        return visible + reasoning

    def estimate(self, input_tokens: int) -> TokenUsage:
        """The usage so far, all of it estimated."""
        return TokenUsage(
            input_tokens=input_tokens,
            output_tokens=tokens_of_bytes(self._visible_bytes),
            reasoning_tokens=tokens_of_bytes(self._reasoning_bytes),
        )


def _message_bytes(message: Message) -> int:
    calls = sum(utf8_length(call.name) + utf8_length(call.arguments) for call in message.tool_calls)
    return utf8_length(message.content) + utf8_length(message.name) + calls


def _prompt_bytes(request: CompletionRequest) -> int:
    byte_count = sum(map(_message_bytes, request.messages))
    byte_count += sum(
        utf8_length(tool.name) + utf8_length(tool.description) + utf8_length(tool.parameters_json_schema)
        for tool in request.tools
    )
    if request.response_format is not None:
        byte_count += utf8_length(request.response_format.json_schema)
    return byte_count
