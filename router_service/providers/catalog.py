"""The providers and their models, the only list of them in the repository. As of 2026-11; unknown facts are left out.

A new vendor that speaks OpenAI's wire is one entry here and, where it deviates, one small file beside this one.
Retirement dates are those of the vendor, or of the model's maker where the vendor resells it: a retired model stays
listed, because contracts name it, and is excluded from routing with that reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from typing import Final

from router_service.domain.catalog import CallerGonePolicy, ClockName, Clocks, ModelFacts, ProviderSpec
from router_service.providers.egress import check_base_url

_TASKS: Final = ("chat", "code", "reasoning", "summarisation", "extraction")
_GPT_4O_END: Final = date(2027, 1, 14)
_GPT_OSS: Final = "o200k_harmony"


def _quality(
    chat: float, code: float, reasoning: float, summarisation: float, extraction: float
) -> Mapping[str, float]:
    """Our own coarse judgement, 0 … 1, to rank by where nothing was measured. Only differences matter."""
    return dict(zip(_TASKS, (chat, code, reasoning, summarisation, extraction), strict=True))


def _by_name(*models: ModelFacts) -> Mapping[str, ModelFacts]:
    return {model.name: model for model in models}


def _model(
    name: str,
    context_window_tokens: int | None,
    quality: Mapping[str, float] | None = None,
    *,
    vision: bool = False,
    tools: bool = True,
    ends: date | None = None,
    vocabulary: str = "",
) -> ModelFacts:
    return ModelFacts(
        name,
        context_window_tokens=context_window_tokens,
        supports_tools=tools,
        supports_json=tools,
        supports_vision=vision,
        quality=quality or {},
        retirement_date=ends,
        vocabulary=vocabulary,
    )


_GROQ: Final = ProviderSpec(
    name="groq",
    display_name="Groq",
    base_url="https://api.groq.com/openai/v1",
    needs_key=True,
    system_key_env="GROQ_API_KEY",
    default_model="openai/gpt-oss-120b",
    models=_by_name(
        _model("openai/gpt-oss-120b", 131_072, _quality(0.70, 0.70, 0.75, 0.70, 0.70), vocabulary=_GPT_OSS),
        _model("openai/gpt-oss-20b", 131_072, _quality(0.60, 0.55, 0.60, 0.60, 0.60), vocabulary=_GPT_OSS),
        _model("qwen/qwen3.8-27b", 131_072, _quality(0.70, 0.75, 0.75, 0.70, 0.70)),
        _model("llama-3.3-70b-versatile", 131_072, _quality(0.65, 0.55, 0.50, 0.65, 0.65), ends=date(2026, 8, 16)),
        _model("llama-3.1-70b-versatile", 131_072, _quality(0.60, 0.50, 0.45, 0.60, 0.60), ends=date(2025, 1, 24)),
        _model("mixtral-8x7b-32768", 32_768, _quality(0.45, 0.40, 0.35, 0.50, 0.45), ends=date(2025, 3, 20)),
    ),
    aliases=("groqcloud", "groq cloud", "api.groq.com"),
    on_caller_gone=CallerGonePolicy.DRAIN,  # Groq goes on generating and billing after the connection is closed
)

_OPENROUTER: Final = ProviderSpec(
    name="openrouter",
    display_name="OpenRouter",
    base_url="https://openrouter.ai/api/v1",
    needs_key=True,
    system_key_env="OPENROUTER_API_KEY",
    default_model="google/gemini-3.8-flash",
    models=_by_name(
        _model("google/gemini-3.8-flash", 1_048_576, _quality(0.80, 0.75, 0.75, 0.80, 0.80), vision=True),
        _model("anthropic/claude-sonnet-5.5", 1_000_000, _quality(0.90, 0.95, 0.90, 0.90, 0.90), vision=True),
        _model("anthropic/claude-haiku-5.5", 1_000_000, _quality(0.80, 0.80, 0.70, 0.80, 0.80), vision=True),
        _model("openai/gpt-oss-120b", 131_072, _quality(0.70, 0.70, 0.75, 0.70, 0.70), vocabulary=_GPT_OSS),
        _model("deepseek/deepseek-r1", 64_000, _quality(0.65, 0.70, 0.80, 0.60, 0.55), vocabulary="deepseek_v3"),
        _model(
            "anthropic/claude-3.5-sonnet",
            200_000,
            _quality(0.75, 0.80, 0.65, 0.75, 0.75),
            vision=True,
            ends=date(2025, 10, 28),
        ),
        # Google no longer lists any 1.5 model; the day is that of the family's end at Google.
        _model(
            "google/gemini-pro-1.5",
            2_000_000,
            _quality(0.60, 0.55, 0.55, 0.70, 0.65),
            vision=True,
            ends=date(2025, 9, 24),
        ),
    ),
    aliases=("open router", "openrouter.ai"),
    clocks=Clocks(first_content_s=60.0),  # it queues in front of the vendors behind it
    counts_late=True,
)

_LLM7: Final = ProviderSpec(
    name="llm7",
    display_name="LLM7",
    base_url="https://api.llm7.io/v1",
    needs_key=False,
    system_key_env="LLM7_API_KEY",
    default_model="gpt-4o-mini",
    models=_by_name(
        _model(
            "gpt-4o-mini",
            128_000,
            _quality(0.55, 0.45, 0.40, 0.60, 0.60),
            vision=True,
            ends=_GPT_4O_END,
            vocabulary="o200k_base",
        ),
        _model(
            "gpt-4o",
            128_000,
            _quality(0.70, 0.60, 0.55, 0.70, 0.70),
            vision=True,
            ends=_GPT_4O_END,
            vocabulary="o200k_base",
        ),
        _model(
            "gpt-4-turbo",
            128_000,
            _quality(0.65, 0.60, 0.55, 0.65, 0.65),
            vision=True,
            ends=date(2026, 10, 23),
            vocabulary="cl100k_base",
        ),
    ),
    aliases=("llm7.io", "llm 7"),
)

_LOCAL: Final = ProviderSpec(
    name="local",
    display_name="Local",
    base_url="http://127.0.0.1:11434/v1",
    needs_key=False,
    system_key_env="LOCAL_API_KEY",
    default_model="default",
    models=_by_name(ModelFacts("default")),
    aliases=("local llm", "local model", "localhost", "ollama", "llama.cpp", "llama-server", "vllm", "lm studio"),
    # A first request may have to load the model from disk.
    clocks=Clocks(connect_s=3.0, first_content_s=120.0, content_gap_s=60.0),
)

_SANDBOX: Final = ProviderSpec(
    name="sandbox",
    display_name="Sandbox",
    base_url="sandbox:",
    needs_key=False,
    system_key_env="",
    default_model="sandbox-small",
    models=_by_name(
        _model("sandbox-small", 8_192, _quality(0.1, 0.1, 0.1, 0.1, 0.1)),
        _model("sandbox-large", 131_072, _quality(0.1, 0.1, 0.1, 0.1, 0.1)),
    ),
    aliases=("built-in", "demo"),
    is_sandbox=True,
)


def build_catalog(
    base_urls: Mapping[str, str] | None = None, local_model: str | None = None, *, sandbox_enabled: bool = False
) -> Mapping[str, ProviderSpec]:
    """The catalogue of one router, by provider name.

    `base_urls` replaces addresses by provider name; an empty text keeps the vendor's own. `local_model` is what the
    local server is asked for by default. Raises `ValueError` naming a provider that does not exist or a bad URL.
    """
    specs = {spec.name: spec for spec in (_GROQ, _OPENROUTER, _LLM7, _LOCAL)}
    for name, url in (base_urls or {}).items():
        if name not in specs:
            raise ValueError(f"there is no provider {name!r} with an address; there are {', '.join(specs)}")
        if url:
            specs[name] = replace(specs[name], base_url=check_base_url(url))
    if local_model:
        local = specs["local"]
        models = {local_model: ModelFacts(local_model), **local.models}
        specs["local"] = replace(local, default_model=local_model, models=models)
    if sandbox_enabled:
        specs[_SANDBOX.name] = _SANDBOX
    return specs


def with_clocks(
    catalog: Mapping[str, ProviderSpec], clocks: Mapping[str, Mapping[ClockName, float]]
) -> Mapping[str, ProviderSpec]:
    """The catalogue with some clocks replaced, in seconds, by provider name and clock.

    Raises `ValueError` naming a provider that does not exist.
    """
    if unknown := sorted(set(clocks) - set(catalog)):
        raise ValueError(f"there is no provider {unknown[0]!r}; there are {', '.join(sorted(catalog))}")
    return {name: replace(spec, clocks=_changed(spec.clocks, clocks.get(name, {}))) for name, spec in catalog.items()}


def _changed(clocks: Clocks, changes: Mapping[ClockName, float]) -> Clocks:
    by_name: dict[str, float] = {str(name): seconds for name, seconds in changes.items()}
    return replace(clocks, **by_name)


CATALOG: Final[Mapping[str, ProviderSpec]] = build_catalog(sandbox_enabled=True)
