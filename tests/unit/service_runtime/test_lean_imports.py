"""What a service's process holds is what it uses: `make bench` measures the memory, this shows what would grow it."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("service", ["router_service", "usage_service"])
def test_a_service_does_not_load_what_only_the_command_line_uses(service: str) -> None:
    script = (
        "import runpy, sys\n"
        f"runpy.run_module('{service}', run_name='loaded')\n"
        f"import {service}.app\n"
        "print(sorted(name for name in ('rich', 'click', 'pygments') if sys.modules.get(name)))"
    )

    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)

    assert output.stdout == "[]\n"
