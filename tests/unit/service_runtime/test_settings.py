from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from service_runtime.settings import ServiceSettings, SettingsError, load_settings, reject_unknown_variables

URL = "postgresql://postgres@/turnpike?host=/somewhere"


class BookSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="BOOKS_")

    port: int = 4000
    shelf_count: int = Field(default=3, ge=1)
    vendor_key: SecretStr = Field(default=SecretStr(""), validation_alias="VENDOR_API_KEY")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing set but the database."""
    import os

    for name in os.environ:
        if name.startswith(("TURNPIKE_", "BOOKS_", "VENDOR_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TURNPIKE_DATABASE_URL", URL)
    return monkeypatch


def test_everything_but_the_database_has_a_default() -> None:
    settings = load_settings(BookSettings)

    assert (settings.bind_host, settings.port, settings.metrics_port) == ("127.0.0.1", 4000, 5000)
    assert settings.profile == "development"
    assert settings.database_url.get_secret_value() == URL
    assert settings.resolved_data_dir() == Path.home() / ".local/share/turnpike"


def test_a_services_own_variable_wins_over_the_shared_one(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("BOOKS_DATABASE_URL", "postgresql://elsewhere/books")
    environment.setenv("TURNPIKE_LOG_LEVEL", "debug")

    settings = load_settings(BookSettings)

    assert settings.database_url.get_secret_value() == "postgresql://elsewhere/books"
    assert settings.log_level == "debug"


def test_what_is_not_shared_is_not_read_from_a_shared_variable(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TURNPIKE_PORT", "9999")

    assert load_settings(BookSettings).port == 4000


def test_arguments_win_over_the_environment(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("BOOKS_PORT", "4001")

    assert load_settings(BookSettings, port=4002).port == 4002


@pytest.mark.parametrize(("port", "metrics_port"), [(0, 0), (4000, 5000), (65000, 64000)])
def test_the_metrics_port_follows_the_port(port: int, metrics_port: int) -> None:
    assert load_settings(BookSettings, port=port).metrics_port == metrics_port


def test_the_metrics_of_workers_do_not_meet_those_of_a_service_on_the_next_port() -> None:
    def ports(port: int) -> set[int]:
        of_workers = [load_settings(BookSettings, port=port, workers=64, worker=worker) for worker in range(64)]
        return {settings.own_metrics_port for settings in of_workers}

    assert len(ports(4000)) == 64
    assert ports(4000).isdisjoint(ports(4001))


@pytest.mark.parametrize("taken_by", ["the port that all share", "a worker's metrics"])
def test_ports_of_workers_that_the_service_uses_already_are_refused(
    environment: pytest.MonkeyPatch, taken_by: str
) -> None:
    port = {"the port that all share": 4000, "a worker's metrics": 5010}[taken_by]
    environment.setenv("BOOKS_WORKERS", "3")
    environment.setenv("BOOKS_WORKER_PORTS_FROM", str(port - 1))

    with pytest.raises(SettingsError, match=rf"^BOOKS_WORKER_PORTS_FROM: port {port} is the service's own already, "):
        load_settings(BookSettings)


@pytest.mark.parametrize(("variable", "needed"), [("BOOKS_METRICS_PORT", 65550), ("BOOKS_WORKER_PORTS_FROM", 65532)])
def test_too_few_ports_for_all_workers_are_told_with_the_last_one(
    environment: pytest.MonkeyPatch, variable: str, needed: int
) -> None:
    environment.setenv("BOOKS_WORKERS", "3")
    environment.setenv(variable, "65530")

    if needed > 65535:
        with pytest.raises(
            SettingsError, match=rf"^{variable}: 3 workers need ports up to {needed}; choose a lower one$"
        ):
            load_settings(BookSettings)
    else:
        assert load_settings(BookSettings, worker=2).own_port == needed


@pytest.mark.parametrize("workers", [1, 3])
def test_a_worker_that_no_supervisor_has_started_is_refused(environment: pytest.MonkeyPatch, workers: int) -> None:
    environment.setenv("BOOKS_WORKERS", str(workers))
    environment.setenv("BOOKS_WORKER", "3")

    with pytest.raises(SettingsError, match=r"^BOOKS_WORKER is for the supervisor of workers to set; unset it$"):
        load_settings(BookSettings)


def test_a_misspelt_variable_is_refused_and_the_nearest_named(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("BOOKS_SHELF_COUTN", "4")

    with pytest.raises(SettingsError, match=r"^BOOKS_SHELF_COUTN is not a setting; did you mean BOOKS_SHELF_COUNT\?$"):
        load_settings(BookSettings)


def test_every_unknown_variable_is_named_and_those_of_others_are_left_alone() -> None:
    environ = {"BOOKS_A": "", "BOOKS_ZZZ": "", "BOOKS_PORT": "1", "OTHER_X": "", "VENDOR_API_KEY": "k"}

    with pytest.raises(SettingsError) as caught:
        reject_unknown_variables(BookSettings, environ)

    assert "BOOKS_A " in str(caught.value)
    assert "BOOKS_ZZZ is not a setting; unset it" in str(caught.value)
    assert "OTHER_X" not in str(caught.value)


def test_a_missing_database_is_named_with_the_variables_that_give_it(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("TURNPIKE_DATABASE_URL")

    with pytest.raises(SettingsError, match=r"^BOOKS_DATABASE_URL or TURNPIKE_DATABASE_URL: is required; set it$"):
        load_settings(BookSettings)


def test_bad_values_are_named_in_one_line_and_not_quoted(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("BOOKS_SHELF_COUNT", "sk-CANARY-12345")
    environment.setenv("BOOKS_PORT", "70000")

    with pytest.raises(SettingsError) as caught:
        load_settings(BookSettings)

    message = str(caught.value)
    assert "BOOKS_SHELF_COUNT: " in message
    assert "CANARY" not in message
    assert "\n" not in message


def test_secrets_do_not_show_in_the_representation(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("VENDOR_API_KEY", "sk-CANARY-12345")
    environment.setenv("TURNPIKE_DATABASE_URL", "postgresql://u:CANARY@host/db")

    assert "CANARY" not in repr(load_settings(BookSettings))


def test_settings_do_not_change() -> None:
    settings = load_settings(BookSettings)

    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("profile", "reflection", "expected"),
    [
        ("development", None, True),
        ("production", None, False),
        ("production", True, True),
        ("development", False, False),
    ],
)
def test_reflection_follows_the_profile_unless_it_is_set(profile: str, reflection: bool | None, expected: bool) -> None:
    settings = load_settings(BookSettings, profile=profile, reflection=reflection)

    assert settings.reflection_is_on is expected
