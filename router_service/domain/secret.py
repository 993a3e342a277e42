"""A provider key that cannot be printed, compared or pickled by accident."""

from __future__ import annotations

from typing import NoReturn


class Secret:
    """Wraps a key; only `reveal()` gives it out, and only transports call that."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The key itself, for the one header that carries it."""
        return self._value

    def last4(self) -> str:
        """The last four characters of a key long enough to spare them, else an empty text."""
        return self._value[-4:] if len(self._value) >= 20 else ""

    def __repr__(self) -> str:
        return "Secret(****)"

    __str__ = __repr__

    def __format__(self, format_spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")

    def __eq__(self, other: object) -> bool:
        raise TypeError("compare the fingerprints of secrets, not the secrets")

    __hash__ = None  # type: ignore[assignment]  # not a key of any table
