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
    max_unread: int = (
        8 * 1024
    )  # waiting for a slow caller before the provider is held back; one more piece is under way
    max_answer: int = 4 * 1024 * 1024  # what gRPC clients take in one message; a longer one is the provider's fault
    drain_s: float = 30.0  # how long a stream whose caller left is read to its end
    max_drain: int = 4 * 1024 * 1024
    max_draining: int = 64  # streams without a caller at once; beyond, they are cut
    late_usage_wait_s: float = 120.0  # how long a record waits for a count that comes afterwards; 0: no enquiries
    late_usage_first_delay_s: float = 1.0  # before the first enquiry; then twice as long each time, up to 30 s
    last_enquiry_s: float = 2.0  # how long a router that stops waits for the last late counts
    max_late_enquiries: int = 256  # answers enquired after at once; beyond, the estimate stands
    max_remembered_routes: int = 4096
    score_weights: Mapping[str, float] = field(default_factory=dict)  # under the tenants' own
