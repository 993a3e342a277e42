"""Coverage without the lines that nobody asked about, where those cost most: a plugin of coverage.

Before Python 3.12 a trace function is told of every line of every module. Of what a service takes to start under
coverage, a fifth was lines of others' modules that run once, when they are imported. Modules that are measured are
traced as ever, whoever imports them. `traced_examples` does the same with Hypothesis, a fifth of what `make unit` took.

What switches tracing switches it back in the same frame: coverage counts the frames that begin and end.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

_ROOT = Path(__file__).parents[2]
_MEASURED = tuple(f"{_ROOT / name}/" for name in ("service_runtime", "router_service", "usage_service", "clients"))

TraceFunction = Any  # what sys.gettrace gives and sys.settrace takes
ExecModule = Callable[[Any, ModuleType], None]


class _ThisThread(threading.local):
    tracer: TraceFunction = None


def coverage_init(_registry: object, _options: object) -> None:
    """Called by coverage in every process that it measures, before it begins."""
    SourceFileLoader.exec_module = _traced_if_measured(SourceFileLoader.exec_module)  # type: ignore[assignment, method-assign]


def _traced_if_measured(exec_module: ExecModule) -> ExecModule:
    this_thread = _ThisThread()

    def traced_if_measured(loader: Any, module: ModuleType) -> None:
        before = sys.gettrace()
        this_thread.tracer = before or this_thread.tracer
        sys.settrace(this_thread.tracer if loader.path.startswith(_MEASURED) else None)
        try:
            exec_module(loader, module)
        finally:
            sys.settrace(before)

    return traced_if_measured
