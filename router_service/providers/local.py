"""A server of the operator's own: Ollama, llama.cpp, vLLM, LM Studio. Those that want a key guard `/models` with it."""

from __future__ import annotations

from typing import Final

from router_service.providers.vendor import Vendor

LOCAL: Final = Vendor(key_check_path="/models")
