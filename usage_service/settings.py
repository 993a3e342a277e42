"""What usage_service reads from the environment: `USAGE_<FIELD>`, for example `USAGE_RAW_RETENTION_DAYS=90`."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from service_runtime.settings import ServiceSettings
from usage_service.domain.provider_names import CATALOGUE_PROVIDERS


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
    maintenance_interval_s: float = Field(default=3600.0, gt=0)

    ingest_writers: int = Field(default=2, ge=1, le=16)  # more than two only meet on the same rollup rows
    ingest_max_waiting: int = Field(default=64, ge=1)  # batches in memory; beyond it routers are told to wait
    price_refresh_s: float = Field(default=15.0, gt=0)  # how soon a changed price is seen

    @field_validator("extra_providers", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return frozenset(name.strip().lower() for name in value.split(",") if name.strip())

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
    def accept_back(self) -> timedelta:
        """How late an event may be."""
        return timedelta(days=self.accept_days_back)

    @property
    def accept_ahead(self) -> timedelta:
        """How far in the future an event may lie."""
        return timedelta(minutes=self.accept_minutes_ahead)
