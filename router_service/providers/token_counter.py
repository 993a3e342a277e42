"""Counts tokens with the models' own tokenizers, in a process that is there only while it is needed."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog

_log: Any = structlog.get_logger(__name__)

PROGRAM: Final = Path(__file__).with_name("tokenizer_process.py")
MAX_WAITING: Final = 16


class TokenizerProcess:
    """Implements `routing.ports.TokenCounter`. One question at a time; whoever would wait too long gets no count.

    The process is started by the first question, without the router's environment and so without its keys. It ends
    after `idle_s` without a question, which gives its memory back, and is killed when an answer takes over `answer_s`.
    """

    def __init__(self, *, answer_s: float = 1.5, idle_s: float = 60.0, program: Path = PROGRAM) -> None:
        self._answer_s = answer_s
        self._idle_s = idle_s
        self._program = program
        self._process: Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._idle: asyncio.TimerHandle | None = None
        self._has_failed = False

    @property
    def process_id(self) -> int | None:
        """Of the running process; None while there is none."""
        return self._process.pid if self._process is not None else None

    async def count(self, vocabulary: str, texts: Sequence[str]) -> list[int] | None:
        """See `routing.ports.TokenCounter`."""
        if self._waiting >= MAX_WAITING:
            return None
        self._waiting += 1
        try:
            async with asyncio.timeout(self._answer_s), self._turn:
                return await self._ask(vocabulary, texts)
        except TimeoutError:
            return None
        finally:
            self._waiting -= 1

    async def aclose(self) -> None:
        """End the process."""
        async with self._turn:
            await self._end()

    async def _ask(self, vocabulary: str, texts: Sequence[str]) -> list[int] | None:
        try:
            process = await self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps({"vocabulary": vocabulary, "texts": texts}).encode() + b"\n")
            await process.stdin.drain()
            counts = json.loads(await process.stdout.readline())
        except (OSError, ValueError) as error:
            self._report(type(error).__name__)
            await self._end()
            return None
        except BaseException:
            await self._end()  # it may still answer the question that nobody waits for
            raise
        self._end_when_idle()
        is_answer = isinstance(counts, list) and len(counts) == len(texts)
        return counts if is_answer else None

    async def _running(self) -> Process:
        if self._idle is not None:
            self._idle.cancel()
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", str(self._program), stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={}
            )
        return self._process

    async def _end(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _end_when_idle(self) -> None:
        self._idle = asyncio.get_running_loop().call_later(self._idle_s, self._leave)

    def _leave(self) -> None:
        """Close the process's input, at which it ends; the next question starts another."""
        if self._process is not None and self._process.stdin is not None and not self._turn.locked():
            self._process.stdin.close()
            self._process = None

    def _report(self, error: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            _log.warning("tokenizer.failed", error=error, consequence="tokens are estimated")
