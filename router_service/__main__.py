"""`python -m router_service [--workers N]`: run the router with the settings of the environment."""

# ruff: noqa: E402 - what is left out must be so before the imports that look for it
from __future__ import annotations

from service_runtime.lean_imports import leave_out_unused

leave_out_unused()

import sys
from typing import TYPE_CHECKING

from router_service.settings import RouterSettings
from service_runtime.service_main import run_service

if TYPE_CHECKING:
    from service_runtime.process import Lifecycle


async def _main(settings: RouterSettings, lifecycle: Lifecycle) -> None:
    # Only now: a wrong setting is told before half of the libraries are loaded.
    from router_service.app import serve

    await serve(settings, lifecycle)


if __name__ == "__main__":
    run_service("router_service", RouterSettings, _main, sys.argv[1:])
