"""From the protos of RouterService to the domain: a request is checked here, all bad fields at once, nowhere below."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from uuid import UUID

from router_service.api.convert_tenant import Checker
from router_service.api.request_check import CompletionProto, RequestCheck, RequestRules
from router_service.domain.completion import CompletionRequest, Sampling, TaskType
from router_service.domain.selection import Needs
from service_runtime.ids import quick
from turnpike.router.v1 import router_service_pb2 as pb

_NO_SAMPLING = Sampling()
_LONGEST_WRITTEN = 36  # of a UUID as nearly all write it; Python also takes one with any number of hyphens in it


def _uuid(text: str) -> UUID:
    return quick(UUID(text))


@dataclass(frozen=True, slots=True)
class RouteQuestion:
    """What ExplainRoute asks."""

    tenant_id: UUID
    needs: Needs
    task: TaskType
    remaining_s: float | None = None


def tenant_uuid(text: str) -> UUID:
    """The UUID that `text` writes. Raises ValueError.

    The same tenants ask again and again, and tables find the very same object without comparing it.
    """
    return _remembered_uuid(text) if len(text) <= _LONGEST_WRITTEN else _uuid(text)


_remembered_uuid = lru_cache(maxsize=10_000)(_uuid)


def completion_from_proto(request: CompletionProto, rules: RequestRules) -> CompletionRequest:
    """The checked request. Raises InvalidRequest with every bad field."""
    check = RequestCheck(rules)
    tenant_id = check.uuid("tenant_id", request.tenant_id, parse=tenant_uuid)
    request_id = (
        check.uuid("request_id", request.request_id, parse=_uuid) if request.request_id else rules.new_request_id()
    )
    tools = check.tools(request)
    policy = check.midstream_policy(request)
    messages = check.messages(request)
    sampling = check.sampling(request.sampling) if request.HasField("sampling") else _NO_SAMPLING
    tool_choice = check.tool_choice(request, tools) if request.HasField("tool_choice") else None
    response_format = check.response_format(request)
    task = check.task(request.task_type)
    model, provider = check.model(request), check.named_provider(request)
    endpoint, user_id = check.text("endpoint", request.endpoint), check.text("user_id", request.user_id)
    labels = check.labels(request.labels)
    check.not_negative("estimated_tokens", request.estimated_tokens)
    check.not_negative("min_config_version", request.min_config_version)
    check.done()
    assert tenant_id is not None
    assert request_id is not None
    return CompletionRequest(
        tenant_id=tenant_id,
        request_id=request_id,
        messages=messages,
        task_type=task,
        estimated_tokens=request.estimated_tokens,
        endpoint=endpoint,
        user_id=user_id,
        model=model,
        provider=provider,
        sampling=sampling,
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=request.parallel_tool_calls if request.HasField("parallel_tool_calls") else None,
        response_format=response_format,
        labels=labels,
        min_config_version=request.min_config_version,
        on_midstream_failure=policy,
    )


def route_question_from_proto(request: pb.ExplainRouteRequest, rules: RequestRules) -> RouteQuestion:
    """The checked question. Raises InvalidRequest with every bad field."""
    check = RequestCheck(rules)
    tenant_id = check.uuid("tenant_id", request.tenant_id)
    task = check.task(request.task_type)
    check.not_negative("estimated_tokens", request.estimated_tokens)
    remaining_s = None
    if request.HasField("remaining_time"):
        remaining_s = request.remaining_time.seconds + request.remaining_time.nanos / 1e9
        if remaining_s <= 0:
            check.refuse("remaining_time", f"must be more than 0, or absent for no deadline, not {remaining_s:g} s")
    needs = Needs(
        model=check.model(request),
        provider=check.named_provider(request),
        tools=request.needs_tools,
        json=request.needs_json,
        vision=request.needs_vision,
        total_tokens=request.estimated_tokens,
    )
    check.done()
    assert tenant_id is not None
    return RouteQuestion(tenant_id, needs, task, remaining_s)


def tenant_id_from_proto(request: pb.ListProvidersRequest) -> UUID | None:
    """The tenant whose keys to consider, or None. Raises InvalidRequest."""
    if not request.tenant_id:
        return None
    check = Checker()
    tenant_id = check.uuid("tenant_id", request.tenant_id)
    check.done()
    return tenant_id
