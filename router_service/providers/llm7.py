"""LLM7: serves without a key too, and may answer with another model than the one asked for; the reply names it."""

from __future__ import annotations

from typing import Final

from router_service.providers.vendor import Vendor

LLM7: Final = Vendor(
    key_check_gap="LLM7 has no free call that needs the key; only a completion would show whether it works",
)
