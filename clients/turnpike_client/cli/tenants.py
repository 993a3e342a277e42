"""`turnpike tenants …`: create, look at and configure tenants."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import click

from turnpike_client.cli.options import Pair, json_option
from turnpike_client.cli.output import moment, print_json, print_table, yes_no
from turnpike_client.cli.resealing import advice, is_finished, key_rows, summary
from turnpike_client.cli.session import Session, pass_session
from turnpike_client.enums import TokenVerdict
from turnpike_client.tenancy import ConfigChanges, InferenceConfig, ResealedTenant, Tenant, TokenVerification

EXIT_INVALID_KEY = 1
EXIT_NOT_RESEALED = 1


@click.group()
def tenants() -> None:
    """Create, list, show and configure tenants."""


@tenants.command()
@click.argument("name")
@click.option("--id", "tenant_id", default="", metavar="UUID", help="Id to use. Default: one is made.")
@click.option("--preferred-provider", default="", help="Provider to prefer.")
@click.option("--auto-failover/--no-auto-failover", default=True, help="Whether to try others when the first fails.")
@json_option
@pass_session
def create(
    session: Session, *, name: str, tenant_id: str, preferred_provider: str, auto_failover: bool, as_json: bool
) -> None:
    """Create a tenant called NAME."""

    async def work() -> Tenant:
        async with session.router_client() as router:
            config = InferenceConfig(preferred_provider=preferred_provider, auto_failover=auto_failover)
            return await router.tenants.create(name, tenant_id=tenant_id, config=config)

    _print_tenant(session.run(work()), as_json=as_json)


@tenants.command("list")
@json_option
@pass_session
def list_(session: Session, *, as_json: bool) -> None:
    """List all tenants, oldest first."""

    async def read() -> list[Tenant]:
        async with session.router_client() as router:
            return [tenant async for tenant in router.tenants.list(page_size=1000)]

    found = session.run(read())
    if as_json:
        print_json(found)
        return
    print_table(
        ["id", "name", "prefers", "failover", "keys", "version>", "created"],
        [
            (
                tenant.id,
                tenant.name,
                tenant.config.preferred_provider or "-",
                yes_no(tenant.config.auto_failover),
                ", ".join(token.provider for token in tenant.provider_tokens) or "-",
                str(tenant.config_version),
                moment(tenant.created_at),
            )
            for tenant in found
        ],
        empty="no tenants; create one with `turnpike tenants create NAME`",
    )


@tenants.command()
@click.argument("tenant_id", metavar="TENANT")
@json_option
@pass_session
def show(session: Session, *, tenant_id: str, as_json: bool) -> None:
    """Show a tenant; of its keys only what may be known."""

    async def read() -> Tenant:
        async with session.router_client() as router:
            return await router.tenants.get(tenant_id)

    _print_tenant(session.run(read()), as_json=as_json)


@tenants.command("set-token")
@click.argument("tenant_id", metavar="TENANT")
@click.argument("provider")
@click.option("--from-env", metavar="NAME", help="Read the key from this environment variable.")
@json_option
@pass_session
def set_token(session: Session, *, tenant_id: str, provider: str, from_env: str | None, as_json: bool) -> None:
    """Store the tenant's key for PROVIDER.

    The key is asked for, read from stdin, or from the variable that --from-env names. It is never an argument: those
    show in the list of processes and stay in the shell's history.
    """
    token = _read_token(provider, from_env)

    async def work() -> Tenant:
        async with session.router_client() as router:
            return await router.tenants.set_token(tenant_id, provider, token)

    _print_tenant(session.run(work()), as_json=as_json)


def _read_token(provider: str, from_env: str | None) -> str:
    if from_env:
        if from_env not in os.environ:
            raise click.UsageError(f"the environment variable {from_env} is not set")
        token = os.environ[from_env]
    elif sys.stdin.isatty():
        token = click.prompt(f"Key for {provider}", hide_input=True)
    else:
        token = sys.stdin.readline()
    if not token.strip():
        raise click.UsageError("no key given: type it, pipe it to stdin, or name a variable with --from-env")
    return str(token).strip()


@tenants.command("delete-token")
@click.argument("tenant_id", metavar="TENANT")
@click.argument("provider")
@json_option
@pass_session
def delete_token(session: Session, *, tenant_id: str, provider: str, as_json: bool) -> None:
    """Remove the tenant's key for PROVIDER."""

    async def work() -> Tenant:
        async with session.router_client() as router:
            return await router.tenants.delete_token(tenant_id, provider)

    _print_tenant(session.run(work()), as_json=as_json)


@tenants.command("verify-token")
@click.argument("tenant_id", metavar="TENANT")
@click.argument("provider")
@json_option
@pass_session
def verify_token(session: Session, *, tenant_id: str, provider: str, as_json: bool) -> None:
    """Ask PROVIDER whether it accepts the tenant's key. Exits with 1 when it does not."""

    async def work() -> TokenVerification:
        async with session.router_client() as router:
            return await router.tenants.verify_token(tenant_id, provider)

    verification = session.run(work())
    if as_json:
        print_json(verification)
    else:
        print_table(["verdict", "explanation"], [(verification.verdict, verification.explanation)], empty="")
    if verification.verdict is TokenVerdict.INVALID:
        raise click.exceptions.Exit(EXIT_INVALID_KEY)


@tenants.command()
@click.argument("tenant_id", metavar="[TENANT]", required=False)
@click.option("--all", "is_for_all", is_flag=True, help="Every tenant.")
@json_option
@pass_session
def reseal(session: Session, *, tenant_id: str | None, is_for_all: bool, as_json: bool) -> None:
    """Seal the stored provider keys of a tenant, or with --all of every tenant, with the newest key-encryption key.

    To be run after a key was put first in TURNPIKE_KEY_ENCRYPTION_KEYS and every router was restarted; afterwards the
    older keys can go. It may be repeated. Exits with 1 when a key could not be sealed anew.
    """
    if (tenant_id is None) is not is_for_all:
        raise click.UsageError("name a tenant, or all of them with --all")

    async def work() -> list[ResealedTenant]:
        async with session.router_client() as router:
            if tenant_id is not None:
                return [await router.tenants.reseal_tokens(tenant_id)]
            return [tenant async for tenant in router.tenants.reseal_all_tokens()]

    done = session.run(work())
    if as_json:
        print_json(done)
    else:
        if rows := key_rows(done):
            print_table(["tenant", "key for", "sealed anew", "why not"], rows, empty="")
        click.echo(summary(done))
    for line in advice(done, is_for_all=is_for_all):
        click.echo(line, err=True)
    if not is_finished(done):
        raise click.exceptions.Exit(EXIT_NOT_RESEALED)


@tenants.command("set-config")
@click.argument("tenant_id", metavar="TENANT")
@click.option("--name", help="New name.")
@click.option("--preferred-provider", help='Provider to prefer; "" for none.')
@click.option("--auto-failover/--no-auto-failover", default=None, help="Whether to try others when the first fails.")
@click.option("--preferred-model", "models", type=Pair(), multiple=True, help="PROVIDER=MODEL; PROVIDER= removes it.")
@click.option("--weight", "weights", type=Pair(), multiple=True, help="TERM=WEIGHT of the score; TERM= removes it.")
@click.option("--allow-provider", "allowed", multiple=True, help="Allow only these providers; repeat for several.")
@click.option("--allow-all-providers", is_flag=True, help="Allow every provider again.")
@click.option("--system-keys/--no-system-keys", default=None, help="Whether the operator's keys may pay.")
@json_option
@pass_session
def set_config(
    session: Session,
    *,
    tenant_id: str,
    name: str | None,
    preferred_provider: str | None,
    auto_failover: bool | None,
    models: Sequence[tuple[str, str]],
    weights: Sequence[tuple[str, str]],
    allowed: Sequence[str],
    allow_all_providers: bool,
    system_keys: bool | None,
    as_json: bool,
) -> None:
    """Change a tenant's configuration: only what is named, the rest stays."""
    if allowed and allow_all_providers:
        raise click.UsageError("--allow-provider and --allow-all-providers contradict each other")
    candidates = {
        "preferred_provider": preferred_provider,
        "auto_failover": auto_failover,
        "allowed_providers": () if allow_all_providers else tuple(allowed) or None,
        "allow_system_keys": system_keys,
    }
    fields = {field: value for field, value in candidates.items() if value is not None}
    if not (fields or models or weights or name):
        raise click.UsageError("nothing to change; name an option")
    change = _Change(name, cast("ConfigChanges", fields), dict(models), _weights(weights))
    _print_tenant(session.run(_apply(session, tenant_id, change)), as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Change:
    """What shall change. In the maps, an empty model or a weight of None removes the entry."""

    name: str | None
    fields: ConfigChanges
    models: Mapping[str, str]
    weights: Mapping[str, float | None]


def _weights(pairs: Sequence[tuple[str, str]]) -> dict[str, float | None]:
    """Weights by term; None for a term whose weight shall go."""
    weights: dict[str, float | None] = {}
    for term, text in pairs:
        try:
            weights[term] = float(text) if text else None
        except ValueError as error:
            raise click.UsageError(f"--weight {term}={text}: {text!r} is no number") from error
    return weights


async def _apply(session: Session, tenant_id: str, change: _Change) -> Tenant:
    """Change the tenant. A map is read, changed and written back, but only if nobody else did meanwhile."""
    fields = change.fields
    version = 0
    async with session.router_client() as router:
        if change.models or change.weights:
            tenant = await router.tenants.get(tenant_id)
            version = tenant.config_version
            models = {**tenant.config.preferred_models, **change.models}
            weights = {**tenant.config.score_weights, **change.weights}
            fields = {
                **fields,
                "preferred_models": {provider: model for provider, model in models.items() if model},
                "score_weights": {term: weight for term, weight in weights.items() if weight is not None},
            }
        return await router.tenants.update(tenant_id, name=change.name, expected_config_version=version, **fields)


def _print_tenant(tenant: Tenant, *, as_json: bool) -> None:
    if as_json:
        print_json(tenant)
        return
    config = tenant.config
    print_table(
        ["field", "value"],
        [
            ("id", tenant.id),
            ("name", tenant.name),
            ("preferred provider", config.preferred_provider or "-"),
            ("auto failover", yes_no(config.auto_failover)),
            ("preferred models", _pairs(config.preferred_models)),
            ("score weights", _pairs(config.score_weights)),
            ("allowed providers", ", ".join(config.allowed_providers) or "all"),
            ("operator's keys", "may pay" if config.allow_system_keys else "may not pay"),
            ("version", str(tenant.config_version)),
            ("created", moment(tenant.created_at)),
            ("changed", moment(tenant.updated_at)),
        ],
        empty="",
    )
    if tenant.provider_tokens:
        click.echo()
        print_table(
            ["key for", "ends in", "fingerprint", "state", "stored"],
            [
                (token.provider, token.last4 or "(hidden)", token.fingerprint, token.state, moment(token.created_at))
                for token in tenant.provider_tokens
            ],
            empty="",
        )


def _pairs(values: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(values.items())) or "-"
