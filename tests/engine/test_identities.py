"""What a visitor may be called."""

import pytest

from engine.identities import is_identity

LEGAL = ("u", "u" * 128, "a b", "é" * 64, "名" * 42, "🎫" * 32, "../etc/passwd", "<b>", "0")
ILLEGAL = (
    ("empty", ""),
    ("too long", "u" * 129),
    ("too many bytes", "é" * 65),
    ("NUL", "u\x00"),
    ("line feed", "u\n"),
    ("delete", "u\x7f"),
    ("C1 control", "é\x85"),
    ("right-to-left override", "u\u202e"),
    ("isolate", "u\u2066"),
    ("byte order mark", "u\ufeff"),
    ("half a character", "u\ud800"),
    ("no character", "u\uffff"),
)


@pytest.mark.parametrize("text", LEGAL)
def test_what_can_be_stored_and_shown_names_a_visitor(text: str) -> None:
    assert is_identity(text)


@pytest.mark.parametrize(("problem", "text"), ILLEGAL, ids=[problem for problem, _ in ILLEGAL])
def test_what_would_break_a_line_or_a_page_names_nobody(problem: str, text: str) -> None:
    assert not is_identity(text)
