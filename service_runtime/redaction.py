"""Keeps secrets out of text: those that are known by value, and what has the shape of one."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict

REDACTED = "[redacted]"

_ANCHOR_LENGTH = 8
_CAPACITY = 100_000

# Each alternative is linear: a fixed beginning, then one class of characters.
_SHAPES = re.compile(
    r"""
      (?P<bearer>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{8,}
    | \b(?:sk|pk|rk)-[A-Za-z0-9_-]{8,}          # OpenAI, OpenRouter, Anthropic
    | \bgsk_[A-Za-z0-9]{8,}                     # Groq
    | \bxai-[A-Za-z0-9]{8,}
    | \bhf_[A-Za-z0-9]{8,}
    | \bAIza[A-Za-z0-9_-]{8,}                   # Google
    | (?P<url>[a-z][a-z0-9+]{1,20}://[^\s:/@"']{0,200}:)[^\s@/"']{1,500}(?=@)   # the password in a URL
    | (?P<name>(?i:api[_-]?key|x-api-key|authorization|password|secret)["']?\s*[=:]\s*["']?)(?!Bearer|Basic|\[redacted)[^\s"'&,;}\]]{8,}
    """,  # noqa: E501 - one alternative, one line
    re.VERBOSE,
)


class Redactor:
    """Replaces secrets in text. Safe to use from several threads.

    A known secret is found by its last eight characters, looked up at every position: the cost depends on the length
    of the text and not on the number of secrets.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        """`capacity` bounds the secrets that are remembered; the oldest are forgotten first."""
        self._capacity = capacity
        self._secrets: OrderedDict[str, None] = OrderedDict()
        self._by_anchor: dict[str, tuple[str, ...]] = {}
        self._lock = threading.Lock()

    def register(self, secret: str) -> None:
        """Never let `secret` through again. Text shorter than eight characters is too common to replace: ignored."""
        escaped = json.dumps(secret)[1:-1]  # as a JSON log line would hold it
        for form in {secret, escaped}:
            if len(form) >= _ANCHOR_LENGTH:
                self._add(form)

    def redact(self, text: str) -> str:
        """`text` with each secret replaced."""
        if self._by_anchor:
            text = self._without_known(text)
        return _SHAPES.sub(_keep_context, text)

    def _add(self, secret: str) -> None:
        with self._lock:
            if secret in self._secrets:
                self._secrets.move_to_end(secret)
                return
            self._secrets[secret] = None
            self._index(secret, self._by_anchor.get(secret[-_ANCHOR_LENGTH:], ()))
            while len(self._secrets) > self._capacity:
                self._forget(self._secrets.popitem(last=False)[0])

    def _index(self, secret: str, others: tuple[str, ...]) -> None:
        # The longest first: of two secrets with the same end the shorter must not leave the longer's beginning.
        self._by_anchor[secret[-_ANCHOR_LENGTH:]] = tuple(sorted({*others, secret}, key=len, reverse=True))

    def _forget(self, secret: str) -> None:
        anchor = secret[-_ANCHOR_LENGTH:]
        left = tuple(other for other in self._by_anchor[anchor] if other != secret)
        if left:
            self._by_anchor[anchor] = left
        else:
            del self._by_anchor[anchor]

    def _without_known(self, text: str) -> str:
        kept: list[str] = []
        start = 0  # of what is not yet in `kept`
        for end in range(_ANCHOR_LENGTH, len(text) + 1):
            for secret in self._by_anchor.get(text[end - _ANCHOR_LENGTH : end], ()):
                begin = end - len(secret)
                if begin >= start and text.startswith(secret, begin):
                    kept += (text[start:begin], REDACTED)
                    start = end
                    break
        return "".join(kept) + text[start:]


def _keep_context(match: re.Match[str]) -> str:
    return (match["bearer"] or match["url"] or match["name"] or "") + REDACTED


REDACTOR = Redactor()
"""The one that logs and RPC errors go through. Register every key when it is read."""
