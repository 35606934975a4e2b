"""Logs: structlog, bound once, one line an event on stderr.

JSON unless somebody is looking (a terminal, or log_format=console). What visitors sent is escaped, so a line
stays one line and says nothing to a terminal; `user_id` is dropped unless it was asked for. Libraries that log
through the standard library end up in the same stream.
"""

import logging
import re
import sys
from contextlib import suppress
from typing import BinaryIO, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from server.config import Config

# Controls, line and paragraph separators, and marks that turn the direction of text.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST_TEXT = 2_000
_TRACEBACK = "exception"


def configure(config: Config, stream: TextIO | None = None) -> None:
    """Set up logging for this process; to be called before anything is logged."""
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[config.log_level.upper()]
    processors: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if not config.log_user_ids:
        processors.append(drop_user_id)
    processors.append(escape)
    if config.log_format == "console" or (config.log_format == "auto" and stream.isatty()):
        processors += [structlog.dev.ConsoleRenderer(colors=stream.isatty()), render_bytes]
    else:
        processors.append(render_json)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.BytesLoggerFactory(Lasting(stream.buffer)),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[_Libraries()], force=True)


def drop_user_id(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Take the visitor's id out."""
    event.pop("user_id", None)
    return event


def escape(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Write out what would break a line or fool a terminal, and shorten what is very long."""
    for name, value in event.items():
        if isinstance(value, str) and name != _TRACEBACK:
            event[name] = escaped(value)
    return event


def escaped(text: str) -> str:
    """Return a text as it may stand in a line; U+000A becomes the six characters \\u000a."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match.group()):04x}", text[:_LONGEST_TEXT])


def render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> bytes:
    """Return one line of JSON; a traceback keeps its line breaks as \\n."""
    if _TRACEBACK in event:
        event[_TRACEBACK] = event[_TRACEBACK].encode("utf-8", "backslashreplace").decode()
    return msgspec.json.encode(event, enc_hook=str)


def render_bytes(_logger: WrappedLogger, _method: str, line: object) -> bytes:
    """Return a rendered line as bytes."""
    return str(line).encode("utf-8", "backslashreplace")


class Lasting:
    """A stream whose end is not the end of the process: a full disk or a closed pipe loses lines, nothing else.

    Written without a buffer: what could not be written is not tried again when the process ends.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = getattr(stream, "raw", stream)

    def write(self, line: bytes) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(line)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


class _Libraries(logging.Handler):
    """Hands what libraries log to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(record.name)
        message = escaped(record.getMessage())
        log.log(record.levelno, "library", logger=record.name, message=message, exc_info=record.exc_info)
