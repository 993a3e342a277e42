"""Fixtures that every test may ask for."""

from __future__ import annotations

import os

# Tests start processes while gRPC's threads run. Its fork handlers would try to carry those threads over; all that our
# children do between fork and exec is a few system calls. Read when grpc is imported, hence here.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

pytest_plugins = ["tests.support.postgres"]
