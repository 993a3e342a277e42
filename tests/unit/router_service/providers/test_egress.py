from __future__ import annotations

import pytest

from router_service.providers.egress import EgressPolicy, check_base_url, parse_networks

ALWAYS_REFUSED = [
    "169.254.169.254",
    "169.254.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "fd00:ec2::254",
    "::ffff:169.254.169.254",
]
NOT_PUBLIC = ["100.64.0.1", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "2001::1", "::7f00:1", "198.18.0.1", "192.0.2.1"]
PRIVATE = ["127.0.0.1", "127.9.9.9", "::1", "10.0.0.1", "172.16.5.5", "192.168.1.1", "fd12::1", "::ffff:127.0.0.1"]
PUBLIC = ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", ALWAYS_REFUSED + NOT_PUBLIC + PRIVATE)
def test_a_vendor_is_never_reached_at_an_address_that_is_not_public(address: str) -> None:
    assert EgressPolicy().refusal(address, encrypted=True) is not None


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_reached_with_tls_only(address: str) -> None:
    assert EgressPolicy().refusal(address, encrypted=True) is None
    assert EgressPolicy().refusal(address, encrypted=False) is not None


@pytest.mark.parametrize("address", PRIVATE)
def test_the_operators_own_server_may_be_private_even_without_tls(address: str) -> None:
    assert EgressPolicy(private_allowed=True).refusal(address, encrypted=False) is None


@pytest.mark.parametrize("address", ALWAYS_REFUSED)
def test_metadata_and_link_local_stay_refused_inside_an_allowed_range(address: str) -> None:
    policy = EgressPolicy(parse_networks(["0.0.0.0/0", "::/0"]), private_allowed=True)

    assert policy.refusal(address, encrypted=True) is not None


def test_an_address_listed_alone_is_allowed_whatever_it_is() -> None:
    policy = EgressPolicy(parse_networks(["169.254.7.7"]))

    assert policy.refusal("169.254.7.7", encrypted=False) is None
    assert policy.refusal("169.254.7.8", encrypted=False) is not None


def test_a_listed_network_is_allowed_without_tls() -> None:
    policy = EgressPolicy(parse_networks(["127.0.0.0/8"]))

    assert policy.refusal("127.0.0.1", encrypted=False) is None
    assert policy.refusal("10.0.0.1", encrypted=True) is not None


def test_what_is_no_address_is_refused() -> None:
    assert EgressPolicy().refusal("localhost", encrypted=True) is not None


def test_a_wrong_entry_of_the_allow_list_is_named() -> None:
    with pytest.raises(ValueError, match=r"'10\.0\.0\.1/8'"):
        parse_networks(["127.0.0.1", "10.0.0.1/8"])


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/v1",
        "https://",
        "host/v1",
        "https://user:secret@host/v1",
        "https://host/v1?key=secret",
        "https://host/v1#secret",
        "https://ho st/v1",
        "https://hôst/v1",
        "https://host:99999/v1",
        "https://host/" + "x" * 2048,
    ],
)
def test_a_bad_base_url_is_refused_without_quoting_secrets(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_base_url(url)

    assert "secret" not in str(caught.value)


def test_a_good_base_url_loses_its_last_slash() -> None:
    assert check_base_url("https://host.example:8443/v1/") == "https://host.example:8443/v1"
