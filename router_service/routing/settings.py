"""The numbers that routing goes by. `app.py` fills them from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """Bounds of a router process. Times in seconds, sizes in bytes."""

    max_attempts: int = 3  # per request, all candidates together
    max_running_per_tenant: int = 64
    max_running_per_provider: int = 256
    min_start_s: float = 0.05  # with less time left no attempt begins: the answer could not reach the caller
    answer_margin_s: float = 0.05  # taken off the caller's deadline, so that we can still say what happened
    total_s: float = 600.0  # cap of a request without a deadline
    max_unread: int = 256 * 1024  # waiting for a slow caller before the provider is held back
    max_answer: int = 4 * 1024 * 1024  # what gRPC clients take in one message; a longer one is the provider's fault
    drain_s: float = 30.0  # how long a stream whose caller left is read to its end
    max_drain: int = 4 * 1024 * 1024
    max_draining: int = 64  # streams without a caller at once; beyond, they are cut
    max_remembered_routes: int = 4096
    score_weights: Mapping[str, float] = field(default_factory=dict)  # under the tenants' own
