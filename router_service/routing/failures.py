"""What a caller is told when a completion fails: provider failures and exclusions, turned into service errors."""

from __future__ import annotations

from collections.abc import Sequence

from router_service.domain.candidate import Candidate, Exclusion
from router_service.domain.completion import CompletionFailure
from router_service.domain.errors import FailureKind, ProviderError
from router_service.domain.health import DEFAULT_RATE_LIMIT_REST_S, MAX_RETRY_AFTER_S
from router_service.domain.tenant import Tenant
from router_service.domain.usage import Funding
from router_service.routing.planning import Plan
from router_service.routing.scoreboard import KEY_KINDS, Block
from router_service.routing.watchdog import Reason
from service_runtime.errors import Category, ServiceError

_SETUP_KINDS = {FailureKind.NOT_ALLOWED, FailureKind.MODEL_GONE, FailureKind.POLICY_REFUSED}
# Reasons that the caller chose, or that say nothing of what to do: named last.
_UNREMARKABLE = {"NOT_REQUESTED", "SANDBOX_NOT_REQUESTED", "MODEL_NOT_OFFERED", "FAILOVER_OFF"}


def nobody_to_ask(plan: Plan) -> ServiceError:
    """The error of a request that no candidate can serve."""
    if plan.blocks:
        return _all_blocked(plan)
    too_small = [exclusion for exclusion in plan.exclusions if exclusion.reason == "CONTEXT_TOO_SMALL"]
    if too_small:
        message = f"too long for every usable model: {_listed(too_small)}"
        return ServiceError(Category.INVALID_ARGUMENT, "CONTEXT_LENGTH", message)
    return ServiceError(
        Category.FAILED_PRECONDITION,
        "NO_PROVIDER",
        f"no provider can serve the request: {_listed(_telling(plan.exclusions))}",
        metadata=_reasons(plan.exclusions),
    )


def key_rejected(block: Block, tenant: Tenant) -> ServiceError:
    """The error of a request whose best candidate has a key of the tenant's own that the provider rejected lately."""
    return _key_error(block.candidate, FailureKind.KEY_REJECTED, tenant, detail=None)


def provider_failed(
    candidate: Candidate,
    errors: Sequence[ProviderError],
    plan: Plan,
    detail: CompletionFailure,
    *,
    content_was_sent: bool,
) -> ServiceError:
    """The error of a request whose last attempt was at `candidate` and ended with the last of `errors`."""
    last = errors[-1]
    at = f"{candidate.provider} ({candidate.model.name})"
    metadata = {"provider": candidate.provider, "model": candidate.model.name, "error_class": last.kind.value}
    if content_was_sent:
        message = f"{at} failed after content was sent: {last.message}"
        return ServiceError(Category.UNAVAILABLE, "STREAM_INTERRUPTED", message, metadata=metadata, detail=detail)
    refused = _REFUSALS.get(last.kind)
    if refused is not None:
        return ServiceError(
            Category.INVALID_ARGUMENT, refused, f"{at}: {last.message}", metadata=metadata, detail=detail
        )
    kinds = {error.kind for error in errors}
    funding = candidate.funding
    if kinds <= KEY_KINDS or (last.kind is FailureKind.KEY_REJECTED and funding is Funding.TENANT_KEY):
        return _key_error(candidate, last.kind, plan.tenant, detail=detail)
    if kinds == {FailureKind.RATE_LIMITED}:
        return ServiceError(
            Category.RESOURCE_EXHAUSTED,
            "RATE_LIMITED",
            f"rate limit of {at}: {last.message}",
            metadata=metadata,
            retry_after_s=_soonest(errors, plan.blocks),
            detail=detail,
        )
    if kinds <= _SETUP_KINDS:
        message = f"no provider can serve the request: {at}: {last.message}"
        return ServiceError(Category.FAILED_PRECONDITION, "NO_PROVIDER", message, metadata=metadata, detail=detail)
    return ServiceError(
        Category.UNAVAILABLE,
        "ALL_TARGETS_FAILED",
        f"{_attempts_listed(detail)}{_not_tried(plan)}",
        metadata=metadata,
        retry_after_s=_asked_wait(errors, plan.blocks),
        detail=detail,
    )


_REFUSALS = {
    FailureKind.BAD_REQUEST: "PROVIDER_REFUSED_REQUEST",
    FailureKind.CONTENT_REFUSED: "CONTENT_REFUSED",
    FailureKind.CONTEXT_TOO_LONG: "CONTEXT_LENGTH",
    FailureKind.REQUEST_TOO_LARGE: "REQUEST_TOO_LARGE",
}


def stopped(reason: Reason, detail: CompletionFailure | None, *, content_was_sent: bool) -> ServiceError:
    """The error of a request that we ended."""
    if reason is Reason.CALLER_LEFT:
        return ServiceError(Category.CANCELLED, "CALLER_LEFT", "the caller left", detail=detail)
    if reason is Reason.DEADLINE:
        message = "the deadline passed before the answer was complete: allow more time"
        return ServiceError(Category.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", message, detail=detail)
    code = "STREAM_INTERRUPTED" if content_was_sent else "SHUTTING_DOWN"
    message = "the router is shutting down: send the request again"
    return ServiceError(Category.UNAVAILABLE, code, message, detail=detail)


def _all_blocked(plan: Plan) -> ServiceError:
    blocks = plan.blocks
    wait_s = min(block.retry_after_s for block in blocks)
    explained = _listed([block.exclusion for block in blocks])
    kinds = {block.kind for block in blocks}
    if kinds == {FailureKind.RATE_LIMITED}:
        return ServiceError(
            Category.RESOURCE_EXHAUSTED,
            "RATE_LIMITED",
            explained,
            retry_after_s=wait_s,
            metadata=_block_reasons(blocks),
        )
    if kinds <= KEY_KINDS:
        return _key_error(blocks[0].candidate, blocks[0].kind or FailureKind.KEY_REJECTED, plan.tenant, detail=None)
    return ServiceError(
        Category.UNAVAILABLE,
        "ALL_TARGETS_FAILED",
        f"every usable provider failed lately: {explained}",
        retry_after_s=wait_s,
        metadata=_block_reasons(blocks),
    )


def _key_error(
    candidate: Candidate, kind: FailureKind, tenant: Tenant, *, detail: CompletionFailure | None
) -> ServiceError:
    funding, spec = candidate.funding, candidate.spec
    store = f"turnpike tenants set-token {tenant.id} {spec.name}"
    what = "rejects" if kind is FailureKind.KEY_REJECTED else "has no credit left for"
    match funding:
        case Funding.TENANT_KEY:
            message = f"{spec.display_name} {what} the tenant's own key: store another one: {store}"
        case Funding.SYSTEM_KEY:
            message = f"{spec.display_name} {what} the operator's key: set another {spec.system_key_env} for the router"
        case None:
            message = (
                f"{spec.display_name} does not answer without a key: store one: {store};"
                f" or set {spec.system_key_env} for the router"
            )
    return ServiceError(
        Category.FAILED_PRECONDITION,
        "PROVIDER_KEY_REJECTED",
        message,
        metadata={"provider": spec.name, "error_class": kind.value, "funding": funding.value if funding else ""},
        detail=detail,
    )


def _soonest(errors: Sequence[ProviderError], blocks: Sequence[Block]) -> float:
    waits = [DEFAULT_RATE_LIMIT_REST_S if error.retry_after_s is None else error.retry_after_s for error in errors]
    waits += [block.retry_after_s for block in blocks]
    return min(MAX_RETRY_AFTER_S, max(0.0, min(waits)))


def _asked_wait(errors: Sequence[ProviderError], blocks: Sequence[Block]) -> float | None:
    """When the first of those who named a time, or whose time is known, may be asked again; None when nobody's is."""
    waits = [error.retry_after_s for error in errors if error.retry_after_s is not None]
    waits += [block.retry_after_s for block in blocks]
    return min(MAX_RETRY_AFTER_S, max(0.0, min(waits))) if waits else None


def _attempts_listed(detail: CompletionFailure) -> str:
    tried = "; ".join(f"{a.provider} ({a.model}): {a.error_message or a.error_class}" for a in detail.attempts)
    return f"every attempt failed: {tried}"


def _not_tried(plan: Plan) -> str:
    missing = [exclusion for exclusion in plan.exclusions if exclusion.reason in {"NO_KEY", "KEY_UNREADABLE"}]
    return f"; not tried: {_listed(missing)}" if missing else ""


def _telling(exclusions: Sequence[Exclusion]) -> Sequence[Exclusion]:
    return [exclusion for exclusion in exclusions if exclusion.reason not in _UNREMARKABLE] or exclusions


def _listed(exclusions: Sequence[Exclusion]) -> str:
    return "; ".join(
        f"{exclusion.provider}{f' ({exclusion.model})' if exclusion.model else ''}: {exclusion.explanation}"
        for exclusion in exclusions
    )


def _reasons(exclusions: Sequence[Exclusion]) -> dict[str, str]:
    return {f"excluded_{exclusion.provider}": exclusion.reason for exclusion in exclusions}


def _block_reasons(blocks: Sequence[Block]) -> dict[str, str]:
    return _reasons([block.exclusion for block in blocks])
