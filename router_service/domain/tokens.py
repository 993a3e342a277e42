"""Estimates of token counts, for when nobody has counted.

Three bytes a token is deliberately on the high side of what tokenizers do with English (about four) and near what
they do with code and other scripts: an estimate that errs should rather fill a context window or a limit too early.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from router_service.domain.completion import CompletionRequest, ContentDelta
from router_service.domain.usage import TokenUsage

BYTES_PER_TOKEN = 3
BYTES_PER_TOKEN_AT_MOST = 5
TOKENS_PER_MESSAGE = 4  # role and separators in the usual chat templates
MAX_COUNTED_BYTES = 256 * 1024  # of a prompt; longer ones are estimated
MAX_COUNTED_ANSWER_BYTES = 64 * 1024  # kept while it passes, in case that nobody counts it
TOKENS_PER_IMAGE = 1000  # vendors charge 85 to 1600 for an image, whatever its bytes


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The tokens that a chat template puts around each message and around the whole, by what its maker published."""

    per_message: int
    fixed: int


# The fixed part of gpt-oss is the system message that its format prescribes, 57 tokens, with its frame.
TEMPLATES: Mapping[str, ChatTemplate] = MappingProxyType(
    {
        "o200k_harmony": ChatTemplate(per_message=4, fixed=63),
        "o200k_base": ChatTemplate(per_message=4, fixed=3),
        "cl100k_base": ChatTemplate(per_message=4, fixed=3),
        "deepseek_v3": ChatTemplate(per_message=1, fixed=2),
    }
)


@dataclass(frozen=True, slots=True)
class Countable:
    """Texts of an attempt whose tokens can be counted: the answer, its reasoning, then the prompt's messages."""

    vocabulary: str
    texts: tuple[str, ...]

    def usage(self, counts: Sequence[int]) -> TokenUsage:
        """The usage, from the number of tokens of each text."""
        template = TEMPLATES[self.vocabulary]
        output, reasoning, *prompt = counts
        return TokenUsage(
            input_tokens=sum(prompt) + template.per_message * len(prompt) + template.fixed,
            output_tokens=output,
            reasoning_tokens=reasoning,
        )


def countable(vocabulary: str, request: CompletionRequest, meter: OutputMeter) -> Countable | None:
    """What of an attempt can be counted exactly; None where only an estimate is possible.

    That is where no tokenizer is known, where images, tools or a schema are written down in the template's own way, and
    where a text is too long to be counted in passing.
    """
    answer = meter.text()
    is_plain = not request.tools and (request.response_format is None or not request.response_format.json_schema)
    is_plain = is_plain and not any(message.image_urls or message.tool_calls for message in request.messages)
    if vocabulary not in TEMPLATES or answer is None or not is_plain or _prompt_bytes(request) > MAX_COUNTED_BYTES:
        return None
    return Countable(vocabulary, (*answer, *(message.name + message.content for message in request.messages)))


def utf8_length(text: str) -> int:
    """Length of `text` in UTF-8 bytes, without encoding the usual ASCII."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def tokens_of_bytes(byte_count: int) -> int:
    """Estimated tokens of so many bytes of text, rounded up."""
    return -(-byte_count // BYTES_PER_TOKEN)


def estimate_input_tokens(request: CompletionRequest) -> int:
    """Estimated prompt tokens of a request: its messages, tools and schema. Image data is not counted as text."""
    images = sum([len(message.image_urls) for message in request.messages])
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
    """Counts the bytes of an answer as they pass, for the estimate that a broken stream is charged by.

    `keeps_text` keeps a text of bounded length too, so that its tokens can be counted.
    """

    __slots__ = ("_reasoning", "_reasoning_bytes", "_visible", "_visible_bytes")

    def __init__(self, *, keeps_text: bool = False) -> None:
        self._visible_bytes = 0
        self._reasoning_bytes = 0
        self._visible: list[str] | None = [] if keeps_text else None
        self._reasoning: list[str] = []

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
        if self._visible is not None:
            self._keep(self._visible, delta)
        return visible + reasoning

    def text(self) -> tuple[str, str] | None:
        """What the caller saw and what the model thought; None when that was not kept whole."""
        return None if self._visible is None else ("".join(self._visible), "".join(self._reasoning))

    def _keep(self, visible: list[str], delta: ContentDelta) -> None:
        if delta.tool_calls or self.total_bytes > MAX_COUNTED_ANSWER_BYTES:
            self._visible = None  # how a call is written down in tokens is the template's secret
            self._reasoning.clear()
            return
        visible.append(delta.text)
        self._reasoning.append(delta.reasoning)

    def estimate(self, input_tokens: int) -> TokenUsage:
        """The usage so far, all of it estimated."""
        return TokenUsage(
            input_tokens=input_tokens,
            output_tokens=tokens_of_bytes(self._visible_bytes),
            reasoning_tokens=tokens_of_bytes(self._reasoning_bytes),
        )


def _prompt_bytes(request: CompletionRequest) -> int:
    byte_count = 0
    for message in request.messages:
        byte_count += utf8_length(message.name + message.content)
        for call in message.tool_calls:
            byte_count += utf8_length(call.name) + utf8_length(call.arguments)
    for tool in request.tools:
        byte_count += utf8_length(tool.name) + utf8_length(tool.description) + utf8_length(tool.parameters_json_schema)
    if request.response_format is not None:
        byte_count += utf8_length(request.response_format.json_schema)
    return byte_count
