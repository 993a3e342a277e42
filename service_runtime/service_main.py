"""What `python -m <service>` does: read the settings, then be the service, or the supervisor of its workers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from service_runtime.settings import MAX_WORKERS, SettingsError, SettingsT, load_settings
from service_runtime.startup import EXIT_CANNOT_START
from service_runtime.workers import supervise

if TYPE_CHECKING:
    from service_runtime.process import Lifecycle


def run_service(
    module: str,
    settings_type: type[SettingsT],
    main: Callable[[SettingsT, Lifecycle], Awaitable[None]],
    arguments: Sequence[str],
) -> NoReturn:
    """Run to the end, and exit."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description="Settings are read from the environment.")
    parser.add_argument(
        "--workers", type=_workers, metavar="N", help="processes that share the port; default: the setting"
    )
    workers = parser.parse_args(arguments).workers
    try:
        settings = load_settings(settings_type, **({} if workers is None else {"workers": workers}))
    except SettingsError as error:
        print(f"{module}: {error}", file=sys.stderr, flush=True)  # noqa: T201 - for a person, not a log
        sys.exit(EXIT_CANNOT_START)
    if settings.workers > 1 and settings.worker is None:
        sys.exit(supervise(module, settings))
    # Only now: the supervisor of workers does without event loop, gRPC and logs.
    from service_runtime.process import run

    run(module, lambda lifecycle: main(settings, lifecycle))


def _workers(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {MAX_WORKERS}")
    return number
