"""What sets a vendor apart from the plain OpenAI wire, as a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from router_service.domain.usage import LateUsage
from router_service.providers.chat_request import RequestDialect


def _read_nothing(_: object) -> LateUsage | None:
    return None


def _explain_nothing(_: object) -> str:
    return "the provider accepts the key"


@dataclass(frozen=True, slots=True)
class Vendor:
    """A vendor's deviations. The default is a server that deviates in nothing and cannot check keys.

    `key_check_path` is a path below the base URL that costs nothing and answers 401 to a bad key; None where there is
    no such path, with the reason in `key_check_gap`. `explain_valid_key` turns the JSON of its 200 into a sentence.
    `late_usage_path` is where the consumption of a finished answer can be asked for, ending where its id goes; empty
    where it cannot. `read_late_usage` takes it from the JSON of the 200; None when it is not there yet.
    """

    dialect: RequestDialect = field(default_factory=RequestDialect)
    headers: Mapping[str, str] = field(default_factory=dict)
    key_check_path: str | None = None
    key_check_gap: str = ""
    explain_valid_key: Callable[[object], str] = _explain_nothing
    response_id_header: str = ""
    late_usage_path: str = ""
    read_late_usage: Callable[[object], LateUsage | None] = _read_nothing
