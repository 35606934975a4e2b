"""What the waiting page says: for every state and status a heading and sentences, each written here and nowhere else.

Pure functions of the answers that the JSON calls give as well. Words of an operator stand apart from ours
(`Sentence.quoted`), so that the page can keep their direction of writing to themselves.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from engine.errors import Refused
from engine.sentences import span
from server.wire import EventAnswer, PlaceAnswer

LAST_NAMED_MS = 253_370_764_800_000  # the year 9999
# What turns the direction of a text around, for places where it cannot be kept apart.
_DIRECTIONS = dict.fromkeys((0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))


class Sentence(NamedTuple):
    """A sentence of ours, and behind it the words of an operator."""

    text: str
    quoted: str | None = None


class Words(NamedTuple):
    """What is said: the title of the page, its heading, the sentences below, and facts by their labels."""

    title: str
    heading: str
    sentences: list[Sentence]
    facts: list[tuple[str, str]]


class Told(NamedTuple):
    """What there is to tell of a place: `turns` is how often it was let in, `was_away`: it was stepped over."""

    event: EventAnswer
    place: PlaceAnswer
    is_holder: bool
    turns: int
    was_away: bool


# ---- small words ------------------------------------------------------------------------------------------------


def name_of(event: EventAnswer) -> str:
    """Return what an event is called."""
    return event.name or event.event_id


def title_of(heading: str, event: EventAnswer) -> str:
    """Return a title: a browser tab shows the beginning, and no isolation is possible in it."""
    return f"{heading} – {name_of(event).translate(_DIRECTIONS)}"


def about(seconds: int) -> str:
    """Return a wait in words, in whole minutes.

    >>> about(5), about(143), about(7_300)
    ('less than a minute', '3 min', '2 h 2 min')
    """
    return "less than a minute" if seconds <= 60 else span(-(-seconds // 60) * 60_000)


def moment(at_ms: int) -> str:
    """Return a moment in words; no page without a script knows the visitor's time zone.

    >>> moment(1_790_000_000_000)
    '21 September 2026, 14:13 UTC'
    """
    if at_ms >= LAST_NAMED_MS:
        return "a day far from now"
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return f"{at.day} {at:%B %Y, %H:%M} UTC"


def _clock(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%H:%M:%S} UTC"


def _when(at_ms: int, now_ms: int) -> str:
    return f"{moment(at_ms)}, in {span(at_ms - now_ms)}" if at_ms > now_ms else f"{moment(at_ms)}, any moment now"


def _people(count: int) -> str:
    return "1 person" if count == 1 else f"{count:,} people"


# ---- the event, for somebody without a place ----------------------------------------------------------------------


def words_of_event(event: EventAnswer, *, is_signed: bool) -> Words:
    """Return what an event says to somebody who is not in it; `is_signed`: only the shop lets people join."""
    heading, say = _EVENTS[event.state]
    sentences = list(say(event))
    if is_signed and event.state != "closed":
        sentences.append(Sentence("This event is joined from the shop's own page, which sends you on to here."))
    facts = [("Waiting now", _people(event.waiting))] if event.waiting else []
    return Words(title_of(heading, event), heading, sentences, facts)


def _draft(event: EventAnswer) -> Iterator[Sentence]:
    lobby, opens, now = event.lobby_opens_at_ms, event.opens_at_ms, event.now_ms
    if lobby is not None:
        yield Sentence(f"You can come in from {_when(lobby, now)}. There is no need to hurry: numbers are drawn.")
    if opens is not None:
        yield Sentence(f"It opens on {_when(opens, now)}.")
    if lobby is None and opens is None:
        yield Sentence("When it opens has not been said yet.")
    yield Sentence("This page looks again by itself.")


def _lobby(event: EventAnswer) -> Iterator[Sentence]:
    yield Sentence("Everybody who is here when the event opens gets a number by a draw, so there is no need to hurry.")
    if event.opens_at_ms is not None:
        yield Sentence(f"It opens on {_when(event.opens_at_ms, event.now_ms)}.")


def _open(event: EventAnswer) -> Iterator[Sentence]:
    if not event.waiting:
        yield Sentence("Nobody is waiting just now.")


def _paused(event: EventAnswer) -> Iterator[Sentence]:
    yield Sentence("The line is paused: nobody is let in until it goes on, and nobody loses their place meanwhile.")
    yield from _reason(event)


def _closed(event: EventAnswer) -> Iterator[Sentence]:
    yield Sentence("Nobody else is let in.")
    yield from _reason(event)
    if event.outcome:
        yield Sentence("Outcome:", event.outcome)


def _reason(event: EventAnswer) -> Iterator[Sentence]:
    if event.reason:
        yield Sentence("The reason given:", event.reason)


_EVENTS: Mapping[str, tuple[str, Callable[[EventAnswer], Iterator[Sentence]]]] = MappingProxyType(
    {
        "draft": ("Not open yet", _draft),
        "lobby": ("The lobby is open", _lobby),
        "open": ("The line is open", _open),
        "paused": ("The line is paused", _paused),
        "closed": ("This event is closed", _closed),
    }
)


# ---- a place ------------------------------------------------------------------------------------------------------


def words_of_place(told: Told) -> Words:
    """Return what a place says to whoever holds it, or held it before it moved to another device."""
    heading, say = _PLACES[told.place.status]
    if told.place.status == "waiting" and told.place.position is not None:
        heading = f"Position {told.place.position:,}"
    moved = [] if told.is_holder else [_MOVED]
    return Words(title_of(heading, told.event), heading, [*moved, *say(told)], list(_facts(told)))


def _facts(told: Told) -> Iterator[tuple[str, str]]:
    place = told.place
    if place.number is not None:
        yield "Your number", f"{place.number:,}"
    elif place.status == "lobby":
        yield "Your entry in the draw", f"{place.arrival:,}"
    if place.status != "waiting" or place.position is None:
        return
    yield "Your position", f"{place.position:,}"
    yield "People ahead of you", f"{place.ahead or 0:,}"
    band = place.estimate
    if place.estimated_wait_seconds is not None and band is not None:
        low, high = about(band.low_seconds), about(band.high_seconds)
        between = "" if low == high else f" (between {low} and {high})"
        yield "Estimated wait", f"{about(place.estimated_wait_seconds)}{between}{_CONDITIONS.get(band.reason, '')}"


_MOVED = Sentence("This place has moved to another device. Go on there: here it is only shown.")
_CONDITIONS: Mapping[str | None, str] = MappingProxyType(
    {"unlikely": ", if your turn comes at all", "paused": ", counted from when the line goes on"}
)


def _in_lobby(told: Told) -> Iterator[Sentence]:
    yield Sentence("Numbers are drawn when the event opens: being early or late in the lobby makes no difference.")
    if told.event.opens_at_ms is not None:
        yield Sentence(f"It opens on {_when(told.event.opens_at_ms, told.event.now_ms)}.")
    yield _STAY


def _waiting(told: Told) -> Iterator[Sentence]:
    band = told.place.estimate
    if told.was_away:
        yield Sentence("You were away when your turn came: you are back at your own place.")
    elif told.turns:
        yield Sentence("Your turn was not used in time: you are back at your own place and have one more turn.")
    if band is not None and band.reason == "unlikely":
        yield Sentence(
            "We would rather tell you now: there are more people ahead of you than can still be let in, so it is "
            "unlikely that your turn comes. You keep your place in case others leave."
        )
    if told.event.state == "paused":
        yield from _paused(told.event)
    if told.place.ahead == 0:
        yield Sentence("You are next.")
    yield _STAY


_STAY = Sentence("Keep this page open: it brings itself up to date and keeps your place.")


def _parked(told: Told) -> Iterator[Sentence]:
    yield Sentence("The place is kept for a while, and whoever holds it goes on at the same place in line.")


def _ready(told: Told) -> Iterator[Sentence]:
    place = told.place
    if place.pass_expires_ms is not None:
        left = span(place.pass_expires_ms - place.now_ms)
        yield Sentence(f"You can go in now. Do so within {left}, until {_clock(place.pass_expires_ms)}.")
    if told.event.state == "paused":
        yield Sentence("The line is paused, and your time to go in stands still meanwhile; you may go in all the same.")
    if told.turns > 1:
        yield Sentence("This is your second turn, and the last one.")
    if place.pass_ is not None and place.enter_url is None:
        yield Sentence("No address to go on to is set for this event. This is the pass that would be sent there:")


def _active(told: Told) -> Iterator[Sentence]:
    yield Sentence("You are in the shop: go on there. Your pass has been used, so this page cannot let you in again.")


def _completed(told: Told) -> Iterator[Sentence]:
    yield Sentence("Your visit to the shop is complete. Thank you for waiting.")


def _expired(told: Told) -> Iterator[Sentence]:
    yield Sentence(_CAUSES.get(told.place.cause, "The time for it is over."))


_CAUSES: Mapping[str | None, str] = MappingProxyType(
    {
        "absent": "You were away when your turn came, and did not come back while the place was kept.",
        "unclaimed": "Your turn came twice, and was not used in time.",
        "session": "Your time in the shop is over.",
    }
)


def _left(told: Told) -> Iterator[Sentence]:
    yield Sentence("You gave your place up.")


def _removed(told: Told) -> Iterator[Sentence]:
    yield Sentence("The organisers took this place away.")


def _place_closed(told: Told) -> Iterator[Sentence]:
    yield from _closed(told.event)
    yield Sentence("Should it open again, you have your place back.")


_Say: TypeAlias = Callable[[Told], Iterator[Sentence]]
_PLACES: Mapping[str, tuple[str, _Say]] = MappingProxyType(
    {
        "lobby": ("You are in the lobby", _in_lobby),
        "waiting": ("You are in line", _waiting),
        "parked": ("The turn came while nobody was here", _parked),
        "ready": ("It is your turn", _ready),
        "active": ("You are in", _active),
        "completed": ("All done", _completed),
        "expired": ("Your place has ended", _expired),
        "left": ("You have left", _left),
        "removed": ("Your place was removed", _removed),
        "closed": ("This event is closed", _place_closed),
    }
)


# ---- what is refused ------------------------------------------------------------------------------------------------


def words_of_refusal(refused: Refused) -> Words:
    """Return what a refusal says."""
    heading, sentence = _REFUSALS.get(refused.code) or _REFUSALS_BY_KIND[refused.status >= 500]
    sentences = [Sentence(sentence)]
    if refused.code not in _REFUSALS:
        sentences.append(Sentence("What the server says:", refused.detail))
    if refused.retry_after_s is not None:
        sentences.append(Sentence(f"Please try again in {span(refused.retry_after_s * 1000)}."))
    return Words(heading, heading, sentences, [])


_REFUSALS_BY_KIND = (
    ("That did not work", "Nothing was changed, and no place was lost."),
    ("Just a moment", "The server cannot do this right now. Nothing was changed, and no place was lost."),
)
_REFUSALS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "not_found": ("There is no such event", "The address may have been copied in part, or the event is gone."),
        "not_open": ("Not open yet", "This event cannot be joined yet."),
        "closed": ("This event is closed", "Nobody else can join it."),
        "rejecting": ("Nobody new is taken", "Those who are in line keep their places, and nobody else can join now."),
        "queue_full": ("The line is full", "As many people are waiting as this event can take."),
        "banned": ("You cannot join this event", "The organisers do not let you take a place here."),
        "bad_enqueue_token": ("Please come from the shop", "This event is joined from the shop's own page."),
        "bad_token": ("This is not good any more", "The code, or the place that this device held, is no longer valid."),
        "gone": ("This was used already", "The code is good once only, and the place has moved with it."),
        "read_only": ("This place has moved", "It is on another device now. Go on there: here it is only shown."),
        "not_active": ("That is not possible now", "Your place is in another state by now. Have a look at it."),
        "forbidden": ("Not from here", "That did not come from this server's own page, so nothing was done."),
    }
)
