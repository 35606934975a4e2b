"""What the waiting page says: words for every state, status and code, and small words."""

import doctest
from typing import get_args

import pytest

from engine.errors import STATUS_OF_CODE, Refused
from server import page_words
from server.page_words import Told, about, moment, title_of, words_of_event, words_of_place, words_of_refusal
from server.wire import EventAnswer, EventState, PlaceAnswer, Status

NOW_MS = 1_790_000_000_000


def event(state: str = "open", name: str = "Spring tour", opens_at_ms: int | None = None) -> EventAnswer:
    times = (NOW_MS, opens_at_ms and opens_at_ms - 60_000, opens_at_ms, None)
    return EventAnswer("e1", name, state, None, *times, 3, 0, 50.0, None, None, None)  # type: ignore[arg-type]


def place(status: str, cause: str | None = None) -> PlaceAnswer:
    its = ("e1", "u1", status, cause, 1, 1, None, None, 3, None, None, 0.0, None, None, None, None, 5)
    return PlaceAnswer(*its, None, NOW_MS, 1, 1, False)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", get_args(EventState))
def test_every_state_of_an_event_has_words(state: str) -> None:
    words = words_of_event(event(state), is_signed=False)
    assert words.heading and words.title == f"{words.heading} – Spring tour"


@pytest.mark.parametrize("status", get_args(Status))
def test_every_status_has_words_of_its_own(status: str) -> None:
    words = words_of_place(Told(event(), place(status), True, 0, False))
    others = [words_of_place(Told(event(), place(other), True, 0, False)) for other in get_args(Status)]
    assert [other.heading for other in others].count(words.heading) == 1


def test_every_cause_of_an_end_has_words_of_its_own() -> None:
    ends = [words_of_place(Told(event(), place("expired", cause), True, 0, False)) for cause in (None, *CAUSES)]
    assert len({end.sentences[0].text for end in ends}) == 4


CAUSES = ("absent", "unclaimed", "session")


@pytest.mark.parametrize("code", STATUS_OF_CODE)
def test_every_refusal_has_words(code: str) -> None:
    words = words_of_refusal(Refused(code, "the detail", retry_after_s=90))
    assert words.heading and words.sentences[-1].text == "Please try again in 90 s."


def test_whoever_does_not_hold_the_place_any_more_is_told_first() -> None:
    words = words_of_place(Told(event(), place("waiting"), False, 0, False))
    assert words.sentences[0].text.startswith("This place has moved to another device.")


def test_a_title_cannot_be_turned_around_and_falls_back_on_the_id() -> None:
    assert title_of("Hello", event(name="a\u202eb\u2067c\u200f")) == "Hello – abc"
    assert title_of("Hello", event(name="")) == "Hello – e1"


def test_times_are_told_with_how_long_it_is_until_then() -> None:
    words = words_of_event(event("draft", opens_at_ms=NOW_MS + 3_600_000), is_signed=False)
    assert [sentence.text for sentence in words.sentences[:2]] == [
        "You can come in from 21 September 2026, 15:12 UTC, in 59 min. There is no need to hurry: numbers are drawn.",
        "It opens on 21 September 2026, 15:13 UTC, in 1 h.",
    ]
    assert moment(2**53 - 1) == "a day far from now"


def test_waits_are_told_in_minutes() -> None:
    assert [about(seconds) for seconds in (0, 60, 61, 143, 7_300)] == [
        *("less than a minute", "less than a minute", "2 min", "3 min", "2 h 2 min")
    ]


def test_the_examples_hold() -> None:
    assert doctest.testmod(page_words) == (0, 2)
