"""How a provider can fail: the one vocabulary that failover, breakers and the ledger share.

The classes follow what providers really send; `providers/` maps status codes and bodies to them, `domain/failover`
decides what each means. No message here ever holds a provider's raw text.
"""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum

from router_service.domain.completion import QuotaHeaders
from router_service.domain.usage import TokenUsage


class FailureKind(StrEnum):
    """Class of a provider's failure. The values stand in the ledger's error analysis."""

    KEY_REJECTED = "key_rejected"  # 401: this key, not this provider
    NO_CREDIT = "no_credit"  # 402: the key's account is empty
    BAD_REQUEST = "bad_request"  # 400, 422: the same everywhere
    CONTENT_REFUSED = "content_refused"  # moderation: do not shop for a laxer provider
    NOT_ALLOWED = "not_allowed"  # 403, regions: this key may not use this model
    CONTEXT_TOO_LONG = "context_too_long"  # only a larger window helps
    REQUEST_TOO_LARGE = "request_too_large"  # 413: too large for the key's tier
    MODEL_GONE = "model_gone"  # decommissioned, unknown
    MODEL_MISBEHAVED = "model_misbehaved"  # tool call or JSON that the provider itself refused; empty answer
    RATE_LIMITED = "rate_limited"  # 429
    OVERLOADED = "overloaded"  # 498, 503, 529
    UPSTREAM_BROKEN = "upstream_broken"  # 500, 502, 504, 52x, error object inside a 200
    PROTOCOL_VIOLATION = "protocol_violation"  # bytes that are no answer: not JSON, over a cap, wrong encoding
    CONNECT_FAILED = "connect_failed"  # nothing was sent
    TRANSPORT_FAILED = "transport_failed"  # reset before the first content; may be billed
    TIMED_OUT = "timed_out"  # silent until a clock ran out
    STREAM_BROKEN = "stream_broken"  # error, reset or end without finish reason after content
    POLICY_REFUSED = "policy_refused"  # our own egress policy forbids the address


class ProviderError(Exception):
    """A provider failed.

    `message` is ours: short, redacted, safe for callers and logs. `status` is the HTTP status, if one came.
    `retry_after_s` is the provider's own wish, uncapped. `may_have_reached_provider` is False only when surely no byte
    of the request left: then nothing can have been consumed. `usage`, `reported_cost_usd` and `model` are what the
    provider still reported before it failed. `cause` is what the provider itself named as the reason, where `kind` is
    STREAM_BROKEN; else it is `kind`: who is to blame does not depend on whether content had come.
    """

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        quota: QuotaHeaders | None = None,
        may_have_reached_provider: bool = True,
        usage: TokenUsage | None = None,
        reported_cost_usd: Decimal | None = None,
        model: str = "",
        cause: FailureKind | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s
        self.quota = quota
        self.may_have_reached_provider = may_have_reached_provider
        self.usage = usage
        self.reported_cost_usd = reported_cost_usd
        self.model = model
        self.cause = kind if cause is None else cause
