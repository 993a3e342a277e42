from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from service_runtime.call_context import Call, enter_call
from service_runtime.logs import configure_logging
from service_runtime.redaction import Redactor

SECRET = "sk-CANARY-0123456789"
KNOWN = "without any shape"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Logging as it was: it is global."""
    root = logging.getLogger()
    handlers, level, raising = list(root.handlers), root.level, logging.raiseExceptions
    yield
    root.handlers[:], logging.raiseExceptions = handlers, raising
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture(params=["json", "console"])
def output(request: pytest.FixtureRequest) -> io.StringIO:
    stream, redactor = io.StringIO(), Redactor()
    redactor.register(KNOWN)
    configure_logging("info", request.param, stream=stream, redactor=redactor)
    return stream


def explode(message: str) -> None:
    local_variable = f"local {SECRET}"
    raise ValueError(message + local_variable[:0])


def test_no_way_of_logging_lets_a_secret_through(output: io.StringIO) -> None:
    log = structlog.get_logger("ours")
    log.info("event " + SECRET, field=SECRET, nested={"deep": [SECRET]}, raw=SECRET.encode(), known=KNOWN)  # noqa: G003 - a careless line, on purpose
    log.info("as an argument %s", SECRET)
    logging.getLogger("theirs").warning("as an argument %s of %r", SECRET, {"key": KNOWN})
    for logger in (log, logging.getLogger("theirs")):
        try:
            explode(f"bad key {SECRET} {KNOWN}")
        except ValueError:
            logger.exception("failed")
    logging.getLogger("theirs").warning("with a stack", stack_info=True)

    text = output.getvalue()
    assert "CANARY" not in text
    assert KNOWN not in text
    assert text.count("ValueError") >= 2


def test_a_line_of_json_holds_level_time_name_and_fields() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    structlog.get_logger("ours").info("completion.finished", attempts=2)
    logging.getLogger("theirs").warning("something")

    ours, theirs = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (ours["event"], ours["attempts"], ours["level"], ours["logger"]) == (
        "completion.finished",
        2,
        "info",
        "ours",
    )
    assert ours["timestamp"].endswith("Z")
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("something", "warning", "theirs")


def test_an_exception_is_an_error_with_its_traceback_and_none_leaves_no_trace() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    try:
        explode("no")
    except ValueError:
        structlog.get_logger("ours").exception("failed")
    structlog.get_logger("ours").info("went well", exc_info=None, stack_info=False)

    failed, went_well = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (failed["level"], failed["exception"].splitlines()[-1]) == ("error", "ValueError: no")
    assert not {"exc_info", "exception", "stack_info", "stack"} & {*failed.keys() - {"exception"}, *went_well}


def test_the_request_id_of_the_call_is_on_each_line() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)

    import contextvars

    def serve() -> None:
        enter_call(Call("/x.Y/Z", "request-7", 0.0))
        structlog.get_logger("ours").info("inside")
        logging.getLogger("theirs").warning("inside too")

    contextvars.copy_context().run(serve)

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["request_id"] for line in lines] == ["request-7", "request-7"]


def test_what_is_below_the_level_and_the_chatter_of_libraries_is_left_out(output: io.StringIO) -> None:
    structlog.get_logger("ours").debug("detail")
    logging.getLogger("httpx").info("GET https://host/?key=1")

    assert output.getvalue() == ""


def test_a_secret_on_the_edge_of_the_cut_does_not_come_through_in_part(output: io.StringIO) -> None:
    for position in range(65_536 - 150, 65_536 + 50, 10):
        structlog.get_logger("ours").info("x" * position + KNOWN + "x" * 10_000)

    assert KNOWN[:8] not in output.getvalue()


def test_an_endless_line_is_cut(output: io.StringIO) -> None:
    structlog.get_logger("ours").info("x" * 1_000_000)

    assert len(output.getvalue()) < 70_000


def test_a_broken_stream_does_not_fail_what_is_being_logged() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream=stream)
    stream.close()

    structlog.get_logger("ours").info("nobody hears this")
