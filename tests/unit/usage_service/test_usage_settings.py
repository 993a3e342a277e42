"""The ledger's settings."""

from decimal import Decimal

import pytest

from service_runtime.settings import SettingsError, load_settings
from usage_service.settings import UsageSettings


@pytest.fixture(autouse=True)
def database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USAGE_DATABASE_URL", "postgresql://nowhere/ledger")


def test_providers_of_the_operator_stand_beside_the_catalogues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USAGE_EXTRA_PROVIDERS", "acme, Initech,")

    providers = load_settings(UsageSettings).providers

    assert {"acme", "initech", "groq", "turnpike"} <= providers


def test_rows_are_not_dropped_while_their_events_may_still_be_resent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USAGE_RAW_RETENTION_DAYS", "41")

    with pytest.raises(SettingsError, match="42"):
        load_settings(UsageSettings)


def test_rows_may_be_kept_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USAGE_RAW_RETENTION_DAYS", "0")

    assert load_settings(UsageSettings).raw_retention_days == 0


def test_default_limits_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USAGE_LIMITS", '{"groq": ["7 requests per 1m"]}')

    (rule,) = load_settings(UsageSettings).default_limits

    assert (rule.provider, rule.limit, rule.window_s) == ("groq", Decimal(7), 60)


def test_a_limit_that_cannot_be_read_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USAGE_LIMITS", '{"groq": ["a few requests"]}')

    with pytest.raises(SettingsError, match="USAGE_LIMITS"):
        load_settings(UsageSettings)


def test_minutes_are_kept_no_longer_than_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USAGE_MINUTE_ROLLUP_HOURS", "100")
    monkeypatch.setenv("USAGE_HOUR_ROLLUP_DAYS", "3")

    with pytest.raises(SettingsError, match="USAGE_HOUR_ROLLUP_DAYS"):
        load_settings(UsageSettings)


def test_levels_of_limits_are_settings_and_must_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USAGE_LIMIT_WARNING_AT", "0.7")
    monkeypatch.setenv("USAGE_LIMIT_LEAVE_MARGIN", "0.1")
    thresholds = load_settings(UsageSettings).level_thresholds
    monkeypatch.setenv("USAGE_LIMIT_WARNING_AT", "0.5")

    with pytest.raises(SettingsError, match="rising shares"):
        load_settings(UsageSettings)

    assert (thresholds.normal, thresholds.warning, thresholds.critical, thresholds.margin) == (0.6, 0.7, 0.95, 0.1)
