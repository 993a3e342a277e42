"""`turnpike chat`: one question, its answer as it comes, and one line on what it took."""

from __future__ import annotations

import sys
from typing import assert_never

import click
from rich.console import Console
from rich.text import Text

from turnpike_client.cli.options import json_option, one_of, tenant_option
from turnpike_client.cli.output import console, dollars, duration, one_line, print_json, printable
from turnpike_client.cli.session import Session, pass_session
from turnpike_client.completions import (
    ChatMessage,
    Completion,
    CompletionOptions,
    ContentDelta,
    RouteChosen,
    StreamRestarted,
    system,
    user,
)
from turnpike_client.enums import FinishReason, MidstreamFailure, PricingState, TaskType, UsageSource
from turnpike_client.router_client import CompletionStream


@click.command()
@tenant_option()
@click.option("--provider", help="Provider to use. Default: the router chooses.")
@click.option("--model", help="Model to use. Default: the tenant's preference, else the provider's default.")
@click.option("--system", "instructions", help="Instructions to the model.")
@click.option("--task", type=one_of(TaskType), help="What it is for; steers the choice of provider.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Upper bound of the answer's length.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 to 2.")
@click.option(
    "--on-failure",
    type=one_of(MidstreamFailure),
    default=MidstreamFailure.RESTART.value,
    show_default=True,
    help="When a provider breaks off in mid-answer.",
)
@json_option
@click.argument("text")
@pass_session
def chat(
    session: Session,
    *,
    tenant_id: str,
    provider: str | None,
    model: str | None,
    instructions: str | None,
    task: str | None,
    max_tokens: int | None,
    temperature: float | None,
    on_failure: str,
    as_json: bool,
    text: str,
) -> None:
    """Ask TEXT and stream the answer; "-" reads the text from stdin."""
    question = sys.stdin.read() if text == "-" else text
    messages = [system(instructions)] if instructions else []
    messages.append(user(question))
    options = _options(provider, model, task, max_tokens, temperature)
    completion = session.run(
        _ask(session, tenant_id, messages, MidstreamFailure(on_failure), options, show=not as_json)
    )
    if as_json:
        print_json(completion)
    else:
        click.echo(summary(completion))


def _options(
    provider: str | None,
    model: str | None,
    task: str | None,
    max_tokens: int | None,
    temperature: float | None,
) -> CompletionOptions:
    options: CompletionOptions = {"endpoint": "turnpike chat"}
    if provider is not None:
        options["provider"] = provider
    if model is not None:
        options["model"] = model
    if task is not None:
        options["task_type"] = TaskType(task)
    if max_tokens is not None:
        options["max_output_tokens"] = max_tokens
    if temperature is not None:
        options["temperature"] = temperature
    return options


async def _ask(
    session: Session,
    tenant_id: str,
    messages: list[ChatMessage],
    on_failure: MidstreamFailure,
    options: CompletionOptions,
    *,
    show: bool,
) -> Completion:
    async with (
        session.router_client() as router,
        router.stream(tenant_id, messages, on_midstream_failure=on_failure, **options) as stream,
    ):
        if not show:
            return await stream.completion()
        return await _show(stream)


async def _show(stream: CompletionStream) -> Completion:
    """Print the stream as it comes. Whatever ends it, what follows begins on a line of its own."""
    page = Page(console())
    completion: Completion | None = None
    try:
        async for event in stream:
            match event:
                case RouteChosen():
                    pass
                case ContentDelta():
                    page.reasoning(event.reasoning)
                    page.text(event.text)
                case StreamRestarted():
                    page.note(f"[provider failed: {event.reason}; the answer begins again, disregard the above]")
                case Completion():
                    completion = event
                case _:
                    assert_never(event)
    finally:
        page.end_line()
    if completion is None:
        raise AssertionError("a stream that raises nothing ends with its completion")
    for call in completion.tool_calls:
        page.note(f"[calls {call.name}({call.arguments})]")
    return completion


class Page:
    """Writes text, dimmed reasoning and notes one after the other, each kind beginning on a line of its own.

    Reasoning is for people at a terminal; a pipe gets the answer only.
    """

    def __init__(self, out: Console) -> None:
        self._out = out
        self._line_is_open = False
        self._last_kind = ""

    def text(self, text: str) -> None:
        """A further piece of the answer."""
        self._write("text", text, "")

    def reasoning(self, text: str) -> None:
        """A further piece of the model's reasoning."""
        if self._out.is_terminal:
            self._write("reasoning", text, "dim")

    def note(self, text: str) -> None:
        """A line of our own."""
        self._write("note", f"{one_line(text)}\n", "yellow")

    def end_line(self) -> None:
        """End the line that is open, if one is."""
        if self._line_is_open:
            self._put("\n", "")

    def _write(self, kind: str, text: str, style: str) -> None:
        if not text:
            return
        if kind != self._last_kind:
            self.end_line()
        self._last_kind = kind
        self._put(printable(text) if self._out.is_terminal else text, style)

    def _put(self, text: str, style: str) -> None:
        if style and self._out.is_terminal:
            self._out.print(Text(text, style=style), end="", soft_wrap=True)
        else:
            click.echo(text, nl=False)
        self._line_is_open = not text.endswith("\n") if text else self._line_is_open


def summary(completion: Completion) -> str:
    """What the completion took, in one line."""
    tokens = completion.tokens
    approximate = "" if completion.usage_source in (UsageSource.PROVIDER, UsageSource.COUNTED) else "about "
    is_free = completion.pricing_state is PricingState.NOTHING_CONSUMED
    parts = [
        completion.provider,
        completion.model,
        f"{approximate}{tokens.prompt} tokens in, {tokens.completion} out",
        "$0.00" if is_free else dollars(completion.cost_usd),
        duration(completion.latency),
    ]
    if completion.time_to_first_token is not None:
        parts.append(f"first token after {duration(completion.time_to_first_token)}")
    if len(completion.attempts) > 1:
        parts.append(f"{len(completion.attempts)} attempts")
    match completion.finish_reason:
        case FinishReason.STOP | FinishReason.TOOL_CALLS:
            pass
        case FinishReason.LENGTH:
            parts.append("cut at the token limit")
        case FinishReason.CONTENT_FILTER:
            parts.append("content withheld by the provider")
        case FinishReason.UNKNOWN:
            parts.append("finish reason unknown")
        case _:
            assert_never(completion.finish_reason)
    return one_line(" | ".join(parts))
