"""Fixtures that every test may ask for."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping

import uvloop
from hypothesis import settings

# Tests start processes while gRPC's threads run. Its fork handlers would try to carry those threads over; all that our
# children do between fork and exec is a few system calls. Read when grpc is imported, hence here.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# A suite that is started in the background inherits a Ctrl-C that is ignored, hands it on to what it starts, and the
# launcher keeps to that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.support.postgres", "tests.support.traced_examples"]

# How long an example takes is a matter of the machine: tests assert counts and states.
settings.register_profile("turnpike", deadline=None)
settings.load_profile("turnpike")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the event loop that the services run on, for loops differ: in what a closed socket says, for one."""
    return {"uvloop": uvloop.new_event_loop}
