"""Keeps secrets out of text: those that are known by value, and what has the shape of one."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict

REDACTED = "[redacted]"

_ANCHOR_LENGTH = 8
_FEW = 64  # secrets; so many are looked for one by one, which takes no step of Python per character of the text
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

# No alternative matches a text that holds none of these. Looking for all of them costs a tenth of the pattern.
_HINTS = ("Bearer", "Basic", "sk-", "pk-", "rk-", "gsk_", "xai-", "hf_", "AIza", "://")
_HINTS_IN_LOWER_CASE = ("key", "authorization", "password", "secret")


class Redactor:
    """Replaces secrets in text. Safe to use from several threads.

    A known secret is found by its last eight characters, looked up at every position: the cost depends on the length
    of the text and not on the number of secrets.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        """`capacity` bounds the secrets that are remembered; the oldest are forgotten first."""
        self._capacity = capacity
        self.changes = 0  # of what is known: a text that was redacted before the last one may need it again
        self._secrets: OrderedDict[str, None] = OrderedDict()
        self._by_anchor: dict[str, tuple[str, ...]] = {}
        self._few_anchors: tuple[str, ...] | None = ()  # the keys of `_by_anchor`; None when there are many
        self._lock = threading.Lock()

    def register(self, secret: str) -> None:
        """Never let `secret` through again. Text shorter than eight characters is too common to replace: ignored."""
        escaped = json.dumps(secret)[1:-1]  # as a JSON log line would hold it
        for form in {secret, escaped}:
            if len(form) >= _ANCHOR_LENGTH:
                self._add(form)

    def redact(self, text: str) -> str:
        """`text` with each secret replaced."""
        if len(text) < _ANCHOR_LENGTH:
            return text  # shorter than any secret, and than anything of the shape of one
        few = self._few_anchors
        if few is None or any(anchor in text for anchor in few):
            text = self._without_known(text)
        return _SHAPES.sub(_keep_context, text) if _may_hold_a_shape(text) else text

    def _add(self, secret: str) -> None:
        with self._lock:
            if secret in self._secrets:
                self._secrets.move_to_end(secret)
                return
            self._secrets[secret] = None
            self.changes += 1
            self._index(secret, self._by_anchor.get(secret[-_ANCHOR_LENGTH:], ()))
            while len(self._secrets) > self._capacity:
                self._forget(self._secrets.popitem(last=False)[0])
            self._few_anchors = tuple(self._by_anchor) if len(self._by_anchor) <= _FEW else None

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


def _may_hold_a_shape(text: str) -> bool:
    lower = text.lower()
    return any(hint in text for hint in _HINTS) or any(hint in lower for hint in _HINTS_IN_LOWER_CASE)


def _keep_context(match: re.Match[str]) -> str:
    return (match["bearer"] or match["url"] or match["name"] or "") + REDACTED


REDACTOR = Redactor()
"""The one that logs and RPC errors go through. Register every key when it is read."""
