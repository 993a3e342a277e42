"""One client process: asks for completions, now and then leaves, and writes down what it saw.

    python -m tests.chaos.load --history FILE --seed N --routers a=HOST:PORT b=HOST:PORT --tenants ID ... --workers 8

The history is a line when a request begins and one when its end is known, flushed each time. SIGUSR1 lets it pause,
SIGUSR2 go on; SIGTERM lets it finish what runs and end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.provider import prompt_of
from turnpike_client import (
    Completion,
    ContentDelta,
    MidstreamFailure,
    RouterClient,
    StreamRestarted,
    TurnpikeError,
)

_DEADLINE_S = 20.0
_AFTER_A_FAILURE_S = 0.2
_AFTER_NO_ANSWER_S = 0.8  # a router that was killed takes seconds to come back

# What providers do, by weight. In the last script of a request stands what its caller sees, unless somebody died.
_ANSWERS = (
    ("ok?n={n}", 30),
    ("ok?n={n}&gap_ms={gap}", 40),
    ("ok?n={n}&gap_ms={gap}&cached=3", 6),
    ("ok?n={n}&reasoning=3&gap_ms={gap}", 6),
    ("whole?n={n}", 4),
)
_FAILURES = (
    ("status?code=503", 5),
    ("status?code=429&retry_after=0", 1),
    ("error?shape=object", 2),
    ("reset?after=0&headers=0", 3),
    ("cut?after=0", 1),
    ("close?after=2", 2),
    ("error?shape=object&after=3", 2),
)
_MODELS = (
    ("openrouter", "deepseek/deepseek-r1"),
    ("llm7", "gpt-4o-mini"),
    ("local", "default"),
    ("groq", "chaos-unpriced"),
)


@dataclass(frozen=True, slots=True)
class Wish:
    """One request as it is going to be asked for."""

    request_id: str
    tenant_id: str
    router: str
    mode: str
    scripts: list[str]
    provider: str
    model: str
    on_failure: MidstreamFailure
    leave_after_deltas: int
    timeout_s: float


@dataclass(slots=True)
class Ending:
    """How it ended, as far as its caller saw."""

    outcome: str
    last_event: str = ""
    completion: Completion | None = None
    attempts: list[tuple[int, str, str]] = field(default_factory=list)


def draw(rng: random.Random, tenants: list[str], routers: list[str]) -> Wish:
    """The next request; with the same generator always the same, but for its id."""
    answer = _pick(rng, _ANSWERS).format(n=rng.randint(1, 12), gap=rng.choice((5, 20, 60)))
    failures = [_pick(rng, _FAILURES) for _ in range(rng.choices((0, 1, 2), (80, 16, 4))[0])]
    # Some name the provider and its model; most leave the choice to the router.
    provider, model = rng.choice(_MODELS) if rng.random() < 0.4 else ("", "")
    return Wish(
        request_id=str(uuid.uuid4()),
        tenant_id=rng.choice(tenants),
        router=rng.choice(routers),
        mode="stream" if rng.random() < 0.75 else "unary",
        scripts=[*failures, answer],
        provider=provider,
        model=model,
        on_failure=MidstreamFailure.RESTART if rng.random() < 0.5 else MidstreamFailure.FAIL,
        leave_after_deltas=rng.randint(1, 3) if rng.random() < 0.08 else 0,
        timeout_s=rng.uniform(0.05, 0.6) if rng.random() < 0.06 else _DEADLINE_S,
    )


def text_of(script: str) -> str:
    """The text that a good answer of the scripted provider has."""
    options = dict(option.split("=") for option in script.partition("?")[2].split("&"))
    return "".join(f"tok{number} " for number in range(int(options["n"])))


class Client:
    """Keeps `workers` requests on their way and the history of all."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._rng = random.Random(arguments.seed)
        self._tenants: list[str] = arguments.tenants
        self._targets = dict(pair.split("=") for pair in arguments.routers)
        self._workers: int = arguments.workers
        self._think_s: float = arguments.think_s
        self._history = arguments.history.open("a", encoding="utf-8")
        self._clients: dict[str, RouterClient] = {}
        self._may_run = asyncio.Event()
        self._may_run.set()
        self._stop = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._may_run.clear)
        loop.add_signal_handler(signal.SIGUSR2, self._may_run.set)
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        async with AsyncExitStack() as opened:
            for name, target in self._targets.items():
                # A router that was killed is back in seconds, and is to have work at once.
                options = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))
                self._clients[name] = await opened.enter_async_context(RouterClient(target, options=options))
            await asyncio.gather(*(self._work() for _ in range(self._workers)))

    async def _work(self) -> None:
        while not self._stop.is_set():
            await self._may_run.wait()
            wish = draw(self._rng, self._tenants, list(self._targets))
            self._write(event="begin", id=wish.request_id, tenant=wish.tenant_id, router=wish.router, mode=wish.mode)
            ending = await self._ask(wish)
            self._write(
                event="end",
                id=wish.request_id,
                router=wish.router,
                outcome=ending.outcome,
                last_event=ending.last_event,
                final=_final(ending.completion),
                attempts=ending.attempts,
                text_is_right=ending.completion and ending.completion.content == text_of(wish.scripts[-1]),
            )
            await asyncio.sleep(self._pause_s(ending))

    def _pause_s(self, ending: Ending) -> float:
        if ending.completion is not None:
            return self._rng.expovariate(1 / self._think_s)
        return _AFTER_NO_ANSWER_S if ending.outcome == "UNAVAILABLE" else _AFTER_A_FAILURE_S

    async def _ask(self, wish: Wish) -> Ending:
        ending = Ending("cancelled")
        try:
            if wish.mode == "unary":
                ending.completion = await self._complete(wish)
                ending.last_event = "result"
            else:
                await self._stream(wish, ending)
        except TurnpikeError as error:
            ending.outcome = error.reason or error.code
            ending.attempts = _seen(error.attempts)
        if ending.completion is not None:
            ending.outcome = "result"
            ending.attempts = _seen(ending.completion.attempts)
        return ending

    async def _complete(self, wish: Wish) -> Completion:
        client = self._clients[wish.router]
        prompt = prompt_of(wish.request_id, wish.scripts)
        return await client.complete(wish.tenant_id, prompt, timeout_s=wish.timeout_s, **_options(wish))

    async def _stream(self, wish: Wish, ending: Ending) -> None:
        client = self._clients[wish.router]
        prompt = prompt_of(wish.request_id, wish.scripts)
        deltas = 0
        async with client.stream(
            wish.tenant_id, prompt, timeout_s=wish.timeout_s, on_midstream_failure=wish.on_failure, **_options(wish)
        ) as events:
            async for event in events:
                ending.last_event = type(event).__name__
                if isinstance(event, Completion):
                    ending.completion = event
                deltas = 0 if isinstance(event, StreamRestarted) else deltas + isinstance(event, ContentDelta)
                if wish.leave_after_deltas and deltas >= wish.leave_after_deltas:
                    return

    def _write(self, **line: Any) -> None:
        self._history.write(json.dumps({"at": time.time(), **line}) + "\n")
        self._history.flush()


def _options(wish: Wish) -> Any:
    named = {"provider": wish.provider, "model": wish.model} if wish.provider else {}
    return {"request_id": wish.request_id, "endpoint": "/chaos", "labels": {"mode": wish.mode}, **named}


def _seen(attempts: Any) -> list[tuple[int, str, str]]:
    return [(attempt.number, attempt.usage_event_id, str(attempt.status).lower()) for attempt in attempts]


def _final(completion: Completion | None) -> dict[str, Any] | None:
    if completion is None:
        return None
    tokens = completion.tokens
    return {
        "provider": completion.provider,
        "model": completion.model,
        "tokens": [
            tokens.input_tokens,
            tokens.output_tokens,
            tokens.cached_read_tokens,
            tokens.cached_write_tokens,
            tokens.reasoning_tokens,
        ],
        "cost_usd": "" if completion.cost_usd is None else str(completion.cost_usd),
    }


def _pick(rng: random.Random, weighted: tuple[tuple[str, int], ...]) -> str:
    return rng.choices([value for value, _ in weighted], [weight for _, weight in weighted])[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--routers", nargs="+", required=True)
    parser.add_argument("--tenants", nargs="+", required=True)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--think-s", type=float, default=0.5)
    asyncio.run(Client(parser.parse_args()).run())
