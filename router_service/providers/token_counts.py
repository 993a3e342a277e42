"""What vendors report as usage, brought into disjoint classes: every token counted once, the vendor's total kept."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from router_service.domain.usage import TokenUsage
from router_service.providers.loose_json import count_of, usd_of


def usage_from_openai(reported: object) -> TokenUsage | None:
    """The usage in an OpenAI `usage` object; None when it does not say both prompt and completion.

    Cached tokens are part of the prompt there and reasoning tokens part of the completion; a class that claims more
    than the whole has is cut to it. Where the total shows that reasoning was counted beside the completion, it stays
    beside it.
    """
    if not isinstance(reported, dict):
        return None
    prompt, completion = count_of(reported.get("prompt_tokens")), count_of(reported.get("completion_tokens"))
    total = count_of(reported.get("total_tokens"))
    if total is not None:  # a missing third follows from the other two
        if completion is None and prompt is not None:
            completion = max(0, total - prompt)
        elif prompt is None and completion is not None:
            prompt = max(0, total - completion)
    if prompt is None or completion is None:
        return None
    of_prompt, of_completion = (
        _object(reported, "prompt_tokens_details"),
        _object(reported, "completion_tokens_details"),
    )
    cached_read = min(prompt, count_of(of_prompt.get("cached_tokens")) or 0)
    cached_write = min(prompt - cached_read, count_of(of_prompt.get("cache_write_tokens")) or 0)
    reasoning = count_of(of_completion.get("reasoning_tokens")) or 0
    if reasoning == 0 or total != prompt + completion + reasoning:
        reasoning = min(reasoning, completion)
        completion -= reasoning
    return TokenUsage(
        input_tokens=prompt - cached_read - cached_write,
        output_tokens=completion,
        cached_read_tokens=cached_read,
        cached_write_tokens=cached_write,
        reasoning_tokens=reasoning,
    )


def usage_from_timings(reported: object) -> TokenUsage | None:
    """The usage in llama-server's `timings`, where `prompt_n` leaves out what came from the cache."""
    if not isinstance(reported, dict):
        return None
    prompt, predicted = count_of(reported.get("prompt_n")), count_of(reported.get("predicted_n"))
    if prompt is None or predicted is None:
        return None
    return TokenUsage(
        input_tokens=prompt, output_tokens=predicted, cached_read_tokens=count_of(reported.get("cache_n")) or 0
    )


def cost_from_usage(reported: object) -> Decimal | None:
    """What the vendor says that it charges, in US dollars; None when it does not say."""
    return usd_of(reported.get("cost")) if isinstance(reported, dict) else None


def _object(reported: dict[str, Any], name: str) -> dict[str, Any]:
    value = reported.get(name)
    return value if isinstance(value, dict) else {}
