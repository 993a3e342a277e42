"""What is to blame for a failure, and so who can mend it."""

from __future__ import annotations

from enum import Enum

from usage_service.domain.provider_names import REFUSED_BY_TURNPIKE
from usage_service.domain.report import FailureKey
from usage_service.domain.usage_event import AttemptStatus


class FailureCause(Enum):
    """The cause of a kind of failure. UNKNOWN: a class that this version does not know."""

    UNKNOWN = "unknown"
    PROVIDER = "provider"
    NETWORK = "network"
    KEY = "key"
    REQUEST = "request"
    LIMIT = "limit"
    CALLER = "caller"
    TURNPIKE = "turnpike"


# The router's taxonomy; a class that is not here yet is UNKNOWN unless the attempt's status tells.
_BY_CLASS = {
    "key_rejected": FailureCause.KEY,
    "no_credit": FailureCause.KEY,
    "not_allowed": FailureCause.KEY,
    "bad_request": FailureCause.REQUEST,
    "content_refused": FailureCause.REQUEST,
    "context_too_long": FailureCause.REQUEST,
    "request_too_large": FailureCause.REQUEST,
    "model_gone": FailureCause.REQUEST,
    "model_misbehaved": FailureCause.PROVIDER,
    "overloaded": FailureCause.PROVIDER,
    "upstream_broken": FailureCause.PROVIDER,
    "protocol_violation": FailureCause.PROVIDER,
    "timed_out": FailureCause.PROVIDER,
    "stream_broken": FailureCause.PROVIDER,
    "rate_limited": FailureCause.LIMIT,
    "connect_failed": FailureCause.NETWORK,
    "transport_failed": FailureCause.NETWORK,
    "policy_refused": FailureCause.TURNPIKE,
}
_BY_STATUS = {
    AttemptStatus.RATE_LIMIT: FailureCause.LIMIT,
    AttemptStatus.CANCELLED: FailureCause.CALLER,
    AttemptStatus.INTERRUPTED: FailureCause.TURNPIKE,
}


def cause_of(key: FailureKey) -> FailureCause:
    """The cause, by how the attempt ended and by its class."""
    if by_status := _BY_STATUS.get(key.status):
        return by_status
    if key.provider == REFUSED_BY_TURNPIKE:
        return FailureCause.TURNPIKE
    return _BY_CLASS.get(key.error_class, FailureCause.UNKNOWN)
