"""The scripted provider itself: what others rely on when they compare a ledger with its account."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from router_service.providers.catalog import build_catalog
from router_service.providers.egress import parse_networks
from router_service.providers.provider_set import HttpSettings, build_providers
from tests.support.provider_requests import KEY, Asker
from tests.support.provider_server import ProviderProcess, ScriptedProvider


async def test_a_model_can_be_scripted_request_by_request(server: ScriptedProvider, ask: Asker) -> None:
    server.script("openai/gpt-oss-120b", "status?code=503", "ok?n=1")

    answers = [await ask("openai/gpt-oss-120b") for _ in range(3)]

    assert [answer.error is None for answer in answers] == [False, True, True]
    assert [served.script for served in server.completions] == ["status?code=503", "ok?n=1", "ok?n=1"]


async def test_a_script_that_does_not_exist_is_refused(server: ScriptedProvider) -> None:
    with pytest.raises(ValueError, match="dance"):
        server.script("m", "dance")


async def test_only_accepted_keys_are_served(server: ScriptedProvider, ask: Asker) -> None:
    server.accepted_keys = {KEY}

    assert (await ask("ok")).finished
    assert (await ask("ok", key="another")).failure.status == 401


async def test_as_a_process_it_keeps_its_account_in_a_file(tmp_path: Path) -> None:
    with ProviderProcess(tmp_path, "--default-script", "ok?n=4") as process:
        catalog = build_catalog({"groq": process.base_url})
        providers = build_providers(catalog, HttpSettings(parse_networks(["127.0.0.1"])))
        await Asker(providers, process.base_url)("openai/gpt-oss-120b")
        await providers.aclose()
        served = await asyncio.to_thread(process.wait_for, 1)

    assert [(one.model, one.tokens_generated, one.outcome) for one in served] == [
        ("openai/gpt-oss-120b", 4, "complete")
    ]
    assert served[0].key_sha256 == hashlib.sha256(KEY.encode()).hexdigest()


STARTER = """
import sys, time
from pathlib import Path
from tests.support.provider_server import ProviderProcess

with ProviderProcess(Path(sys.argv[1])) as process:
    print(process.pid, flush=True)
    time.sleep(600)
"""


def test_as_a_process_it_does_not_outlive_a_tester_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as tester:
        assert tester.stdout is not None
        provider = Path(f"/proc/{int(tester.stdout.readline())}")
        was_running = is_running(provider)
        tester.kill()
    give_up_at = time.monotonic() + 20
    while is_running(provider) and time.monotonic() < give_up_at:
        time.sleep(0.02)

    assert was_running
    assert not is_running(provider)


def is_running(process: Path) -> bool:
    """Whether it is there, and not only as an entry that nobody has asked for."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "XZ"
    except OSError:
        return False
