"""The tokenizer's process: exact, apart from the router, and gone when it is not needed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from router_service.domain.tokens import TEMPLATES
from router_service.providers.token_counter import MAX_WAITING, TokenizerProcess


@pytest.fixture
async def counter() -> AsyncIterator[TokenizerProcess]:
    running = TokenizerProcess(answer_s=20.0)
    yield running
    await running.aclose()


async def test_tokens_are_those_of_the_models_own_vocabulary(counter: TokenizerProcess) -> None:
    """The figures are those that OpenAI's own library gives for its vocabularies."""
    texts = ["Hello, world!", "Grüße aus Zürich", "", "the <|endoftext|> is text here"]

    assert await counter.count("o200k_base", texts) == [4, 5, 0, 11]
    assert await counter.count("o200k_harmony", texts[:3]) == [4, 5, 0]
    assert await counter.count("cl100k_base", texts[:1]) == [4]


@pytest.mark.parametrize("vocabulary", sorted(TEMPLATES))
async def test_every_vocabulary_that_the_catalogue_may_name_is_there(
    counter: TokenizerProcess, vocabulary: str
) -> None:
    assert await counter.count(vocabulary, ["Hello"]) == [1]


async def test_an_unknown_vocabulary_has_no_count_and_breaks_nothing(counter: TokenizerProcess) -> None:
    assert await counter.count("nobody's", ["Hello"]) is None
    assert await counter.count("o200k_base", ["Hello"]) == [1]


async def test_many_ask_at_once_and_whoever_would_wait_too_long_is_told(counter: TokenizerProcess) -> None:
    asked = [counter.count("o200k_base", ["Hello"] * number) for number in range(1, MAX_WAITING + 5)]

    answers = await asyncio.gather(*asked)

    assert answers == [[1] * number for number in range(1, MAX_WAITING + 1)] + [None] * 4


async def test_a_process_that_died_is_started_again(counter: TokenizerProcess) -> None:
    await counter.count("o200k_base", ["Hello"])
    assert counter.process_id is not None
    os.kill(counter.process_id, 9)

    answers = [await counter.count("o200k_base", ["Hello"]) for _ in range(2)]

    assert answers[-1] == [1]


async def test_a_process_that_does_not_answer_is_killed_and_costs_one_estimate(tmp_path: Path) -> None:
    silent = tmp_path / "silent.py"
    silent.write_text("import time\ntime.sleep(60)\n")
    counter = TokenizerProcess(answer_s=0.3, program=silent)

    assert await counter.count("o200k_base", ["Hello"]) is None
    assert counter.process_id is None


async def test_an_idle_process_gives_its_memory_back() -> None:
    counter = TokenizerProcess(answer_s=20.0, idle_s=0.01)
    assert await counter.count("o200k_base", ["Hello"]) == [1]

    async with asyncio.timeout(10):
        while counter.process_id is not None:
            await asyncio.sleep(0.005)

    assert await counter.count("o200k_base", ["Hello"]) == [1]
    await counter.aclose()


async def test_k1_the_process_has_nothing_of_the_routers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "gsk_canary_0123456789")
    telling = tmp_path / "telling.py"
    telling.write_text("import os, sys\nsys.stdin.readline()\nprint([int('GROQ_API_KEY' in os.environ)], flush=True)\n")
    counter = TokenizerProcess(answer_s=20.0, program=telling)

    assert await counter.count("o200k_base", ["Hello"]) == [0]
    await counter.aclose()
