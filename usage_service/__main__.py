"""`python -m usage_service [--workers N]`: run the ledger with the settings of the environment."""

# ruff: noqa: E402 - what is left out must be so before the imports that look for it
from __future__ import annotations

from service_runtime.lean_imports import leave_out_unused

leave_out_unused()

import sys
from typing import TYPE_CHECKING

from service_runtime.service_main import run_service
from usage_service.settings import UsageSettings

if TYPE_CHECKING:
    from service_runtime.process import Lifecycle


async def _main(settings: UsageSettings, lifecycle: Lifecycle) -> None:
    # Only now: a wrong setting is told before half of the libraries are loaded.
    from usage_service.app import serve

    await serve(settings, lifecycle)


if __name__ == "__main__":
    run_service("usage_service", UsageSettings, _main, sys.argv[1:])
