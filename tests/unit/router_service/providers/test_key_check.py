"""What a key check may conclude from two answers of a provider: one with the key, and one without any."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from router_service.providers.openai_provider import OpenAiProvider
from router_service.providers.provider_set import VENDORS
from router_service.routing.ports import KeyVerdict
from tests.support.provider_requests import credential

URL = "https://provider.example/v1"


async def verdict_of(*, with_key: int, without: int) -> tuple[KeyVerdict, str]:
    def respond(request: httpx.Request) -> httpx.Response:
        return httpx.Response(with_key if "authorization" in request.headers else without, json={"data": []})

    return await OpenAiProvider(httpx.MockTransport(respond), VENDORS["groq"]).verify_key(URL, credential())


@pytest.mark.parametrize("without", [400, 401, 403, 404])
async def test_a_key_is_good_when_it_is_taken_and_its_absence_is_refused(without: int) -> None:
    assert (await verdict_of(with_key=200, without=without))[0] is KeyVerdict.VALID


@pytest.mark.parametrize("without", [204, 302, 408, 429, 498, 500, 503, 529])
async def test_a_failure_in_place_of_a_refusal_says_nothing_of_the_key(without: int) -> None:
    verdict, explanation = await verdict_of(with_key=200, without=without)

    assert verdict is KeyVerdict.UNKNOWN
    assert "without a key" in explanation
    assert f"HTTP {without}" in explanation


@pytest.mark.parametrize("with_key", [204, 302, 400, 402, 403, 404, 429, 500, 503])
async def test_only_a_rejection_makes_a_key_bad(with_key: int) -> None:
    assert (await verdict_of(with_key=with_key, without=401))[0] is KeyVerdict.UNKNOWN


async def test_a_rejected_key_is_bad() -> None:
    assert (await verdict_of(with_key=401, without=401))[0] is KeyVerdict.INVALID


async def test_a_flood_of_checks_leaves_the_connections_to_completions() -> None:
    running, most = 0, 0

    async def respond(_request: httpx.Request) -> httpx.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(20):
            await asyncio.sleep(0)
        running -= 1
        return httpx.Response(401, json={"error": "Unauthorized"})

    provider = OpenAiProvider(httpx.MockTransport(respond), VENDORS["groq"])

    verdicts = await asyncio.gather(*(provider.verify_key(URL, credential()) for _ in range(100)))

    assert {verdict for verdict, _ in verdicts} == {KeyVerdict.INVALID}
    assert most == 8
