"""What `turnpike_client` exports is its promise: all of it exists, and nothing that a caller meets is left out."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import is_dataclass
from enum import Enum

import pytest

import turnpike_client

MODULES = [
    "accounting",
    "audit",
    "charts",
    "completions",
    "connection",
    "enums",
    "errors",
    "router_client",
    "tenancy",
    "limit_client",
    "price_book_client",
    "usage_client",
]
INTERNAL = {"Connection"}


def public_classes(module_name: str) -> list[str]:
    module = importlib.import_module(f"turnpike_client.{module_name}")
    return sorted(
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
    )


def test_every_exported_name_exists_once() -> None:
    assert len(set(turnpike_client.__all__)) == len(turnpike_client.__all__)
    assert [name for name in turnpike_client.__all__ if not hasattr(turnpike_client, name)] == []


@pytest.mark.parametrize("module_name", MODULES)
def test_every_public_class_is_exported(module_name: str) -> None:
    missing = set(public_classes(module_name)) - set(turnpike_client.__all__) - INTERNAL

    assert missing == set()


def test_every_exported_thing_says_what_it_is() -> None:
    undocumented = [
        name
        for name in turnpike_client.__all__
        if (inspect.isclass(getattr(turnpike_client, name)) or callable(getattr(turnpike_client, name)))
        and name != "StreamEvent"
        and not inspect.getdoc(getattr(turnpike_client, name))
    ]

    assert undocumented == []


def test_every_value_is_frozen() -> None:
    values = [getattr(turnpike_client, name) for name in turnpike_client.__all__]
    thawed = [
        value.__name__
        for value in values
        if inspect.isclass(value) and is_dataclass(value) and not value.__dataclass_params__.frozen  # type: ignore[attr-defined]
    ]

    assert thawed == []


def test_every_choice_is_a_lower_case_text() -> None:
    choices = [getattr(turnpike_client, name) for name in turnpike_client.__all__]
    members = [member for kind in choices if inspect.isclass(kind) and issubclass(kind, Enum) for member in kind]

    assert members
    assert [member for member in members if member.value != member.name.lower()] == []
