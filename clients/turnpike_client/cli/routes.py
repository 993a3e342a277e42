"""`turnpike providers` and `turnpike explain`: who can be called, and who would be."""

from __future__ import annotations

from datetime import timedelta

import click

from turnpike_client.cli.options import json_option, one_of, tenant_option
from turnpike_client.cli.output import print_json, print_table, yes_no
from turnpike_client.cli.session import Session, pass_session
from turnpike_client.completions import Model, Provider, RouteExplanation
from turnpike_client.enums import Funding, TaskType


@click.command()
@tenant_option(required=False)
@json_option
@pass_session
def providers(session: Session, *, tenant_id: str | None, as_json: bool) -> None:
    """List providers and models, and what the tenant can use."""

    async def read() -> list[Provider]:
        async with session.router_client() as router:
            return await router.list_providers(tenant_id or "")

    found = session.run(read())
    if as_json:
        print_json(found)
        return
    print_table(
        ["provider", "name", "usable", "pays", "breaker", "models", "remedy"],
        [
            (
                provider.name,
                provider.display_name,
                yes_no(provider.usable),
                _payer(provider.funding),
                provider.breaker_state,
                ", ".join(_model(model) for model in provider.models),
                provider.unusable_reason,
            )
            for provider in found
        ],
        empty="no providers",
    )


def _model(model: Model) -> str:
    if model.retired:
        return f"{model.name} (retired)"
    return f"{model.name} (default)" if model.is_default else model.name


def _payer(funding: Funding) -> str:
    return {Funding.NONE: "-", Funding.TENANT_KEY: "tenant", Funding.SYSTEM_KEY: "operator"}[funding]


@click.command()
@tenant_option()
@click.option("--task", type=one_of(TaskType), default=TaskType.CHAT.value, show_default=True)
@click.option("--tokens", type=click.IntRange(min=0), default=0, help="Prompt and completion together.")
@click.option("--provider", help="As a request that names this provider.")
@click.option("--model", help="As a request that names this model.")
@click.option("--needs-tools", is_flag=True)
@click.option("--needs-json", is_flag=True)
@click.option("--needs-vision", is_flag=True)
@click.option("--within", type=click.FloatRange(min=0, min_open=True), help="Seconds until the caller's deadline.")
@json_option
@pass_session
def explain(
    session: Session,
    *,
    tenant_id: str,
    task: str,
    tokens: int,
    provider: str | None,
    model: str | None,
    needs_tools: bool,
    needs_json: bool,
    needs_vision: bool,
    within: float | None,
    as_json: bool,
) -> None:
    """Show how a request would be routed, and why, without calling anybody."""

    async def read() -> RouteExplanation:
        async with session.router_client() as router:
            return await router.explain_route(
                tenant_id,
                task_type=TaskType(task),
                estimated_tokens=tokens,
                provider=provider,
                model=model,
                needs_tools=needs_tools,
                needs_json=needs_json,
                needs_vision=needs_vision,
                remaining_time=timedelta(seconds=within) if within is not None else None,
            )

    route = session.run(read())
    if as_json:
        print_json(route)
        return
    print_table(
        ["rank>", "provider", "model", "pays", "score>", "because"],
        [
            (
                str(candidate.rank),
                candidate.provider,
                candidate.model,
                _payer(candidate.funding),
                f"{candidate.score:.3f}",
                "; ".join(f"{t.name} {t.value:.2f} x {t.weight:g} ({t.evidence})" for t in candidate.terms),
            )
            for candidate in route.candidates
        ],
        empty="no candidate can serve this request",
    )
    if route.excluded:
        click.echo()
        print_table(
            ["excluded", "model", "reason", "explanation"],
            [(e.provider, e.model or "(all)", e.reason, e.explanation) for e in route.excluded],
            empty="",
        )
    failover = "on" if route.auto_failover else "off: only the first candidate is tried"
    click.echo(f"failover {failover}; configuration version {route.config_version}")
