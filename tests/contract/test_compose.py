"""docker-compose.yml and Dockerfile, checked without an engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from router_service.settings import RouterSettings
from service_runtime.settings import reject_unknown_variables
from usage_service.settings import UsageSettings

REPOSITORY = Path(__file__).resolve().parents[2]
COMPOSE_FILE = REPOSITORY / "docker-compose.yml"
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
INSTRUCTIONS = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
OURS = ["router", "usage"]
SECRETS = {
    "POSTGRES_PASSWORD",
    "TURNPIKE_KEY_ENCRYPTION_KEYS",
    "TURNPIKE_DATABASE_URL",
    "GROQ_API_KEY",
    "OPENROUTER_API_KEY",
    "LLM7_API_KEY",
    "LOCAL_API_KEY",
}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load(COMPOSE_FILE)["services"]
    return loaded


def test_the_file_follows_the_compose_specification() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE_FILE)]
    result = subprocess.run(check, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout


def test_every_service_is_watched_and_what_depends_on_postgres_waits_for_it(services: dict[str, Any]) -> None:
    assert set(services) == {"postgres", *OURS}
    assert all(service["healthcheck"]["test"][0] == "CMD" for service in services.values())
    for name in OURS:
        assert services[name]["depends_on"]["postgres"] == {"condition": "service_healthy"}
    assert "usage" not in services["router"]["depends_on"]


def test_nothing_is_reachable_from_outside_the_machine(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]

    assert len(published) == 2
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize(("name", "settings"), [("router", RouterSettings), ("usage", UsageSettings)])
def test_the_services_know_every_variable_that_they_are_given(
    services: dict[str, Any], name: str, settings: type[RouterSettings | UsageSettings]
) -> None:
    environment = services[name]["environment"]

    reject_unknown_variables(settings, dict.fromkeys(environment, "x"))

    fields = {f"{settings.model_config['env_prefix']}{field}".upper() for field in settings.model_fields}
    aliases = {str(field.validation_alias) for field in settings.model_fields.values() if field.validation_alias}
    shared = {f"TURNPIKE_{field}".upper() for field in settings.model_fields}
    assert set(environment) <= fields | aliases | shared


@pytest.mark.parametrize("name", OURS)
def test_the_health_check_asks_the_port_and_service_that_are_there(services: dict[str, Any], name: str) -> None:
    _, python, flag, module, target, service = services[name]["healthcheck"]["test"]

    assert (python, flag, module) == ("python", "-m", "service_runtime.healthcheck")
    assert target == f"127.0.0.1:{services[name]['environment'][f'{name.upper()}_PORT']}"
    assert service == f"turnpike.{name}.v1.{name.capitalize()}Service"


@pytest.mark.parametrize("name", OURS)
def test_a_container_can_write_its_volume_and_nothing_else(services: dict[str, Any], name: str) -> None:
    service = services[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["volumes"] == [f"{name}:/var/lib/turnpike"]
    assert "TURNPIKE_DATA_DIR=/var/lib/turnpike" in INSTRUCTIONS


@pytest.mark.parametrize("name", OURS)
def test_a_container_is_given_longer_to_stop_than_the_service_drains(services: dict[str, Any], name: str) -> None:
    drain_grace_s = RouterSettings.model_fields["drain_grace_s"].default

    assert int(services[name]["stop_grace_period"].removesuffix("s")) > drain_grace_s


def test_secrets_come_from_the_environment(services: dict[str, Any]) -> None:
    given = {
        name: value
        for service in services.values()
        for name, value in service.get("environment", {}).items()
        if name in SECRETS
    }

    assert {"POSTGRES_PASSWORD", "TURNPIKE_KEY_ENCRYPTION_KEYS", "GROQ_API_KEY"} <= given.keys()
    for value in given.values():
        # Nothing written down but the user and the host: the secret itself is a variable, with no default.
        assert value is None or re.search(r"\$\{\w+:\?", value)
    assert [name for name in SECRETS if re.search(rf"\b{name}\s*=", INSTRUCTIONS)] == []
    assert not re.search(r"(gsk_|sk-)\w{8}", DOCKERFILE + COMPOSE_FILE.read_text())


def test_every_package_in_the_image_is_checked_against_its_hash() -> None:
    installs = re.findall(r"pip install[^&]*", INSTRUCTIONS)

    assert len(installs) == 2
    assert [install for install in installs if "--require-hashes" not in install] == []
    for file in ("bootstrap.txt", "runtime.txt"):
        assert f"requirements/{file}" in INSTRUCTIONS
        assert "--hash=sha256:" in (REPOSITORY / "requirements" / file).read_text()


def test_the_image_is_slim_and_runs_as_nobody_special() -> None:
    stages = INSTRUCTIONS.split("FROM ")[1:]
    users = re.findall(r"^USER (\S+)", stages[-1], flags=re.MULTILINE)

    assert len(stages) == 2
    assert all(stage.startswith("python:${PYTHON}-slim") for stage in stages)
    assert users == ["10001:10001"]
    assert "root" not in users[-1]


def test_everything_that_the_image_copies_exists_and_is_let_through() -> None:
    copies = re.findall(r"^COPY (?!--from)(.+)$", INSTRUCTIONS, flags=re.MULTILINE)
    sources = [source for copy in copies for source in copy.split()[:-1]]
    let_through = {
        line.removeprefix("!") for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }

    assert sources
    assert [source for source in sources if not (REPOSITORY / source).exists()] == []
    assert set(sources) == let_through


def test_every_package_of_the_services_is_in_the_image() -> None:
    packages = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")} - {"tests"}

    assert {package for package in packages if f"COPY {package} " in INSTRUCTIONS} == packages
