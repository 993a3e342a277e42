"""OpenRouter asked afterwards, over real sockets and with the real journal: what it says is what goes to the ledger."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from router_service.domain.catalog import ModelFacts
from router_service.domain.completion import IndexedDelta, Message, Role
from router_service.domain.errors import FailureKind, ProviderError
from router_service.domain.tokens import TEMPLATES
from router_service.domain.usage import LateUsage, TokenUsage
from router_service.providers.openrouter import read_generation
from router_service.providers.provider_set import HttpSettings, build_providers
from router_service.providers.token_counter import TokenizerProcess
from router_service.routing.metrics import RoutingMetrics
from router_service.routing.ports import TokenCounter
from router_service.routing.router import Router
from router_service.routing.settings import RoutingSettings
from router_service.usage.journal import SqliteJournal
from service_runtime.ids import uuid7
from tests.support.attempts import journal_metrics
from tests.support.provider_server import GENERATION, ScriptedProvider
from tests.support.router_fakes import FakeLimits, FakePrices, FakeTenants, request, spec, tenant
from turnpike.usage.v1 import token_usage_pb2, usage_event_pb2

FOUND = "generation?prompt=31&completion=9&cached=4&reasoning=2&cost=0.00042&model=vendor/served"


class Wire:
    """A router with a real journal before a scripted OpenRouter."""

    def __init__(
        self, directory: Path, server: ScriptedProvider, *, wait_s: float = 5.0, counter: TokenCounter | None = None
    ) -> None:
        self.server = server
        self.journal = SqliteJournal.open(
            directory, max_bytes=1 << 30, metrics=journal_metrics(), new_epoch=lambda: str(uuid7())
        )
        models = {"openrouter-model": ModelFacts("openrouter-model", vocabulary="o200k_base" if counter else "")}
        served = spec("openrouter", models=models, counts_late=counter is None)
        catalog = {"openrouter": replace(served, base_url=server.base_url)}
        self.providers = build_providers(catalog, HttpSettings(allowed_networks=(ipaddress.ip_network("127.0.0.0/8"),)))
        self.router = Router(
            tenants=FakeTenants(tenant(keys=["openrouter"])),
            providers=self.providers,
            catalog=catalog,
            system_credentials={},
            journal=self.journal,
            prices=FakePrices(),
            limits=FakeLimits(),
            metrics=RoutingMetrics(CollectorRegistry()),
            new_event_id=uuid7,
            counter=counter,
            settings=RoutingSettings(late_usage_first_delay_s=0.01, late_usage_wait_s=wait_s, last_enquiry_s=0.01),
        )

    async def leave_after_content(self) -> None:
        self.server.script("openrouter-model", "ok?n=1000&gap_ms=5&model=vendor/served")
        with closing(await self.router.stream(request(), deadline_s=10.0)) as events:
            async for event in events:
                if isinstance(event, IndexedDelta):
                    break

    async def event_for_the_ledger(self) -> usage_event_pb2.UsageEvent:
        async with asyncio.timeout(5):
            while not (waiting := await self.journal.oldest(10)):
                await asyncio.sleep(0.005)
        (entry,) = waiting
        return usage_event_pb2.UsageEvent.FromString(entry.payload)

    async def close(self) -> None:
        await self.router.drain(0.0)
        await self.providers.aclose()
        await self.journal.close()


@pytest.fixture
async def server() -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider() as running:
        yield running


@pytest.mark.parametrize(
    "scripts",
    [
        [FOUND],
        ["status?code=404", "status?code=404", FOUND],
        ["status?code=500", "garbage", FOUND],
        ["reset?headers=0", FOUND],
        [FOUND + "&first_ms=200"],
    ],
    ids=["at once", "not found at first", "broken at first", "reset at first", "late"],
)
async def test_what_the_provider_says_afterwards_is_what_is_booked(
    tmp_path: Path, server: ScriptedProvider, scripts: list[str]
) -> None:
    wire = Wire(tmp_path, server)
    server.script(GENERATION, *scripts)

    await wire.leave_after_content()
    event = await wire.event_for_the_ledger()

    assert event.status == usage_event_pb2.USAGE_STATUS_CANCELLED
    assert event.usage_source == token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER_LATE
    assert event.token_usage == token_usage_pb2.TokenUsage(
        input_tokens=27, output_tokens=7, cached_read_tokens=4, reasoning_tokens=2
    )
    assert event.provider_reported_cost_usd == "0.000420000000"
    assert (event.model, event.requested_model) == ("vendor/served", "openrouter-model")
    assert len(server.enquiries) == len(scripts)
    assert {enquiry.path for enquiry in server.enquiries} == {"/v1/generation?id=chatcmpl-scripted"}
    assert {enquiry.key_sha256 for enquiry in server.enquiries} == {server.completions[0].key_sha256}
    await wire.close()


@pytest.mark.parametrize("script", ["status?code=404", "silence?headers=0", "trickle", "generation?prompt=x"])
async def test_a_provider_that_never_says_leaves_the_estimate(
    tmp_path: Path, server: ScriptedProvider, script: str
) -> None:
    wire = Wire(tmp_path, server, wait_s=0.2)
    server.script(GENERATION, script)

    await wire.leave_after_content()
    event = await wire.event_for_the_ledger()

    assert event.usage_source == token_usage_pb2.TOKEN_USAGE_SOURCE_ESTIMATED
    assert event.token_usage.input_tokens > 0
    assert event.provider_reported_cost_usd == ""
    await wire.close()


async def test_u2_after_a_crash_the_next_router_asks_again_and_books_once(
    tmp_path: Path, server: ScriptedProvider
) -> None:
    crashed = Wire(tmp_path, server)
    server.script(GENERATION, "silence?headers=0")
    await crashed.leave_after_content()
    async with asyncio.timeout(5):
        while not server.enquiries:
            await asyncio.sleep(0.005)
    await crashed.journal.close()  # as far as the disk knows, this router is gone
    server.script(GENERATION, FOUND)

    wire = Wire(tmp_path, server)
    await wire.router.resume()
    event = await wire.event_for_the_ledger()

    assert event.usage_source == token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER_LATE
    assert await wire.journal.held() == []
    await crashed.router.drain(0.0)
    await crashed.providers.aclose()
    await wire.close()


async def test_no_key_is_in_the_journal(tmp_path: Path, server: ScriptedProvider) -> None:
    wire = Wire(tmp_path, server)
    server.script(GENERATION, "silence?headers=0")
    await wire.leave_after_content()
    while not await wire.journal.held():
        await asyncio.sleep(0.005)

    held = b"".join(file.read_bytes() for file in (tmp_path / "journal.sqlite", tmp_path / "journal.sqlite-wal"))

    assert b"chatcmpl-scripted" in held
    assert b"sk-canary" not in held
    await wire.close()


@pytest.mark.parametrize("provider", ["groq", "local"])
async def test_a_vendor_without_such_a_call_is_not_asked(server: ScriptedProvider, provider: str) -> None:
    providers = build_providers({provider: replace(spec(provider), base_url=server.base_url)})

    with pytest.raises(ProviderError) as refused:
        await providers[provider].late_usage(server.base_url, None, "gen-1")

    assert refused.value.kind is FailureKind.NOT_ALLOWED
    assert server.served == []
    await providers.aclose()


async def test_without_a_count_of_the_providers_the_models_own_tokenizer_counts(
    tmp_path: Path, server: ScriptedProvider
) -> None:
    """Over the wire, with the real process: three tokens of the script are seven of the model's."""
    counter = TokenizerProcess(answer_s=20.0)
    wire = Wire(tmp_path, server, counter=counter)
    server.script("openrouter-model", "ok?n=3&usage=none")

    _, answer = await wire.router.complete(request(messages=(Message(Role.USER, "one two three"),)), deadline_s=30.0)
    event = await wire.event_for_the_ledger()

    template = TEMPLATES["o200k_base"]
    assert answer.content == "tok0 tok1 tok2 "
    assert event.usage_source == token_usage_pb2.TOKEN_USAGE_SOURCE_COUNTED
    assert event.token_usage.output_tokens == 7
    assert event.token_usage.input_tokens == 3 + template.per_message + template.fixed
    await wire.close()
    await counter.aclose()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"native_tokens_prompt": 5, "native_tokens_completion": 3}, LateUsage(TokenUsage(5, 3))),
        ({"tokens_prompt": 5, "tokens_completion": 3, "native_tokens_prompt": None}, LateUsage(TokenUsage(5, 3))),
        (
            {"native_tokens_prompt": 5, "native_tokens_completion": 10, "native_tokens_reasoning": 11},
            LateUsage(TokenUsage(input_tokens=5, reasoning_tokens=10)),
        ),
        (
            {"native_tokens_prompt": 5, "native_tokens_completion": 0, "native_tokens_cached": 9},
            LateUsage(TokenUsage(cached_read_tokens=5)),
        ),
    ],
)
def test_counts_of_a_generation_become_disjoint_classes(data: dict[str, object], expected: LateUsage) -> None:
    assert read_generation({"data": data}) == expected


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"data": None}, {"data": {"id": "gen-1"}}, {"data": {"total_cost": -1}}]
)
def test_an_answer_without_counts_is_no_answer_yet(answer: object) -> None:
    assert read_generation(answer) is None
