"""What `turnpike tenants reseal` says: what was done, what is left, and which key-encryption keys may go."""

from __future__ import annotations

from collections.abc import Sequence

from turnpike_client.tenancy import ResealedTenant

VARIABLE = "TURNPIKE_KEY_ENCRYPTION_KEYS"


def key_rows(done: Sequence[ResealedTenant]) -> list[tuple[str, str, str, str]]:
    """Tenant, provider, yes or no, and why not: for every key that was sealed anew or could not be."""
    rows: list[tuple[str, str, str, str]] = []
    for tenant in done:
        rows += [(tenant.tenant_id, provider, "yes", "") for provider in tenant.resealed_providers]
        rows += [(tenant.tenant_id, key.provider, "no", key.explanation) for key in tenant.unreadable_tokens]
        if tenant.problem:
            rows.append((tenant.tenant_id, "(all)", "no", tenant.problem))
    return rows


def summary(done: Sequence[ResealedTenant]) -> str:
    """One line: how many tenants and keys, and with which key-encryption key."""
    if not done:
        return "no tenants: nothing to seal anew"
    keys = sum(len(tenant.resealed_providers) for tenant in done)
    unfinished = sum(not tenant.is_done for tenant in done)
    with_key = ", ".join(repr(key_id) for key_id in sorted({tenant.active_key_id for tenant in done}))
    left = f"; {_count(unfinished, 'tenant')} not finished" if unfinished else ""
    return f"{_count(keys, 'key')} sealed anew with {with_key}, {_count(len(done), 'tenant')} looked at{left}"


def is_finished(done: Sequence[ResealedTenant]) -> bool:
    """Whether every key of these tenants is sealed with one and the same active key now."""
    return all(tenant.is_done for tenant in done) and len(_rings(done)) <= 1


def advice(done: Sequence[ResealedTenant], *, is_for_all: bool) -> list[str]:
    """What to do next, a line each."""
    if len(_rings(done)) > 1:
        return [f"routers with different {VARIABLE} answered: set the same for all, restart them, and run this again"]
    others = sorted({key_id for tenant in done for key_id in tenant.other_key_ids})
    missing = sorted({key.missing_key_id for tenant in done for key in tenant.unreadable_tokens if key.missing_key_id})
    lines = []
    if missing:
        lines.append(
            f"put {_names(missing)} back into {VARIABLE}, behind the first, restart every router and run this again; "
            "or store those keys again: turnpike tenants set-token TENANT PROVIDER"
        )
    if any(not key.missing_key_id for tenant in done for key in tenant.unreadable_tokens):
        lines.append(
            "what else does not open has to be stored again, turnpike tenants set-token TENANT PROVIDER, "
            "or removed, turnpike tenants delete-token TENANT PROVIDER"
        )
    has_problem = any(tenant.problem for tenant in done)
    if has_problem and others:
        lines.append(f"until those tenants are mended and this has run again, {VARIABLE} must keep {_names(others)}")
    elif has_problem:
        lines.append("mend those tenants, then run this again")
    elif others and is_for_all:
        lines.append(
            f"no stored key needs {_names(others)} any more: drop it from {VARIABLE}, provided that every router was "
            "restarted with the new one before; if not, run this again afterwards first"
        )
    return lines


def _rings(done: Sequence[ResealedTenant]) -> set[tuple[str, ...]]:
    return {(tenant.active_key_id, *tenant.other_key_ids) for tenant in done}


def _names(key_ids: Sequence[str]) -> str:
    return ", ".join(repr(key_id) for key_id in key_ids)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
