"""The scripted provider as a witness: `python -m tests.chaos.provider --port-file PORT --log-file LOG`.

What it does with a request stands in the request: the last message is `chaos <request id> <script> [<script> …]`, and
the n-th attempt of that request gets the n-th script, the last one for all further ones. So a seed decides on every
answer, and each line of the log names the request that it belongs to.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support.provider_scripts import behaviour_of
from tests.support.provider_server import Connection, ScriptedProvider, Served

WORD = "chaos"


def prompt_of(request_id: str, scripts: list[str]) -> str:
    """The message that makes the provider do `scripts` in turn."""
    return " ".join([WORD, request_id, *scripts])


class Witness(ScriptedProvider):
    """A scripted provider that answers by the prompt and logs whose request it was."""

    def __init__(self, log_file: Path) -> None:
        super().__init__(log_file=log_file)
        self._attempts: Counter[str] = Counter()
        self._began: dict[int, tuple[str, float]] = {}
        self._log_lines = log_file.open("a", encoding="utf-8")

    async def _complete(self, connection: Connection, served: Served, request: dict[str, Any]) -> None:
        _, request_id, *scripts = str(request["messages"][-1]["content"]).split()
        self._attempts[request_id] += 1
        script = scripts[min(self._attempts[request_id], len(scripts)) - 1]
        self._began[served.number] = (request_id, time.time())
        served.request = connection.request = request
        served.model = connection.model = str(request.get("model"))
        served.script = script
        found = behaviour_of(script)
        assert found is not None, f"the prompt names no script but {script!r}"
        behaviour, options = found
        await behaviour(connection, options)

    def _log(self, served: Served) -> None:
        request_id, began_at = self._began.pop(served.number, ("", 0.0))
        line = {
            "request_id": request_id,
            "model": served.model,
            "script": served.script,
            "status": served.status,
            "outcome": served.outcome,
            "tokens_generated": served.tokens_generated,
            "reported": {name: served.reported[name] for name in ("prompt_tokens", "completion_tokens")}
            if served.reported
            else {},
            "began_at": began_at,
            "ended_at": time.time(),
        }
        self._log_lines.write(json.dumps(line) + "\n")
        self._log_lines.flush()


async def _serve(arguments: argparse.Namespace) -> None:
    provider = Witness(arguments.log_file)
    await provider.start()
    arguments.port_file.write_text(f"{provider.port}\n")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await provider.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", type=Path, required=True)
    parser.add_argument("--log-file", type=Path, required=True)
    asyncio.run(_serve(parser.parse_args()))
