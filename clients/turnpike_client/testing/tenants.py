"""Tenants in a dictionary."""

# ruff: noqa: N802, ARG002 - the contract names the methods and what they are given
from __future__ import annotations

import hashlib
import uuid
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, status_pb2

from turnpike.router.v1 import tenant_service_pb2 as pb
from turnpike.router.v1 import tenant_service_pb2_grpc
from turnpike_client.errors import Failure, FieldViolation
from turnpike_client.testing.replies import fail


class FakeTenants(tenant_service_pb2_grpc.TenantServiceServicer):
    """Keeps `tenants` by id and, for the test to look at, every provider key in clear in `tokens`.

    Keys of `outdated_tokens` are sealed with an older key-encryption key; those of `unreadable_tokens` do not open, for
    want of the named one or, where that is empty, at all. `broken_tenants` maps an id to what is wrong with its row.
    """

    def __init__(self) -> None:
        self.tenants: dict[str, pb.Tenant] = {}
        self.tokens: dict[tuple[str, str], str] = {}
        self.rejected_tokens: set[str] = set()
        self.invalidated_tenant_ids: list[str] = []
        self.key_ids = ["k2", "k1"]
        self.outdated_tokens: set[tuple[str, str]] = set()
        self.unreadable_tokens: dict[tuple[str, str], str] = {}
        self.broken_tenants: dict[str, str] = {}

    async def CreateTenant(self, request: pb.CreateTenantRequest, context: Any) -> pb.CreateTenantResponse:
        if not request.name:
            await fail(context, _invalid("name", "is required: 1 to 200 characters"))
        tenant_id = request.tenant_id or str(uuid.uuid4())
        if tenant_id in self.tenants:
            message = f"there is a tenant {tenant_id!r} already; use another id"
            await fail(context, Failure("ALREADY_EXISTS", message, reason="TENANT_EXISTS"))
        tenant = pb.Tenant(
            id=tenant_id,
            name=request.name,
            inference_config=request.inference_config,
            config_version=1,
            create_time=_now(),
            update_time=_now(),
        )
        self.tenants[tenant_id] = tenant
        for provider, token in request.provider_tokens.items():
            self._store(tenant, provider, token)
        return pb.CreateTenantResponse(tenant=tenant)

    async def GetTenant(self, request: pb.GetTenantRequest, context: Any) -> pb.GetTenantResponse:
        return pb.GetTenantResponse(tenant=await self._find(request.tenant_id, context))

    async def ListTenants(self, request: pb.ListTenantsRequest, context: Any) -> pb.ListTenantsResponse:
        tenants, following = self._page(request.page_size, request.page_token)
        return pb.ListTenantsResponse(tenants=tenants, next_page_token=following)

    async def UpdateTenant(self, request: pb.UpdateTenantRequest, context: Any) -> pb.UpdateTenantResponse:
        tenant = await self._find(request.tenant_id, context)
        if request.expected_config_version not in (0, tenant.config_version):
            message = f"tenant {tenant.id!r} has version {tenant.config_version} by now; read it again"
            await fail(context, Failure("ABORTED", message, reason="VERSION_MISMATCH"))
        for path in request.update_mask.paths:
            _replace(tenant, request, path)
        self._changed(tenant)
        return pb.UpdateTenantResponse(tenant=tenant)

    async def SetProviderToken(self, request: pb.SetProviderTokenRequest, context: Any) -> pb.SetProviderTokenResponse:
        tenant = await self._find(request.tenant_id, context)
        if len(request.token.strip()) < 8:
            await fail(context, _invalid("token", "must have 8 to 512 printable ASCII characters"))
        self._store(tenant, request.provider, request.token.strip())
        self._changed(tenant)
        return pb.SetProviderTokenResponse(tenant=tenant)

    async def DeleteProviderToken(
        self, request: pb.DeleteProviderTokenRequest, context: Any
    ) -> pb.DeleteProviderTokenResponse:
        tenant = await self._find(request.tenant_id, context)
        self._forget(tenant, request.provider)
        self._changed(tenant)
        return pb.DeleteProviderTokenResponse(tenant=tenant)

    async def VerifyProviderToken(
        self, request: pb.VerifyProviderTokenRequest, context: Any
    ) -> pb.VerifyProviderTokenResponse:
        await self._find(request.tenant_id, context)
        token = self.tokens.get((request.tenant_id, request.provider))
        if token is None:
            message = f"no key for {request.provider!r} is stored"
            return pb.VerifyProviderTokenResponse(verdict=pb.TOKEN_VERDICT_UNKNOWN, explanation=message)
        if token in self.rejected_tokens:
            return pb.VerifyProviderTokenResponse(verdict=pb.TOKEN_VERDICT_INVALID, explanation="rejected")
        return pb.VerifyProviderTokenResponse(verdict=pb.TOKEN_VERDICT_VALID, explanation="accepted")

    async def ResealProviderTokens(
        self, request: pb.ResealProviderTokensRequest, context: Any
    ) -> pb.ResealProviderTokensResponse:
        if request.tenant_id:
            tenants, following = [await self._find(request.tenant_id, context)], ""
        else:
            tenants, following = self._page(request.page_size, request.page_token)
        return pb.ResealProviderTokensResponse(
            tenants=[self._resealed(tenant) for tenant in tenants],
            next_page_token=following,
            active_key_id=self.key_ids[0],
            other_key_ids=self.key_ids[1:],
        )

    async def InvalidateCache(self, request: pb.InvalidateCacheRequest, context: Any) -> pb.InvalidateCacheResponse:
        self.invalidated_tenant_ids.append(request.tenant_id)
        return pb.InvalidateCacheResponse()

    def _page(self, page_size: int, page_token: str) -> tuple[list[pb.Tenant], str]:
        size = page_size or 50
        start = int(page_token or 0)
        tenants = list(self.tenants.values())
        return tenants[start : start + size], str(start + size) if start + size < len(tenants) else ""

    def _resealed(self, tenant: pb.Tenant) -> pb.ResealedTenant:
        if problem := self.broken_tenants.get(tenant.id):
            error = status_pb2.Status(code=code_pb2.FAILED_PRECONDITION, message=problem)
            return pb.ResealedTenant(tenant_id=tenant.id, error=error)
        answer = pb.ResealedTenant(tenant_id=tenant.id)
        for token in tenant.provider_tokens:
            place = (tenant.id, token.provider)
            if place in self.unreadable_tokens:
                answer.unreadable_tokens.add(
                    provider=token.provider,
                    explanation="it does not open; store it again",
                    missing_key_id=self.unreadable_tokens[place],
                )
            elif place in self.outdated_tokens:
                self.outdated_tokens.remove(place)
                answer.resealed_providers.append(token.provider)
        if answer.resealed_providers:
            self._changed(tenant)
        return answer

    async def _find(self, tenant_id: str, context: Any) -> pb.Tenant:
        tenant = self.tenants.get(tenant_id)
        if tenant is None:
            message = f"there is no tenant {tenant_id!r}; create it first"
            await fail(context, Failure("NOT_FOUND", message, reason="UNKNOWN_TENANT"))
        return tenant

    def _store(self, tenant: pb.Tenant, provider: str, token: str) -> None:
        self._forget(tenant, provider)
        self.tokens[tenant.id, provider] = token
        tenant.provider_tokens.add(
            provider=provider,
            last4=token[-4:] if len(token) >= 20 else "",
            fingerprint=hashlib.sha256(token.encode()).hexdigest()[:16],
            state=pb.PROVIDER_TOKEN_STATE_STORED,
            create_time=_now(),
        )

    def _forget(self, tenant: pb.Tenant, provider: str) -> None:
        self.tokens.pop((tenant.id, provider), None)
        kept = [token for token in tenant.provider_tokens if token.provider != provider]
        del tenant.provider_tokens[:]
        tenant.provider_tokens.extend(kept)

    def _changed(self, tenant: pb.Tenant) -> None:
        tenant.config_version += 1
        tenant.update_time.CopyFrom(_now())


def _replace(tenant: pb.Tenant, request: pb.UpdateTenantRequest, path: str) -> None:
    """Replace one masked field: clear it, then merge a message that holds only it."""
    whole = pb.Tenant(name=request.name, inference_config=request.inference_config)
    head, _, field = path.partition(".")
    if field:
        _replace_field(tenant.inference_config, whole.inference_config, field)
    else:
        _replace_field(tenant, whole, head)


def _replace_field(target: Any, source: Any, name: str) -> None:
    only = type(source)()
    only.CopyFrom(source)
    for descriptor in source.DESCRIPTOR.fields:
        if descriptor.name != name:
            only.ClearField(descriptor.name)
    target.ClearField(name)
    target.MergeFrom(only)


def _invalid(field: str, description: str) -> Failure:
    return Failure(
        "INVALID_ARGUMENT",
        f"{field}: {description}",
        reason="INVALID_REQUEST",
        field_violations=(FieldViolation(field, description),),
    )


def _now() -> Timestamp:
    stamp = Timestamp()
    stamp.GetCurrentTime()
    return stamp
