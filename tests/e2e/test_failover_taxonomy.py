"""Every failure of the taxonomy through the real router: what the caller saw, what the provider saw, what was booked.

S4 no text twice, S5 every call ends, U2 one row for each attempt. The providers are processes of their own, and their
logs are the witness that the router is held against.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from router_service.domain.errors import FailureKind
from tests.e2e.conftest import Stubs
from tests.support.provider_server import ProviderProcess, Served
from tests.support.stack import Stack
from tests.support.taxonomy_rows import GOOD_TEXT, HALF, ROWS, Call, Row
from turnpike.router.v1 import (
    completion_pb2,
    router_service_pb2,
    router_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)
from turnpike.usage.v1 import (
    pricing_service_pb2_grpc,
    quota_service_pb2_grpc,
    token_usage_pb2,
    usage_event_pb2,
    usage_service_pb2,
    usage_service_pb2_grpc,
)

CLOCKS = '{"connect_s": 2, "first_content_s": 3, "content_gap_s": 3, "total_s": 20}'
OTHER_REQUESTS = 500  # what makes the rows' failovers a small part, as in a router at work: see the retry budget
AT_ONCE = 16
HELLO = completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="one two three")


@dataclass
class Seen:
    """What became of one row's request."""

    tenant_id: str
    shown: str = ""  # text as a caller shows it, after discarding what it is told to discard
    texts: list[str] = field(default_factory=list)
    restarts: list[completion_pb2.StreamRestarted] = field(default_factory=list)
    result: completion_pb2.CompletionResult | None = None
    error: grpc.RpcError | None = None
    reason: str = ""
    retry_after_s: float | None = None
    failure: completion_pb2.CompletionFailure | None = None
    records: list[usage_service_pb2.UsageRecord] = field(default_factory=list)

    @property
    def attempts(self) -> list[completion_pb2.AttemptSummary]:
        told = self.result or self.failure
        assert told is not None, self.error
        return list(told.attempts)


@dataclass(frozen=True)
class Site:
    """All rows carried out at once, and the witnesses."""

    seen: Mapping[Row, Seen]
    served: Mapping[str, list[Served]]
    log: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    directory = Path(tmp_path_factory.mktemp("taxonomy"))
    for name in ("groq", "openrouter"):
        (directory / name).mkdir()
    with (
        ProviderProcess(directory / "groq") as groq,
        ProviderProcess(directory / "openrouter", "--default-script", "ok?n=4") as openrouter,
        socket.socket() as unused,
    ):
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody will take this port, and nobody answers
        stack = Stack(
            directory / "data",
            {
                "GROQ_API_KEY": "sk-canary-of-the-operator-groq",
                "OPENROUTER_API_KEY": "sk-canary-of-the-operator-openrouter",
                "ROUTER_GROQ_BASE_URL": groq.base_url,
                "ROUTER_OPENROUTER_BASE_URL": openrouter.base_url,
                "ROUTER_LOCAL_BASE_URL": f"http://127.0.0.1:{unused.getsockname()[1]}/v1",
                "ROUTER_LLM7_BASE_URL": "http://127.0.0.2:9/v1",
                "ROUTER_ALLOWED_NETWORKS": "127.0.0.1",
                "ROUTER_PROVIDER_CLOCKS": f'{{"groq": {CLOCKS}}}',
            },
        ).start()
        with grpc.insecure_channel(stack.router) as router, grpc.insecure_channel(stack.usage) as usage:
            stubs = Stubs(
                router_service_pb2_grpc.RouterServiceStub(router),
                tenant_service_pb2_grpc.TenantServiceStub(router),
                usage_service_pb2_grpc.UsageServiceStub(usage),
                quota_service_pb2_grpc.QuotaServiceStub(usage),
                pricing_service_pb2_grpc.PricingServiceStub(usage),
            )
            seen = _carry_out(stubs)
            _read_books(stubs, seen)
        assert stack.stop() == 0, stack.output()
    # The providers have ended: their logs are whole.
    return Site(seen, {"groq": groq.served, "openrouter": openrouter.served}, stack.output())


def _carry_out(stubs: Stubs) -> Mapping[Row, Seen]:
    busy = _tenant(stubs, replace(ROWS[0], script="ok?n=1", other="ok?n=1"))
    with ThreadPoolExecutor(AT_ONCE) as threads:
        tenants = dict(zip(ROWS, threads.map(lambda row: _tenant(stubs, row), ROWS), strict=True))
        list(threads.map(lambda _: list(stubs.router.StreamCompletion(_stream(busy))), range(OTHER_REQUESTS)))
    with ThreadPoolExecutor(len(ROWS)) as threads:
        return dict(zip(ROWS, threads.map(lambda row: _call(stubs, row, tenants[row]), ROWS), strict=True))


def _tenant(stubs: Stubs, row: Row) -> str:
    models = {row.first: row.script} | ({row.second: row.other} if row.other else {})
    has_key = {row.first: row.has_own_key, row.second: row.other_has_own_key}
    answer = stubs.tenants.CreateTenant(
        tenant_service_pb2.CreateTenantRequest(
            name="row",
            inference_config=tenant_service_pb2.InferenceConfig(
                preferred_provider=row.first, preferred_models=models, allowed_providers=list(models)
            ),
            provider_tokens={name: f"sk-canary-{secrets.token_hex(12)}" for name in models if has_key[name]},
        ),
        timeout=30,
    )
    return answer.tenant.id


def _stream(tenant_id: str, **fields: object) -> router_service_pb2.StreamCompletionRequest:
    return router_service_pb2.StreamCompletionRequest(tenant_id=tenant_id, messages=[HELLO], **fields)  # type: ignore[arg-type]


def _call(stubs: Stubs, row: Row, tenant_id: str) -> Seen:
    seen = Seen(tenant_id)
    try:
        if row.call is Call.WHOLE:
            request = router_service_pb2.CompleteRequest(tenant_id=tenant_id, messages=[HELLO])
            seen.result = stubs.router.Complete(request, timeout=30).result
            seen.shown = seen.result.content
        else:
            restart = completion_pb2.MIDSTREAM_FAILURE_POLICY_RESTART
            wanted = {"on_midstream_failure": restart} if row.call is Call.RESTARTED else {}
            _read(stubs.router.StreamCompletion(_stream(tenant_id, **wanted), timeout=30), seen)
    except grpc.RpcError as error:
        seen.error = error
        _read_details(error, seen)
    return seen


def _read(events: Iterator[router_service_pb2.StreamCompletionResponse], seen: Seen) -> None:
    for event in events:
        assert seen.result is None, "the result is the last event"
        match event.WhichOneof("event"):
            case "delta":
                assert event.delta.index == len(seen.texts), "deltas are numbered without a gap"
                seen.texts.append(event.delta.text)
                seen.shown += event.delta.text
            case "restarted":
                assert event.restarted.discard_through_index == len(seen.texts) - 1
                seen.restarts.append(event.restarted)
                seen.shown = ""
            case "result":
                seen.result = event.result


def _read_details(error: grpc.RpcError, seen: Seen) -> None:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None, error
    info, retry, failure = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.RetryInfo(),
        completion_pb2.CompletionFailure(),
    )
    for detail in status.details:
        if detail.Unpack(info):
            seen.reason = info.reason
        elif detail.Unpack(retry):
            seen.retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(failure):
            seen.failure = failure


def _read_books(stubs: Stubs, seen: Mapping[Row, Seen]) -> None:
    """Wait until every attempt that a caller was told of is in the ledger."""
    give_up_at = time.monotonic() + 20
    for row, outcome in seen.items():
        request = usage_service_pb2.ListUsageRecordsRequest(tenant_id=outcome.tenant_id)
        while len(outcome.records) < len(outcome.attempts):
            assert time.monotonic() < give_up_at, f"{row.name}: {len(outcome.records)} rows"
            outcome.records = list(reversed(stubs.usage.ListUsageRecords(request, timeout=10).records))
            time.sleep(0.02)


each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def test_every_kind_of_failure_has_a_row() -> None:
    assert {row.kind for row in ROWS} == set(FailureKind)


@each_row
def test_the_caller_gets_the_whole_answer_or_one_clear_error(site: Site, row: Row) -> None:
    seen = site.seen[row]

    if row.code:
        assert seen.error is not None, seen.result
        assert (seen.error.code().name, seen.reason) == (row.code, row.reason)
        assert seen.shown == row.text
        assert seen.result is None
        assert seen.retry_after_s == (None if row.retry_after_s is None else pytest.approx(row.retry_after_s, abs=1.0))
    else:
        assert seen.error is None
        assert seen.result is not None
        assert seen.result.provider == row.second
        assert seen.shown == GOOD_TEXT
        assert seen.result.output_tokens == 4


@each_row
def test_s4_text_is_void_only_where_the_caller_asked_to_be_told(site: Site, row: Row) -> None:
    seen = site.seen[row]

    if row.call is Call.RESTARTED:
        (restart,) = seen.restarts
        assert (restart.attempt, restart.reason) == (2, row.kind.value)
        assert "".join(seen.texts) == HALF + GOOD_TEXT
    else:
        assert seen.restarts == []


@each_row
def test_the_attempts_that_the_caller_is_told_of_are_those_that_the_providers_saw(site: Site, row: Row) -> None:
    attempts = site.seen[row].attempts
    at_first = [attempt for attempt in attempts if attempt.provider == row.first]
    at_second = [attempt for attempt in attempts if attempt.provider == row.second]
    served = [request for request in site.served.get(row.first, []) if request.model == row.script]

    assert len(served) == row.tries
    assert len(at_first) == (row.tries or len(at_first))
    assert {attempt.error_class for attempt in at_first} == {row.kind.value}
    assert [attempt.error_class for attempt in at_second] == ([] if row.code else [""])
    assert [attempt.attempt for attempt in attempts] == list(range(1, len(attempts) + 1))


def test_the_second_provider_was_asked_once_for_each_answer_that_it_gave(site: Site) -> None:
    answered = [row for row in ROWS if not row.code]

    asked = [request for name in ("groq", "openrouter") for request in site.served[name] if request.script == "ok?n=4"]

    assert len([request for request in asked if request.path.endswith("/chat/completions")]) == len(answered)


@each_row
def test_u2_every_attempt_is_one_row_in_the_books(site: Site, row: Row) -> None:
    seen = site.seen[row]
    events = [record.event for record in seen.records]
    failed = "RATE_LIMIT" if row.kind is FailureKind.RATE_LIMITED else "ERROR"

    assert [event.event_id for event in events] == [attempt.usage_event_id for attempt in seen.attempts]
    assert [event.absorbed for event in events] == [True] * (len(events) - 1) + [False]
    assert [usage_event_pb2.UsageStatus.Name(event.status) for event in events] == [
        f"USAGE_STATUS_{failed}" if event.provider == row.first else "USAGE_STATUS_SUCCESS" for event in events
    ]
    source = token_usage_pb2.TokenUsageSource.Name(events[0].usage_source)
    assert source == f"TOKEN_USAGE_SOURCE_{row.usage_source}"


@each_row
def test_what_a_broken_stream_consumed_is_told_with_its_error(site: Site, row: Row) -> None:
    failure = site.seen[row].failure

    is_told = failure is not None and failure.HasField("partial_usage")
    assert is_told == bool(row.code and row.text)
    if failure is not None and is_told:
        booked = site.seen[row].records[-1].event.token_usage
        assert (failure.partial_usage.input_tokens, failure.partial_usage.output_tokens) == (
            booked.input_tokens,
            booked.output_tokens,
        )
        assert failure.partial_usage.output_tokens > 0


def test_k1_no_text_of_a_provider_and_no_key_is_shown(site: Site) -> None:
    told = "".join(f"{seen.error!r}{seen.failure}{seen.records}" for seen in site.seen.values())

    for forbidden in ("scripted failure", "flagged by moderation", "sk-canary"):
        assert forbidden not in told
        assert forbidden not in site.log


def test_only_the_tenants_keys_paid_for_the_tenants_rows(site: Site) -> None:
    paid = {row: [record.event.funding for record in seen.records] for row, seen in site.seen.items()}

    for row, fundings in paid.items():
        if row.first == "groq" and row.has_own_key:
            assert fundings[0] == token_usage_pb2.FUNDING_TENANT_KEY
