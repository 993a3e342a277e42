"""The router's settings, read once from the environment. `README.md` has those that most operators want as a table."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from router_service.domain.catalog import ClockName
from router_service.domain.scoring import MAX_WEIGHT, TERM_NAMES
from service_runtime.settings import ServiceSettings

WINDOWS_IN_A_GAP: Final = 10  # a gap is judged by when its end was read, so a window must be little of it


class RouterSettings(ServiceSettings):
    """Settings of router_service; every field is `ROUTER_<NAME>` unless it names another variable."""

    model_config = SettingsConfigDict(env_prefix="ROUTER_")

    port: int = Field(50051, ge=0, le=65535, description="gRPC port; 0 picks a free one")
    usage_port: int = Field(50052, ge=1, le=65535, validation_alias="USAGE_PORT", description="where usage_service is")
    usage_target: str = Field("", description="host:port of usage_service; empty: 127.0.0.1 and USAGE_PORT")
    router_id: str = Field("", description="stable name of this router in the ledger; empty: kept in the journal")

    unknown_tenant: Literal["defaults", "refuse", ""] = Field(
        "", description="what a tenant without a row gets; empty: defaults on the development profile, else refuse"
    )
    tenant_cache_ttl_s: PositiveFloat = Field(300.0, description="how long a tenant's configuration is served unasked")
    tenant_poll_s: PositiveFloat = Field(30.0, description="how often versions are compared, for lost notifications")
    tenant_cache_size: PositiveInt = Field(10_000, description="tenants kept in memory")
    tenant_snapshot_max_age_s: PositiveFloat = Field(
        7 * 86_400.0,
        description="while Postgres is away: how long after its last word a tenant is still served from disk",
    )
    allow_plaintext_keys: bool | None = Field(
        None, description="whether keys written in clear are accepted and sealed; unset: on the development profile"
    )
    key_encryption_keys: SecretStr = Field(
        SecretStr(""),
        validation_alias="TURNPIKE_KEY_ENCRYPTION_KEYS",
        description="kid:base64 pairs, comma separated, the first is active; development makes one when unset",
    )

    groq_api_key: SecretStr = Field(SecretStr(""), validation_alias="GROQ_API_KEY")
    openrouter_api_key: SecretStr = Field(SecretStr(""), validation_alias="OPENROUTER_API_KEY")
    llm7_api_key: SecretStr = Field(SecretStr(""), validation_alias="LLM7_API_KEY")
    local_api_key: SecretStr = Field(SecretStr(""), validation_alias="LOCAL_API_KEY")
    groq_base_url: str = Field("", description="empty: the vendor's")
    openrouter_base_url: str = Field("", description="empty: the vendor's")
    llm7_base_url: str = Field("", description="empty: the vendor's")
    local_base_url: str = Field("http://127.0.0.1:11434/v1", description="any OpenAI-compatible server; Ollama's port")
    local_model: str = Field("", description="model that `local` is asked for by default; empty: the catalogue's")
    sandbox: bool | None = Field(None, description="the built-in model; unset: on the development profile")

    allowed_networks: str = Field(
        "", description="networks beside the public internet that providers may be in, such as 10.1.0.0/16, by commas"
    )
    ca_file: str = Field("", description="further certificate authorities for providers, PEM")
    provider_clocks: dict[str, dict[ClockName, Annotated[float, Field(gt=0, le=3600)]]] = Field(
        default_factory=dict,
        description='JSON such as {"groq": {"first_content_s": 10}}: how long a provider may take, by provider; also'
        " connect_s, content_gap_s and total_s; what is left out stays as the catalogue has it",
    )
    read_window_ms: float = Field(
        40.0,
        ge=0,
        le=250,
        description="once an answer flows, what arrives within so many milliseconds is read and handed on in one"
        " piece; 0: each piece as it arrives",
    )
    max_attempts: PositiveInt = Field(3, description="attempts per request, all candidates together")
    max_running_per_tenant: PositiveInt = Field(64, description="a tenant's requests at a time; more are refused")
    max_running_per_provider: PositiveInt = Field(256, description="requests at a provider at a time")
    shed_late_calls: bool = Field(
        True, description="while the router is saturated: refuse completions whose deadline is sooner than they take"
    )
    hold_refusals_s: float = Field(
        5.0,
        ge=0,
        le=30,
        description="while the router is busy: how long refusals of who goes on asking wait at most; 0: never",
    )
    hold_refusals_busy_ratio: float = Field(
        0.7, ge=0, le=1, description="from which share of the event loop's time on; 0: always"
    )
    score_weights: dict[str, Annotated[float, Field(ge=0, le=MAX_WEIGHT)]] = Field(
        default_factory=dict,
        description='JSON such as {"price": 3}: goes before the task, after the tenant',
    )

    max_prompt_characters: PositiveInt = Field(1_000_000, description="longer prompts are refused")
    late_usage_wait_s: NonNegativeFloat = Field(
        120.0,
        description="how long a record waits for a count that its provider gives afterwards; 0: the estimate stands",
    )
    journal_max_bytes: PositiveInt = Field(1 << 30, description="a fuller journal refuses new requests")
    backlog_min_per_s: PositiveFloat = Field(
        1_000.0,
        description="events of a backlog that are sent each second beside requests however much they feel it",
    )
    backlog_max_per_s: PositiveFloat = Field(
        20_000.0, description="and how many at most however little they feel it; without requests there is no bound"
    )

    @model_validator(mode="after")
    def _windows_far_below_the_clocks(self) -> Self:
        window_s = self.read_window_ms / 1e3
        for provider, clocks in self.provider_clocks.items():
            gap_s = clocks.get("content_gap_s")
            if gap_s is not None and gap_s < window_s * WINDOWS_IN_A_GAP:
                raise ValueError(
                    f"ROUTER_READ_WINDOW_MS of {self.read_window_ms:g} is over a tenth of the content_gap_s of"
                    f" {gap_s:g} that ROUTER_PROVIDER_CLOCKS gives {provider}: lower it to"
                    f" {gap_s / WINDOWS_IN_A_GAP * 1e3:g}, or raise the clock"
                )
        return self

    @field_validator("score_weights")
    @classmethod
    def _known_terms(cls, weights: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(set(weights) - TERM_NAMES):
            raise ValueError(f"{', '.join(unknown)}: no score term; there are {', '.join(sorted(TERM_NAMES))}")
        return weights

    @model_validator(mode="after")
    def _backlog_shrinks(self) -> Self:
        if self.backlog_min_per_s > self.backlog_max_per_s:
            raise ValueError(
                f"ROUTER_BACKLOG_MIN_PER_S ({self.backlog_min_per_s:g}) is above ROUTER_BACKLOG_MAX_PER_S "
                f"({self.backlog_max_per_s:g}); lower the one or raise the other"
            )
        return self

    @property
    def usage_address(self) -> str:
        return self.usage_target or f"127.0.0.1:{self.usage_port}"

    @property
    def development(self) -> bool:
        return self.profile == "development"

    @property
    def refuses_unknown_tenants(self) -> bool:
        return self.unknown_tenant == "refuse" or (self.unknown_tenant == "" and not self.development)

    @property
    def accepts_plaintext_keys(self) -> bool:
        return self.development if self.allow_plaintext_keys is None else self.allow_plaintext_keys

    @property
    def has_sandbox(self) -> bool:
        return self.development if self.sandbox is None else self.sandbox
