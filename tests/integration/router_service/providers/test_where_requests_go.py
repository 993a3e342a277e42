"""Which addresses a provider's requests reach, and which servers are believed. Real sockets, real TLS."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest

from router_service.domain.errors import FailureKind
from router_service.providers.catalog import CATALOG, build_catalog
from router_service.providers.egress import EgressPolicy, parse_networks
from router_service.providers.provider_set import HttpSettings, build_providers
from router_service.providers.transport import EgressRefused
from tests.integration.router_service.providers.transports import Open, get, read_all
from tests.support.certificates import self_signed
from tests.support.provider_requests import Asker, at, candidate, collect, completion, credential
from tests.support.provider_server import ScriptedProvider


async def test_the_environments_proxy_does_not_see_a_request(
    server: ScriptedProvider, open_transport: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ScriptedProvider() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")

        await read_all(await open_transport(server.base_url).handle_async_request(get(f"{server.base_url}/models")))

        assert proxy.connections_accepted == 0


# ── K5: where it connects ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"])
async def test_a_vendors_name_never_leads_to_this_machine(
    server: ScriptedProvider, open_transport: Open, host: str
) -> None:
    url = f"http://{host}:{server.port}/v1"

    with pytest.raises(EgressRefused):
        await open_transport(url, EgressPolicy()).handle_async_request(get(f"{url}/models"))

    assert server.connections_accepted == 0


async def test_an_address_written_as_one_number_is_not_even_tried(
    server: ScriptedProvider, open_transport: Open
) -> None:
    url = f"http://2130706433:{server.port}/v1"

    with pytest.raises(httpx.LocalProtocolError):
        await open_transport(url).handle_async_request(get(f"{url}/models"))

    assert server.connections_accepted == 0


async def test_one_forbidden_address_among_several_refuses_the_name(
    server: ScriptedProvider, open_transport: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, server.port))
        for address in ("127.0.0.1", "169.254.169.254")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    url = f"http://gateway.test:{server.port}/v1"

    with pytest.raises(EgressRefused, match=r"169\.254\.169\.254"):
        await open_transport(url).handle_async_request(get(f"{url}/models"))

    assert server.connections_accepted == 0


async def test_the_address_that_was_checked_is_the_one_that_is_dialled(
    server: ScriptedProvider, open_transport: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ups: list[object] = []

    def look_up(host: object, *_: object, **__: object) -> list[Any]:
        look_ups.append(host)
        address = "127.0.0.1" if len(look_ups) == 1 else "169.254.169.254"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, server.port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    url = f"http://rebinding.test:{server.port}/v1"

    await read_all(await open_transport(url).handle_async_request(get(f"{url}/models")))

    assert look_ups == ["rebinding.test"]
    assert server.served[0].headers["host"] == f"rebinding.test:{server.port}"


async def test_a_name_that_does_not_resolve_is_a_connect_error(
    open_transport: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    with pytest.raises(httpx.ConnectError, match="resolve"):
        await open_transport("https://nowhere.test").handle_async_request(get("https://nowhere.test"))


async def test_another_origin_than_the_configured_one_is_refused(
    server: ScriptedProvider, open_transport: Open
) -> None:
    async with ScriptedProvider() as other:
        with pytest.raises(EgressRefused, match="origin"):
            await open_transport(server.base_url).handle_async_request(get(f"{other.base_url}/models"))

        assert other.connections_accepted == 0


async def test_a_vendor_at_a_loopback_address_is_refused_and_the_local_server_is_not(server: ScriptedProvider) -> None:
    providers = build_providers(build_catalog({"groq": server.base_url, "local": server.base_url}))

    vendor = await Asker(providers, server.base_url)("ok", provider="groq")
    local = await Asker(providers, server.base_url)("ok", provider="local")
    await providers.aclose()

    assert vendor.failure.kind is FailureKind.POLICY_REFUSED
    assert not vendor.failure.may_have_reached_provider
    assert local.finished


async def test_a_refused_connection_has_surely_consumed_nothing(server: ScriptedProvider, ask: Asker) -> None:
    await server.stop()

    failure = (await ask("ok")).failure

    assert failure.kind is FailureKind.CONNECT_FAILED
    assert not failure.may_have_reached_provider


async def test_a_key_is_never_shown_to_another_address(server: ScriptedProvider, ask: Asker) -> None:
    providers = build_providers(build_catalog({"local": "http://127.0.0.1:9/v1"}))
    elsewhere = candidate(at(CATALOG["local"], server.base_url), "ok")

    answer = await collect(providers["local"].stream(elsewhere, completion(), connect_timeout_s=1))
    verdict = await providers["local"].verify_key(server.base_url, credential())
    await providers.aclose()

    assert answer.failure.kind is FailureKind.POLICY_REFUSED
    assert verdict[0].value == "unknown"
    assert server.connections_accepted == 0


# ── B15: certificates ───────────────────────────────────────────────────────────────────────────────────────────────


async def over_tls(tmp_path: Path, name: str, *, trusted: bool, expired: bool = False) -> FailureKind | None:
    """The kind of failure, if any, of asking a server on 127.0.0.1 whose certificate is for `name`."""
    certificate, key = self_signed(tmp_path, name, expired=expired)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with ScriptedProvider(tls=context) as server:
        settings = HttpSettings(parse_networks(["127.0.0.1"]), ca_file=str(certificate) if trusted else None)
        providers = build_providers(build_catalog({"groq": server.base_url}), settings)
        answer = await Asker(providers, server.base_url)("ok")
        await providers.aclose()
        assert answer.error is None or server.served == []
        return answer.error.kind if answer.error is not None else None


async def test_a_certificate_that_is_trusted_and_fits_is_accepted(tmp_path: Path) -> None:
    assert await over_tls(tmp_path, "127.0.0.1", trusted=True) is None


@pytest.mark.parametrize(
    ("name", "trusted", "expired"), [("127.0.0.1", False, False), ("127.0.0.2", True, False), ("127.0.0.1", True, True)]
)
async def test_any_other_certificate_ends_the_attempt_before_anything_is_sent(
    tmp_path: Path, name: str, trusted: bool, expired: bool
) -> None:
    assert await over_tls(tmp_path, name, trusted=trusted, expired=expired) is FailureKind.CONNECT_FAILED
