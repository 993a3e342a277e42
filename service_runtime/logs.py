"""Logs: one event per line, to standard error, with nothing secret in them.

structlog's and the standard library's records are rendered by the same processors; what is written has passed the
redactor as a whole line, exceptions and stack included, so that no way of formatting gets around it.
Our own events do not go through the standard library: its records, its formatters and structlog's console renderer cost
some 120 microseconds an event, this way some 30, and a router writes one event per completion.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import structlog

from service_runtime.call_context import current_request_id
from service_runtime.redaction import REDACTOR, Redactor

# They print whole URLs, headers or one line per request at INFO.
_CHATTY = ("httpx", "httpcore", "aiohttp", "asyncio", "grpc", "hpack")
_MAX_LINE_CHARACTERS = 64 << 10
_LONGEST_SECRET = 4096
_EVENT_WIDTH = 30
_TO_BE_QUOTED = frozenset(" \t\r\n=\"'")
_add_stack = structlog.processors.StackInfoRenderer()
# The plain traceback: the pretty one prints local variables, prompts among them.
_add_exception = structlog.processors.format_exc_info


def configure_logging(
    level: Literal["debug", "info", "warning", "error"],
    format: Literal["console", "json"],  # noqa: A002 - the word that the setting has
    *,
    stream: TextIO | None = None,
    redactor: Redactor = REDACTOR,
) -> None:
    """Send all logs of the process to `stream` (standard error), replacing what was configured before."""
    render = _as_json if format == "json" else _as_console_line
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        _RedactingFormatter(
            redactor,
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=[_completed],
                processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
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
        processors=[_completed, render],
        wrapper_class=structlog.make_filtering_bound_logger(root.level),
        logger_factory=lambda *names: _LineLogger(handler, redactor, names),
        cache_logger_on_first_use=True,
    )


class _LineLogger:
    """Where our own rendered events go: the stream of the handler that the libraries' go to."""

    def __init__(self, handler: logging.StreamHandler[TextIO], redactor: Redactor, names: Sequence[str]) -> None:
        self.name = names[0] if names else "root"
        self._handler = handler
        self._redactor = redactor

    def info(self, line: str) -> None:
        text = _redacted(self._redactor, line) + "\n"
        handler = self._handler
        handler.acquire()
        try:
            handler.stream.write(text)
            handler.stream.flush()
        except (OSError, ValueError):  # a closed or full stream, see `raiseExceptions`
            pass
        finally:
            handler.release()

    debug = warning = error = critical = exception = info


class _RedactingFormatter(logging.Formatter):
    def __init__(self, redactor: Redactor, inner: logging.Formatter) -> None:
        super().__init__()
        self._redactor = redactor
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return _redacted(self._redactor, self._inner.format(record))


def _redacted(redactor: Redactor, line: str) -> str:
    if len(line) <= _MAX_LINE_CHARACTERS:
        return redactor.redact(line)
    # Cut before redacting, because that costs; and the last part again after it, because the first cut may have
    # gone through a secret.
    redacted = redactor.redact(line[: _MAX_LINE_CHARACTERS + _LONGEST_SECRET])
    return f"{redacted[:-_LONGEST_SECRET]} … of {len(line)} characters"


def _completed(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The event with what each has: request id, level, logger and time, and exception and stack where asked for.

    One step in place of structlog's seven, of which nearly every event needs three.
    """
    if request_id := current_request_id():
        event.setdefault("request_id", request_id)
    event["level"] = method
    record = event.get("_record")  # of the standard library, whose loggers are not ours
    event["logger"] = logger.name if record is None else record.name
    event["timestamp"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    if "stack_info" in event:
        event = _add_stack(logger, method, event)
    if "exc_info" in event:
        event = _add_exception(logger, method, event)
    return event


# Made once: `json.dumps` with arguments makes an encoder for each event.
_encode = json.JSONEncoder(default=str, ensure_ascii=False).encode


def _as_json(_logger: Any, _method: str, event: structlog.typing.EventDict) -> str:
    return _encode(event)


def _as_console_line(_logger: Any, _method: str, event: structlog.typing.EventDict) -> str:
    """`time [level    ] event   [logger] name=value …`, a traceback below it."""
    time, level, name, logger = event.pop("timestamp"), event.pop("level"), event.pop("event", ""), event.pop("logger")
    below = [str(text) for text in (event.pop("stack", None), event.pop("exception", None)) if text]
    fields = [
        f"{key}={value}" if isinstance(value, str) and value and _TO_BE_QUOTED.isdisjoint(value) else f"{key}={value!r}"
        for key, value in sorted(event.items())
    ]
    return "\n".join([" ".join([f"{time} [{level:<9}] {name!s:<{_EVENT_WIDTH}} [{logger}]", *fields]), *below])
