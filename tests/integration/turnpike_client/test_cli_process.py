"""The command as a process of its own: what only shows there."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sys

import pytest

from turnpike_client.testing import FakeTurnpike, Reply

TENANT = "5b4c2a10-5f0e-4a53-9d5c-0f3a6f6f2b11"


def environment(turnpike: FakeTurnpike) -> dict[str, str]:
    hidden = {"GRPC_VERBOSITY", "TURNPIKE_TENANT", "ROUTER_PORT", "USAGE_PORT"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "TURNPIKE_ROUTER": turnpike.router_target, "TURNPIKE_USAGE": turnpike.usage_target, "TERM": "xterm"}


async def start(
    turnpike: FakeTurnpike, *arguments: str, stdout: int = asyncio.subprocess.PIPE
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "turnpike_client.cli", *arguments),
        env=environment(turnpike),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_ctrl_c_in_mid_answer_ends_cleanly_and_cancels_the_request(turnpike: FakeTurnpike) -> None:
    turnpike.replies.append(Reply(chunks=("Hel",), hangs=True))
    process = await start(turnpike, "chat", "--tenant", TENANT, "Hi")
    assert process.stdout is not None
    assert await process.stdout.readexactly(3) == b"Hel"

    process.send_signal(signal.SIGINT)
    rest, errors = await process.communicate()

    assert process.returncode == 130
    assert rest.strip() == b""
    assert errors.strip() == b""
    assert turnpike.router.cancelled_request_count == 1


async def test_a_server_that_goes_away_leaves_one_line_and_nothing_of_grpc(turnpike: FakeTurnpike) -> None:
    turnpike.replies.append(Reply(chunks=("Hel",), hangs=True))
    process = await start(turnpike, "chat", "--tenant", TENANT, "Hi")
    assert process.stdout is not None
    assert await process.stdout.readexactly(3) == b"Hel"

    await turnpike.stop()
    _, errors = await process.communicate()

    assert process.returncode == 3
    [line] = errors.decode().splitlines()
    assert line.startswith(f"turnpike: lost the connection to {turnpike.router_target}")


async def test_a_terminal_sees_reasoning_dimmed_and_no_control_characters_of_the_model(
    turnpike: FakeTurnpike,
) -> None:
    turnpike.replies.append(Reply(reasoning="hm", chunks=("a\x1b[2J", "b")))
    ours, theirs = pty.openpty()
    try:
        process = await start(turnpike, "chat", "--tenant", TENANT, "Hi", stdout=theirs)
        await process.communicate()
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)

    assert process.returncode == 0
    assert "\x1b[2mhm\x1b[0m\r\na[2Jb\r\n" in shown


@pytest.mark.parametrize("arguments", [("--help",), ("chat", "--help"), ("tenants", "--help"), ("--version",)])
async def test_help_needs_no_server(turnpike: FakeTurnpike, arguments: tuple[str, ...]) -> None:
    process = await start(turnpike, *arguments)
    output, errors = await process.communicate()

    assert process.returncode == 0
    assert output.strip()
    assert errors == b""
