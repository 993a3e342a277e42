from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal

import pytest

from turnpike.router.v1 import completion_pb2, router_service_pb2
from turnpike_client import (
    AllTargetsFailed,
    Attempt,
    Completion,
    ContentDelta,
    DeadlineExceeded,
    Deadlines,
    Failure,
    FinishReason,
    Funding,
    MidstreamFailure,
    ProviderKeyRejected,
    RateLimited,
    RouteChosen,
    RouterClient,
    ServerUnreachable,
    StreamInterrupted,
    StreamRestarted,
    TaskType,
    TokenUsage,
    ToolCall,
    UsageSource,
    UsageStatus,
)
from turnpike_client.testing import FakeTurnpike, Reply

TENANT = "5b4c2a10-5f0e-4a53-9d5c-0f3a6f6f2b11"


async def test_a_stream_yields_the_route_the_deltas_and_the_whole_completion(
    turnpike: FakeTurnpike, router: RouterClient
) -> None:
    turnpike.replies.append(Reply(chunks=("Hel", "lo"), reasoning="thinking"))

    events = [event async for event in router.stream(TENANT, "Hi")]

    assert [type(event) for event in events] == [RouteChosen, ContentDelta, ContentDelta, ContentDelta, Completion]
    completion = events[-1]
    assert isinstance(completion, Completion)
    assert (completion.content, completion.reasoning) == ("Hello", "thinking")
    assert completion.finish_reason is FinishReason.STOP
    assert completion.cost_usd == Decimal("0.000010")
    assert completion.tokens == TokenUsage(input_tokens=3, output_tokens=2)
    assert completion.time_to_first_token == timedelta(milliseconds=40)
    assert completion.proto.provider == completion.provider == "sandbox"


async def test_a_restart_is_seen_and_its_text_is_not_in_the_completion(
    turnpike: FakeTurnpike, router: RouterClient
) -> None:
    turnpike.replies.append(Reply(voided_chunks=("Good", "bye"), chunks=("Hel", "lo")))

    events = [event async for event in router.stream(TENANT, "Hi", on_midstream_failure=MidstreamFailure.RESTART)]

    [restart] = [event for event in events if isinstance(event, StreamRestarted)]
    assert (restart.attempt, restart.discard_through_index) == (2, 1)
    completion = events[-1]
    assert isinstance(completion, Completion)
    assert completion.content == "Hello"
    assert [attempt.status for attempt in completion.attempts] == [UsageStatus.ERROR, UsageStatus.SUCCESS]
    [request] = turnpike.router.requests
    assert isinstance(request, router_service_pb2.StreamCompletionRequest)
    assert request.on_midstream_failure == completion_pb2.MIDSTREAM_FAILURE_POLICY_RESTART


async def test_a_stream_can_be_asked_for_its_completion_alone(turnpike: FakeTurnpike, router: RouterClient) -> None:
    call = ToolCall("c1", "weather", '{"city": "Bonn"}')
    turnpike.replies.append(Reply(chunks=(), tool_calls=(call,), finish_reason=FinishReason.TOOL_CALLS))

    completion = await router.stream(TENANT, "Hi").completion()

    assert completion.tool_calls == (call,)
    assert completion.finish_reason is FinishReason.TOOL_CALLS


async def test_a_stream_that_was_read_has_no_second_completion(router: RouterClient) -> None:
    stream = router.stream(TENANT, "Hi")
    await stream.completion()

    with pytest.raises(RuntimeError, match="read to its end before"):
        await stream.completion()


async def test_a_stream_that_ends_without_result_raises(turnpike: FakeTurnpike, router: RouterClient) -> None:
    turnpike.replies.append(Reply(chunks=("Hel",), has_result=False))
    stream = router.stream(TENANT, "Hi", request_id="0c6e6f3e-7d62-4c2e-a1a0-3f1e1a4b5c6d")

    assert isinstance(await anext(stream), RouteChosen)
    assert isinstance(await anext(stream), ContentDelta)
    with pytest.raises(StreamInterrupted, match="ended without a result") as caught:
        await anext(stream)

    assert caught.value.request_id == "0c6e6f3e-7d62-4c2e-a1a0-3f1e1a4b5c6d"


async def test_an_interrupted_stream_tells_what_it_consumed(turnpike: FakeTurnpike, router: RouterClient) -> None:
    failure = Failure(
        "UNAVAILABLE",
        "groq broke off",
        reason="STREAM_INTERRUPTED",
        partial_tokens=TokenUsage(input_tokens=9, output_tokens=4),
        usage_source=UsageSource.ESTIMATED,
    )
    turnpike.replies.append(Reply(chunks=("Hel",), failure=failure))

    with pytest.raises(StreamInterrupted, match="groq broke off") as caught:
        await router.stream(TENANT, "Hi").completion()

    assert caught.value.partial_tokens == TokenUsage(input_tokens=9, output_tokens=4)
    assert caught.value.usage_source is UsageSource.ESTIMATED


async def left_by_break(router: RouterClient) -> None:
    async for event in router.stream(TENANT, "Hi"):
        if isinstance(event, ContentDelta):
            break


async def left_by_context(router: RouterClient) -> None:
    async with router.stream(TENANT, "Hi") as stream:
        await anext(stream)
        await anext(stream)


async def left_by_error(router: RouterClient) -> None:
    async def read() -> None:
        async for event in router.stream(TENANT, "Hi"):
            if isinstance(event, ContentDelta):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await read()


async def left_by_cancelling(router: RouterClient) -> None:
    content_came = asyncio.Event()

    async def read() -> None:
        async for event in router.stream(TENANT, "Hi"):
            if isinstance(event, ContentDelta):
                content_came.set()

    task = asyncio.create_task(read())
    await content_came.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("leave", [left_by_break, left_by_context, left_by_error, left_by_cancelling])
async def test_a_caller_who_leaves_cancels_the_request(
    turnpike: FakeTurnpike, router: RouterClient, leave: object
) -> None:
    turnpike.replies.append(Reply(hangs=True))

    await leave(router)  # type: ignore[operator]

    async with asyncio.timeout(5):
        while turnpike.router.cancelled_request_count == 0:
            await asyncio.sleep(0.01)


async def test_a_stream_read_to_its_end_is_not_taken_for_a_caller_who_left(
    turnpike: FakeTurnpike, router: RouterClient
) -> None:
    for _ in range(20):
        await router.stream(TENANT, "Hi").completion()

    assert turnpike.router.cancelled_request_count == 0


async def test_a_stream_that_nobody_reads_sends_nothing(turnpike: FakeTurnpike, router: RouterClient) -> None:
    stream = router.stream(TENANT, "Hi")
    await stream.aclose()

    assert turnpike.router.requests == []


async def test_complete_answers_whole(turnpike: FakeTurnpike, router: RouterClient) -> None:
    turnpike.replies.append(Reply(chunks=("Hel", "lo"), reasoning="hm", cost_usd=None))

    completion = await router.complete(TENANT, "Hi", task_type=TaskType.CODE, temperature=0.0)

    assert (completion.content, completion.reasoning, completion.cost_usd) == ("Hello", "hm", None)
    [request] = turnpike.router.requests
    assert request.task_type == completion_pb2.TASK_TYPE_CODE
    assert request.sampling.HasField("temperature")
    assert not request.sampling.HasField("top_p")


async def test_complete_for_tenant_is_just_the_text(turnpike: FakeTurnpike, router: RouterClient) -> None:
    text = await router.complete_for_tenant(TENANT, "Say it back", provider="groq", labels={"team": "red"})

    assert text == "Say it back"
    [request] = turnpike.router.requests
    assert (request.tenant_id, request.provider, dict(request.labels)) == (TENANT, "groq", {"team": "red"})


async def test_refusals_arrive_as_what_they_are(turnpike: FakeTurnpike, router: RouterClient) -> None:
    attempt = Attempt(
        1, "groq", "m", Funding.TENANT_KEY, UsageStatus.ERROR, "overloaded", "busy", timedelta(seconds=1), "e"
    )
    turnpike.replies += [
        Reply(failure=Failure("UNAVAILABLE", "all failed", reason="ALL_TARGETS_FAILED", attempts=(attempt,))),
        Reply(
            failure=Failure(
                "RESOURCE_EXHAUSTED", "10 a minute", reason="RATE_LIMITED", retry_after=timedelta(seconds=7)
            )
        ),
        Reply(failure=Failure("FAILED_PRECONDITION", "groq refuses the key", reason="PROVIDER_KEY_REJECTED")),
    ]

    with pytest.raises(AllTargetsFailed) as all_failed:
        await router.complete(TENANT, "Hi")
    with pytest.raises(RateLimited) as limited:
        await router.complete(TENANT, "Hi")
    with pytest.raises(ProviderKeyRejected, match="groq refuses the key"):
        await router.complete(TENANT, "Hi")

    assert all_failed.value.attempts == (attempt,)
    assert limited.value.retry_after == timedelta(seconds=7)


async def test_an_error_can_be_looked_up_by_the_id_of_its_request(turnpike: FakeTurnpike, router: RouterClient) -> None:
    turnpike.replies.append(Reply(failure=Failure("INTERNAL", "internal error, ref 42", reason="INTERNAL")))

    with pytest.raises(Exception, match="ref 42") as caught:
        await router.complete(TENANT, "Hi", request_id="0c6e6f3e-7d62-4c2e-a1a0-3f1e1a4b5c6d")

    assert caught.value.request_id == "0c6e6f3e-7d62-4c2e-a1a0-3f1e1a4b5c6d"  # type: ignore[attr-defined]


async def test_nobody_at_the_address_is_said_in_one_line() -> None:
    async with RouterClient("127.0.0.1:1") as router:
        with pytest.raises(ServerUnreachable, match=r"^no server at 127\.0\.0\.1:1$") as caught:
            await router.complete(TENANT, "Hi")
        with pytest.raises(ServerUnreachable, match=r"^no server at 127\.0\.0\.1:1$"):
            await router.stream(TENANT, "Hi").completion()

    assert caught.value.target == "127.0.0.1:1"


async def test_a_deadline_ends_a_stream_that_hangs(turnpike: FakeTurnpike) -> None:
    turnpike.replies += [Reply(hangs=True), Reply(hangs=True)]
    async with RouterClient(turnpike.router_target, deadlines=Deadlines(completion_s=0.2)) as router:
        with pytest.raises(DeadlineExceeded):
            await router.stream(TENANT, "Hi").completion()
        with pytest.raises(DeadlineExceeded):
            await router.stream(TENANT, "Hi", timeout_s=0.1).completion()


async def test_a_closed_client_says_so(turnpike: FakeTurnpike) -> None:
    router = RouterClient(turnpike.router_target)
    await router.complete(TENANT, "Hi")
    await router.close()
    await router.close()

    with pytest.raises(RuntimeError, match="is closed"):
        await router.complete(TENANT, "Hi")


async def test_a_proxy_in_the_environment_does_not_swallow_the_call(
    turnpike: FakeTurnpike, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    async with RouterClient(turnpike.router_target) as router:
        assert await router.complete_for_tenant(TENANT, "Hi") == "Hi"


async def test_an_answer_larger_than_grpcs_default_limit_arrives(turnpike: FakeTurnpike, router: RouterClient) -> None:
    turnpike.replies.append(Reply(chunks=("x" * (6 << 20),)))

    completion = await router.complete(TENANT, "Hi")

    assert len(completion.content) == 6 << 20


async def test_routes_and_providers_are_told(turnpike: FakeTurnpike, router: RouterClient) -> None:
    turnpike.router.explanation = router_service_pb2.ExplainRouteResponse(
        candidates=[
            router_service_pb2.RankedCandidate(
                rank=1, provider="groq", model="m", score=0.5, terms=[router_service_pb2.ScoreTerm(name="price")]
            )
        ],
        excluded=[router_service_pb2.ExcludedCandidate(provider="llm7", reason="NO_KEY")],
        config_version=4,
    )

    route = await router.explain_route(TENANT, needs_tools=True, remaining_time=timedelta(seconds=1.5))
    [provider] = await router.list_providers(TENANT)

    (question,) = turnpike.router.questions
    assert (question.needs_tools, question.remaining_time.ToMilliseconds()) == (True, 1500)
    assert [candidate.terms[0].name for candidate in route.candidates] == ["price"]
    assert [(e.provider, e.reason) for e in route.excluded] == [("llm7", "NO_KEY")]
    assert (provider.name, provider.funding, provider.models[0].context_window_tokens) == (
        "sandbox",
        Funding.SYSTEM_KEY,
        8192,
    )
