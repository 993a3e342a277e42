"""What a scripted provider does with one request: behaviours by name, with options, as `name?option=value&…`.

The name of the requested model is the script, so a test chooses by asking for a model: `ok?n=3`, `status?code=429`,
`reset?after=2`. `BEHAVIOURS` at the end is the list.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol
from urllib.parse import parse_qsl

from tests.support.provider_garbage import ANSWERS, STREAMS
from tests.support.provider_timing import Ending, plan_of


class Exchange(Protocol):
    """One request and the means to answer it; `provider_server` has the real one."""

    model: str
    request: dict[str, Any]

    async def begin(self, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Send status line and headers; the body will be chunked."""

    async def send(self, data: bytes) -> None:
        """Send a piece of the body."""

    async def token(self, data: bytes) -> None:
        """Send a piece of the body that holds one generated token, and count it, sent or not."""

    async def raw(self, data: bytes, split: int = 1 << 20) -> None:
        """Send bytes as they are, `split` at a time, without any framing."""

    async def end(self) -> None:
        """End the body properly."""

    def bill(self, usage: dict[str, Any]) -> None:
        """Note in the provider's own account what it reports as used."""

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole answer with a content length."""

    async def wait_until_the_client_leaves(self) -> None:
        """Do nothing until the other side has closed the connection."""

    def reset(self) -> None:
        """Break the connection with a RST."""

    def hang_up(self) -> None:
        """Close the connection where it stands."""


class Options:
    """The options after the question mark."""

    def __init__(self, text: str) -> None:
        self._values = dict(parse_qsl(text, keep_blank_values=True))

    def integer(self, name: str, default: int) -> int:
        return int(self._values.get(name, default))

    def text(self, name: str, default: str = "") -> str:
        return self._values.get(name, default)

    async def pause(self, name: str) -> None:
        milliseconds = self.integer(name, 0)
        if milliseconds:
            await asyncio.sleep(milliseconds / 1000)


_LUCK = random.Random(11)  # the same in every run, as far as requests come in the same order

Behaviour = Callable[[Exchange, Options], Awaitable[None]]


def event(payload: object, *, name: str = "") -> bytes:
    """One server-sent event; bytes go as they are, anything else as JSON."""
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"


DONE = b"data: [DONE]\n\n"


def chunk(model: str, *, finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chunk of a chat completion."""
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion.chunk",
        "created": 1_790_000_000,
        "model": model,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


def usage_of(exchange: Exchange, completion: int, options: Options) -> dict[str, Any]:
    """An OpenAI `usage` object. The prompt counts one token per word unless `prompt` says otherwise."""
    words = sum(len(str(message.get("content") or "").split()) for message in exchange.request.get("messages", []))
    prompt = options.integer("prompt", words)
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": options.integer("cached", 0)},
        "completion_tokens_details": {"reasoning_tokens": options.integer("reasoning", 0)},
    }
    if options.text("cost"):
        usage["cost"] = float(options.text("cost"))
    exchange.bill(usage)
    return usage


async def _tokens(exchange: Exchange, options: Options, count: int) -> None:
    model = options.text("model", exchange.model)
    for number in range(options.integer("reasoning", 0)):
        await exchange.token(event(chunk(model, reasoning=f"why{number} ")))
        await options.pause("gap_ms")
    for number in range(count):
        await exchange.token(event(chunk(model, content=f"tok{number} ")))
        await options.pause("gap_ms")


async def ok(exchange: Exchange, options: Options) -> None:
    """A good answer of `n` tokens: `status`, `first_ms`, `gap_ms`, `reasoning`, `tool`, `finish`, `usage`, `model`,
    `done`.
    """
    count = options.integer("n", 5)
    await options.pause("headers_ms")
    await exchange.begin(options.integer("status", 200))
    await options.pause("first_ms")
    await _tokens(exchange, options, count)
    model = options.text("model", exchange.model)
    finish = options.text("finish", "stop")
    if options.text("tool"):
        finish = "tool_calls"
        function = {"name": options.text("tool"), "arguments": '{"city":'}
        call = {"index": 0, "id": "call_1", "type": "function", "function": function}
        await exchange.send(event(chunk(model, tool_calls=[call])))
        more = {"index": 0, "function": {"arguments": '"Bern"}'}}
        await exchange.send(event(chunk(model, tool_calls=[more])))
    usage = usage_of(exchange, count + options.integer("reasoning", 0), options)
    last: dict[str, Any] = chunk(model, finish_reason=finish)
    style = options.text("usage", "openai")
    if style == "groq":
        last["x_groq"] = {"id": "req_1", "usage": usage}
    elif style == "timings":
        last["timings"] = {"prompt_n": usage["prompt_tokens"], "cache_n": 0, "predicted_n": count}
    elif style == "same-chunk":
        last["usage"] = usage
    await exchange.send(event(last))
    if style == "openai":
        await exchange.send(event(chunk(model) | {"choices": [], "usage": usage}))
    if options.integer("done", 1):
        await exchange.send(DONE)
    await options.pause("end_ms")
    await exchange.end()


async def whole(exchange: Exchange, options: Options) -> None:
    """A good answer as one JSON object, from a server that does not stream; `pad` adds characters to it."""
    count = options.integer("n", 5)
    text = "".join(f"tok{number} " for number in range(count)) + "x" * options.integer("pad", 0)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    answer = {"id": "chatcmpl-whole", "model": exchange.model, "choices": [choice]}
    body = json.dumps(answer | {"usage": usage_of(exchange, count, options)}).encode()
    await exchange.whole(200, body, {"Content-Type": "application/json"})


async def generation(exchange: Exchange, options: Options) -> None:
    """What OpenRouter says afterwards: `prompt`, `completion`, `cached`, `reasoning`, `cost`, `model`."""
    data = {
        "id": "gen-scripted",
        "model": options.text("model", "vendor/served"),
        "total_cost": float(options.text("cost", "0.00042")),
        "tokens_prompt": 1000,
        "tokens_completion": 1000,
        "native_tokens_prompt": options.integer("prompt", 31),
        "native_tokens_completion": options.integer("completion", 7),
        "native_tokens_cached": options.integer("cached", 0),
        "native_tokens_reasoning": options.integer("reasoning", 0),
        "cancelled": True,
    }
    await options.pause("first_ms")
    await exchange.whole(200, json.dumps({"data": data}).encode(), {"Content-Type": "application/json"})


async def status(exchange: Exchange, options: Options) -> None:
    """An error answer: `code`, `retry_after`, `error` (its code), `type`, `message`, `shape`, `pad` (characters)."""
    code = options.integer("code", 500)
    message = options.text("message", "scripted failure") + "x" * options.integer("pad", 0)
    error: dict[str, Any] = {"message": message, "type": options.text("type", "scripted_error")}
    if options.text("error"):
        error["code"] = options.text("error")
    shapes: dict[str, object] = {
        "object": {"error": error},
        "string": {"error": message},
        "detail": {"detail": message},
    }
    shape = options.text("shape", "object")
    body = f"<html>{message}</html>".encode() if shape == "html" else json.dumps(shapes[shape]).encode()
    headers = {"Content-Type": "text/html" if shape == "html" else "application/json"}
    if options.text("retry_after"):
        headers["Retry-After"] = options.text("retry_after")
    if options.text("reset_tokens"):
        headers |= {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": options.text("reset_tokens")}
    await exchange.whole(code, body, headers)


async def flaky(exchange: Exchange, options: Options) -> None:
    """A brown-out: of 100 requests `percent` fail like `status`, at random; the others are answered like `ok`."""
    fails = _LUCK.random() * 100 < options.integer("percent", 50)
    await (status if fails else ok)(exchange, options)


async def error_inside(exchange: Exchange, options: Options) -> None:
    """An error inside a 200 after `after` tokens, in the `shape` of some vendor."""
    message = options.text("message", "scripted failure")
    error = {"message": message, "code": options.text("error", "server_error")}
    model = exchange.model
    shape = options.text("shape", "object")
    if shape == "json":
        await exchange.whole(200, json.dumps({"error": error}).encode(), {"Content-Type": "application/json"})
        return
    await exchange.begin()
    await _tokens(exchange, options, options.integer("after", 0))
    usage = usage_of(exchange, options.integer("after", 0), options)
    events = {
        "object": event({"error": error}) + DONE,
        "string": event({"error": message}),
        "detail": event({"detail": message}),
        "groq-event": event({"error": error | {"status_code": 400}}, name="error"),
        "x_groq": event(chunk(model) | {"x_groq": {"error": message}}),
        "openrouter": event(chunk(model) | {"error": {"code": 400, "message": message}, "usage": usage}) + DONE,
        "finish": event(chunk(model, finish_reason="error")) + DONE,
        "choice": event({"model": model, "choices": [{"index": 0, "delta": {}, "error": error}]}) + DONE,
    }
    await exchange.send(events[shape])
    await exchange.end()


async def silence(exchange: Exchange, options: Options) -> None:
    """Headers (unless `headers=0`) of `status`, `after` tokens, then nothing for ever."""
    if options.integer("headers", 1):
        await exchange.begin(options.integer("status", 200))
        await _tokens(exchange, options, options.integer("after", 0))
    await exchange.wait_until_the_client_leaves()


async def trickle(exchange: Exchange, options: Options) -> None:
    """Signs of life without content for ever: comments, or empty deltas with `what=empty`."""
    await exchange.begin()
    await _tokens(exchange, options, options.integer("after", 0))
    sign = event(chunk(exchange.model, content="")) if options.text("what") == "empty" else b": PROCESSING\n\n"
    while True:
        await exchange.send(sign)
        await asyncio.sleep(options.integer("gap_ms", 10) / 1000)


async def reset(exchange: Exchange, options: Options) -> None:
    """A RST after `after` tokens; `headers=0`: before any answer."""
    if options.integer("headers", 1):
        await exchange.begin()
        await _tokens(exchange, options, options.integer("after", 0))
        await options.pause("pause_ms")
    exchange.reset()


async def close(exchange: Exchange, options: Options) -> None:
    """A FIN in the middle of the body after `after` tokens; `headers=0`: before any answer."""
    if options.integer("headers", 1):
        await exchange.begin()
        await _tokens(exchange, options, options.integer("after", 0))
    exchange.hang_up()


async def cut(exchange: Exchange, options: Options) -> None:
    """A clean end after `after` tokens without a finish reason; with `done=1` and a [DONE]."""
    await exchange.begin()
    await _tokens(exchange, options, options.integer("after", 0))
    if options.integer("done", 0):
        await exchange.send(DONE)
    await exchange.end()


async def garbage(exchange: Exchange, options: Options) -> None:
    """Nonsense: `kind` is bytes, json (an event that is not JSON), html, or deep (nested 100 000 times)."""
    kind = options.text("kind", "bytes")
    await exchange.begin(headers={"Content-Type": "text/html"} if kind == "html" else None)
    await _tokens(exchange, options, options.integer("after", 0))
    bodies = {
        "bytes": random.Random(7).randbytes(4096),
        "json": event(b"{not json"),
        "html": b"<html><body>Welcome to the captive portal</body></html>",
        "deep": event(b'{"choices":' + b"[" * 100_000),
    }
    await exchange.send(bodies[kind])
    await exchange.end()


async def raw(exchange: Exchange, options: Options) -> None:
    """The bytes `what` of `provider_garbage.ANSWERS` in place of an answer, `split` bytes at a time, then a FIN."""
    await exchange.raw(ANSWERS[options.text("what")], options.integer("split", 1 << 20))
    exchange.hang_up()


async def events(exchange: Exchange, options: Options) -> None:
    """The body `what` of `provider_garbage.STREAMS`, `split` bytes at a time; `type` is its content type."""
    body = STREAMS[options.text("what")].body
    content_type = options.text("type", "text/event-stream")
    await exchange.raw(f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nConnection: close\r\n\r\n".encode())
    await exchange.raw(body, options.integer("split", 1 << 20))
    exchange.hang_up()


async def timed(exchange: Exchange, options: Options) -> None:
    """The answer that `provider_timing` has for `seed`."""
    plan = plan_of(options.integer("seed", 0))
    for pause_ms, piece in plan.pieces:
        await asyncio.sleep(pause_ms / 1000)
        await exchange.raw(piece)
    if plan.ending is Ending.RESET:
        exchange.reset()
    elif plan.ending is Ending.CLOSED:
        exchange.hang_up()


async def huge_line(exchange: Exchange, options: Options) -> None:
    """One line of `mib` MiB without an end."""
    await exchange.begin()
    await exchange.send(b"data: ")
    for _ in range(options.integer("mib", 300) * 16):
        await exchange.send(b"x" * (64 << 10))
    await exchange.end()


async def flood(exchange: Exchange, options: Options) -> None:
    """Tokens of `size` characters without end; `what=comments`: comments, `what=empty`: events without content."""
    await exchange.begin()
    signs = {"comments": b": x\n\n", "empty": event(chunk(exchange.model, content=""))}
    sign = signs.get(options.text("what"), event(chunk(exchange.model, content="x" * options.integer("size", 1))))
    burst = sign * options.integer("burst", 100)
    while True:
        await exchange.send(burst)


async def gzip_bomb(exchange: Exchange, options: Options) -> None:
    """A compressed body that nobody asked for, `mib` MiB unpacked, under the status `code`, called `as`."""
    body = gzip.compress(b"x" * (1 << 20)) * options.integer("mib", 16)  # members of one stream
    headers = {"Content-Type": "text/event-stream", "Content-Encoding": options.text("as", "gzip")}
    await exchange.whole(options.integer("code", 200), body, headers)


async def redirect(exchange: Exchange, options: Options) -> None:
    """A redirect to `to`."""
    headers = {"Location": options.text("to", "http://169.254.169.254/latest/meta-data/")}
    await exchange.whole(options.integer("code", 307), b"", headers)


async def huge_headers(exchange: Exchange, options: Options) -> None:
    """`n` headers of `size` bytes each."""
    size, count = options.integer("size", 300_000), options.integer("n", 1)
    await exchange.begin(headers={f"X-Filler-{number}": "x" * size for number in range(count)})
    await exchange.end()


BEHAVIOURS: Mapping[str, Behaviour] = {
    "ok": ok,
    "whole": whole,
    "status": status,
    "flaky": flaky,
    "generation": generation,
    "error": error_inside,
    "silence": silence,
    "trickle": trickle,
    "reset": reset,
    "close": close,
    "cut": cut,
    "garbage": garbage,
    "raw": raw,
    "events": events,
    "timed": timed,
    "huge-line": huge_line,
    "flood": flood,
    "gzip": gzip_bomb,
    "redirect": redirect,
    "huge-headers": huge_headers,
}


def behaviour_of(script: str) -> tuple[Behaviour, Options] | None:
    """What `script` names, or None when it is no script."""
    name, _, options = script.partition("?")
    behaviour = BEHAVIOURS.get(name)
    return (behaviour, Options(options)) if behaviour is not None else None
