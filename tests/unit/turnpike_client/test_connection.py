"""What a target means: one address as gRPC knows it, or several that share the calls."""

from __future__ import annotations

import pytest

from turnpike_client import RouterClient
from turnpike_client.connection import resolved


@pytest.mark.parametrize("target", ["127.0.0.1:50051", "router.internal:443", "dns:///router:443", "unix:/run/router"])
def test_one_target_is_left_to_grpc(target: str) -> None:
    assert resolved(target) == (target, ())


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("127.0.0.1:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        (" 10.0.0.1:1 , 10.0.0.2:1", "ipv4:10.0.0.1:1,10.0.0.2:1"),
        ("[::1]:1,[::1]:2", "ipv6:[::1]:1,[::1]:2"),
    ],
)
def test_several_addresses_share_the_calls_by_turns(target: str, expected: str) -> None:
    address, options = resolved(target)

    assert address == expected
    assert [name for name, _ in options] == ["grpc.service_config"]
    assert "round_robin" in options[0][1]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("127.0.0.1:1,router:2", "'router:2'"),
        ("127.0.0.1:1,127.0.0.1", "'127.0.0.1'"),
        ("127.0.0.1:1,127.0.0.1:70000", "70000"),
        ("127.0.0.1:1,", "''"),
        ("127.0.0.1:1,[::1]:1", "leave out one kind"),
    ],
)
def test_several_that_grpc_cannot_spread_over_are_refused_with_what_is_wrong(target: str, says: str) -> None:
    with pytest.raises(ValueError, match="127") as refused:
        RouterClient(target)

    assert says in str(refused.value)
