"""Coverage looks at what a property runs, not at how Hypothesis makes it up: a plugin of pytest.

Why, and what it must heed, is in `lean_tracing`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Generator

import pytest

from tests.support.lean_tracing import TraceFunction


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
