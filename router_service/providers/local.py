"""A server of the operator's own: Ollama, llama-server, llama-cpp-python, vLLM, LM Studio.

They differ in how they fail and in what they count, and the reading of their answers is generous enough for all: which
one it is need not be known. Those that want a key guard `/models` with it; the others answer everybody there.
"""

from __future__ import annotations

from typing import Final

from router_service.providers.vendor import Vendor

LOCAL: Final = Vendor(key_check_path="/models")
