"""OpenRouter: its list of models is public, so the key is checked at `/key`, which also tells the remaining credit.

What an answer consumed and cost can be asked for by its id a moment after it ended, also when it was cut off.
"""

from __future__ import annotations

from typing import Any, Final

from router_service.domain.usage import LateUsage, TokenUsage
from router_service.providers.chat_request import RequestDialect
from router_service.providers.loose_json import count_of, label_of, usd_of
from router_service.providers.vendor import Vendor


def explain_key(answer: object) -> str:
    """What `GET /key` says of the key's credit."""
    data = answer.get("data") if isinstance(answer, dict) else None
    remaining_usd = usd_of(data.get("limit_remaining")) if isinstance(data, dict) else None
    if remaining_usd is None:
        return "the provider accepts the key"
    return f"the provider accepts the key; {remaining_usd:f} US dollars of its limit are left"


def read_generation(answer: object) -> LateUsage | None:
    """The consumption in an answer of `GET /generation`; None while it holds no counts.

    The native counts are those of the model that answered, which the price is for; the others are of one tokenizer for
    all models. Cached tokens are part of the prompt, reasoning tokens part of the completion.
    """
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, dict):
        return None
    prompt = _first_count(data, "native_tokens_prompt", "tokens_prompt")
    completion = _first_count(data, "native_tokens_completion", "tokens_completion")
    cost_usd = usd_of(data.get("total_cost"))
    if prompt is None and completion is None and cost_usd is None:
        return None
    prompt, completion = prompt or 0, completion or 0
    cached = min(prompt, count_of(data.get("native_tokens_cached")) or 0)
    reasoning = min(completion, count_of(data.get("native_tokens_reasoning")) or 0)
    usage = TokenUsage(
        input_tokens=prompt - cached,
        output_tokens=completion - reasoning,
        cached_read_tokens=cached,
        reasoning_tokens=reasoning,
    )
    return LateUsage(usage, cost_usd, label_of(data.get("model")))


def _first_count(data: dict[str, Any], *names: str) -> int | None:
    return next((count for name in names if (count := count_of(data.get(name))) is not None), None)


OPENROUTER: Final = Vendor(
    dialect=RequestDialect(nests_reasoning_effort=True),
    headers={"X-OpenRouter-Title": "Turnpike"},
    key_check_path="/key",
    explain_valid_key=explain_key,
    response_id_header="x-generation-id",
    late_usage_path="/generation?id=",
    read_late_usage=read_generation,
)
