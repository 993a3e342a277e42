"""Where the router may connect: a decision about one address, made again for every connection.

The allow-list is by address, not by name, because a name says nothing about where it leads a second later.
`ipaddress` alone is not enough: it calls multicast, NAT64, 6to4 and site-local addresses global.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

Network = IPv4Network | IPv6Network

# Link-local ranges hold the clouds' metadata services; the single addresses are theirs too, outside those ranges.
_NEVER_BY_RANGE: Final[tuple[Network, ...]] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "169.254.0.0/16",
        "192.0.0.192/32",
        "100.100.100.200/32",
        "168.63.129.16/32",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/128",
        "fe80::/10",
        "fec0::/10",
        "fd00:ec2::254/128",
        "fd20:ce::254/128",
        "ff00::/8",
    )
)
# IPv6 ranges that carry an IPv4 address inside: a way round every rule about IPv4.
_TUNNELS: Final[tuple[Network, ...]] = tuple(
    ip_network(text) for text in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)
_PRIVATE: Final[tuple[Network, ...]] = tuple(
    ip_network(text) for text in ("127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """Which addresses one provider's connections may go to.

    `allowed_networks` is the operator's list: what is in it is allowed even if private, and even without TLS.
    `private_allowed` admits loopback and private ranges: for the operator's own local server, never for a vendor.
    """

    allowed_networks: tuple[Network, ...] = ()
    private_allowed: bool = False

    def refusal(self, address: str, *, encrypted: bool) -> str | None:
        """Why `address` may not be dialled, or None when it may. `encrypted` says whether TLS will be spoken."""
        try:
            ip = _unmapped(address)
        except ValueError:
            return f"{address!r} is no IP address"
        listed = [network for network in self.allowed_networks if _contains(network, ip)]
        refusal: str | None = None
        if _in_any(_NEVER_BY_RANGE, ip):
            if not any(network.prefixlen == network.max_prefixlen for network in listed):
                refusal = f"{ip} is link-local, a metadata service, multicast or reserved; list it alone to allow it"
        elif listed:
            pass
        elif _in_any(_PRIVATE, ip):
            if not self.private_allowed:
                refusal = f"{ip} is loopback or private, and not in the operator's allow-list"
        elif _in_any(_TUNNELS, ip) or not ip.is_global:
            refusal = f"{ip} is not a public address"
        elif not encrypted:
            refusal = f"{ip} is public and the URL is not https: the key would travel in clear"
        return refusal


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """The operator's list, such as "10.1.0.0/16" or "127.0.0.1". Raises `ValueError` naming the entry that is wrong."""
    networks: list[Network] = []
    for text in texts:
        try:
            networks.append(ip_network(text.strip()))
        except ValueError as error:
            raise ValueError(f"egress allow-list: {text!r} is no network: {error}") from None
    return tuple(networks)


def check_base_url(url: str) -> str:
    """Return `url` without a trailing slash. Raises `ValueError` that says what is wrong and quotes no secret."""
    if len(url) > 2048 or not url.isascii() or any(character.isspace() for character in url):
        raise ValueError("base URL: at most 2048 ASCII characters and no blanks; write international names encoded")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"base URL of host {parts.hostname!r}: write https://host/path, or http:// for your own host")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"base URL of host {parts.hostname!r}: no user or password in it; configure a key instead")
    if parts.query or parts.fragment:
        raise ValueError(f"base URL of host {parts.hostname!r}: no query and no fragment")
    _ = parts.port  # raises ValueError for a port that is no number or out of range
    return url.rstrip("/")


def _unmapped(address: str) -> IPv4Address | IPv6Address:
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


def _contains(network: Network, ip: IPv4Address | IPv6Address) -> bool:
    return network.version == ip.version and ip in network


def _in_any(networks: tuple[Network, ...], ip: IPv4Address | IPv6Address) -> bool:
    return any(_contains(network, ip) for network in networks)
