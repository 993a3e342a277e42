"""Settings that every service has, read from the environment once, at start.

A service derives its own class and gives its prefix:

    class RouterSettings(ServiceSettings):
        model_config = SettingsConfigDict(env_prefix="ROUTER_")
        port: int = 50051

Every field is then read from `ROUTER_<FIELD>`. The fields named in `SHARED_FIELDS` are read from `TURNPIKE_<FIELD>`
where the service's own variable is not set, so that `ROUTER_DATABASE_URL` overrides `TURNPIKE_DATABASE_URL`.
A misspelt variable is an error, not a default: `load_settings` refuses what no field reads.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import AliasChoices, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from service_runtime.data_dir import DEFAULT_DATA_DIR
from service_runtime.overload import MAX_WAITING
from service_runtime.startup import StartupError

_LAST_PORT = 65535
SHARED_PREFIX = "TURNPIKE_"
SHARED_FIELDS = frozenset({"data_dir", "database_url", "profile", "bind_host", "log_format", "log_level", "faults"})


_PRODUCTION_DRAIN_DELAY_S = 5.0

MAX_WORKERS = 64
# From one worker's metrics to the next's: services whose ports are next to each other, as ours are, do not meet.
METRICS_PORTS_APART = 10


class SettingsError(StartupError):
    """A setting is missing, malformed or misspelt. Never quotes the value, which may be a secret."""


def _metrics_port(port: int) -> int:
    if port == 0:
        return 0
    return port + 1000 if port + 1000 <= 65535 else port - 1000


class ServiceSettings(BaseSettings):
    """What any service process needs to know before it can start."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    data_dir: Path = Path(DEFAULT_DATA_DIR)  # journals, spools, the embedded Postgres; made when missing
    database_url: SecretStr = Field(min_length=1)  # postgresql://…; the launcher passes that of the embedded Postgres
    profile: Literal["development", "production"] = "development"  # development trusts the machine it runs on

    bind_host: str = "127.0.0.1"  # reachable from elsewhere only when somebody asks for it
    port: int = Field(ge=0, le=65535)  # 0 takes any free port
    # A thousand above the service's port, so that one number tells both; 0 takes any free port, as port 0 does.
    metrics_port: int = Field(default_factory=lambda data: _metrics_port(data["port"]), ge=0, le=65535)

    # Processes that share the port, each with an event loop, a journal and a metrics port of its own. What the settings
    # bound, such as requests of a tenant at a time, is bounded in each.
    workers: int = Field(default=1, ge=1, le=MAX_WORKERS)
    worker: int | None = Field(default=None, ge=0)  # which of them this process is; set by their supervisor
    # Worker k listens on this port + k as well, for clients that spread their calls themselves; 0: only on the shared.
    worker_ports_from: int = Field(default=0, ge=0, le=65535)

    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    database_pool_min: int = Field(default=1, ge=0)
    database_pool_max: int = Field(default=10, ge=1)

    # How long to go on accepting after SIGTERM, once health says NOT_SERVING, so that nobody calls a closed port.
    # Left to the profile when unset: 0 in development, 5 in production.
    drain_delay_s: float | None = Field(default=None, ge=0)
    drain_grace_s: float = Field(default=30.0, ge=0)  # how long streams may finish after SIGTERM
    default_deadline_s: float = Field(default=600.0, gt=0)  # for a caller that gave none, and the most anybody gets
    max_message_bytes: int = Field(default=8 << 20, ge=4096)  # one request or one answer
    max_concurrent_rpcs: int = Field(default=2000, ge=1)  # refused with RESOURCE_EXHAUSTED beyond it; bounds memory
    # Calls that wait in a queue to be taken up; completions have their own, by method. Of those on top of it more and
    # more are refused with CANCELLED, from twice as many on all. Some hundreds are taken up in a second.
    max_waiting_rpcs: int = Field(default=MAX_WAITING, ge=1)
    # Lets grpcurl work unaided. Left to the profile when unset: on in development, off in production.
    reflection: bool | None = None
    faults: str = ""  # crash points and broken promises, for tests of the tests; see `service_runtime.faults`

    @model_validator(mode="after")
    def _ports_for_all_workers(self) -> Self:
        prefix = (self.model_config.get("env_prefix") or "").upper()
        if self.worker is not None and self.worker >= self.workers:
            raise ValueError(f"{prefix}WORKER is for the supervisor of workers to set; unset it")
        own, metrics = self._ports(self.worker_ports_from, 1), self._ports(self.metrics_port, METRICS_PORTS_APART)
        for name, ports in (("WORKER_PORTS_FROM", own), ("METRICS_PORT", metrics)):
            if ports and ports[-1] > _LAST_PORT:
                raise ValueError(
                    f"{prefix}{name}: {self.workers} workers need ports up to {ports[-1]}; choose a lower one"
                )
        if taken := {self.port, *metrics}.intersection(own):
            raise ValueError(
                f"{prefix}WORKER_PORTS_FROM: port {min(taken)} is the service's own already, for all workers or for "
                "metrics; choose another"
            )
        return self

    def _ports(self, first: int, apart: int) -> range:
        """One port for each worker; none where `first` leaves the choice to the system, or is not set."""
        return range(first, first + apart * self.workers, apart) if first else range(0)

    @model_validator(mode="after")
    def _no_faults_in_production(self) -> Self:
        if self.faults and self.profile == "production":
            raise ValueError("faults on purpose are refused on the production profile; unset TURNPIKE_FAULTS")
        return self

    @property
    def drain_delay(self) -> float:
        """Seconds between saying NOT_SERVING and refusing."""
        if self.drain_delay_s is not None:
            return self.drain_delay_s
        return _PRODUCTION_DRAIN_DELAY_S if self.profile == "production" else 0.0

    @property
    def own_metrics_port(self) -> int:
        """The port for this process's metrics: with several workers each has one, ten above that of the last."""
        return self.metrics_port + METRICS_PORTS_APART * (self.worker or 0) if self.metrics_port else 0

    @property
    def own_port(self) -> int:
        """The port that this worker has for itself beside the shared one; 0 for none."""
        return self.worker_ports_from + (self.worker or 0) if self.worker_ports_from else 0

    @property
    def reflection_is_on(self) -> bool:
        """Whether the server answers reflection requests."""
        return self.profile == "development" if self.reflection is None else self.reflection

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the service's own variables, then the shared ones. No files: the environment is all."""
        return init_settings, env_settings, _SharedVariables(settings_cls)

    def resolved_data_dir(self) -> Path:
        """The data directory as an absolute path, with `~` expanded."""
        return self.data_dir.expanduser().absolute()


class _SharedVariables(EnvSettingsSource):
    """Reads `TURNPIKE_<FIELD>` for the fields that services share."""

    def __init__(self, settings_type: type[BaseSettings]) -> None:
        super().__init__(settings_type, env_prefix=SHARED_PREFIX)

    def __call__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__call__().items() if name in SHARED_FIELDS}


SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


def load_settings(settings_type: type[SettingsT], **overrides: Any) -> SettingsT:
    """Read the settings from the process's environment.

    `overrides` are fields given on the command line and win over the environment.
    Raises SettingsError in one line that names every variable that is wrong, and never its value.
    """
    reject_unknown_variables(settings_type, os.environ)
    try:
        return settings_type(**overrides)
    except ValidationError as error:
        raise SettingsError(_in_one_line(settings_type, error)) from None


def reject_unknown_variables(settings_type: type[BaseSettings], environ: Mapping[str, str]) -> None:
    """Raise SettingsError when a variable with the service's prefix is read by no field, naming the nearest that is."""
    prefix = settings_type.model_config.get("env_prefix", "").upper()
    if not prefix:
        return
    known = set(_variables(settings_type))
    unknown = sorted(name for name in environ if name.upper().startswith(prefix) and name.upper() not in known)
    if not unknown:
        return
    raise SettingsError("; ".join(_unknown_variable(name, prefix, known) for name in unknown))


def _unknown_variable(name: str, prefix: str, known: Iterable[str]) -> str:
    # Compared without the prefix: it alone would make everything similar.
    fields = [variable.removeprefix(prefix) for variable in known if variable.startswith(prefix)]
    nearest = difflib.get_close_matches(name.upper().removeprefix(prefix), fields, n=1, cutoff=0.6)
    remedy = f"did you mean {prefix}{nearest[0]}?" if nearest else "unset it"
    return f"{name} is not a setting; {remedy}"


def _variables(settings_type: type[BaseSettings]) -> list[str]:
    return [name for field in settings_type.model_fields for name in _variables_of(settings_type, field)]


def _variables_of(settings_type: type[BaseSettings], field: str) -> list[str]:
    """The environment variables that set `field`, the one that wins first."""
    info = settings_type.model_fields[field]
    match info.validation_alias:
        case None:
            prefix = settings_type.model_config.get("env_prefix", "").upper()
            own = [f"{prefix}{field.upper()}"]
        case str() as alias:
            own = [alias.upper()]
        case AliasChoices() as aliases:
            own = [alias.upper() for alias in aliases.choices if isinstance(alias, str)]
        case _:
            own = []
    return [*own, f"{SHARED_PREFIX}{field.upper()}"] if field in SHARED_FIELDS else own


def _in_one_line(settings_type: type[BaseSettings], error: ValidationError) -> str:
    return "; ".join(
        f"{_location(settings_type, problem['loc'])}{_complaint(problem['type'], problem['msg'])}"
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
        if problem["type"] != "default_factory_not_called"  # the field that it follows is named already
    )


def _complaint(kind: str, message: str) -> str:
    return "is required; set it" if kind in {"missing", "too_short"} else message.removeprefix("Value error, ")


def _location(settings_type: type[BaseSettings], location: tuple[int | str, ...]) -> str:
    if not location:
        return ""  # what several fields come to names them itself
    field = str(location[0])
    names = _variables_of(settings_type, field) if field in settings_type.model_fields else [field]
    below = "".join(f".{part}" for part in location[1:])
    return " or ".join(names) + below + ": "
