"""Logs: one event per line, to standard error, with nothing secret in them.

structlog's and the standard library's records go through one handler; what it writes has passed the redactor as a
whole line, exceptions and stack included, so that no way of formatting gets around it.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal, TextIO

import structlog

from service_runtime.call_context import current_request_id
from service_runtime.redaction import REDACTOR, Redactor

# They print whole URLs, headers or one line per request at INFO.
_CHATTY = ("httpx", "httpcore", "aiohttp", "asyncio", "grpc", "hpack")
_MAX_LINE_CHARACTERS = 64 << 10
_LONGEST_SECRET = 4096


def configure_logging(
    level: Literal["debug", "info", "warning", "error"],
    format: Literal["console", "json"],  # noqa: A002 - the word that the setting has
    *,
    stream: TextIO | None = None,
    redactor: Redactor = REDACTOR,
) -> None:
    """Send all logs of the process to `stream` (standard error), replacing what was configured before."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_request_id,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderer: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str, ensure_ascii=False)]
        if format == "json"
        # The plain traceback: the pretty one prints local variables, prompts among them.
        else [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        _RedactingFormatter(
            redactor,
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=shared,
                processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
            ),
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # Its attempts to reconnect, each with a traceback; callers report the outage in their own words.
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)
    # A full disk or a closed pipe under the logs must not fail what is being logged.
    logging.raiseExceptions = False
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


class _RedactingFormatter(logging.Formatter):
    def __init__(self, redactor: Redactor, inner: logging.Formatter) -> None:
        super().__init__()
        self._redactor = redactor
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        line = self._inner.format(record)
        if len(line) <= _MAX_LINE_CHARACTERS:
            return self._redactor.redact(line)
        # Cut before redacting, because that costs; and the last part again after it, because the first cut may have
        # gone through a secret.
        redacted = self._redactor.redact(line[: _MAX_LINE_CHARACTERS + _LONGEST_SECRET])
        return f"{redacted[:-_LONGEST_SECRET]} … of {len(line)} characters"


def _add_request_id(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if request_id := current_request_id():
        event.setdefault("request_id", request_id)
    return event
