"""Logs: one line an event, whatever visitors send."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from server.config import load
from server.logs import configure, escaped

pytestmark = pytest.mark.usefixtures("restored_logging")


class Stderr(io.TextIOWrapper):
    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def lines(self) -> list[str]:
        return self.buffer.getvalue().decode().splitlines()  # type: ignore[attr-defined,no-any-return]


@pytest.fixture(autouse=True)
def restored_library_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def logged(event: str, *, settings: dict[str, object] | None = None, **facts: Any) -> list[str]:
    stderr = Stderr()
    configure(load({"log_format": "json", **(settings or {})}).config, stderr)
    structlog.get_logger().info(event, **facts)
    return stderr.lines()


def test_an_event_is_one_line_of_json_with_its_facts() -> None:
    [line] = logged("joined", event_id="sale", count=3)
    told = json.loads(line)
    assert told.pop("timestamp").endswith("Z")
    assert told == {"event": "joined", "level": "info", "event_id": "sale", "count": 3}


@pytest.mark.parametrize("format_", ["json", "console"])
def test_what_visitors_send_cannot_break_a_line_or_fool_a_terminal(format_: str) -> None:
    evil = 'a\nb\r{"event":"forged"}\x1b[31m\u202e\u2028\x85\ud800'
    lines = logged("joined", settings={"log_format": format_}, path=evil)
    assert len(lines) == 1
    assert not any(char in lines[0] for char in "\r\x1b\u202e\u2028\x85")
    assert "\\u000a" in lines[0]


def test_user_ids_are_left_out_unless_they_were_asked_for() -> None:
    assert "alice" not in logged("joined", user_id="alice")[0]
    assert "alice" in logged("joined", settings={"log_user_ids": True}, user_id="alice")[0]


def test_levels_below_the_chosen_one_are_not_written() -> None:
    assert logged("joined", settings={"log_level": "warning"}) == []


def test_a_traceback_stays_in_its_line() -> None:
    stderr = Stderr()
    configure(load({"log_format": "json"}).config, stderr)
    try:
        raise ValueError("with\na line break")
    except ValueError:
        structlog.get_logger().exception("broken")
    [line] = stderr.lines()
    assert "ValueError: with\na line break" in json.loads(line)["exception"]


def test_libraries_end_up_in_the_same_stream() -> None:
    stderr = Stderr()
    configure(load({"log_format": "json"}).config, stderr)
    logging.getLogger("asyncio").error("it took %s\n", "long")
    logging.getLogger("asyncio").info("not worth a line")
    [line] = stderr.lines()
    assert json.loads(line)["logger"] == "asyncio" and json.loads(line)["level"] == "error"


def test_very_long_texts_are_shortened() -> None:
    assert len(escaped("x" * 100_000)) == 2_000


def test_a_log_that_cannot_be_written_ends_nothing() -> None:
    with open("/dev/full", "w") as full:
        configure(load({"log_format": "json"}).config, full)
        structlog.get_logger().error("still here")
