"""Groq: the list of models needs a valid key; the length bound has OpenAI's newer name."""

from __future__ import annotations

from typing import Final

from router_service.providers.chat_request import RequestDialect
from router_service.providers.vendor import Vendor

GROQ: Final = Vendor(
    dialect=RequestDialect(max_tokens_field="max_completion_tokens"),
    key_check_path="/models",
)
