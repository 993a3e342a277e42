"""What a trickling answer becomes when it is read once a window. Windows here end when the test says so."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager

import pytest

from router_service.domain.completion import ContentDelta, ProviderFinished, ProviderItem
from router_service.domain.errors import FailureKind, ProviderError
from router_service.providers.catalog import CATALOG
from router_service.providers.egress import EgressPolicy
from router_service.providers.groq import GROQ
from router_service.providers.openai_provider import OpenAiProvider
from router_service.providers.read_window import ReadWindows
from router_service.providers.transport import AiohttpTransport
from tests.support.loop_clock import LoopClock
from tests.support.provider_requests import at, candidate, completion
from tests.support.provider_scripts import chunk, event

WINDOW_S = 0.025


class Line:
    """The provider's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def takes_request(self) -> None:
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await self._reader.readexactly(int(length.partition(b":")[2]))
        await self._send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    async def says(self, text: str) -> None:
        await self._send_event(event(chunk("m", content=text)))

    async def finishes(self) -> None:
        await self._send_event(event(chunk("m", finish_reason="stop")))

    async def ends(self) -> None:
        await self._send_event(b"data: [DONE]\n\n")
        await self._send(b"0\r\n\r\n")

    async def hangs_up(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def is_left(self) -> bool:
        try:
            return await self._reader.read() == b""
        except ConnectionResetError:  # what was closed with unread text
            return True

    async def _send_event(self, data: bytes) -> None:
        await self._send(b"%x\r\n%b\r\n" % (len(data), data))

    async def _send(self, data: bytes) -> None:
        """Send, and wait until the other side's kernel has it: then one read brings whatever was sent so far."""
        self._writer.write(data)
        sock = self._writer.get_extra_info("socket")
        await asyncio.sleep(0)  # whoever was started to read does so now
        while struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]:
            await asyncio.sleep(0)


class Scene:
    """A provider by hand, and the router's adapter for it."""

    def __init__(self, provider: OpenAiProvider, base_url: str, windows: ReadWindows, clock: LoopClock) -> None:
        self._provider = provider
        self._base_url = base_url
        self.windows = windows
        self._clock = clock
        self.lines: asyncio.Queue[Line] = asyncio.Queue()

    def window_passes(self) -> None:
        self._clock.passes(WINDOW_S * 1.01)

    def asked(self) -> AsyncGenerator[ProviderItem, None]:
        asked = candidate(at(CATALOG["groq"], self._base_url), "m")
        stream = self._provider.stream(asked, completion(), connect_timeout_s=5)
        assert isinstance(stream, AsyncGenerator)
        return stream

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[tuple[AsyncGenerator[ProviderItem, None], Line]]:
        """A stream whose first two texts were read, each at once, so that its connection is held now."""
        async with aclosing(self.asked()) as stream:
            answer = asyncio.create_task(text_of_next(stream))
            line = await self.lines.get()
            await line.takes_request()
            await line.says("a")
            assert await answer == "a"
            assert self.windows.held == 0
            answer = asyncio.create_task(text_of_next(stream))
            await line.says("b")
            assert await answer == "b"
            yield stream, line


async def text_of_next(stream: AsyncIterator[ProviderItem]) -> str:
    async for item in stream:
        if isinstance(item, ContentDelta):
            return item.text
    raise AssertionError("the stream ended")


async def rest_of(stream: AsyncIterator[ProviderItem]) -> list[ProviderItem]:
    return [item async for item in stream]


@asynccontextmanager
async def scene_with(window_s: float, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    lines: asyncio.Queue[Line] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        lines.put_nowait(Line(reader, writer))

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    windows = ReadWindows(window_s)
    with ThreadPoolExecutor(1) as threads:
        policy = EgressPolicy(private_allowed=True)
        provider = OpenAiProvider(AiohttpTransport(base_url, policy, resolver_threads=threads, windows=windows), GROQ)
        scene = Scene(provider, base_url, windows, LoopClock(monkeypatch))
        scene.lines = lines
        yield scene
        await provider.aclose()
    for writer in writers:
        writer.close()
    server.close()
    await server.wait_closed()


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    async with scene_with(WINDOW_S, monkeypatch) as scene:
        yield scene


async def test_what_arrives_within_a_window_comes_as_one_delta_when_it_is_over(scene: Scene) -> None:
    async with scene.flowing() as (stream, line):
        answer = asyncio.create_task(text_of_next(stream))
        for text in "cdefg":
            await line.says(text)
        is_held_back = scene.windows.held == 1 and not answer.done()
        scene.window_passes()

        assert await answer == "cdefg"
        assert is_held_back
        assert scene.windows.held == 1  # the next window has begun


async def test_an_end_within_a_window_is_read_with_what_came_before_it(scene: Scene) -> None:
    async with scene.flowing() as (stream, line):
        answer = asyncio.create_task(rest_of(stream))
        await line.says("c")
        await line.finishes()
        await line.ends()
        scene.window_passes()
        text, finished = await answer

        assert text == ContentDelta("c", "", ())
        assert isinstance(finished, ProviderFinished)
        assert scene.windows.held == 0


async def test_after_the_finish_reason_nothing_is_held_back(scene: Scene) -> None:
    async with scene.flowing() as (stream, line):
        answer = asyncio.create_task(rest_of(stream))
        await line.finishes()
        scene.window_passes()
        await line.ends()

        assert isinstance((await answer)[-1], ProviderFinished)


async def test_a_short_answer_sees_no_window(scene: Scene) -> None:
    async with aclosing(scene.asked()) as stream:
        answer = asyncio.create_task(rest_of(stream))
        line = await scene.lines.get()
        await line.takes_request()
        await line.says("yes")
        await line.finishes()
        await line.ends()

        assert isinstance((await answer)[-1], ProviderFinished)


async def test_a_piece_that_is_no_trickle_does_not_wait_for_the_window(scene: Scene) -> None:
    async with scene.flowing() as (stream, line):
        answer = asyncio.create_task(text_of_next(stream))
        await line.says("long " * 5_000)

        assert await answer == "long " * 5_000  # at once


async def test_the_connection_serves_the_next_request_without_a_window_left_over(scene: Scene) -> None:
    async with scene.flowing() as (stream, line):
        answer = asyncio.create_task(rest_of(stream))
        await line.finishes()
        await line.ends()
        scene.window_passes()
        await answer
    async with aclosing(scene.asked()) as stream:
        first = asyncio.create_task(text_of_next(stream))
        await line.takes_request()
        await line.says("again")

        assert await first == "again"
        assert scene.lines.empty()  # it was the same connection


async def test_an_interruption_does_not_wait_for_the_window(scene: Scene) -> None:
    async with scene.flowing() as (stream, line):
        answer = asyncio.create_task(text_of_next(stream))
        await line.says("c")
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer

        assert scene.windows.held == 0
        assert await line.is_left()


async def test_a_stream_that_breaks_within_a_window_gives_what_came_before(scene: Scene) -> None:
    async with scene.flowing() as (stream, line):
        answer = asyncio.create_task(text_of_next(stream))
        await line.says("c")
        await line.hangs_up()

        assert await answer == "c"  # at once: an end wakes
        with pytest.raises(ProviderError) as caught:
            await rest_of(stream)
        assert caught.value.kind is FailureKind.STREAM_BROKEN


async def test_without_a_window_each_arrival_is_handed_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene_with(0, monkeypatch) as scene, scene.flowing() as (stream, line):
        for text in "cdefg":
            answer = asyncio.create_task(text_of_next(stream))
            await line.says(text)
            assert await answer == text
