"""The status of an error as it leaves in the trailing metadata, from memory where the same was said a moment ago.

Whoever is refused and asks again at once is told the same again. To render that takes 0.16 ms, and twice as long where
many secrets are looked for; from memory it takes 3 us, or 20 with a time to wait (the best of five times 3,000 on two
busy cores).

What is kept is kept by value: all that a status says is in its key, so that nothing has to be forgotten when something
changes. The time to wait, which counts down, is not kept but put behind what is.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2
from google.rpc import status_pb2

from service_runtime.error_codec import MAX_STATUS_BYTES, DetailToProto, retry_info, to_status
from service_runtime.errors import ServiceError
from service_runtime.redaction import REDACTOR

_MOST_KEPT = 500  # statuses, of at most 4 KiB each
_MAX_RETRY_BYTES = 80

_CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class RenderedStatus:
    """Code and message as gRPC has them, and the whole `google.rpc.Status` in bytes."""

    code: grpc.StatusCode
    message: str
    details: bytes

    @classmethod
    def of(cls, status: status_pb2.Status) -> RenderedStatus:
        return cls(_CODES[status.code], status.message, status.SerializeToString())


class StatusRenderer:
    """Renders errors. What it gives says what `error_codec.to_status` would say at that moment."""

    def __init__(self, detail_to_proto: DetailToProto | None) -> None:
        self._detail_to_proto = detail_to_proto
        self._kept: dict[Hashable, RenderedStatus] = {}

    def render(self, error: ServiceError) -> RenderedStatus:
        """The error's status. Raises what `detail_to_proto` does."""
        # Violations and the detail of an attempt are a caller's own: hardly anything says them twice.
        if type(error) is not ServiceError or error.detail is not None:
            return RenderedStatus.of(to_status(error, self._detail_to_proto))
        lasting = self._lasting(error)
        if lasting is None:
            return RenderedStatus.of(to_status(error))
        if error.retry_after_s is None:
            return lasting
        # A serialized field that follows a message is the next element of its list: `details` is a list, and the last.
        wait = any_pb2.Any()
        wait.Pack(retry_info(error.retry_after_s))
        details = lasting.details + status_pb2.Status(details=[wait]).SerializeToString()
        return RenderedStatus(lasting.code, lasting.message, details)

    def _lasting(self, error: ServiceError) -> RenderedStatus | None:
        """The status but for the time to wait; None for one so long that it may lose details."""
        key = (REDACTOR.changes, error.category, error.reason, error.message, *error.metadata.items())
        known = self._kept.get(key)
        if known is not None:
            return known
        status = to_status(ServiceError(error.category, error.reason, error.message, metadata=error.metadata))
        if not status.details or status.ByteSize() > MAX_STATUS_BYTES - _MAX_RETRY_BYTES:
            return None
        known = self._kept[key] = RenderedStatus.of(status)
        if len(self._kept) > _MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        return known
