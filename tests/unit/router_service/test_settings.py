from __future__ import annotations

import pytest
from pydantic import ValidationError

from router_service.settings import RouterSettings


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TURNPIKE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    return monkeypatch


def test_the_development_profile_is_generous_and_production_is_not(environment: pytest.MonkeyPatch) -> None:
    development = RouterSettings()
    environment.setenv("TURNPIKE_PROFILE", "production")
    production = RouterSettings()

    assert (development.refuses_unknown_tenants, production.refuses_unknown_tenants) == (False, True)
    assert (development.accepts_plaintext_keys, production.accepts_plaintext_keys) == (True, False)
    assert (development.has_sandbox, production.has_sandbox) == (True, False)


def test_the_usage_service_is_looked_for_where_its_port_is_set(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("USAGE_PORT", "6002")
    by_port = RouterSettings()
    environment.setenv("ROUTER_USAGE_TARGET", "usage.internal:50052")

    assert by_port.usage_address == "127.0.0.1:6002"
    assert RouterSettings().usage_address == "usage.internal:50052"


def test_weights_are_read_as_json_and_unknown_terms_are_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ROUTER_SCORE_WEIGHTS", '{"price": 3}')
    read = RouterSettings()
    environment.setenv("ROUTER_SCORE_WEIGHTS", '{"luck": 3}')

    assert read.score_weights == {"price": 3}
    with pytest.raises(ValidationError, match="luck: no score term"):
        RouterSettings()


@pytest.mark.parametrize("weight", ["-1", "1e7", "1e999", "NaN"])
def test_a_weight_with_which_a_score_would_be_no_number_is_refused(
    environment: pytest.MonkeyPatch, weight: str
) -> None:
    environment.setenv("ROUTER_SCORE_WEIGHTS", f'{{"price": {weight}}}')

    with pytest.raises(ValidationError):
        RouterSettings()


@pytest.mark.parametrize("wrong", ['{"groq": {"patience": 3}}', '{"groq": {"connect_s": 0}}', '{"groq": 3}'])
def test_clocks_of_providers_are_read_as_json_and_nonsense_is_refused(
    environment: pytest.MonkeyPatch, wrong: str
) -> None:
    environment.setenv("ROUTER_PROVIDER_CLOCKS", '{"groq": {"connect_s": 1, "first_content_s": 10}}')
    read = RouterSettings()
    environment.setenv("ROUTER_PROVIDER_CLOCKS", wrong)

    assert read.provider_clocks == {"groq": {"connect_s": 1, "first_content_s": 10}}
    with pytest.raises(ValidationError, match="provider_clocks"):
        RouterSettings()


def test_a_read_window_that_is_not_far_below_a_clock_is_refused_with_what_would_do(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("ROUTER_PROVIDER_CLOCKS", '{"groq": {"content_gap_s": 0.5}}')
    by_default = RouterSettings()
    environment.setenv("ROUTER_READ_WINDOW_MS", "51")

    assert by_default.read_window_ms * 10 <= 500
    with pytest.raises(
        ValidationError, match=r"content_gap_s of 0\.5 that ROUTER_PROVIDER_CLOCKS gives groq: lower it to 50"
    ):
        RouterSettings()


@pytest.mark.parametrize("wrong", ["-1", "251", "nan", "inf"])
def test_a_read_window_is_a_quarter_of_a_second_at_most(environment: pytest.MonkeyPatch, wrong: str) -> None:
    environment.setenv("ROUTER_READ_WINDOW_MS", wrong)

    with pytest.raises(ValidationError, match="read_window_ms"):
        RouterSettings()


def test_keys_never_show_in_the_settings(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("GROQ_API_KEY", "gsk_canary_0123456789")

    assert "canary" not in repr(RouterSettings()) + str(RouterSettings().model_dump())
