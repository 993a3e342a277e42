"""Who could serve a request at all: which providers, models and keys, and why the others could not.

Facts that change while requests run (breakers, cool-downs) are judged later, by `routing/planning.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date

import msgspec

from router_service.domain.candidate import Candidate, Exclusion
from router_service.domain.catalog import ModelFacts, ProviderSpec
from router_service.domain.completion import CompletionRequest, ResponseFormatKind
from router_service.domain.tenant import Credential, Tenant
from router_service.domain.tokens import least_total_tokens


class Needs(msgspec.Struct, frozen=True):
    """What a request asks of a candidate. `total_tokens` is prompt and completion together."""

    model: str | None = None
    provider: str | None = None
    tools: bool = False
    json: bool = False
    vision: bool = False
    total_tokens: int = 0

    @classmethod
    def of(cls, request: CompletionRequest) -> Needs:
        """The needs of a completion."""
        form = request.response_format
        return cls(
            model=request.model,
            provider=request.provider,
            tools=bool(request.tools),
            json=form is not None and form.kind is not ResponseFormatKind.TEXT,
            vision=any(message.image_urls for message in request.messages),
            total_tokens=least_total_tokens(request),
        )


class Selection(msgspec.Struct, frozen=True):
    """The candidates in catalogue order, and everything that is out with its reason."""

    candidates: tuple[Candidate, ...]
    exclusions: tuple[Exclusion, ...]


def select(
    tenant: Tenant,
    catalog: Mapping[str, ProviderSpec],
    system_credentials: Mapping[str, Credential],
    needs: Needs,
    *,
    today: date,
) -> Selection:
    """At most one candidate per provider: its best-fitting model with the key that pays.

    The model is the request's; else the tenant's preferred one for the provider; else the provider's default. A
    preferred model that cannot serve the request is passed over for the default, and listed as an exclusion.
    """
    candidates: list[Candidate] = []
    exclusions: list[Exclusion] = []
    for spec in catalog.values():
        closed = _provider_exclusion(spec, tenant, catalog, needs)
        if closed is not None:
            exclusions.append(closed)
            continue
        key = credential_for(spec, tenant, system_credentials)
        if isinstance(key, Exclusion):
            exclusions.append(key)
            continue
        for model in _models(spec, tenant, needs):
            unfit = _model_exclusion(spec, model, needs, today)
            if unfit is None:
                candidates.append(Candidate(spec, model, key))
                break
            exclusions.append(unfit)
    return Selection(tuple(candidates), tuple(exclusions))


def credential_for(
    spec: ProviderSpec, tenant: Tenant, system_credentials: Mapping[str, Credential]
) -> Credential | Exclusion | None:
    """The key that would pay at a provider; None when none is needed; the exclusion when one is missing."""
    own = tenant.credentials.get(spec.name)
    if own is not None:
        return own
    # No operator's key in place of a broken one of the tenant's: that would spend somebody else's money in silence.
    own_remedy = f"run: turnpike tenants set-token {_id_text(tenant)} {spec.name}"
    unusable = tenant.unusable_credentials.get(spec.name)
    if unusable is not None:
        return _out(
            spec,
            "",
            "KEY_UNREADABLE",
            f"the tenant's key cannot be used ({unusable}): {own_remedy}",
        )
    system = system_credentials.get(spec.name)
    if system is not None and tenant.config.allow_system_keys:
        return system
    if not spec.needs_key:
        return None
    if system is not None:
        return _out(spec, "", "NO_KEY", f"the tenant has no key and may not use the operator's: {own_remedy}")
    return _out(spec, "", "NO_KEY", f"no key: set {spec.system_key_env} for the router, or {own_remedy}")


def _provider_exclusion(
    spec: ProviderSpec, tenant: Tenant, catalog: Mapping[str, ProviderSpec], needs: Needs
) -> Exclusion | None:
    if needs.provider is not None and spec.name != needs.provider:
        return _out(spec, "", "NOT_REQUESTED", f"the request asks for {needs.provider}")
    allowed = tenant.config.allowed_providers
    if allowed and spec.name not in allowed:
        return _out(
            spec,
            "",
            "NOT_ALLOWED",
            f"the tenant allows only {', '.join(allowed)}: add {spec.name} to allowed_providers",
        )
    if spec.is_sandbox and not _sandbox_is_asked_for(spec, tenant, needs):
        return _out(
            spec,
            "",
            "SANDBOX_NOT_REQUESTED",
            f"built-in test model, used only on request: name provider {spec.name} in the request",
        )
    if not spec.base_url and not spec.is_sandbox:
        return _out(spec, "", "NOT_CONFIGURED", f"no address is set for {spec.display_name}")
    if needs.model is not None:
        return _model_home_exclusion(spec, tenant, catalog, needs, needs.model)
    return None


def _sandbox_is_asked_for(spec: ProviderSpec, tenant: Tenant, needs: Needs) -> bool:
    if needs.provider is not None or needs.model is not None:
        return needs.provider == spec.name or needs.model in spec.models
    return tenant.config.preferred_provider == spec.name


def _model_home_exclusion(
    spec: ProviderSpec, tenant: Tenant, catalog: Mapping[str, ProviderSpec], needs: Needs, model: str
) -> Exclusion | None:
    """Whether a model that the request names is looked for at this provider.

    A caller that names both provider and model is taken at their word: the catalogue never lists every model that a
    provider serves. A model that is named alone goes to the providers that are known to serve it, and an unknown one
    to the tenant's preferred provider.
    """
    if needs.provider == spec.name:
        return None
    homes = [other.name for other in catalog.values() if _offers(other, tenant, model)]
    if spec.name in homes:
        return None
    if homes:
        return _out(spec, model, "MODEL_NOT_OFFERED", f"{model} is served by {', '.join(homes)}")
    if spec.name == tenant.config.preferred_provider:
        return None
    return _out(
        spec, model, "MODEL_UNKNOWN", f"no provider of the catalogue lists {model}: name a provider beside the model"
    )


def _offers(spec: ProviderSpec, tenant: Tenant, model: str) -> bool:
    return model in spec.models or model == spec.default_model or tenant.config.preferred_models.get(spec.name) == model


def _models(spec: ProviderSpec, tenant: Tenant, needs: Needs) -> Iterator[ModelFacts]:
    if needs.model is not None:
        yield spec.facts(needs.model)
        return
    preferred = tenant.config.preferred_models.get(spec.name)
    if preferred is not None:
        yield spec.facts(preferred)
    if preferred != spec.default_model:
        yield spec.facts(spec.default_model)


def _model_exclusion(  # noqa: PLR0911 - a table, one return a row
    spec: ProviderSpec, model: ModelFacts, needs: Needs, today: date
) -> Exclusion | None:
    if not model.name:
        return _out(spec, "", "NO_MODEL", f"{spec.display_name} has no default model: name one in the request")
    if model.is_retired(today):
        return _out(
            spec,
            model.name,
            "MODEL_RETIRED",
            f"retired on {model.retirement_date}: use {_living_model(spec, today)}",
        )
    if needs.tools and model.supports_tools is False:
        return _out(spec, model.name, "NO_TOOLS", "the model calls no tools")
    if needs.json and model.supports_json is False:
        return _out(spec, model.name, "NO_JSON", "the model cannot be held to JSON")
    if needs.vision and model.supports_vision is False:
        return _out(spec, model.name, "NO_VISION", "the model reads no images")
    window = model.context_window_tokens
    if window is not None and needs.total_tokens > window:
        return _out(
            spec,
            model.name,
            "CONTEXT_TOO_SMALL",
            f"the request needs about {needs.total_tokens} tokens, the context window holds {window}",
        )
    return None


def _living_model(spec: ProviderSpec, today: date) -> str:
    if spec.facts(spec.default_model).is_retired(today):
        return "another that the provider serves"
    return f"{spec.default_model} or another"


def _out(spec: ProviderSpec, model: str, reason: str, explanation: str) -> Exclusion:
    return Exclusion(spec.name, model, reason, explanation)


def _id_text(tenant: Tenant) -> str:
    """The id as a command line takes it; a placeholder for nobody's, whose id is nil."""
    return str(tenant.id) if tenant.id.int else "TENANT_ID"
