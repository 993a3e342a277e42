"""`python -m service_runtime.healthcheck HOST:PORT [SERVICE]`: ask a server for its health, for container engines.

Exits with 0 when it is serving, else with 1 and one line on stderr that says why. Without SERVICE it asks whether the
process lives; with one, such as turnpike.router.v1.RouterService, whether that takes requests.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

EXIT_HEALTHY = 0
EXIT_UNHEALTHY = 1
EXIT_USAGE = 64  # not argparse's 2, which container engines reserve

_TIMEOUT_S = 3.0


def problem(target: str, service: str, *, timeout_s: float = _TIMEOUT_S) -> str | None:
    """Why the server at `target` is not healthy, or None when it is."""
    # A proxy in the environment is for the web, not for the process next door.
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its types know no methods
        try:
            response = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    if response.status == health_pb2.HealthCheckResponse.SERVING:
        return None
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


def main(arguments: Sequence[str]) -> int:
    """Check what the arguments name; the exit code."""
    match arguments:
        case [target]:
            service = ""
        case [target, service]:
            pass
        case _:
            sys.stderr.write("usage: python -m service_runtime.healthcheck HOST:PORT [SERVICE]\n")
            return EXIT_USAGE
    found = problem(target, service)
    if found is None:
        return EXIT_HEALTHY
    sys.stderr.write(f"{service or 'process'} at {target} is not healthy: {found}\n")
    return EXIT_UNHEALTHY


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
