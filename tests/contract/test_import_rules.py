"""The import contracts in pyproject.toml guard what exists: a renamed package must not slip out of its rule."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RULES = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]


@pytest.mark.parametrize("contract", RULES["contracts"], ids=lambda contract: contract["name"])
def test_every_module_that_a_rule_names_exists(contract: dict[str, Any]) -> None:
    named = [name for key in ("source_modules", "containers", "modules") for name in contract.get(key, [])]
    for container in contract.get("containers", []):
        for layer in contract.get("layers", []):
            named += [f"{container}.{name.strip()}" for name in layer.split("|")]

    assert named
    assert [name for name in named if importlib.util.find_spec(name) is None] == []


def test_every_package_of_ours_is_under_the_rules() -> None:
    packages = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")} - {"tests"}

    assert packages | {"turnpike_client"} == set(RULES["root_packages"])
