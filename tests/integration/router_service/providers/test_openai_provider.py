"""The provider adapters against a scripted provider on a real socket. B-numbers name faults of the test plan."""

from __future__ import annotations

import asyncio
import hashlib
from decimal import Decimal

import pytest

from router_service.domain.completion import (
    ContentDelta,
    FinishReason,
    ProviderAccepted,
    ProviderIdentified,
    Sampling,
    ToolCallDelta,
)
from router_service.domain.errors import FailureKind as Kind
from router_service.domain.usage import TokenUsage
from router_service.providers import openai_provider
from router_service.providers.provider_set import ProviderSet
from router_service.routing.ports import KeyVerdict
from tests.support.provider_requests import KEY, Asker, completion, credential
from tests.support.provider_server import ScriptedProvider


async def until_idle(server: ScriptedProvider, *, open_connections: int) -> None:
    """Wait until the server has noticed what happened to its connections."""
    async with asyncio.timeout(5):
        while server.open_connections != open_connections or any(served.outcome == "open" for served in server.served):
            await asyncio.sleep(0.005)


# ── good answers ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_answer_is_streamed_counted_and_finished(ask: Asker) -> None:
    answer = await ask("ok?n=3&model=served-model&prompt=10&cached=4&cost=0.5")

    assert answer.items[0] == ProviderAccepted()
    assert answer.text == "tok0 tok1 tok2 "
    assert answer.finished.finish_reason is FinishReason.STOP
    assert answer.finished.usage == TokenUsage(input_tokens=6, output_tokens=3, cached_read_tokens=4)
    assert answer.finished.model == "served-model"
    assert answer.finished.reported_cost_usd == Decimal("0.5")


@pytest.mark.parametrize("style", ["openai", "groq", "same-chunk", "timings"])
async def test_usage_is_found_in_every_vendors_place(ask: Asker, style: str) -> None:
    answer = await ask(f"ok?n=2&prompt=7&usage={style}")

    assert answer.finished.usage == TokenUsage(7, 2)


async def test_an_answer_without_usage_says_so(ask: Asker) -> None:
    assert (await ask("ok?usage=none")).finished.usage is None


async def test_reasoning_and_tool_calls_arrive(ask: Asker) -> None:
    answer = await ask("ok?n=0&reasoning=2&tool=weather")

    calls = [call for delta in answer.deltas for call in delta.tool_calls]
    assert answer.reasoning == "why0 why1 "
    assert (calls[0].id, calls[0].name) == ("call_1", "weather")
    assert "".join(call.arguments for call in calls) == '{"city":"Bern"}'
    assert answer.finished.finish_reason is FinishReason.TOOL_CALLS
    assert all(isinstance(call, ToolCallDelta) for call in calls)


async def test_a_server_that_does_not_stream_is_understood(ask: Asker) -> None:
    answer = await ask("whole?n=2&prompt=3", provider="local")

    assert answer.deltas == [ContentDelta("tok0 tok1 ")]
    assert answer.finished.usage == TokenUsage(3, 2)


@pytest.mark.parametrize("status", [201, 203, 220])
async def test_every_status_of_success_is_one(ask: Asker, status: int) -> None:
    # As RFC 9110 15 wants it of a status that nobody knows; 203 is what a gateway says that changed something.
    answer = await ask(f"ok?n=2&prompt=3&status={status}")

    assert answer.text == "tok0 tok1 "
    assert answer.finished.usage == TokenUsage(3, 2)


async def test_a_success_without_an_answer_is_none(ask: Asker) -> None:
    assert (await ask("status?code=204")).failure.kind is Kind.UPSTREAM_BROKEN


@pytest.mark.parametrize(("script", "connections"), [("cut", 2), ("error", 2), ("status?code=429", 1), ("ok", 1)])
async def test_a_connection_that_brought_no_answer_to_a_request_serves_no_other(
    ask: Asker, server: ScriptedProvider, script: str, connections: int
) -> None:
    """What came may have been said unasked; the answer that then still comes would be taken for the next one's."""
    await ask(script)
    await ask("ok")

    assert server.connections_accepted == connections


async def test_the_key_goes_into_the_header_and_nowhere_else(ask: Asker, server: ScriptedProvider) -> None:
    await ask("ok")

    served = server.served[0]
    assert served.key_sha256 == hashlib.sha256(KEY.encode()).hexdigest()
    assert KEY not in str(served.request) + str(served.headers) + served.path


async def test_the_request_asks_for_no_encoding_and_carries_no_cookie(ask: Asker, server: ScriptedProvider) -> None:
    await ask("ok", completion(sampling=Sampling(max_output_tokens=9)))

    served = server.served[0]
    assert served.headers["accept-encoding"] == "identity"
    assert served.headers["user-agent"] == "turnpike"
    assert "cookie" not in served.headers
    assert served.request["max_completion_tokens"] == 9


@pytest.mark.parametrize("provider", ["llm7", "local"])
async def test_a_provider_that_needs_no_key_is_asked_without_one(
    ask: Asker, server: ScriptedProvider, provider: str
) -> None:
    await ask("ok", provider=provider, key=None)

    assert server.served[0].key_sha256 == ""


async def test_openrouter_is_told_who_calls(ask: Asker, server: ScriptedProvider) -> None:
    await ask("ok", completion(sampling=Sampling(reasoning_effort="low")), provider="openrouter")

    assert server.served[0].headers["x-openrouter-title"] == "Turnpike"
    assert server.served[0].request["reasoning"] == {"effort": "low"}


# ── connections ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_connection_serves_one_answer_after_another(ask: Asker, server: ScriptedProvider) -> None:
    for _ in range(5):
        assert (await ask("ok?n=2")).finished

    assert server.connections_accepted == 1


async def test_closing_the_stream_drops_the_connection_at_once(ask: Asker, server: ScriptedProvider) -> None:
    stream = ask.stream("silence?after=2")
    assert isinstance(await anext(stream), ProviderAccepted)
    assert await anext(stream) == ProviderIdentified("chatcmpl-scripted", "silence?after=2")
    assert isinstance(await anext(stream), ContentDelta)

    await stream.aclose()

    await until_idle(server, open_connections=0)
    assert server.served[0].outcome == "client_left"


async def test_cancelling_a_reader_drops_the_connection_at_once(ask: Asker, server: ScriptedProvider) -> None:
    stream = ask.stream("silence")
    await anext(stream)
    reader = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)

    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader

    await until_idle(server, open_connections=0)


async def test_cancelling_before_the_headers_drops_the_connection(ask: Asker, server: ScriptedProvider) -> None:
    reader = asyncio.ensure_future(anext(ask.stream("silence?headers=0")))
    async with asyncio.timeout(5):
        while not server.served:
            await asyncio.sleep(0.005)

    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader

    await until_idle(server, open_connections=0)


async def test_a_body_that_does_not_end_after_done_costs_the_connection_but_not_the_answer(
    ask: Asker, server: ScriptedProvider
) -> None:
    answer = await ask("ok?n=1&end_ms=400")

    assert answer.finished.finish_reason is FinishReason.STOP
    await ask("ok?n=1")
    assert server.connections_accepted == 2


async def test_a_deaf_provider_goes_on_generating_for_nobody(ask: Asker, server: ScriptedProvider) -> None:
    """B16: what was generated is what the provider's own log says, not what we read."""
    stream = ask.stream("ok?n=30&gap_ms=2&deaf=1")
    while not isinstance(await anext(stream), ContentDelta):
        pass

    await stream.aclose()

    await until_idle(server, open_connections=0)
    assert server.served[0].tokens_generated == 30


# ── failures ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("status?code=401&error=invalid_api_key", Kind.KEY_REJECTED),
        ("status?code=402", Kind.NO_CREDIT),
        ("status?code=400&error=model_decommissioned", Kind.MODEL_GONE),
        ("status?code=413&error=rate_limit_exceeded&type=tokens", Kind.REQUEST_TOO_LARGE),
        ("status?code=429", Kind.RATE_LIMITED),
        ("status?code=500&shape=html", Kind.UPSTREAM_BROKEN),
        ("status?code=401&shape=string&message=Unauthorized", Kind.KEY_REJECTED),
        ("status?code=503&shape=detail", Kind.OVERLOADED),
        ("status?code=429&pad=1000000", Kind.RATE_LIMITED),
        ("whole?pad=5000000", Kind.PROTOCOL_VIOLATION),
        ("redirect", Kind.PROTOCOL_VIOLATION),
        ("gzip", Kind.PROTOCOL_VIOLATION),
        ("gzip?code=500", Kind.UPSTREAM_BROKEN),
        ("garbage?kind=html", Kind.PROTOCOL_VIOLATION),
        ("garbage?kind=json", Kind.PROTOCOL_VIOLATION),
        ("garbage?kind=deep", Kind.PROTOCOL_VIOLATION),
        ("garbage?kind=bytes", Kind.UPSTREAM_BROKEN),
        ("huge-line?mib=3", Kind.PROTOCOL_VIOLATION),
        ("huge-headers?size=300000", Kind.TRANSPORT_FAILED),
        ("huge-headers?size=10&n=1000", Kind.TRANSPORT_FAILED),
        ("reset?headers=0", Kind.TRANSPORT_FAILED),
        ("close?headers=0", Kind.TRANSPORT_FAILED),
        ("reset", Kind.TRANSPORT_FAILED),
        ("close", Kind.TRANSPORT_FAILED),
        ("cut", Kind.UPSTREAM_BROKEN),
        ("cut?done=1", Kind.UPSTREAM_BROKEN),
        *(
            (f"error?shape={shape}", Kind.UPSTREAM_BROKEN)
            for shape in ("object", "string", "detail", "x_groq", "finish")
        ),
        ("error?shape=groq-event&error=tool_use_failed", Kind.MODEL_MISBEHAVED),
        ("error?shape=json&error=context_length_exceeded", Kind.CONTEXT_TOO_LONG),
        ("error?shape=openrouter", Kind.BAD_REQUEST),
        ("error?shape=choice&error=rate_limit_exceeded", Kind.RATE_LIMITED),
    ],
)
async def test_every_failure_before_content_has_its_kind(ask: Asker, script: str, kind: Kind) -> None:
    answer = await ask(script)

    assert answer.failure.kind is kind
    assert answer.failure.may_have_reached_provider
    assert answer.deltas == []
    assert "scripted failure" not in answer.failure.message


@pytest.mark.parametrize(
    "script",
    [
        "reset?after=2&pause_ms=20",
        "close?after=2",
        "cut?after=2",
        "cut?after=2&done=1",
        "garbage?kind=json&after=2",
        "ok?n=2&finish=eos",
        *(f"error?after=2&shape={shape}" for shape in ("object", "string", "detail", "x_groq", "finish", "openrouter")),
        *(f"error?after=2&shape={shape}" for shape in ("groq-event", "choice")),
    ],
)
async def test_every_failure_after_content_is_a_broken_stream_whose_content_was_given(ask: Asker, script: str) -> None:
    answer = await ask(script)

    assert answer.failure.kind is Kind.STREAM_BROKEN
    assert answer.text == "tok0 tok1 "


async def test_what_a_broken_stream_reported_is_kept(ask: Asker) -> None:
    answer = await ask("error?shape=openrouter&after=2&prompt=9&cost=0.25")

    assert answer.failure.usage == TokenUsage(9, 2)
    assert answer.failure.reported_cost_usd == Decimal("0.25")


@pytest.mark.parametrize(
    ("script", "wait_s"),
    [
        ("status?code=429&retry_after=7", 7.0),
        ("status?code=429&retry_after=0", 0.0),
        ("status?code=503&retry_after=-1", 0.0),
        ("status?code=429&retry_after=1000000000", 1e9),
        ("status?code=429&retry_after=garbage", None),
        ("status?code=429&reset_tokens=1m2s", 62.0),
        ("status?code=429&message=Please try again in 5.289s.", 5.289),
    ],
)
async def test_the_wait_that_a_provider_asks_for_is_passed_on(ask: Asker, script: str, wait_s: float | None) -> None:
    """B10."""
    assert (await ask(script)).failure.retry_after_s == wait_s


async def test_an_error_body_that_is_slow_is_judged_by_its_status(ask: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_provider, "_ERROR_BODY_TIME_S", 0.02)

    async with asyncio.timeout(5):
        answer = await ask("silence?status=503")

    assert answer.failure.kind is Kind.OVERLOADED


async def test_a_redirect_is_not_followed(ask: Asker, server: ScriptedProvider) -> None:
    """B9: the target sees no request."""
    async with ScriptedProvider() as target:
        await ask(f"redirect?to={target.base_url}/models")

        assert target.connections_accepted == 0


async def test_an_endless_flood_is_read_only_as_far_as_it_is_asked_for(ask: Asker, server: ScriptedProvider) -> None:
    stream = ask.stream("flood")
    for _ in range(20):
        await anext(stream)

    await stream.aclose()

    await until_idle(server, open_connections=0)


@pytest.mark.parametrize("script", ["silence", "trickle?gap_ms=1", "trickle?gap_ms=1&what=empty"])
async def test_silence_and_signs_of_life_are_left_to_the_readers_clock(ask: Asker, script: str) -> None:
    """B2, B3: no content is yielded, and the reader can give up at any time."""
    stream = ask.stream(script)
    assert isinstance(await anext(stream), ProviderAccepted)

    async def content() -> None:
        while isinstance(await anext(stream), ProviderIdentified):
            pass

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(content(), 0.1)


async def test_a_key_with_a_line_end_is_refused_before_anything_is_sent(ask: Asker, server: ScriptedProvider) -> None:
    answer = await ask("ok", key="gsk_secret\nX-Injected: 1")

    assert answer.failure.kind is Kind.KEY_REJECTED
    assert not answer.failure.may_have_reached_provider
    assert "gsk_secret" not in answer.failure.message
    assert server.connections_accepted == 0


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("provider", "path"), [("groq", "/v1/models"), ("openrouter", "/v1/key"), ("local", "/v1/models")]
)
async def test_a_key_is_good_when_the_provider_takes_it_and_nobody_without_it(
    providers: ProviderSet, server: ScriptedProvider, provider: str, path: str
) -> None:
    server.accepted_keys = {KEY}

    found, explanation = await providers[provider].verify_key(server.base_url, credential())

    assert found is KeyVerdict.VALID
    assert [(served.path, served.status) for served in server.served] == [(path, 200), (path, 401)]
    assert explanation


@pytest.mark.parametrize("provider", ["groq", "openrouter", "local"])
async def test_a_provider_that_answers_anybody_says_nothing_of_a_key(
    providers: ProviderSet, provider: str, server: ScriptedProvider
) -> None:
    found, explanation = await providers[provider].verify_key(server.base_url, credential())

    assert (found, explanation) == (
        KeyVerdict.UNKNOWN,
        "the provider answers without a key too: that it takes this one says nothing",
    )


async def test_where_only_money_would_tell_nobody_is_asked(providers: ProviderSet, server: ScriptedProvider) -> None:
    found, explanation = await providers["llm7"].verify_key(server.base_url, credential())

    assert (found, server.served) == (KeyVerdict.UNKNOWN, [])
    assert "only a completion would show" in explanation


async def test_a_bad_key_is_told_without_its_characters(providers: ProviderSet, server: ScriptedProvider) -> None:
    server.accepted_keys = {"another"}

    verdict, explanation = await providers["groq"].verify_key(server.base_url, credential())

    assert verdict is KeyVerdict.INVALID
    assert KEY[:6] not in explanation


async def test_openrouters_key_check_tells_the_credit(providers: ProviderSet, server: ScriptedProvider) -> None:
    server.accepted_keys = {KEY}
    _, explanation = await providers["openrouter"].verify_key(server.base_url, credential())

    assert "4.2 US dollars" in explanation


async def test_a_key_cannot_be_judged_where_nobody_listens(providers: ProviderSet, server: ScriptedProvider) -> None:
    await server.stop()

    assert (await providers["groq"].verify_key(server.base_url, credential()))[0] is KeyVerdict.UNKNOWN
