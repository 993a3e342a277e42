"""Fixtures that every test may ask for."""

from __future__ import annotations

import os

from hypothesis import settings

# Tests start processes while gRPC's threads run. Its fork handlers would try to carry those threads over; all that our
# children do between fork and exec is a few system calls. Read when grpc is imported, hence here.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

pytest_plugins = ["tests.support.postgres"]

# How long an example takes is a matter of the machine: tests assert counts and states.
settings.register_profile("turnpike", deadline=None)
settings.load_profile("turnpike")
