"""`python -m usage_service`: run the ledger with the settings of the environment."""

# ruff: noqa: E402 - what is left out must be so before the imports that look for it
from __future__ import annotations

from service_runtime.lean_imports import leave_out_unused

leave_out_unused()

from service_runtime.process import Lifecycle, run
from service_runtime.settings import load_settings
from usage_service.settings import UsageSettings


async def _main(lifecycle: Lifecycle) -> None:
    settings = load_settings(UsageSettings)
    # Only now: a wrong setting is told before half of the libraries are loaded.
    from usage_service.app import serve

    await serve(settings, lifecycle)


if __name__ == "__main__":
    run("usage_service", _main)
