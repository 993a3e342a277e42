"""Whatever the timing: answers cut anywhere and sent at any pace, callers who leave at any moment or read slowly.

Seeds say what each provider sends (`provider_timing`) and what each caller does. Nothing is asserted of how long
anything takes; what a call ends with may depend on its timing only where its caller does not wait for the end.
"""

from __future__ import annotations

import enum
import random
import secrets
import threading
import time
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from tests.support.provider_server import ProviderProcess
from tests.support.provider_timing import Ending, Plan, plan_of
from tests.support.stack import Stack
from turnpike.router.v1 import (
    completion_pb2,
    router_service_pb2,
    router_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)
from turnpike.usage.v1 import token_usage_pb2, usage_event_pb2, usage_service_pb2, usage_service_pb2_grpc

CALLS = 320
AT_ONCE = 24
HELLO = completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="one two three")
FAULTS_OF_OURS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
SUCCESS = usage_event_pb2.USAGE_STATUS_SUCCESS
AS_REPORTED = token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER


class Caller(enum.Enum):
    """What becomes of a caller."""

    PATIENT = "reads to the end"
    SLOW = "reads slowly, to the end"
    LEAVES = "cancels"
    IN_A_HURRY = "has a short deadline"


@dataclass
class Call:
    """One completion, and what its caller saw."""

    seed: int
    caller: Caller
    is_whole: bool
    patience_s: float
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    text: str = ""
    code: grpc.StatusCode = grpc.StatusCode.OK
    result: completion_pb2.CompletionResult | None = None
    rows: list[usage_event_pb2.UsageEvent] = field(default_factory=list)

    @property
    def plan(self) -> Plan:
        return plan_of(self.seed)

    @property
    def waits_for_the_end(self) -> bool:
        return self.caller in {Caller.PATIENT, Caller.SLOW}

    def __str__(self) -> str:
        return f"seed {self.seed}, {'whole' if self.is_whole else 'stream'}, caller {self.caller.value}: {self.code}"


def call_of(seed: int) -> Call:
    luck = random.Random(f"caller {seed}")
    caller = luck.choices(list(Caller), [10, 2, 3, 3])[0]
    return Call(seed, caller, is_whole=luck.random() < 0.3, patience_s=0.02 + luck.random() ** 2)


@dataclass(frozen=True)
class Site:
    """All calls made, and what was left of them."""

    calls: list[Call]
    running: float
    log: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    directory = Path(tmp_path_factory.mktemp("timing"))
    calls = [call_of(seed) for seed in range(CALLS)]
    with ProviderProcess(directory) as groq:
        stack = Stack(
            directory / "data", {"ROUTER_GROQ_BASE_URL": groq.base_url, "ROUTER_ALLOWED_NETWORKS": "127.0.0.1"}
        ).start()
        with grpc.insecure_channel(stack.router) as router, grpc.insecure_channel(stack.usage) as usage:
            tenant_id = _tenant(tenant_service_pb2_grpc.TenantServiceStub(router))
            stub = router_service_pb2_grpc.RouterServiceStub(router)
            with ThreadPoolExecutor(AT_ONCE) as threads:
                list(threads.map(lambda call: _make(stub, tenant_id, call), calls))
            running = _running_at_rest(stack)
            _read_books(usage_service_pb2_grpc.UsageServiceStub(usage), tenant_id, calls)
        assert stack.stop() == 0, stack.output()
    return Site(calls, running, stack.output())


def _tenant(tenants: tenant_service_pb2_grpc.TenantServiceStub) -> str:
    answer = tenants.CreateTenant(
        tenant_service_pb2.CreateTenantRequest(
            name="timing",
            inference_config=tenant_service_pb2.InferenceConfig(preferred_provider="groq", allowed_providers=["groq"]),
            provider_tokens={"groq": f"sk-canary-{secrets.token_hex(12)}"},
        ),
        timeout=30,
    )
    return answer.tenant.id


def _make(stub: router_service_pb2_grpc.RouterServiceStub, tenant_id: str, call: Call) -> None:
    asked = {
        "tenant_id": tenant_id,
        "messages": [HELLO],
        "request_id": call.request_id,
        "model": f"timed?seed={call.seed}",  # a route of its own: no call meets another one's breaker
    }
    timeout = call.patience_s if call.caller is Caller.IN_A_HURRY else 60.0
    try:
        if call.is_whole:
            whole = stub.Complete.future(router_service_pb2.CompleteRequest(**asked), timeout=timeout)  # type: ignore[arg-type]
            with _leaving(call, whole):
                call.result = whole.result().result
            call.text = call.result.content
        else:
            events = stub.StreamCompletion(router_service_pb2.StreamCompletionRequest(**asked), timeout=timeout)  # type: ignore[arg-type]
            with _leaving(call, events):
                _read(events, call)
    except grpc.FutureCancelledError:
        call.code = grpc.StatusCode.CANCELLED
    except grpc.RpcError as error:
        call.code = error.code()


class _leaving:  # noqa: N801 - reads as a function
    """Cancels a call when its caller's patience ends, if he is one who leaves."""

    def __init__(self, call: Call, rpc: grpc.Call) -> None:
        self._timer = threading.Timer(call.patience_s, rpc.cancel)
        self._leaves = call.caller is Caller.LEAVES

    def __enter__(self) -> None:
        if self._leaves:
            self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def _read(events: Iterator[router_service_pb2.StreamCompletionResponse], call: Call) -> None:
    for event in events:
        assert call.result is None, "the result is the last event"
        if event.HasField("delta"):
            call.text += event.delta.text
            if call.caller is Caller.SLOW:
                time.sleep(0.02)
        elif event.HasField("result"):
            call.result = event.result


def _running_at_rest(stack: Stack) -> float:
    """How many completions are still running when nobody asks any more: 0, or those that do not end in time."""
    give_up_at = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{stack.router_port + 1000}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        (line,) = [line for line in lines if line.startswith("turnpike_router_completions_in_flight ")]
        running = float(line.split()[-1])
        if not running or time.monotonic() > give_up_at:
            return running
        time.sleep(0.1)


def _read_books(usage: usage_service_pb2_grpc.UsageServiceStub, tenant_id: str, calls: list[Call]) -> None:
    """Wait until the ledger has what the callers were told of, and grows no more."""
    told = sum(len(call.result.attempts) for call in calls if call.result is not None)
    give_up_at = time.monotonic() + 60
    before, rows = -1, _rows(usage, tenant_id)
    while (len(rows) < told or len(rows) > before) and time.monotonic() < give_up_at:
        before = len(rows)
        time.sleep(0.5)
        rows = _rows(usage, tenant_id)
    of_request = defaultdict(list)
    for row in rows:
        of_request[row.request_id].append(row)
    for call in calls:
        call.rows = sorted(of_request.pop(call.request_id, []), key=lambda row: row.attempt)
    assert not of_request, "rows of requests that nobody made"


def _rows(usage: usage_service_pb2_grpc.UsageServiceStub, tenant_id: str) -> list[usage_event_pb2.UsageEvent]:
    rows: list[usage_event_pb2.UsageEvent] = []
    request = usage_service_pb2.ListUsageRecordsRequest(tenant_id=tenant_id, page_size=500)
    while True:
        page = usage.ListUsageRecords(request, timeout=30)
        rows += [record.event for record in page.records]
        if not page.next_page_token:
            return rows
        request.page_token = page.next_page_token


def test_every_whole_answer_reaches_every_caller_who_waits_for_it_exactly(site: Site) -> None:
    wrong = [
        str(call)
        for call in site.calls
        if call.waits_for_the_end
        and call.plan.is_whole
        and (call.code is not grpc.StatusCode.OK or call.text != call.plan.text)
    ]

    assert wrong == []


def test_no_broken_answer_is_a_success_and_all_that_came_of_it_is_read(site: Site) -> None:
    broken = [call for call in site.calls if call.waits_for_the_end and not call.plan.is_whole]

    assert [str(call) for call in broken if call.code is not grpc.StatusCode.UNAVAILABLE] == []
    # A reset may overtake what came before it; a caller of a whole answer is shown nothing of a broken one.
    closed = [call for call in broken if call.plan.ending is Ending.CLOSED and not call.is_whole]
    assert [str(call) for call in closed if call.text != call.plan.text] == []


def test_nobody_sees_a_fault_of_ours_or_text_that_was_not_sent(site: Site) -> None:
    assert [str(call) for call in site.calls if call.code in FAULTS_OF_OURS] == []
    assert [str(call) for call in site.calls if not call.plan.text.startswith(call.text)] == []


def test_u1_the_ledger_has_each_attempt_once_with_what_the_provider_reported(site: Site) -> None:
    for call in site.calls:
        assert [row.attempt for row in call.rows] == list(range(1, len(call.rows) + 1)), call
        if call.result is not None:
            assert [row.event_id for row in call.rows] == [told.usage_event_id for told in call.result.attempts], call
        if call.code is grpc.StatusCode.OK:
            assert call.rows[-1].status == SUCCESS, call
        for row in call.rows:
            tokens = (row.token_usage.input_tokens, row.token_usage.output_tokens)
            reported = (call.plan.prompt_tokens, call.plan.completion_tokens)
            assert (tokens == reported) or row.usage_source != AS_REPORTED, call
            assert row.status != SUCCESS or (call.plan.is_whole and row.usage_source == AS_REPORTED), call
            assert row.error_class != "internal", call


def test_nothing_is_left_running_and_the_log_tells_of_no_fault(site: Site) -> None:
    assert site.running == 0
    assert [line for line in site.log.splitlines() if "Traceback" in line or "[error" in line] == []
