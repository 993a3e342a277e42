"""TenantService: administer tenants and their provider keys. No answer holds a key."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from router_service.api.convert_tenant import (
    broken_tenant_to_proto,
    change_from_proto,
    new_tenant_from_proto,
    new_token_from_proto,
    tenant_id_from,
    tenant_to_proto,
    token_owner_from_proto,
    verdict_to_proto,
)
from router_service.domain.catalog import ProviderNames, ProviderSpec
from router_service.routing.ports import KeyVerdict, Provider
from router_service.tenants.cache import TenantCache
from router_service.tenants.rows import ParsedTenant
from router_service.tenants.store import TenantStore, unknown_tenant
from service_runtime.errors import InvalidRequest
from turnpike.router.v1 import tenant_service_pb2 as pb
from turnpike.router.v1 import tenant_service_pb2_grpc as pb_grpc

_DEFAULT_PAGE, _MAX_PAGE = 50, 1000
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
        self._verdicts: dict[tuple[str, str], KeyVerdict] = {}

    async def CreateTenant(self, request: pb.CreateTenantRequest, _context: Any) -> pb.CreateTenantResponse:
        new = new_tenant_from_proto(request, self._names)
        created = await self._store.create(new.tenant_id or self._new_id(), new.name, new.config, new.tokens)
        return pb.CreateTenantResponse(tenant=self._written(created, "tenant.created"))

    async def GetTenant(self, request: pb.GetTenantRequest, _context: Any) -> pb.GetTenantResponse:
        return pb.GetTenantResponse(tenant=self._shown(await self._existing(tenant_id_from(request.tenant_id))))

    async def ListTenants(self, request: pb.ListTenantsRequest, _context: Any) -> pb.ListTenantsResponse:
        if request.page_size < 0:
            raise InvalidRequest.at("page_size", f"must not be negative, not {request.page_size}")
        size = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
        rows = await self._store.page(_position(request.page_token), size + 1)
        page = [self._shown(row) if isinstance(row, ParsedTenant) else broken_tenant_to_proto(row) for row in rows]
        token = ""
        if len(rows) > size:
            last = rows[size - 1]
            token = _token(last.created_at, last.tenant.id if isinstance(last, ParsedTenant) else last.id)
        return pb.ListTenantsResponse(tenants=page[:size], next_page_token=token)

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
            unusable = parsed.tenant.unusable_credentials.get(provider)
            problem = f"its key for {provider} cannot be used: {unusable}" if unusable else f"has no key for {provider}"
            raise InvalidRequest.at(
                "provider",
                f"tenant {tenant_id} {problem}; run: turnpike tenants set-token --tenant {tenant_id} {provider}",
            )
        verdict, explanation = await self._providers[provider].verify_key(self._catalog[provider].base_url, credential)
        self._verdicts[provider, credential.fingerprint] = verdict
        return pb.VerifyProviderTokenResponse(verdict=verdict_to_proto(verdict), explanation=explanation)

    async def InvalidateCache(self, request: pb.InvalidateCacheRequest, _context: Any) -> pb.InvalidateCacheResponse:
        tenant_id = tenant_id_from(request.tenant_id) if request.tenant_id else None
        if tenant_id is None:
            self._cache.invalidate_all()
        else:
            self._cache.invalidate(tenant_id)
        await self._store.invalidate(tenant_id)
        return pb.InvalidateCacheResponse()

    async def _existing(self, tenant_id: UUID) -> ParsedTenant:
        parsed = await self._store.get(tenant_id)
        if parsed is None:
            raise unknown_tenant(tenant_id)
        return parsed

    def _written(self, parsed: ParsedTenant, event: str, **fields: str) -> pb.Tenant:
        self._cache.put(parsed.tenant)
        _log.info(event, tenant_id=str(parsed.tenant.id), config_version=parsed.tenant.version, **fields)
        return self._shown(parsed)

    def _shown(self, parsed: ParsedTenant) -> pb.Tenant:
        return tenant_to_proto(parsed, lambda provider, fingerprint: self._verdicts.get((provider, fingerprint)))


def _token(created_at: datetime, tenant_id: UUID) -> str:
    return base64.urlsafe_b64encode(f"v1|{created_at.isoformat()}|{tenant_id}".encode()).decode()


def _position(token: str) -> tuple[datetime, UUID] | None:
    if not token:
        return None
    try:
        version, created_at, tenant_id = base64.urlsafe_b64decode(token).decode().split("|")
        if version == "v1":
            return datetime.fromisoformat(created_at), UUID(tenant_id)
    except (binascii.Error, UnicodeError, ValueError):
        pass
    raise InvalidRequest.at(
        "page_token", "is not a token of ListTenants; take it from the page before, or leave it empty"
    )
