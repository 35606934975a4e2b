"""What commands write: tables without surprises, bars only for those who wait and look."""

import io
import json
import sys

import pytest

from server import terminal
from server.terminal import bar, complain, print_json, print_table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Set the time a bar reads."""
    now = [0.0]
    monkeypatch.setattr("server.terminal.time.monotonic", lambda: now[0])
    return now


def test_a_bar_appears_after_two_seconds_on_a_terminal(monkeypatch: pytest.MonkeyPatch, now: list[float]) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with bar("copying") as progress:
        progress(1, 10)
        assert progress._progress is None
        now[0] = terminal.BAR_AFTER_S
        progress(5, 10)
        assert progress._progress is not None and progress._progress.tasks[0].completed == 5


def test_no_bar_is_drawn_where_nobody_looks(capsys: pytest.CaptureFixture[str], now: list[float]) -> None:
    with bar("copying") as progress:
        now[0] = 100.0
        progress(5, 10)
    assert capsys.readouterr() == ("", "")


def test_a_table_takes_nothing_for_markup_and_escapes_what_fools_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "value"), [("[bold]x[/bold]", "a\x1b[31m\nb"), ("long", "y" * 500), ("nothing", None)])
    told = capsys.readouterr().out
    assert "[bold]x[/bold]" in told and "\\u001b[31m\\u000ab" in told and "\x1b" not in told
    assert "y" * 500 in told and len(told.splitlines()) == 4


def test_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [1, None], "b": "ü"})
    assert json.loads(capsys.readouterr().out) == {"a": [1, None], "b": "ü"}


def test_every_problem_is_a_line_of_its_own_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    complain("port: is taken\nhost: is strange")
    assert capsys.readouterr() == ("", "stanchion: port: is taken\nstanchion: host: is strange\n")
