"""Rules of the contract that buf does not know: money, time, ids, pages and secrets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor

REPOSITORY = Path(__file__).resolve().parents[2]
GENERATED = REPOSITORY / "protos" / "gen"


def _files() -> list[FileDescriptor]:
    modules = [path.relative_to(GENERATED).with_suffix("") for path in GENERATED.rglob("*_pb2.py")]
    return [import_module(".".join(module.parts)).DESCRIPTOR for module in sorted(modules)]


FILES = _files()


def _messages(found: Descriptor) -> Iterator[Descriptor]:
    yield found
    for nested in found.nested_types:
        yield from _messages(nested)


MESSAGES = [message for file in FILES for top in file.message_types_by_name.values() for message in _messages(top)]
FIELDS: list[FieldDescriptor] = [field for message in MESSAGES for field in message.fields]
METHODS: list[MethodDescriptor] = [
    method for file in FILES for service in file.services_by_name.values() for method in service.methods
]


def names(fields: list[FieldDescriptor]) -> list[str]:
    return [field.full_name for field in fields]


def test_the_committed_stubs_are_what_the_protos_give() -> None:
    result = subprocess.run(
        [sys.executable, "protos/generate.py", "--check"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stderr


def test_the_directory_of_a_proto_is_its_package() -> None:
    assert [file.name for file in FILES if str(Path(file.name).parent) != file.package.replace(".", "/")] == []


def test_every_method_has_a_request_and_a_response_of_its_own() -> None:
    assert [
        method.full_name
        for method in METHODS
        if (method.input_type.name, method.output_type.name) != (f"{method.name}Request", f"{method.name}Response")
    ] == []


def test_the_zero_of_every_enum_is_not_stated() -> None:
    enums = [enum for file in FILES for enum in file.enum_types_by_name.values()]
    enums += [enum for message in MESSAGES for enum in message.enum_types]

    assert [enum.full_name for enum in enums if not enum.values_by_number[0].name.endswith("_UNSPECIFIED")] == []


def test_money_is_a_decimal_string_named_for_its_currency() -> None:
    money = [field for field in FIELDS if "usd" in field.name]

    assert money
    assert names([field for field in money if field.type != FieldDescriptor.TYPE_STRING]) == []
    assert names([field for field in money if not field.name.endswith(("_usd", "_usd_per_million"))]) == []
    assert names([f for f in FIELDS if ("cost" in f.name or "price" in f.name) and _is_number(f)]) == []


def _is_number(field: FieldDescriptor) -> bool:
    return field.cpp_type in {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}


def test_instants_are_timestamps_and_spans_are_durations() -> None:
    instants = [field for field in FIELDS if _type(field) == "google.protobuf.Timestamp"]

    assert names([field for field in instants if not field.name.endswith("_time")]) == []
    assert names([field for field in FIELDS if field.name.endswith(("_ms", "_seconds", "_millis", "_at"))]) == []


def _type(field: FieldDescriptor) -> str:
    return field.message_type.full_name if field.message_type else ""


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_list_that_can_grow_has_pages(method: MethodDescriptor) -> None:
    if not method.name.startswith("List") or method.name == "ListProviders":  # the catalogue is short and whole
        return

    assert {"page_size", "page_token"} <= set(method.input_type.fields_by_name)
    assert "next_page_token" in method.output_type.fields_by_name


def _reachable(message: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        yield field
        if field.message_type:
            yield from _reachable(field.message_type, seen)


def test_no_answer_has_a_place_for_a_secret() -> None:
    fields = [field for method in METHODS for field in _reachable(method.output_type, set())]
    suspicious = {"token", "key", "api_key", "secret", "password", "credential", "provider_key"}

    assert names([f for f in fields if f.name in suspicious and not _is_map_entry(f)]) == []


def _is_map_entry(field: FieldDescriptor) -> bool:
    return field.containing_type is not None and bool(field.containing_type.GetOptions().map_entry)


def test_every_secret_in_a_request_is_hidden_from_printing() -> None:
    secrets = [
        field
        for field in FIELDS
        if field.name in {"token", "provider_tokens"} and not _type(field).endswith(".ProviderToken")
    ]

    assert len(secrets) == 2
    assert names([field for field in secrets if not field.GetOptions().debug_redact]) == []


def test_a_stream_and_a_whole_completion_are_asked_for_alike() -> None:
    stream, whole = (
        next(method.input_type for method in METHODS if method.name == name)
        for name in ("StreamCompletion", "Complete")
    )
    only_in_stream = set(stream.fields_by_name) - set(whole.fields_by_name)

    assert only_in_stream == {"on_midstream_failure"}
    assert set(whole.fields_by_name) <= set(stream.fields_by_name)
    for name, field in whole.fields_by_name.items():
        assert field.number == stream.fields_by_name[name].number
