"""A small catalogue of providers for tests that need names, not wires."""

from __future__ import annotations

from router_service.domain.catalog import ModelFacts, ProviderSpec


def provider_spec(name: str, *, base_url: str = "http://127.0.0.1:9/v1", needs_key: bool = True) -> ProviderSpec:
    """A provider with one model, `<name>-model`."""
    return ProviderSpec(
        name=name,
        display_name=name.title(),
        base_url=base_url,
        needs_key=needs_key,
        system_key_env=f"{name.upper()}_API_KEY",
        default_model=f"{name}-model",
        models={f"{name}-model": ModelFacts(f"{name}-model", context_window_tokens=100_000)},
    )


CATALOG = {name: provider_spec(name) for name in ("groq", "openrouter", "llm7", "local")}
