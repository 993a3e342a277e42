"""TenantService: administer tenants and their provider keys. No answer holds a key."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog

from router_service.api.convert_tenant import (
    broken_tenant_to_proto,
    change_from_proto,
    new_tenant_from_proto,
    new_token_from_proto,
    resealed_to_proto,
    tenant_id_from,
    tenant_to_proto,
    token_owner_from_proto,
    verdict_to_proto,
)
from router_service.domain.catalog import ProviderNames, ProviderSpec
from router_service.routing.ports import KeyVerdict, Provider
from router_service.tenants.cache import TenantCache
from router_service.tenants.rows import ParsedTenant
from router_service.tenants.store import Resealed, TenantEntry, TenantStore, unknown_tenant
from service_runtime.errors import Category, InvalidRequest, ServiceError
from turnpike.router.v1 import tenant_service_pb2 as pb
from turnpike.router.v1 import tenant_service_pb2_grpc as pb_grpc

_DEFAULT_PAGE, _MAX_PAGE = 50, 1000
_MAX_VERDICTS = 10_000
_log = structlog.get_logger(__name__)


class TenantServicer(pb_grpc.TenantServiceServicer):
    """Thin: check, call the store, answer. Each write is in this router's cache before it is answered."""

    def __init__(
        self,
        store: TenantStore,
        cache: TenantCache,
        catalog: Mapping[str, ProviderSpec],
        providers: Mapping[str, Provider],
        *,
        new_id: Callable[[], UUID],
    ) -> None:
        self._store = store
        self._cache = cache
        self._catalog = catalog
        self._providers = providers
        self._names = ProviderNames(catalog)
        self._new_id = new_id
        self._verdicts = _Verdicts()

    async def CreateTenant(self, request: pb.CreateTenantRequest, _context: Any) -> pb.CreateTenantResponse:
        new = new_tenant_from_proto(request, self._names)
        created = await self._store.create(new.tenant_id or self._new_id(), new.name, new.config, new.tokens)
        return pb.CreateTenantResponse(tenant=self._written(created, "tenant.created"))

    async def GetTenant(self, request: pb.GetTenantRequest, _context: Any) -> pb.GetTenantResponse:
        return pb.GetTenantResponse(tenant=self._shown(await self._existing(tenant_id_from(request.tenant_id))))

    async def ListTenants(self, request: pb.ListTenantsRequest, _context: Any) -> pb.ListTenantsResponse:
        size = _page_size(request.page_size)
        rows = await self._store.page(_position(request.page_token), size + 1)
        token = _token(rows[size - 1].created_at, _id_of(rows[size - 1])) if len(rows) > size else ""
        return pb.ListTenantsResponse(tenants=[self._shown(row) for row in rows[:size]], next_page_token=token)

    async def UpdateTenant(self, request: pb.UpdateTenantRequest, _context: Any) -> pb.UpdateTenantResponse:
        change = change_from_proto(request, self._names)
        updated = await self._store.update(change.tenant_id, change.expected_version, change.apply)
        return pb.UpdateTenantResponse(tenant=self._written(updated, "tenant.updated"))

    async def SetProviderToken(self, request: pb.SetProviderTokenRequest, _context: Any) -> pb.SetProviderTokenResponse:
        new = new_token_from_proto(request, self._names)
        updated = await self._store.set_token(new.tenant_id, new.provider, new.secret)
        return pb.SetProviderTokenResponse(tenant=self._written(updated, "tenant.token_set", provider=new.provider))

    async def DeleteProviderToken(
        self, request: pb.DeleteProviderTokenRequest, _context: Any
    ) -> pb.DeleteProviderTokenResponse:
        tenant_id, provider = token_owner_from_proto(request, self._names)
        updated = await self._store.delete_token(tenant_id, provider)
        return pb.DeleteProviderTokenResponse(tenant=self._written(updated, "tenant.token_deleted", provider=provider))

    async def VerifyProviderToken(
        self, request: pb.VerifyProviderTokenRequest, _context: Any
    ) -> pb.VerifyProviderTokenResponse:
        tenant_id, provider = token_owner_from_proto(request, self._names)
        parsed = await self._existing(tenant_id)
        credential = parsed.tenant.credentials.get(provider)
        if credential is None:
            raise _no_usable_key(tenant_id, provider, parsed.tenant.unusable_credentials.get(provider))
        if provider not in self._providers:
            explanation = f"this router does not serve {provider}"
            return pb.VerifyProviderTokenResponse(verdict=pb.TOKEN_VERDICT_UNKNOWN, explanation=explanation)
        verdict, explanation = await self._providers[provider].verify_key(self._catalog[provider].base_url, credential)
        self._verdicts.remember(provider, credential.fingerprint, verdict)
        return pb.VerifyProviderTokenResponse(verdict=verdict_to_proto(verdict), explanation=explanation)

    async def ResealProviderTokens(
        self, request: pb.ResealProviderTokensRequest, _context: Any
    ) -> pb.ResealProviderTokensResponse:
        # The caches need not be told: the table's trigger tells them, and what they hold until then is the same key.
        active_key_id, *other_key_ids = self._store.key_ids
        answer = pb.ResealProviderTokensResponse(active_key_id=active_key_id, other_key_ids=other_key_ids)
        if request.tenant_id:
            tenant_id = tenant_id_from(request.tenant_id)
            if request.page_token:
                raise InvalidRequest.at("page_token", "must be empty beside a tenant_id, which is no page")
            answer.tenants.append(resealed_to_proto(await self._resealed(tenant_id)))
            return answer
        size = _page_size(request.page_size)
        positions = await self._store.positions(_position(request.page_token), size + 1)
        for _created_at, tenant_id in positions[:size]:
            try:
                answer.tenants.append(resealed_to_proto(await self._resealed(tenant_id)))
            except ServiceError as error:
                if error.category is not Category.NOT_FOUND:  # deleted since the page was read
                    raise
        if len(positions) > size:
            answer.next_page_token = _token(*positions[size - 1])
        return answer

    async def InvalidateCache(self, request: pb.InvalidateCacheRequest, _context: Any) -> pb.InvalidateCacheResponse:
        tenant_id = tenant_id_from(request.tenant_id) if request.tenant_id else None
        # This router first: it hears its own notification too, but the next request may come sooner.
        if tenant_id is None:
            self._cache.invalidate_all()
        else:
            self._cache.invalidate(tenant_id)
        await self._store.invalidate(tenant_id)
        return pb.InvalidateCacheResponse()

    async def _resealed(self, tenant_id: UUID) -> Resealed:
        resealed = await self._store.reseal(tenant_id)
        if resealed.providers:
            _log.info("tenant.tokens_resealed", tenant_id=str(tenant_id), providers=list(resealed.providers))
        return resealed

    async def _existing(self, tenant_id: UUID) -> ParsedTenant:
        parsed = await self._store.get(tenant_id)
        if parsed is None:
            raise unknown_tenant(tenant_id)
        return parsed

    def _written(self, entry: TenantEntry, event: str, **fields: str) -> pb.Tenant:
        if isinstance(entry, ParsedTenant):
            self._cache.put(entry.tenant)
        else:
            self._cache.invalidate(entry.id)
        shown = self._shown(entry)
        _log.info(event, tenant_id=shown.id, config_version=shown.config_version, **fields)
        return shown

    def _shown(self, entry: TenantEntry) -> pb.Tenant:
        if isinstance(entry, ParsedTenant):
            return tenant_to_proto(entry, self._verdicts.last)
        return broken_tenant_to_proto(entry)


class _Verdicts:
    """What providers last said of keys, by provider and fingerprint; the longest known make room."""

    def __init__(self) -> None:
        self._verdicts: dict[tuple[str, str], KeyVerdict] = {}

    def remember(self, provider: str, fingerprint: str, verdict: KeyVerdict) -> None:
        """Keep a verdict. That the provider could not say is none, and takes nothing back."""
        if verdict is KeyVerdict.UNKNOWN:
            return
        self._verdicts.pop((provider, fingerprint), None)
        self._verdicts[provider, fingerprint] = verdict
        if len(self._verdicts) > _MAX_VERDICTS:
            del self._verdicts[next(iter(self._verdicts))]

    def last(self, provider: str, fingerprint: str) -> KeyVerdict | None:
        """The last verdict, or None."""
        return self._verdicts.get((provider, fingerprint))


def _no_usable_key(tenant_id: UUID, provider: str, why_unusable: str | None) -> ServiceError:
    problem = f"its key for {provider} cannot be used: {why_unusable}" if why_unusable else f"has no key for {provider}"
    return ServiceError(
        Category.FAILED_PRECONDITION,
        "PROVIDER_KEY_UNUSABLE" if why_unusable else "PROVIDER_KEY_MISSING",
        f"tenant {tenant_id} {problem}; run: turnpike tenants set-token {tenant_id} {provider}",
        metadata={"tenant_id": str(tenant_id), "provider": provider},
    )


def _page_size(asked: int) -> int:
    if not 0 <= asked <= _MAX_PAGE:
        raise InvalidRequest.at("page_size", f"must be 1 to {_MAX_PAGE}, or 0 for {_DEFAULT_PAGE}, not {asked}")
    return asked or _DEFAULT_PAGE


def _id_of(entry: TenantEntry) -> UUID:
    return entry.tenant.id if isinstance(entry, ParsedTenant) else entry.id


def _token(created_at: datetime, tenant_id: UUID) -> str:
    return base64.urlsafe_b64encode(f"v1|{created_at.isoformat()}|{tenant_id}".encode()).decode()


def _position(token: str) -> tuple[datetime, UUID] | None:
    if not token:
        return None
    try:
        version, text, tenant_id = base64.urlsafe_b64decode(token).decode().split("|")
        created_at = datetime.fromisoformat(text)
        if version == "v1" and created_at.tzinfo is UTC:
            return created_at, UUID(tenant_id)
    except (binascii.Error, UnicodeError, ValueError):
        pass
    raise InvalidRequest.at(
        "page_token", "is not a token of this list; take it from the page before, or leave it empty"
    )
