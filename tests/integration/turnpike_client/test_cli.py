from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import Result
from google.protobuf.duration_pb2 import Duration

from turnpike.router.v1 import completion_pb2, router_service_pb2
from turnpike.usage.v1 import quota_service_pb2
from turnpike_client import Attempt, Failure, FieldViolation, Funding, TokenUsage, UsageClient, UsageStatus
from turnpike_client.testing import FakeTurnpike, Reply

TENANT = "5b4c2a10-5f0e-4a53-9d5c-0f3a6f6f2b11"
KEY = "gsk_canary_0123456789abcdef"

Run = Callable[..., Awaitable[Result]]


async def test_chat_streams_the_answer_and_ends_with_one_line_on_what_it_took(turnpike: FakeTurnpike, run: Run) -> None:
    turnpike.replies.append(Reply(chunks=("Hel", "lo\n"), reasoning="not for pipes", provider="groq", model="m"))

    result = await run("chat", "--tenant", TENANT, "Hi")

    assert result.exit_code == 0
    assert result.stdout == ("Hello\ngroq | m | 3 tokens in, 2 out | $0.00001 | 120 ms | first token after 40 ms\n")


async def test_chat_passes_on_what_was_asked_for(turnpike: FakeTurnpike, run: Run) -> None:
    arguments = ["--provider", "groq", "--model", "m", "--system", "Be brief", "--task", "code"]

    await run("chat", "--tenant", TENANT, *arguments, "--max-tokens", "5", "--temperature", "0", "Hi")

    [request] = turnpike.router.requests
    assert (request.tenant_id, request.provider, request.model) == (TENANT, "groq", "m")
    assert [message.content for message in request.messages] == ["Be brief", "Hi"]
    assert request.task_type == completion_pb2.TASK_TYPE_CODE
    assert (request.sampling.max_output_tokens, request.sampling.temperature) == (5, 0)
    assert request.sampling.HasField("temperature")


async def test_chat_reads_the_text_from_stdin_for_a_dash(turnpike: FakeTurnpike, run: Run) -> None:
    result = await run("chat", "--tenant", TENANT, "-", stdin="a long\ntext")

    assert result.stdout.startswith("a long\ntext\n")


async def test_chat_shows_a_restart(turnpike: FakeTurnpike, run: Run) -> None:
    turnpike.replies.append(Reply(voided_chunks=("Good",), chunks=("Hello",)))

    result = await run("chat", "--tenant", TENANT, "Hi")

    text, note, answer, line = result.stdout.splitlines()
    assert (text, answer) == ("Good", "Hello")
    assert "stream_broken" in note
    assert line.endswith("2 attempts")


async def test_chat_as_json_is_one_value_with_money_as_text(turnpike: FakeTurnpike, run: Run) -> None:
    turnpike.replies.append(Reply(chunks=("Hel", "lo"), reasoning="hm"))

    result = await run("chat", "--tenant", TENANT, "--json", "Hi")

    value = json.loads(result.stdout)
    assert (value["content"], value["reasoning"], value["cost_usd"]) == ("Hello", "hm", "0.000010")
    assert value["latency_ms"] == 120


async def test_an_unknown_price_is_called_unpriced(turnpike: FakeTurnpike, run: Run) -> None:
    turnpike.replies.append(Reply(cost_usd=None))

    result = await run("chat", "--tenant", TENANT, "Hi")

    assert "| unpriced |" in result.stdout


async def test_an_answer_that_breaks_off_keeps_what_came_and_says_so_on_stderr(
    turnpike: FakeTurnpike, run: Run
) -> None:
    attempt = Attempt(
        1, "groq", "m", Funding.TENANT_KEY, UsageStatus.ERROR, "stream_broken", "", timedelta(seconds=1), "e"
    )
    failure = Failure("UNAVAILABLE", "the provider broke off", reason="STREAM_INTERRUPTED", attempts=(attempt,))
    turnpike.replies.append(Reply(chunks=("Hel",), failure=failure))

    result = await run("chat", "--tenant", TENANT, "--on-failure", "fail", "Hi")

    assert result.exit_code == 1
    assert result.stdout == "Hel\n"
    [line] = result.stderr.splitlines()
    assert line.startswith("turnpike: the provider broke off; attempt 1 groq m: stream_broken; request ")


async def test_attempts_that_the_message_lists_are_not_listed_twice(turnpike: FakeTurnpike, run: Run) -> None:
    attempt = Attempt(
        1, "groq", "m", Funding.TENANT_KEY, UsageStatus.ERROR, "overloaded", "", timedelta(seconds=1), "e"
    )
    failure = Failure(
        "UNAVAILABLE",
        "every attempt failed: groq (m): the provider is overloaded",
        reason="ALL_TARGETS_FAILED",
        attempts=(attempt,),
    )
    turnpike.replies.append(Reply(chunks=(), failure=failure))

    result = await run("chat", "--tenant", TENANT, "Hi")

    assert result.stderr.startswith("turnpike: every attempt failed: groq (m): the provider is overloaded; request ")


async def test_the_help_tells_what_the_exit_codes_mean(run: Run) -> None:
    assert "Exit codes: 0 done; 1 refused" in (await run("--help")).stdout


async def test_every_bad_field_is_named_in_one_line(turnpike: FakeTurnpike, run: Run) -> None:
    violations = (FieldViolation("tenant_id", "is no UUID"), FieldViolation("model", "is empty"))
    failure = Failure("INVALID_ARGUMENT", "bad", reason="INVALID_REQUEST", field_violations=violations)
    turnpike.replies.append(Reply(chunks=(), failure=failure))

    result = await run("chat", "--tenant", "x", "Hi")

    assert result.exit_code == 1
    assert result.stderr.startswith("turnpike: tenant_id: is no UUID; model: is empty; request ")
    assert len(result.stderr.splitlines()) == 1


async def test_a_refusal_for_a_limit_says_when_to_try_again(turnpike: FakeTurnpike, run: Run) -> None:
    failure = Failure("RESOURCE_EXHAUSTED", "10 a minute", reason="RATE_LIMITED", retry_after=timedelta(seconds=7))
    turnpike.replies.append(Reply(chunks=(), failure=failure))

    result = await run("chat", "--tenant", TENANT, "Hi")

    assert "10 a minute (try again in 7 s)" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("chat", "--tenant", TENANT, "Hi"),
        ("usage", "--tenant", TENANT),
        ("tenants", "list"),
        ("limits", "status", "--tenant", TENANT),
        ("providers",),
    ],
)
async def test_no_server_is_one_line_and_exit_code_3(run: Run, arguments: tuple[str, ...]) -> None:
    nowhere = {"TURNPIKE_ROUTER": "127.0.0.1:1", "TURNPIKE_USAGE": "127.0.0.1:1"}

    result = await run(*arguments, env=nowhere)

    assert result.exit_code == 3
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("turnpike: no server at 127.0.0.1:1; ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("chat", "Hi"),
        ("usage", "--tenant", TENANT, "--since", "yesterday"),
        ("tenants", "set-config", TENANT),
        ("tenants", "reseal"),
        ("tenants", "reseal", TENANT, "--all"),
        ("tenants", "set-config", TENANT, "--weight", "price=much"),
        ("tenants", "set-config", TENANT, "--allow-provider", "groq", "--allow-all-providers"),
        ("tenants", "set-token", TENANT, "groq", "--from-env", "NOT_SET_ANYWHERE"),
        ("tenants", "set-token", TENANT, "groq", KEY),
        ("nonsense",),
    ],
)
async def test_wrong_usage_is_exit_code_2(run: Run, arguments: tuple[str, ...]) -> None:
    result = await run(*arguments, stdin="")

    assert result.exit_code == 2
    assert "Traceback" not in result.output


async def test_a_port_variable_moves_the_default_for_a_second_instance(turnpike: FakeTurnpike, run: Run) -> None:
    port = turnpike.usage_target.rpartition(":")[2]

    result = await run("prices", "list", env={"TURNPIKE_USAGE": "", "USAGE_PORT": port})

    assert result.exit_code == 0


async def test_a_tenant_goes_from_created_to_configured(turnpike: FakeTurnpike, run: Run) -> None:
    created = await run("tenants", "create", "acme", "--preferred-provider", "groq", "--json")
    tenant_id = json.loads(created.stdout)["id"]

    stored = await run("tenants", "set-token", tenant_id, "groq", stdin=f"{KEY}\n")
    configured = await run(
        *("tenants", "set-config", tenant_id, "--no-auto-failover", "--preferred-model", "groq=m"),
        *("--weight", "price=0.5", "--allow-provider", "groq", "--no-system-keys", "--name", "Acme Ltd", "--json"),
    )
    listed = await run("tenants", "list")
    shown = await run("tenants", "show", tenant_id)
    verified = await run("tenants", "verify-token", tenant_id, "groq")

    assert turnpike.tenants.tokens[tenant_id, "groq"] == KEY
    assert KEY not in stored.output + shown.output
    tenant = json.loads(configured.stdout)
    assert tenant["name"] == "Acme Ltd"
    assert tenant["config"] == {
        "preferred_provider": "groq",
        "auto_failover": False,
        "preferred_models": {"groq": "m"},
        "score_weights": {"price": 0.5},
        "allowed_providers": ["groq"],
        "allow_system_keys": False,
    }
    assert "Acme Ltd" in listed.stdout
    assert "groq     cdef" in shown.stdout
    assert verified.stdout.split() == ["verdict", "explanation", "valid", "accepted"]


async def test_one_entry_of_a_map_is_set_or_removed_and_the_others_stay(turnpike: FakeTurnpike, run: Run) -> None:
    created = await run("tenants", "create", "acme", "--id", TENANT)
    await run("tenants", "set-config", TENANT, "--preferred-model", "groq=a", "--preferred-model", "llm7=b")
    await run("tenants", "set-config", TENANT, "--preferred-model", "groq=c", "--weight", "price=1")

    await run("tenants", "set-config", TENANT, "--preferred-model", "llm7=", "--weight", "price=")

    assert created.exit_code == 0
    config = turnpike.tenants.tenants[TENANT].inference_config
    assert (dict(config.preferred_models), dict(config.score_weights)) == ({"groq": "c"}, {})


async def test_a_key_is_read_from_a_variable(turnpike: FakeTurnpike, run: Run) -> None:
    await run("tenants", "create", "acme", "--id", TENANT)

    result = await run("tenants", "set-token", TENANT, "groq", "--from-env", "MY_KEY", env={"MY_KEY": KEY})
    removed = await run("tenants", "delete-token", TENANT, "groq")

    assert KEY not in result.output
    assert (result.exit_code, removed.exit_code) == (0, 0)
    assert turnpike.tenants.tokens == {}


async def test_a_rejected_key_is_told_by_the_exit_code(turnpike: FakeTurnpike, run: Run) -> None:
    turnpike.tenants.rejected_tokens.add(KEY)
    await run("tenants", "create", "acme", "--id", TENANT)
    await run("tenants", "set-token", TENANT, "groq", stdin=KEY)

    result = await run("tenants", "verify-token", TENANT, "groq", "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout)["verdict"] == "invalid"


async def test_keys_are_sealed_anew_and_the_exit_code_tells_whether_all_were(turnpike: FakeTurnpike, run: Run) -> None:
    await run("tenants", "create", "acme", "--id", TENANT)
    await run("tenants", "set-token", TENANT, "groq", stdin=KEY)
    await run("tenants", "create", "globex")
    turnpike.tenants.outdated_tokens.add((TENANT, "groq"))

    done = await run("tenants", "reseal", "--all")
    turnpike.tenants.unreadable_tokens[TENANT, "groq"] = "k0"
    left = await run("tenants", "reseal", TENANT)
    as_json = await run("tenants", "reseal", TENANT, "--json")

    assert done.exit_code == 0
    assert "1 key sealed anew with 'k2', 2 tenants looked at" in done.stdout
    assert "no stored key needs 'k1' any more" in done.stderr
    assert left.exit_code == as_json.exit_code == 1
    assert "put 'k0' back into TURNPIKE_KEY_ENCRYPTION_KEYS" in left.stderr
    assert json.loads(as_json.stdout)[0]["unreadable_tokens"][0]["missing_key_id"] == "k0"


async def test_the_books_are_printed(turnpike: FakeTurnpike, usage: UsageClient, run: Run) -> None:
    turnpike.pricing.add("groq", "m", input_usd="0.59", output_usd="0.79")
    tokens = TokenUsage(input_tokens=1000, output_tokens=500)
    await usage.track_usage(TENANT, "groq", "m", tokens, latency=timedelta(milliseconds=250))
    await usage.track_usage(TENANT, "llm7", "x", tokens)
    await usage.track_usage(
        TENANT, "llm7", "x", None, status=UsageStatus.ERROR, error_class="overloaded", error_message="busy\x1b[2J"
    )

    stats = await run("usage", "--tenant", TENANT)
    records = await run("records", "--tenant", TENANT, "--limit", "2", "--json")
    everything = await run("records", "--tenant", TENANT, "--json")
    costs = await run("costs", "--tenant", TENANT)
    errors = await run("errors", "--tenant", TENANT)
    prices = await run("prices", "list", "--provider", "groq")

    assert [line.split()[:3] for line in stats.stdout.splitlines()[1:]] == [
        ["llm7", "x", "2"],
        ["groq", "m", "1"],
        ["total", "3", "1"],
    ]
    assert "$0.000985 (1 unpriced)" in stats.stdout
    assert len(json.loads(records.stdout)) == 2
    assert {record["event"]["error_class"] for record in json.loads(everything.stdout)} == {"", "overloaded"}
    assert "$0.000985" in costs.stdout
    assert "overloaded" in errors.stdout
    assert "\x1b" not in errors.stdout
    assert "$0.59" in prices.stdout


async def test_a_window_is_passed_on(turnpike: FakeTurnpike, run: Run) -> None:
    await run("usage", "--tenant", TENANT, "--since", "2026-11-01", "--until", "2026-11-02T12:00", "--model", "m")

    [request] = turnpike.ledger.requests
    assert request.start_time.ToDatetime(UTC) == datetime(2026, 11, 1, tzinfo=UTC)
    assert request.end_time.ToDatetime(UTC) == datetime(2026, 11, 2, 12, tzinfo=UTC)
    assert request.filter.model == "m"


async def test_limits_and_routes_are_printed(turnpike: FakeTurnpike, run: Run) -> None:
    turnpike.quota.response = quota_service_pb2.CheckRateLimitStatusResponse(
        statuses=[
            quota_service_pb2.RateLimitStatus(
                provider="groq",
                metric=quota_service_pb2.LIMIT_METRIC_REQUESTS,
                window=Duration(seconds=60),
                limit="1000",
                used="960",
                usage_percent=96,
                level=quota_service_pb2.LIMIT_LEVEL_CRITICAL,
                should_failover=True,
            )
        ]
    )
    turnpike.router.explanation = router_service_pb2.ExplainRouteResponse(
        candidates=[router_service_pb2.RankedCandidate(rank=1, provider="groq", model="m", score=0.5)],
        excluded=[router_service_pb2.ExcludedCandidate(provider="llm7", reason="NO_KEY", explanation="store one")],
        config_version=4,
    )

    limits = await run("limits", "status", "--tenant", TENANT)
    route = await run("explain", "--tenant", TENANT, "--task", "code", "--needs-tools", "--within", "2.5")
    providers = await run("providers", "--json")

    assert limits.stdout.splitlines()[1].split()[:6] == ["critical", "96.0", "960", "1,000", "60", "s"]
    assert "NO_KEY" in route.stdout
    assert route.stdout.splitlines()[-1] == "failover off: only the first candidate is tried; configuration version 4"
    assert json.loads(providers.stdout)[0]["models"][0]["name"] == "fake-1"


READS = [
    ("tenants", "list"),
    ("usage", "--tenant", TENANT),
    ("records", "--tenant", TENANT),
    ("records", "--tenant", TENANT, "--why"),
    ("costs", "--tenant", TENANT),
    ("errors", "--tenant", TENANT),
    ("series", "--tenant", TENANT),
    ("latency", "--tenant", TENANT),
    ("limits", "status", "--tenant", TENANT),
    ("limits", "list"),
    ("prices", "list"),
    ("prices", "history", "groq", "m"),
    ("prices", "adjustments", "--tenant", TENANT),
    ("providers",),
    ("explain", "--tenant", TENANT),
]


@pytest.mark.parametrize("arguments", READS)
async def test_every_read_has_json_and_a_table_even_of_nothing(run: Run, arguments: tuple[str, ...]) -> None:
    as_table = await run(*arguments)
    as_json = await run(*arguments, "--json")

    assert as_table.exit_code == as_json.exit_code == 0
    assert as_table.stdout.strip()
    json.loads(as_json.stdout)
