"""OpenRouter: its list of models is public, so the key is checked at `/key`, which also tells the remaining credit."""

from __future__ import annotations

from typing import Final

from router_service.providers.chat_request import RequestDialect
from router_service.providers.loose_json import usd_of
from router_service.providers.vendor import Vendor


def explain_key(answer: object) -> str:
    """What `GET /key` says of the key's credit."""
    data = answer.get("data") if isinstance(answer, dict) else None
    remaining_usd = usd_of(data.get("limit_remaining")) if isinstance(data, dict) else None
    if remaining_usd is None:
        return "the provider accepts the key"
    return f"the provider accepts the key; {remaining_usd:f} US dollars of its limit are left"


OPENROUTER: Final = Vendor(
    dialect=RequestDialect(nests_reasoning_effort=True),
    headers={"X-OpenRouter-Title": "Turnpike"},
    key_check_path="/key",
    explain_valid_key=explain_key,
)
