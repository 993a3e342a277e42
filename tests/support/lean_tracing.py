"""Coverage without the lines that nobody asked about, where those cost most: a plugin of coverage and one of pytest.

Before Python 3.12 a trace function is told of every line of every module. Of what a service takes to start under
coverage, a fifth was lines of others' modules that run once, when they are imported; of what `make unit` takes, a fifth
was lines of Hypothesis. Modules that are measured are traced as ever, whoever imports or calls them.

What switches tracing switches it back in the same frame: coverage counts the frames that begin and end.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Generator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

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


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Run a property without tracing, and each of its examples with it."""
    tracer = sys.gettrace()
    handle = getattr(pyfuncitem.obj, "hypothesis", None)
    if tracer is None or handle is None:
        return (yield)
    example = handle.inner_test
    handle.inner_test = _traced(example, tracer)
    sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)
        handle.inner_test = example


def _traced(example: Callable[..., object], tracer: TraceFunction) -> Callable[..., object]:
    @functools.wraps(example)
    def traced(*arguments: object, **named: object) -> object:
        sys.settrace(tracer)
        try:
            return example(*arguments, **named)
        finally:
            sys.settrace(None)

    return traced
