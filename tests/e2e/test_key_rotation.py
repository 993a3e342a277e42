"""A key-encryption key is replaced and dropped, with the steps that the README gives, and no tenant's key is lost."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.ports import free_ports
from tests.support.stack import Stack

TURNPIKE = str(Path(sys.executable).with_name("turnpike"))
PROVIDER_KEY = "gsk_canary_0123456789abcdef"
OLD = "k1:" + base64.b64encode(bytes(32)).decode()
NEW = "k2:" + base64.b64encode(bytes(range(32))).decode()


class Site:
    """One Turnpike on one data directory, started anew for each key ring."""

    def __init__(self, directory: Path) -> None:
        self._data_dir = directory / "data"
        self._router_port, self._usage_port = free_ports(), free_ports()

    @contextmanager
    def with_keys(self, *keys: str) -> Iterator[Stack]:
        ring = {"TURNPIKE_KEY_ENCRYPTION_KEYS": ",".join(keys)}
        stack = Stack(self._data_dir, ring, self._router_port, self._usage_port)
        try:
            yield stack.start()
            assert stack.stop() == 0, stack.output()
        finally:
            stack.kill()


def turnpike(stack: Stack, *arguments: str, stdin: str = "") -> tuple[str, str]:
    """Run the command; what it prints to stdout and to stderr."""
    done = subprocess.run(
        [TURNPIKE, "--router", stack.router, "tenants", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def key_of(stack: Stack, tenant_id: str) -> dict[str, Any]:
    shown, _ = turnpike(stack, "show", tenant_id, "--json")
    [key] = json.loads(shown)["provider_tokens"]
    return dict(key)


def test_a_key_encryption_key_is_replaced_and_dropped(tmp_path: Path) -> None:
    site = Site(tmp_path)

    with site.with_keys(OLD) as stack:
        tenant_id = json.loads(turnpike(stack, "create", "Acme", "--json")[0])["id"]
        turnpike(stack, "set-token", tenant_id, "groq", stdin=PROVIDER_KEY)
        stored = key_of(stack, tenant_id)
    with site.with_keys(NEW, OLD) as stack:
        done, advice = turnpike(stack, "reseal", "--all")
        resealed = key_of(stack, tenant_id)
    with site.with_keys(NEW) as stack:
        afterwards = key_of(stack, tenant_id)

    assert "1 key sealed anew with 'k2', 1 tenant looked at" in done
    assert "no stored key needs 'k1' any more" in advice
    assert stored == resealed
    assert (afterwards["state"], afterwards["last4"]) == ("stored", "cdef")
    assert afterwards["fingerprint"] != stored["fingerprint"]
    assert PROVIDER_KEY not in stack.output() + done + advice
