"""Provider names: what people write, and what the ledger stores."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The router's catalogue, and "turnpike" for requests that Turnpike itself refused.
CATALOGUE_PROVIDERS = frozenset({"groq", "openrouter", "llm7", "local", "sandbox", "turnpike"})
REFUSED_BY_TURNPIKE = "turnpike"

_IN_BRACKETS = re.compile(r"\([^()]*\)")
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]")


def normalise_provider(text: str, known: Iterable[str] = CATALOGUE_PROVIDERS) -> str:
    """The catalogue name of what a person wrote: "Groq (Llama 3.3 70B)" is "groq".

    A name that is not known comes back trimmed and in lower case: asking for it finds nothing.
    """
    bare = _IN_BRACKETS.sub("", text).strip().lower()
    key = _NOT_IN_A_NAME.sub("", bare)
    for name in known:
        if _NOT_IN_A_NAME.sub("", name) == key:
            return name
    return bare
