from __future__ import annotations

import ast
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service_runtime import faults
from service_runtime.faults import CrashPoint, Sabotage, crash_point, is_armed, is_sabotaged
from service_runtime.settings import ServiceSettings, SettingsError, load_settings
from service_runtime.startup import StartupError

ROOT = Path(__file__).parents[3]
SERVICES = ("service_runtime", "router_service", "usage_service")


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm("")


def uses(enumeration: str) -> list[str]:
    """The members of an enumeration that the services' source mentions, outside the module that declares them."""
    paths = [path for name in SERVICES for path in (ROOT / name).rglob("*.py") if path.name != "faults.py"]
    return [
        node.attr
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == enumeration
    ]


def test_every_crash_point_and_every_sabotage_has_a_place_in_the_source() -> None:
    assert {point.name for point in CrashPoint} == set(uses("CrashPoint"))
    assert {promise.name for promise in Sabotage} == set(uses("Sabotage"))


def test_points_that_nobody_armed_do_nothing() -> None:
    for point in CrashPoint:
        crash_point(point)
    assert not any(is_sabotaged(promise) for promise in Sabotage)


def test_an_armed_point_kills_the_process_at_the_passing_that_was_asked_for() -> None:
    script = (
        "from service_runtime import faults\n"
        "faults.arm('ingest_after_commit:3')\n"
        "for number in range(5):\n"
        "    print(number, flush=True)\n"
        "    faults.crash_point(faults.CrashPoint.INGEST_BEFORE_COMMIT)\n"
        "    faults.crash_point(faults.CrashPoint.INGEST_AFTER_COMMIT)\n"
    )

    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert ended.returncode == -signal.SIGKILL
    assert [line for line in ended.stdout.splitlines() if line.isdigit()] == ["0", "1", "2"]
    assert "killing this process at ingest_after_commit" in ended.stderr


def test_several_faults_are_armed_at_once_and_disarmed_together() -> None:
    faults.arm(" skip_sync , sender_after_send:2,no_dedupe ")

    assert [promise for promise in Sabotage if is_sabotaged(promise)] == [Sabotage.SKIP_SYNC, Sabotage.NO_DEDUPE]
    assert [point for point in CrashPoint if is_armed(point)] == [CrashPoint.SENDER_AFTER_SEND]

    faults.arm("")
    assert not is_armed(CrashPoint.SENDER_AFTER_SEND)
    assert not is_sabotaged(Sabotage.NO_DEDUPE)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("skip_snyc", "did you mean skip_sync?"),
        ("sender_after_send:0", "did you mean sender_after_send?"),
        ("sender_after_send:x", "did you mean sender_after_send?"),
        ("no_dedupe:2", "did you mean no_dedupe?"),
        ("?", "there are journal_before_opened_sync"),
    ],
)
def test_a_fault_that_is_none_is_refused_with_the_nearest(text: str, remedy: str) -> None:
    with pytest.raises(StartupError) as refusal:
        faults.arm(text)

    assert text in str(refusal.value)
    assert remedy in str(refusal.value)


class Settings(ServiceSettings):
    port: int = 1


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TURNPIKE_DATABASE_URL", "postgresql://nowhere/turnpike")
    monkeypatch.setenv("TURNPIKE_FAULTS", "skip_sync")
    return monkeypatch


def test_the_environment_arms_faults(environment: pytest.MonkeyPatch) -> None:
    assert load_settings(Settings).faults == "skip_sync"


def test_the_production_profile_refuses_faults(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TURNPIKE_PROFILE", "production")

    with pytest.raises(SettingsError, match="faults on purpose are refused on the production profile"):
        load_settings(Settings)
