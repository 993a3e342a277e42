"""Bad input to every service: each refusal names the field, changes nothing, and shows neither key nor traceback."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from service_runtime.embedded_postgres import EmbeddedPostgres
from tests.e2e.conftest import Stubs
from tests.support.forked_site import eventually
from tests.support.stack import Stack
from turnpike.router.v1 import completion_pb2, router_service_pb2, tenant_service_pb2
from turnpike.usage.v1 import pricing_service_pb2, quota_service_pb2, usage_event_pb2, usage_service_pb2

TENANT = str(uuid.UUID(int=1))
USER: Final = completion_pb2.ROLE_USER
Chat = completion_pb2.ChatMessage
Sampling = completion_pb2.Sampling
Tool = completion_pb2.Tool
Config = tenant_service_pb2.InferenceConfig
HELLO = Chat(role=USER, content="hello")

# Fields of a completion request, beside a good tenant and message, and the path of the field that is refused.
COMPLETIONS: Mapping[str, tuple[dict[str, object], str]] = {
    "a tenant that is no UUID": ({"tenant_id": "acme"}, "tenant_id"),
    "no tenant": ({"tenant_id": ""}, "tenant_id"),
    "no messages": ({"messages": []}, "messages"),
    "too many messages": ({"messages": [HELLO] * 1001}, "messages"),
    "an oversized prompt": ({"messages": [Chat(role=USER, content="x" * 1_000_001)]}, "messages"),
    "no role": ({"messages": [Chat(content="x")]}, "messages[0].role"),
    "an unknown role": ({"messages": [HELLO, Chat(role=77, content="x")]}, "messages[1].role"),  # type: ignore[arg-type]
    "no content": ({"messages": [Chat(role=USER)]}, "messages[0].content"),
    "a tool result without its call": (
        {"messages": [HELLO, Chat(role=completion_pb2.ROLE_TOOL, content="x")]},
        "messages[1].tool_call_id",
    ),
    "an image from a file": (
        {"messages": [Chat(role=USER, content="x", image_urls=["file:///etc/passwd"])]},
        "messages[0].image_urls[0]",
    ),
    "an empty model": ({"model": ""}, "model"),
    "a model with a NUL": ({"model": "a\0b"}, "model"),
    "an unknown provider": ({"provider": "nope"}, "provider"),
    "an unknown task": ({"task_type": 99}, "task_type"),
    "a negative estimate": ({"estimated_tokens": -1}, "estimated_tokens"),
    "a negative version": ({"min_config_version": -1}, "min_config_version"),
    "a negative limit": ({"sampling": Sampling(max_output_tokens=-5)}, "sampling.max_output_tokens"),
    "a temperature that is no number": ({"sampling": Sampling(temperature=float("nan"))}, "sampling.temperature"),
    "too many stops": ({"sampling": Sampling(stop=["a"] * 5)}, "sampling.stop"),
    "a request id that is no UUID": ({"request_id": "nope"}, "request_id"),
    "a long endpoint": ({"endpoint": "e" * 201}, "endpoint"),
    "too many labels": ({"labels": {str(number): "x" for number in range(17)}}, "labels"),
    "the same tool twice": ({"tools": [Tool(name="f"), Tool(name="f")]}, "tools[1].name"),
    "a schema that is no JSON": (
        {"tools": [Tool(name="f", parameters_json_schema="{")]},
        "tools[0].parameters_json_schema",
    ),
    "a schema nested too deeply": (
        {"tools": [Tool(name="f", parameters_json_schema='{"a":' * 5000 + "1" + "}" * 5000)]},
        "tools[0].parameters_json_schema",
    ),
    "a tool that is not there": (
        {"tool_choice": completion_pb2.ToolChoice(mode=completion_pb2.ToolChoice.MODE_REQUIRED)},
        "tool_choice.mode",
    ),
    "a JSON schema without one": (
        {"response_format": completion_pb2.ResponseFormat(kind=completion_pb2.ResponseFormat.KIND_JSON_SCHEMA)},
        "response_format.json_schema",
    ),
}

TENANTS: Mapping[str, tuple[dict[str, object], str]] = {
    "no name": ({"name": ""}, "name"),
    "a name with a NUL": ({"name": "a\0b"}, "name"),
    "an id that is no UUID": ({"tenant_id": "x"}, "tenant_id"),
    "a key for an unknown provider": ({"provider_tokens": {"nope": "sk-canary-unknown-provider"}}, "provider_tokens"),
    "an unknown preference": (
        {"inference_config": Config(preferred_provider="nope")},
        "inference_config.preferred_provider",
    ),
    "an unknown allowed provider": (
        {"inference_config": Config(allowed_providers=["nope"])},
        "inference_config.allowed_providers[0]",
    ),
    "a negative weight": (
        {"inference_config": Config(score_weights={"price": -1})},
        "inference_config.score_weights['price']",
    ),
    "a weight that is no number": (
        {"inference_config": Config(score_weights={"price": float("nan")})},
        "inference_config.score_weights['price']",
    ),
    "weights whose sum is infinite": (
        {"inference_config": Config(score_weights={"price": 1e308})},
        "inference_config.score_weights['price']",
    ),
    "an unknown weight": (
        {"inference_config": Config(score_weights={"nope": 1})},
        "inference_config.score_weights['nope']",
    ),
}


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, set[str], str]:
    """The code, the fields and the message with which `call` is refused."""
    with pytest.raises(grpc.RpcError) as refused:
        call()
    status = rpc_status.from_call(refused.value)  # type: ignore[arg-type]
    assert status is not None
    bad = error_details_pb2.BadRequest()
    fields = {violation.field for detail in status.details if detail.Unpack(bad) for violation in bad.field_violations}
    return refused.value.code(), fields, status.message


@pytest.mark.parametrize("case", COMPLETIONS)
def test_a_bad_completion_request_names_the_field_whole_and_streamed(stubs: Stubs, case: str) -> None:
    fields, path = COMPLETIONS[case]
    given: dict[str, object] = {"tenant_id": TENANT, "messages": [HELLO], "provider": "sandbox", **fields}

    whole = router_service_pb2.CompleteRequest(**given)  # type: ignore[arg-type]
    streamed = router_service_pb2.StreamCompletionRequest(**given)  # type: ignore[arg-type]

    for call in (
        lambda: stubs.router.Complete(whole, timeout=10),
        lambda: list(stubs.router.StreamCompletion(streamed, timeout=10)),
    ):
        code, named, message = refusal(call)
        assert (code, named) == (grpc.StatusCode.INVALID_ARGUMENT, {path})
        assert path in message


@pytest.mark.parametrize("case", TENANTS)
def test_a_bad_tenant_names_the_field_and_no_key(stubs: Stubs, stack: Stack, case: str) -> None:
    fields, path = TENANTS[case]
    request = tenant_service_pb2.CreateTenantRequest(**{"name": "Acme", **fields})  # type: ignore[arg-type]

    code, named, message = refusal(lambda: stubs.tenants.CreateTenant(request, timeout=10))

    assert (code, named) == (grpc.StatusCode.INVALID_ARGUMENT, {path})
    assert "canary" not in message
    assert "canary" not in stack.output()


REPORTS: Mapping[str, type[Any]] = {
    "GetTenantUsageStats": usage_service_pb2.GetTenantUsageStatsRequest,
    "ListDailyCosts": usage_service_pb2.ListDailyCostsRequest,
    "ListErrors": usage_service_pb2.ListErrorsRequest,
    "ListUsageRecords": usage_service_pb2.ListUsageRecordsRequest,
}
NOW_S = int(time.time())


@pytest.mark.parametrize("report", REPORTS)
@pytest.mark.parametrize(
    ("start_s", "end_s", "fields"),
    [
        (NOW_S, NOW_S - 100, {"end_time"}),
        (NOW_S, NOW_S, {"end_time"}),
        (NOW_S + 10**6, None, {"end_time"}),
        (-(10**12), 10**13, {"start_time", "end_time"}),
    ],
    ids=["ends before it starts", "empty", "in the future", "beyond time"],
)
def test_a_bad_window_is_named(stubs: Stubs, report: str, start_s: int, end_s: int | None, fields: set[str]) -> None:
    request = REPORTS[report](tenant_id=TENANT)
    request.start_time.seconds = start_s
    if end_s is not None:
        request.end_time.seconds = end_s

    code, named, _ = refusal(lambda: getattr(stubs.usage, report)(request, timeout=10))

    assert (code, named) == (grpc.StatusCode.INVALID_ARGUMENT, fields)


@pytest.mark.parametrize("report", [name for name in REPORTS if name.startswith("List")])
def test_pages_and_filters_that_make_no_sense_are_named(stubs: Stubs, report: str) -> None:
    for fields, path in (
        ({"tenant_id": "x"}, "tenant_id"),
        ({"page_size": -1}, "page_size"),
        ({"page_token": "made-up"}, "page_token"),
        ({"filter": usage_service_pb2.UsageFilter(attempts=99)}, "filter.attempts"),  # type: ignore[arg-type]
        ({"filter": usage_service_pb2.UsageFilter(provider="a\0")}, "filter.provider"),
    ):
        request = REPORTS[report](**{"tenant_id": TENANT, **fields})

        code, named, _ = refusal(partial(getattr(stubs.usage, report), request, timeout=10))

        assert (code, named) == (grpc.StatusCode.INVALID_ARGUMENT, {path})


def test_bad_questions_about_prices_and_limits_name_every_field(stubs: Stubs) -> None:
    cost = pricing_service_pb2.CalculateCostRequest
    questions: list[tuple[Callable[..., object], Message, set[str]]] = [
        (stubs.pricing.CalculateCost, cost(), {"provider", "model"}),
        (stubs.pricing.CalculateCost, cost(provider="groq", model="m", input_tokens=-1), {"input_tokens"}),
        (
            stubs.pricing.CalculateCost,
            cost(provider="groq", model="m", input_tokens=2**62, output_tokens=2**62),
            {"input_tokens", "output_tokens"},
        ),
        (stubs.pricing.ListPrices, pricing_service_pb2.ListPricesRequest(page_size=-1), {"page_size"}),
        (stubs.quota.CheckRateLimitStatus, quota_service_pb2.CheckRateLimitStatusRequest(tenant_id="x"), {"tenant_id"}),
        (
            stubs.usage.ListDailyCosts,
            usage_service_pb2.ListDailyCostsRequest(tenant_id=TENANT, time_zone="../../etc/passwd"),
            {"time_zone"},
        ),
    ]
    for call, request, fields in questions:
        code, named, _ = refusal(partial(call, request, timeout=10))

        assert (code, named) == (grpc.StatusCode.INVALID_ARGUMENT, fields)


def test_a_bad_event_in_a_batch_is_rejected_alone_and_bad_batches_whole(stubs: Stubs) -> None:
    batch = usage_service_pb2.RecordUsageRequest
    router_id, bad = str(uuid.uuid4()), usage_event_pb2.UsageEvent(event_id="nope")

    answer = stubs.usage.RecordUsage(batch(router_id=router_id, epoch="1", events=[bad, bad]), timeout=10)
    empty = refusal(lambda: stubs.usage.RecordUsage(batch(router_id=router_id, epoch="1"), timeout=10))
    large = refusal(lambda: stubs.usage.RecordUsage(batch(router_id=router_id, epoch="1", events=[bad] * 1001)))

    assert [result.disposition for result in answer.results] == [usage_service_pb2.RECORD_DISPOSITION_REJECTED] * 2
    assert [result.error.code for result in answer.results] == [grpc.StatusCode.INVALID_ARGUMENT.value[0]] * 2
    assert empty[:2] == large[:2] == (grpc.StatusCode.INVALID_ARGUMENT, {"events"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chat", "--tenant", "nope", "hello"], "tenant_id: must be a UUID"),
        (["chat", "--tenant", TENANT, "--provider", "sandbox", ""], "messages[0].content"),
        (["chat", "--tenant", TENANT, "--provider", "openrouter", "hello"], "OPENROUTER_API_KEY"),
        (["tenants", "show", str(uuid.UUID(int=7))], "turnpike tenants create"),
        (["usage", "--tenant", "nope"], "tenant_id: must be a UUID"),
        (["--router", "127.0.0.1:1", "chat", "--tenant", TENANT, "hello"], "no server at 127.0.0.1:1"),
        (["--usage", "127.0.0.1:1", "usage", "--tenant", TENANT], "no server at 127.0.0.1:1"),
    ],
    ids=["no UUID", "no text", "no key", "no such tenant", "no UUID for a report", "no router", "no usage service"],
)
def test_the_command_line_says_what_is_wrong_in_one_line(stack: Stack, arguments: list[str], words: str) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "turnpike"), *arguments],
        env=stack.variables(), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip

    assert done.returncode != 0
    assert done.stdout == ""
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("variable", ["ROUTER_PORT", "ROUTER_METRICS_PORT"])
def test_a_service_whose_port_is_taken_says_so_and_leaves_quietly(stack: Stack, tmp_path: Path, variable: str) -> None:
    database = EmbeddedPostgres(stack.data_dir / "postgres").dsn
    other = Stack(tmp_path / "data", {"TURNPIKE_DATABASE_URL": database, variable: str(stack.usage_port)})

    done = subprocess.run(
        [sys.executable, "-m", "router_service"],
        env=other.variables(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]  # a background task may have warned before
    assert str(stack.usage_port) in last
    assert "taken" in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("module", "variables", "words"),
    [
        ("router_service", {"ROUTER_PORTT": "1"}, "did you mean ROUTER_PORT?"),
        ("router_service", {"ROUTER_PORT": "99999"}, "ROUTER_PORT"),
        ("usage_service", {}, "TURNPIKE_DATABASE_URL"),
        ("usage_service", {"TURNPIKE_DATABASE_URL": ""}, "TURNPIKE_DATABASE_URL"),
        ("usage_service", {"TURNPIKE_DATABASE_URL": "mysql://u:sk-canary-pass@h/x"}, "postgresql://"),
        ("router_service", {"TURNPIKE_DATABASE_URL": "postgresql://u:sk-canary-pass@h:port/x"}, "postgresql://"),
    ],
    ids=[
        "a misspelt setting",
        "an impossible port",
        "no database",
        "an empty URL",
        "another kind of database",
        "no port",
    ],
)
def test_a_service_that_cannot_start_says_so_in_one_line_without_secrets(
    tmp_path: Path, module: str, variables: dict[str, str], words: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module],
        env=Stack(tmp_path / "data", variables).variables(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "canary" not in done.stderr


@pytest.mark.parametrize("module", ["usage_service", "router_service"])
def test_a_database_that_nobody_listens_for_is_waited_for_without_its_password_being_told(
    tmp_path: Path, module: str
) -> None:
    stack = Stack(tmp_path / "data", {"TURNPIKE_DATABASE_URL": "postgresql://u:sk-canary-pass@127.0.0.1:1/x"})
    output = tmp_path / "output"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module], env=stack.variables(), stdout=log, stderr=subprocess.STDOUT
        )
        try:
            waits = eventually(output.read_text, lambda text: "postgres.awaited" in text)
            process.terminate()
            exit_code = process.wait(30)
        finally:
            process.kill()
            process.wait()

    assert "postgres.awaited" in waits
    assert exit_code == 0
    assert "canary" not in output.read_text()
