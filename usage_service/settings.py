"""What usage_service reads from the environment: `USAGE_<FIELD>`, for example `USAGE_RAW_RETENTION_DAYS=90`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from service_runtime.settings import ServiceSettings
from usage_service.domain.provider_names import CATALOGUE_PROVIDERS
from usage_service.domain.rate_limit import DEFAULT_LIMITS, LevelThresholds, LimitRule, parse_limits
from usage_service.domain.window import RollupRetention
from usage_service.metering.watching import WatchLimits

_DEFAULT_LIMITS = {provider: tuple(limits) for provider, limits in DEFAULT_LIMITS.items()}


class UsageSettings(ServiceSettings):
    """The ledger's settings; those that every service has are in `ServiceSettings`."""

    model_config = SettingsConfigDict(env_prefix="USAGE_")

    port: int = Field(default=50052, ge=0, le=65535)

    # Providers beside the catalogue's, comma separated, for vendors that an operator has added to the router.
    extra_providers: Annotated[frozenset[str], NoDecode] = frozenset()

    accept_days_back: int = Field(default=35, ge=1, le=366)  # a router's journal may be this late
    accept_minutes_ahead: int = Field(default=5, ge=0, le=60)  # clocks differ

    # Weekly partitions of raw rows; the default keeps them below 40, which planning is cheap with. 0 keeps all.
    raw_retention_days: int = Field(default=240, ge=0)
    minute_rollup_hours: int = Field(default=48, ge=2)
    hour_rollup_days: int = Field(default=366, ge=2)
    # What a provider grants by default, for example {"groq": ["30 requests per 1m", "100_000 tokens per 1d"]}; replaces
    # the built-in table. A tenant's own limits are rows of usage_limits.
    limits: Mapping[str, tuple[str, ...]] = Field(default_factory=lambda: _DEFAULT_LIMITS)

    # At which used share of a limit its levels begin, and how far below usage must be to leave one.
    limit_normal_at: float = 0.6
    limit_warning_at: float = 0.8
    limit_critical_at: float = 0.95
    limit_leave_margin: float = 0.05
    limit_pace_after: float = 0.2  # share of the window after which a pace that exhausts the limit is critical

    # How often the ledger recounts its latest days, and says in a metric what does not agree; 0 turns that off. Two
    # days, because most of what arrives is younger than that; `turnpike verify --since` looks at the rest.
    verify_interval_s: float = Field(default=3600.0, ge=0)
    verify_days: int = Field(default=2, ge=1, le=366)
    # A router that says that an attempt has been open for longer has lost track of it: no request may take that long.
    verify_open_attempt_minutes: int = Field(default=60, ge=1)

    # Live totals: how often the ledger is asked for each watched window, and when a stream without news says so.
    watch_poll_s: float = Field(default=1.0, ge=0.05)
    watch_heartbeat_s: float = Field(default=15.0, ge=0.1)
    watch_max: int = Field(default=200, ge=1)  # streams; each window that is watched costs a report every poll
    watch_max_per_tenant: int = Field(default=20, ge=1)

    maintenance_interval_s: float = Field(default=3600.0, gt=0)

    # Connections that reports may use. Ingest has its own, `database_pool_max`, so that neither waits for the other's.
    report_pool_max: int = Field(default=4, ge=1)
    ingest_writers: int = Field(default=2, ge=1, le=16)  # more than two only meet on the same rollup rows
    ingest_max_waiting: int = Field(default=64, ge=1)  # batches in memory; beyond it routers are told to wait
    price_refresh_s: float = Field(default=15.0, gt=0)  # how soon a changed price is seen

    @field_validator("extra_providers", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return frozenset(name.strip().lower() for name in value.split(",") if name.strip())

    @field_validator("limits")
    @classmethod
    def _limits_can_be_read(cls, value: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
        parse_limits(value)
        return value

    @model_validator(mode="after")
    def _levels_rise(self) -> Self:
        try:
            _ = self.level_thresholds
        except ValueError as error:
            raise ValueError(
                f"USAGE_LIMIT_NORMAL_AT, _WARNING_AT, _CRITICAL_AT, _LEAVE_MARGIN, _PACE_AFTER: {error}"
            ) from error
        return self

    @model_validator(mode="after")
    def _minutes_are_kept_no_longer_than_hours(self) -> Self:
        if self.minute_rollup_hours > self.hour_rollup_days * 24:
            raise ValueError("USAGE_MINUTE_ROLLUP_HOURS must not be longer than USAGE_HOUR_ROLLUP_DAYS")
        return self

    @model_validator(mode="after")
    def _retention_covers_late_events(self) -> Self:
        # An event whose row was dropped would be taken for a new one. A week is the length of a partition.
        if self.raw_retention_days and self.raw_retention_days < self.accept_days_back + 7:
            raise ValueError(
                f"USAGE_RAW_RETENTION_DAYS must be 0 or at least a week more than USAGE_ACCEPT_DAYS_BACK, "
                f"{self.accept_days_back + 7}: the ledger knows a resent event by its row"
            )
        return self

    @property
    def providers(self) -> frozenset[str]:
        """Every provider that the ledger knows."""
        return CATALOGUE_PROVIDERS | self.extra_providers

    @property
    def default_limits(self) -> tuple[LimitRule, ...]:
        """The limits of tenants that have none of their own at a provider."""
        return parse_limits(self.limits)

    @property
    def level_thresholds(self) -> LevelThresholds:
        """Where the levels of limits begin and end."""
        return LevelThresholds(
            self.limit_normal_at,
            self.limit_warning_at,
            self.limit_critical_at,
            self.limit_leave_margin,
            self.limit_pace_after,
        )

    @property
    def raw_retention(self) -> timedelta | None:
        """How long raw rows are kept; None is for good."""
        return timedelta(days=self.raw_retention_days) if self.raw_retention_days else None

    @property
    def rollup_retention(self) -> RollupRetention:
        """How long minute and hour rollups are kept."""
        return RollupRetention(timedelta(hours=self.minute_rollup_hours), timedelta(days=self.hour_rollup_days))

    @property
    def watch_limits(self) -> WatchLimits:
        """What watching live totals may cost."""
        return WatchLimits(self.watch_poll_s, self.watch_heartbeat_s, self.watch_max, self.watch_max_per_tenant)

    @property
    def open_attempt_bound(self) -> timedelta:
        """How long an attempt may be open at a router."""
        return timedelta(minutes=self.verify_open_attempt_minutes)

    @property
    def accept_back(self) -> timedelta:
        """How late an event may be."""
        return timedelta(days=self.accept_days_back)

    @property
    def accept_ahead(self) -> timedelta:
        """How far in the future an event may lie."""
        return timedelta(minutes=self.accept_minutes_ahead)
