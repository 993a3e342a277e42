"""What is known of a provider and its models, as values. The data is in `providers/catalog.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import Literal


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model can do. None or an absent fact means unknown, and unknown is never an exclusion.

    `vocabulary` names the model's published tokenizer; empty where we have none. `quality` maps a task type to 0 … 1,
    our own coarse judgement; 0.5 where nothing is stated.
    """

    name: str
    context_window_tokens: int | None = None
    supports_tools: bool | None = None
    supports_json: bool | None = None
    supports_vision: bool | None = None
    quality: Mapping[str, float] = field(default_factory=dict)
    retirement_date: date | None = None
    vocabulary: str = ""

    def is_retired(self, today: date) -> bool:
        return self.retirement_date is not None and self.retirement_date <= today


class CallerGonePolicy(StrEnum):
    """What to do with the provider's stream when the caller leaves."""

    ABORT = "abort"  # closing the connection stops the bill
    DRAIN = "drain"  # the bill goes on: read to the end for the exact usage


ClockName = Literal["connect_s", "first_content_s", "content_gap_s", "total_s"]  # the fields of `Clocks`


@dataclass(frozen=True, slots=True)
class Clocks:
    """How long a provider may take, in seconds. Each is further bounded by the caller's deadline.

    To connect; from sending to the first content; between two pieces of content; in all. Comments and empty deltas are
    signs of life, but not content.
    """

    connect_s: float = 3.0
    first_content_s: float = 30.0
    content_gap_s: float = 30.0
    total_s: float = 600.0


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """One provider of the catalogue. `system_key_env` names the operator's key in the router's environment."""

    name: str
    display_name: str
    base_url: str
    needs_key: bool
    system_key_env: str
    default_model: str
    models: Mapping[str, ModelFacts]
    aliases: tuple[str, ...] = ()
    on_caller_gone: CallerGonePolicy = CallerGonePolicy.ABORT
    clocks: Clocks = Clocks()
    is_sandbox: bool = False
    counts_late: bool = False  # can be asked afterwards what an answer consumed that broke off

    def facts(self, model: str) -> ModelFacts:
        """What is known of `model`; for one that the catalogue does not list, only its name."""
        return self.models.get(model) or ModelFacts(model)


class ProviderNames:
    """Turns what people write into catalogue names: "Groq (Llama 3.3 70B)" is "groq"."""

    def __init__(self, specs: Mapping[str, ProviderSpec]) -> None:
        self._catalogue = frozenset(specs)
        self._names = {
            _key(alias): name for name, spec in specs.items() for alias in (name, spec.display_name, *spec.aliases)
        }

    def known(self) -> tuple[str, ...]:
        """The catalogue names."""
        return tuple(sorted(set(self._names.values())))

    def normalise(self, text: str) -> str | None:
        """The catalogue name, or None for a provider that the catalogue does not have."""
        if text in self._catalogue:
            return text
        return self._names.get(_key(_without_brackets(text)))


def _without_brackets(text: str) -> str:
    # No regular expression: the obvious one takes time in the square of the text's length, which a caller chooses.
    start, end = text.find("("), text.rfind(")")
    return text[:start] + text[end + 1 :] if 0 <= start < end else text


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
