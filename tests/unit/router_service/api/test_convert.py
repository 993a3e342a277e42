"""Requests at the boundary: what is taken, and that everything wrong is named at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from uuid import UUID

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from router_service.api.convert import (
    completion_from_proto,
    route_question_from_proto,
    tenant_id_from_proto,
    tenant_uuid,
)
from router_service.api.request_check import CompletionProto, RequestRules
from router_service.domain.catalog import ProviderNames
from router_service.domain.completion import (
    CompletionRequest,
    Message,
    MidstreamFailurePolicy,
    ResponseFormatKind,
    Role,
    TaskType,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
)
from router_service.domain.selection import Needs
from service_runtime.errors import InvalidRequest
from tests.support.catalogs import CATALOG
from turnpike.router.v1 import completion_pb2 as completion
from turnpike.router.v1 import router_service_pb2 as pb

TENANT = "11111111-1111-4111-8111-111111111111"
MADE_ID = UUID("22222222-2222-4222-8222-222222222222")
RULES = RequestRules(ProviderNames(CATALOG), new_request_id=lambda: MADE_ID, max_prompt_characters=100)
USER = completion.ChatMessage(role=completion.ROLE_USER, content="hi")
FIND = completion.Tool(name="find", parameters_json_schema='{"type":"object"}')


def stream(**fields: object) -> pb.StreamCompletionRequest:
    return pb.StreamCompletionRequest(**{"tenant_id": TENANT, "messages": [USER], **fields})  # type: ignore[arg-type]


def converted(request: CompletionProto) -> CompletionRequest:
    return completion_from_proto(request, RULES)


def violated(request: CompletionProto) -> set[str]:
    with pytest.raises(InvalidRequest) as refused:
        converted(request)
    return {violation.field for violation in refused.value.violations}


def message(**fields: object) -> list[completion.ChatMessage]:
    return [completion.ChatMessage(**{"role": completion.ROLE_USER, "content": "hi", **fields})]  # type: ignore[arg-type]


def test_the_least_request_takes_the_defaults() -> None:
    request = converted(stream())

    assert request == CompletionRequest(UUID(TENANT), MADE_ID, (Message(Role.USER, "hi"),))
    assert (request.task_type, request.on_midstream_failure) == (TaskType.CHAT, MidstreamFailurePolicy.FAIL)


def test_both_kinds_of_request_are_read_alike() -> None:
    fields = {
        "tenant_id": TENANT,
        "request_id": str(MADE_ID),
        "messages": [
            completion.ChatMessage(
                role=completion.ROLE_ASSISTANT,
                tool_calls=[completion.ToolCall(id="c1", name="find", arguments="{not json")],
            ),
            completion.ChatMessage(role=completion.ROLE_TOOL, content="", tool_call_id="c1"),
            completion.ChatMessage(role=completion.ROLE_USER, image_urls=["https://images.test/a.png"]),
        ],
        "task_type": completion.TASK_TYPE_CODE,
        "provider": "Groq (Llama 3.3 70B)",
        "model": "llama",
        "sampling": completion.Sampling(temperature=0.0, seed=0, stop=["END"]),
        "tools": [FIND],
        "tool_choice": completion.ToolChoice(mode=completion.ToolChoice.MODE_NAMED, name="find"),
        "parallel_tool_calls": False,
        "response_format": completion.ResponseFormat(
            kind=completion.ResponseFormat.KIND_JSON_SCHEMA, schema_name="answer", json_schema="{}"
        ),
        "labels": {"team": "red"},
    }

    streamed = converted(pb.StreamCompletionRequest(**fields))  # type: ignore[arg-type]
    whole = converted(pb.CompleteRequest(**fields))  # type: ignore[arg-type]

    assert streamed == whole
    assert (whole.provider, whole.model, whole.parallel_tool_calls) == ("groq", "llama", False)
    assert whole.messages[0].tool_calls == (ToolCall("c1", "find", "{not json"),)
    assert (whole.sampling.temperature, whole.sampling.seed, whole.sampling.top_p) == (0.0, 0, None)
    assert whole.tool_choice == ToolChoice(ToolChoiceMode.NAMED, "find")
    assert whole.response_format is not None
    assert whole.response_format.kind is ResponseFormatKind.JSON_SCHEMA


def test_everything_wrong_is_named_at_once() -> None:
    request = pb.StreamCompletionRequest(
        tenant_id="acme",
        request_id="1",
        messages=[completion.ChatMessage(content="hi"), completion.ChatMessage(role=completion.ROLE_USER)],
        estimated_tokens=-1,
        model="",
        provider="nobody",
        min_config_version=-1,
    )

    assert violated(request) == {
        "tenant_id",
        "request_id",
        "messages[0].role",
        "messages[1].content",
        "estimated_tokens",
        "model",
        "provider",
        "min_config_version",
    }


DEEP = '{"a":' * 100_000

CASES: list[tuple[dict[str, object], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [USER] * 1001}, "messages"),
    ({"messages": message(content="x" * 101)}, "messages"),
    ({"messages": message(content="a\0b")}, "messages[0].content"),
    ({"messages": message(role=99)}, "messages[0].role"),
    ({"messages": message(tool_calls=[completion.ToolCall(id="1", name="f")])}, "messages[0].tool_calls"),
    (
        {"messages": message(role=completion.ROLE_ASSISTANT, content="", tool_calls=[completion.ToolCall()] * 129)},
        "messages[0].tool_calls",
    ),
    (
        {"messages": message(role=completion.ROLE_ASSISTANT, tool_calls=[completion.ToolCall()] * 128) * 33},
        "messages",
    ),
    ({"messages": message(image_urls=["ftp://a.test/b"] * 501)}, "messages[0].image_urls"),
    ({"messages": message(image_urls=["https://"])}, "messages[0].image_urls[0]"),
    ({"messages": message(image_urls=["https://a.test/b c"])}, "messages[0].image_urls[0]"),
    ({"messages": message(image_urls=["https://a.test/b\n"])}, "messages[0].image_urls[0]"),
    ({"messages": message(image_urls=["data:image/png;base64,"])}, "messages[0].image_urls[0]"),
    ({"messages": message(image_urls=["data:image/png;base64,AA AA"])}, "messages[0].image_urls[0]"),
    ({"messages": message(image_urls=["data:image/png;base64,\u00e4"])}, "messages[0].image_urls[0]"),
    ({"messages": message(image_urls=["data:text/html;base64,AAAA"])}, "messages[0].image_urls[0]"),
    ({"messages": message(tool_call_id="1")}, "messages[0].tool_call_id"),
    ({"messages": message(role=completion.ROLE_TOOL)}, "messages[0].tool_call_id"),
    ({"messages": message(role=completion.ROLE_SYSTEM, image_urls=["https://a.test/b"])}, "messages[0].image_urls"),
    ({"messages": message(image_urls=["http://a.test/b"])}, "messages[0].image_urls[0]"),
    ({"messages": message(image_urls=["file:///etc/passwd"])}, "messages[0].image_urls[0]"),
    ({"task_type": 77}, "task_type"),
    ({"on_midstream_failure": 9}, "on_midstream_failure"),
    ({"endpoint": "x" * 201}, "endpoint"),
    ({"user_id": "a\0"}, "user_id"),
    ({"sampling": completion.Sampling(temperature=2.1)}, "sampling.temperature"),
    ({"sampling": completion.Sampling(temperature=float("nan"))}, "sampling.temperature"),
    ({"sampling": completion.Sampling(top_p=0.0)}, "sampling.top_p"),
    ({"sampling": completion.Sampling(max_output_tokens=0)}, "sampling.max_output_tokens"),
    ({"sampling": completion.Sampling(presence_penalty=-2.5)}, "sampling.presence_penalty"),
    ({"sampling": completion.Sampling(frequency_penalty=float("inf"))}, "sampling.frequency_penalty"),
    ({"sampling": completion.Sampling(stop=["a"] * 4 + [""] * 100)}, "sampling.stop"),
    ({"sampling": completion.Sampling(stop=[""])}, "sampling.stop[0]"),
    ({"sampling": completion.Sampling(reasoning_effort="most")}, "sampling.reasoning_effort"),
    ({"tools": [completion.Tool(name="f")] * 129}, "tools"),
    ({"tools": [FIND, FIND]}, "tools[1].name"),
    ({"tools": [completion.Tool(name="find it")]}, "tools[0].name"),
    ({"tools": [completion.Tool(name="f", parameters_json_schema="[1]")]}, "tools[0].parameters_json_schema"),
    ({"tools": [completion.Tool(name="f", parameters_json_schema="{")]}, "tools[0].parameters_json_schema"),
    ({"tools": [completion.Tool(name="f", parameters_json_schema='{"a":NaN}')]}, "tools[0].parameters_json_schema"),
    ({"tool_choice": completion.ToolChoice(mode=completion.ToolChoice.MODE_NAMED, name="f")}, "tool_choice.name"),
    ({"tool_choice": completion.ToolChoice(mode=completion.ToolChoice.MODE_REQUIRED)}, "tool_choice.mode"),
    ({"tool_choice": completion.ToolChoice(mode=9)}, "tool_choice.mode"),  # type: ignore[arg-type]  # from the future
    (
        {"response_format": completion.ResponseFormat(kind=completion.ResponseFormat.KIND_JSON_SCHEMA)},
        "response_format.json_schema",
    ),
    ({"response_format": completion.ResponseFormat(json_schema="{}")}, "response_format.json_schema"),
    ({"response_format": completion.ResponseFormat(kind=9)}, "response_format.kind"),  # type: ignore[arg-type]
    ({"labels": {str(i): "" for i in range(17)}}, "labels"),
    ({"labels": {"k" * 65: ""}}, f"labels[{'k' * 64!r}]"),
    ({"labels": {"k": "v" * 257}}, "labels['k']"),
    ({"labels": {"k": "a\0b"}}, "labels['k']"),
]


@pytest.mark.parametrize(("fields", "path"), CASES)
def test_a_bad_field_is_named_by_its_path(fields: dict[str, object], path: str) -> None:
    assert violated(stream(**fields)) == {path}


@pytest.mark.parametrize(
    "url",
    [
        "https://a.test/b?c=d#e",
        "HTTPS://A.test/\u00e4",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "DATA:image/PNG;base64,AA==",
    ],
)
def test_an_image_is_an_https_or_a_data_url(url: str) -> None:
    assert converted(stream(messages=message(image_urls=[url]))).messages[0].image_urls == (url,)


def test_a_schema_that_is_nested_without_end_is_refused_and_nothing_breaks() -> None:
    rules = RequestRules(RULES.names, new_request_id=RULES.new_request_id, max_prompt_characters=10**7)

    with pytest.raises(InvalidRequest, match="json_schema"):
        completion_from_proto(
            stream(
                response_format=completion.ResponseFormat(
                    kind=completion.ResponseFormat.KIND_JSON_SCHEMA, json_schema=DEEP
                )
            ),
            rules,
        )


def test_a_schema_that_is_too_long_is_refused_unread() -> None:
    endless = '{"a":[' + "[]," * 2_700_000  # it breaks off: whoever reads it says so
    form = completion.ResponseFormat(kind=completion.ResponseFormat.KIND_JSON_SCHEMA, json_schema=endless)

    with pytest.raises(InvalidRequest) as refused:
        converted(stream(response_format=form, tools=[completion.Tool(name="f", parameters_json_schema=endless)]))

    told = {violation.field: violation.description for violation in refused.value.violations}
    assert set(told) == {"messages", "response_format.json_schema", "tools[0].parameters_json_schema"}
    assert told["tools[0].parameters_json_schema"] == "is 8100006 characters long; at most 100 are taken"


_TEXTS = st.one_of(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ).map(json.dumps),
    st.text(alphabet='{}[]:,"\\ue0 -+.1NaInfty\n\t', max_size=12).map(lambda text: '{"a":' + text),
)


@given(_TEXTS)
def test_a_schema_is_taken_where_the_standard_says_that_it_is_an_object(text: str) -> None:
    def no_constant(word: str) -> None:
        raise ValueError(word)  # Python takes NaN and the infinities, the standard does not

    try:
        is_object = isinstance(json.loads(text, parse_constant=no_constant), dict)
    except ValueError:
        is_object = False
    rules = RequestRules(RULES.names, new_request_id=RULES.new_request_id)
    request = stream(tools=[completion.Tool(name="f", parameters_json_schema=text)])

    try:
        taken = completion_from_proto(request, rules).tools[0].parameters_json_schema
    except InvalidRequest:
        assert not is_object
    else:
        assert is_object
        assert taken == text


def test_a_schema_is_passed_on_as_it_was_written() -> None:
    schema = json.dumps({"type": "object", "x": [1, 2]}, indent=3)

    request = converted(stream(tools=[completion.Tool(name="f", parameters_json_schema=schema)]))

    assert request.tools[0].parameters_json_schema == schema


def test_a_question_about_a_route_is_checked_too() -> None:
    asked = pb.ExplainRouteRequest(
        tenant_id=TENANT, estimated_tokens=9, model="m", provider="GROQ", needs_tools=True, needs_vision=True
    )

    question = route_question_from_proto(asked, RULES)

    assert question.needs == Needs(model="m", provider="groq", tools=True, vision=True, total_tokens=9)
    with pytest.raises(InvalidRequest):
        route_question_from_proto(pb.ExplainRouteRequest(tenant_id="x", estimated_tokens=-1), RULES)


def test_a_question_may_say_how_much_time_is_left() -> None:
    asked = pb.ExplainRouteRequest(tenant_id=TENANT, remaining_time=Duration(seconds=1, nanos=500_000_000))

    assert route_question_from_proto(asked, RULES).remaining_s == 1.5
    assert route_question_from_proto(pb.ExplainRouteRequest(tenant_id=TENANT), RULES).remaining_s is None
    with pytest.raises(InvalidRequest, match="remaining_time"):
        route_question_from_proto(pb.ExplainRouteRequest(tenant_id=TENANT, remaining_time=Duration()), RULES)


def test_providers_may_be_listed_for_nobody() -> None:
    assert tenant_id_from_proto(pb.ListProvidersRequest()) is None
    assert tenant_id_from_proto(pb.ListProvidersRequest(tenant_id=TENANT)) == UUID(TENANT)
    with pytest.raises(InvalidRequest):
        tenant_id_from_proto(pb.ListProvidersRequest(tenant_id="x"))


def test_a_request_id_is_made_only_where_none_is_given() -> None:
    calls: list[UUID] = []

    def make() -> UUID:
        calls.append(MADE_ID)
        return MADE_ID

    maker: Callable[[], UUID] = make
    completion_from_proto(stream(request_id=TENANT), RequestRules(RULES.names, new_request_id=maker))

    assert calls == []


def test_a_tenants_id_is_parsed_once_however_it_is_written_and_an_endless_one_is_not_kept() -> None:
    """Python takes a UUID with any number of hyphens in it: ten thousand of them would be all the memory there is."""
    endless = "-" * 1_000_000 + TENANT
    references = sys.getrefcount(endless)

    assert tenant_uuid(endless) == tenant_uuid(TENANT)
    assert sys.getrefcount(endless) == references
    assert tenant_uuid(TENANT) is tenant_uuid(TENANT)
