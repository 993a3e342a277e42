"""Administration of tenants, reached as `RouterClient.tenants`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Unpack

from google.protobuf.field_mask_pb2 import FieldMask

from turnpike.router.v1 import tenant_service_pb2 as pb
from turnpike.router.v1 import tenant_service_pb2_grpc
from turnpike_client.connection import Connection, Deadlines
from turnpike_client.enums import TokenState, TokenVerdict, from_wire
from turnpike_client.tenancy import (
    ConfigChanges,
    InferenceConfig,
    ProviderToken,
    ResealedTenant,
    Tenant,
    TokenVerification,
    UnreadableToken,
)
from turnpike_client.wire import instant


class TenantClient:
    """Creates, reads and changes tenants. A change reaches every router within a second."""

    def __init__(self, connection: Connection, deadlines: Deadlines) -> None:
        self._connection = connection
        self._timeout_s = deadlines.call_s

    async def create(
        self,
        name: str,
        *,
        tenant_id: str = "",
        config: InferenceConfig | None = None,
        provider_tokens: Mapping[str, str] | None = None,
    ) -> Tenant:
        """Create a tenant; an id is made when none is given. Raises AlreadyExists when the id is taken."""
        request = pb.CreateTenantRequest(
            tenant_id=tenant_id,
            name=name,
            inference_config=config_to_proto(config) if config else None,
            provider_tokens=provider_tokens,
        )
        return await self._tenant(self._stub().CreateTenant, request)

    async def get(self, tenant_id: str) -> Tenant:
        """Read a tenant. Raises UnknownTenant."""
        return await self._tenant(self._stub().GetTenant, pb.GetTenantRequest(tenant_id=tenant_id))

    async def list(self, *, page_size: int = 0) -> AsyncIterator[Tenant]:
        """All tenants, oldest first, fetched page by page."""
        token = ""
        while True:
            response: pb.ListTenantsResponse = await self._call(
                self._stub().ListTenants, pb.ListTenantsRequest(page_size=page_size, page_token=token)
            )
            for tenant in response.tenants:
                yield tenant_from_proto(tenant)
            token = response.next_page_token
            if not token:
                return

    async def update(
        self,
        tenant_id: str,
        *,
        name: str | None = None,
        expected_config_version: int = 0,
        **changes: Unpack[ConfigChanges],
    ) -> Tenant:
        """Change the name, or the named fields of the configuration; everything else stays as it is.

        With `expected_config_version`, raises Conflict when the tenant was changed since. TypeError for a field that
        there is not.
        """
        paths = [f"inference_config.{field}" for field in sorted(changes)]
        request = pb.UpdateTenantRequest(
            tenant_id=tenant_id,
            name=name or "",
            inference_config=config_to_proto(InferenceConfig(**changes)) if changes else None,
            update_mask=FieldMask(paths=paths if name is None else ["name", *paths]),
            expected_config_version=expected_config_version,
        )
        return await self._tenant(self._stub().UpdateTenant, request)

    async def set_token(self, tenant_id: str, provider: str, token: str) -> Tenant:
        """Store a provider key, sealed, in place of the one before."""
        request = pb.SetProviderTokenRequest(tenant_id=tenant_id, provider=provider, token=token)
        return await self._tenant(self._stub().SetProviderToken, request)

    async def delete_token(self, tenant_id: str, provider: str) -> Tenant:
        """Remove a provider key; fine when there is none."""
        request = pb.DeleteProviderTokenRequest(tenant_id=tenant_id, provider=provider)
        return await self._tenant(self._stub().DeleteProviderToken, request)

    async def verify_token(self, tenant_id: str, provider: str) -> TokenVerification:
        """Ask the provider whether it accepts the stored key."""
        response: pb.VerifyProviderTokenResponse = await self._call(
            self._stub().VerifyProviderToken, pb.VerifyProviderTokenRequest(tenant_id=tenant_id, provider=provider)
        )
        return TokenVerification(from_wire(TokenVerdict, response.verdict), response.explanation)

    async def reseal_tokens(self, tenant_id: str) -> ResealedTenant:
        """Seal a tenant's provider keys anew with the router's active key-encryption key. Raises UnknownTenant.

        Nothing changes for a key that is sealed with it already, so it may be repeated.
        """
        response: pb.ResealProviderTokensResponse = await self._call(
            self._stub().ResealProviderTokens, pb.ResealProviderTokensRequest(tenant_id=tenant_id)
        )
        [resealed] = resealed_from_proto(response)
        return resealed

    async def reseal_all_tokens(self, *, page_size: int = 0) -> AsyncIterator[ResealedTenant]:
        """Seal every tenant's provider keys anew, page by page, oldest tenant first.

        Each page is done before its tenants are given; the next is done when it is asked for.
        """
        token = ""
        while True:
            request = pb.ResealProviderTokensRequest(page_size=page_size, page_token=token)
            response: pb.ResealProviderTokensResponse = await self._call(self._stub().ResealProviderTokens, request)
            for resealed in resealed_from_proto(response):
                yield resealed
            token = response.next_page_token
            if not token:
                return

    async def invalidate_cache(self, tenant_id: str = "") -> None:
        """Make every router re-read one tenant, or all."""
        await self._call(self._stub().InvalidateCache, pb.InvalidateCacheRequest(tenant_id=tenant_id))

    def _stub(self) -> tenant_service_pb2_grpc.TenantServiceAsyncStub:
        return tenant_service_pb2_grpc.TenantServiceStub(self._connection.channel)

    async def _call(self, method: Any, request: Any) -> Any:
        return await self._connection.unary(method, request, timeout_s=self._timeout_s)

    async def _tenant(self, method: Any, request: Any) -> Tenant:
        response = await self._call(method, request)
        return tenant_from_proto(response.tenant)


def config_to_proto(config: InferenceConfig) -> pb.InferenceConfig:
    """How requests shall be routed."""
    return pb.InferenceConfig(
        preferred_provider=config.preferred_provider,
        auto_failover=config.auto_failover,
        preferred_models=config.preferred_models,
        score_weights=config.score_weights,
        allowed_providers=config.allowed_providers,
        allow_system_keys=config.allow_system_keys,
    )


def config_from_proto(message: pb.InferenceConfig) -> InferenceConfig:
    """How requests are routed; what is absent has its documented default."""
    return InferenceConfig(
        preferred_provider=message.preferred_provider,
        auto_failover=message.auto_failover if message.HasField("auto_failover") else True,
        preferred_models=dict(message.preferred_models),
        score_weights=dict(message.score_weights),
        allowed_providers=tuple(message.allowed_providers),
        allow_system_keys=message.allow_system_keys if message.HasField("allow_system_keys") else True,
    )


def resealed_from_proto(message: pb.ResealProviderTokensResponse) -> tuple[ResealedTenant, ...]:
    """What was done for each tenant of a page."""
    return tuple(
        ResealedTenant(
            tenant_id=tenant.tenant_id,
            resealed_providers=tuple(tenant.resealed_providers),
            unreadable_tokens=tuple(
                UnreadableToken(token.provider, token.explanation, token.missing_key_id)
                for token in tenant.unreadable_tokens
            ),
            problem=tenant.error.message,
            active_key_id=message.active_key_id,
            other_key_ids=tuple(message.other_key_ids),
        )
        for tenant in message.tenants
    )


def tenant_from_proto(message: pb.Tenant) -> Tenant:
    """A tenant."""
    return Tenant(
        id=message.id,
        name=message.name,
        config=config_from_proto(message.inference_config),
        provider_tokens=tuple(
            ProviderToken(
                provider=token.provider,
                last4=token.last4,
                fingerprint=token.fingerprint,
                state=from_wire(TokenState, token.state),
                created_at=instant(token.create_time),
            )
            for token in message.provider_tokens
        ),
        config_version=message.config_version,
        created_at=instant(message.create_time),
        updated_at=instant(message.update_time),
        proto=message,
    )
