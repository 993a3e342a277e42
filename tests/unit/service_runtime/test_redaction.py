from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service_runtime.redaction import REDACTED, Redactor

printable = st.text(alphabet=string.ascii_letters + string.digits + "-_.~", min_size=8, max_size=60)


@pytest.mark.parametrize(
    "secret",
    [
        "sk-or-v1-0123456789abcdef",
        "sk-proj-abcdefgh12345678",
        "gsk_abcdefgh12345678",
        "xai-abcdefgh12345678",
        "AIzaSyA1234567890",
        "hf_abcdefgh12345678",
    ],
)
@pytest.mark.parametrize(
    "around", ["{}", "key={}", '"{}"', "illegal header value b'Bearer {}\\n'", "https://x/?k={}&y"]
)
def test_what_has_the_shape_of_a_key_is_replaced_wherever_it_stands(secret: str, around: str) -> None:
    redacted = Redactor().redact(around.format(secret))

    assert secret not in redacted
    assert REDACTED in redacted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abcdefgh12345", "Authorization: Bearer [redacted]"),
        ("postgresql://user:hunter2@host/db", "postgresql://user:[redacted]@host/db"),
        ("api_key='abcdefghijkl'", "api_key='[redacted]'"),
        ('{"x-api-key": "abcdefghijkl"}', '{"x-api-key": "[redacted]"}'),
    ],
)
def test_what_stands_where_a_secret_stands_is_replaced_and_its_place_kept(text: str, expected: str) -> None:
    assert Redactor().redact(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "risk-free", "3 tasks done", "model llama-3.3-70b", "task-12345678 https://host:8080/path", "secret: no"],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert Redactor().redact(text) == text


def test_a_known_secret_without_any_shape_is_replaced() -> None:
    redactor = Redactor()
    redactor.register("correct horse battery")

    assert redactor.redact("it is correct horse battery!") == f"it is {REDACTED}!"


def test_a_known_secret_is_found_inside_json() -> None:
    redactor = Redactor()
    redactor.register('a"b\\c"d-12345')

    assert "12345" not in redactor.redact(json.dumps({"header": 'a"b\\c"d-12345'}))


def test_of_two_secrets_with_the_same_end_the_longer_goes_whole() -> None:
    redactor = Redactor()
    redactor.register("same-end-of-it")
    redactor.register("begin-same-end-of-it")

    assert redactor.redact("<begin-same-end-of-it> <same-end-of-it>") == f"<{REDACTED}> <{REDACTED}>"


def test_the_number_of_remembered_secrets_is_bounded_and_the_oldest_goes_first() -> None:
    redactor = Redactor(capacity=2)
    for secret in ("first-secret", "second-secret", "third-secret"):
        redactor.register(secret)

    assert redactor.redact("first-secret second-secret third-secret") == f"first-secret {REDACTED} {REDACTED}"


@given(secrets=st.lists(printable, min_size=1, max_size=5), before=st.text(max_size=20), after=st.text(max_size=20))
def test_no_registered_secret_ever_comes_through(secrets: list[str], before: str, after: str) -> None:
    redactor = Redactor()
    for secret in secrets:
        redactor.register(secret)

    redacted = redactor.redact(before + after.join(secrets) + after)

    remains = redacted.replace(REDACTED, "\0")
    assert not any(secret in remains for secret in secrets)


def test_hostile_text_costs_no_more_than_its_length() -> None:
    """A pattern that tried again at each position would take minutes."""
    redactor = Redactor()
    redactor.register("a" * 200)

    for text in ("a" * 100_000, "sk-" * 50_000, "Bearer " * 20_000, "x://" * 50_000, "password=" * 20_000):
        assert redactor.redact(text) is not None
