"""The sentences of a timeline: how each record is said to somebody who asks about one place.

A story is the little that has to be remembered between records to say the next one well: the settings, the state of
the event and for how long it was paused, where the place is. `sentence` looks a record up in three tables, by whether
its kind concerns one place, many, or the whole event, and gives the words, or None where the record is not about this
place. What happened to the whole event is said while the place is held.

Lengths are in event time, as the deadlines are, so that a pause does not count; they are left out where the log no
longer reaches back far enough to tell.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from engine.records import (
    Admitted,
    Banned,
    Closed,
    Completed,
    Configured,
    Expired,
    Extended,
    Joined,
    Lapsed,
    Left,
    LobbyOpened,
    Messaged,
    Opened,
    Parked,
    Paused,
    Readmitted,
    Record,
    Redeemed,
    Released,
    Removed,
    Reopened,
    Resumed,
    Returned,
    Started,
    Transferred,
)
from engine.transitions import TEXTS
from engine.views import Place


class Story:
    """What is remembered of one place and its event; `is_whole`: the records given begin with the event's first.

    `status` is that of the place, "none" before it joined, "ended", or "unknown" where that stands in records that are
    not kept; `since_ms` says when it began.
    """

    def __init__(self, place: Place, *, is_whole: bool) -> None:
        self.user_id = place.user_id
        self.arrival = place.arrival
        self.number = place.number
        self.joined_ms = place.joined_ms
        self.earlier: set[int] = set()
        self.settings: Mapping[str, object] | None = None
        self.state = "draft" if is_whole else "unknown"
        self.reason: str | None = None
        self.status = "none" if is_whole else "unknown"
        self.since_ms = 0
        self.releases = 0
        self._suspended_ms = 0 if is_whole else None
        self._stopped_at_ms: int | None = None

    def is_held(self, at_ms: int) -> bool:
        """Return whether the place is held at the time of a record, as far as is known."""
        if self.status == "unknown":
            return at_ms >= self.joined_ms
        return self.status not in ("none", "ended")

    @property
    def has_lobby(self) -> bool:
        """Whether whoever joins now has to wait for a number."""
        return self.state == "lobby" or (self.state == "unknown" and self.number != self.arrival)

    def began(self, status: str, at_ms: int) -> None:
        """Note that the place is in another status from now on."""
        self.status, self.since_ms = status, at_ms

    def changed(self, state: str, reason: str | None = None) -> None:
        """Note that the event is in another state from now on."""
        self.state, self.reason = state, reason

    def first_opened(self) -> None:
        """Note the one opening before which no time can have stood still."""
        self.changed("open")
        self._suspended_ms, self._stopped_at_ms = 0, None

    def stop(self, at_ms: int) -> None:
        """Let event time stand still."""
        self._stopped_at_ms = at_ms

    def go_on(self, at_ms: int) -> int:
        """Let event time go on; returns for how long it stood still."""
        stood_ms = 0 if self._stopped_at_ms is None else at_ms - self._stopped_at_ms
        if self._suspended_ms is not None:
            self._suspended_ms += stood_ms
        self._stopped_at_ms = None
        return stood_ms

    def left_until(self, until_ms: int, at_ms: int) -> str | None:
        """Return how long it is from a record to a deadline; None where that cannot be told any more."""
        if self._suspended_ms is None:
            return None
        now_ms = at_ms if self._stopped_at_ms is None else self._stopped_at_ms
        return span(until_ms - (now_ms - self._suspended_ms))

    def setting_s(self, name: str) -> str | None:
        """Return a setting in seconds as a length; None where it is not known any more."""
        value = None if self.settings is None else self.settings[name]
        return span(value * 1000) if isinstance(value, int) else None


def sentence(story: Story, record: Any) -> str | None:
    """Return what a record of the event, or of the whole process, says about the place; O(1) beside long batches."""
    kind = type(record)
    say = _OF_THE_PLACE.get(kind)
    if say is not None:
        if record.arrival == story.arrival:
            return say(story, record)
        return _of_an_earlier_place(story, record) if record.arrival in story.earlier else None
    say = _OF_MANY.get(kind)
    if say is not None:
        return say(story, record)
    say = _OF_THE_EVENT.get(kind)
    is_held = story.is_held(record.at_ms)
    text = None if say is None else say(story, record)
    return text if is_held else None


def span(length_ms: int) -> str:
    """Return a length of time in words.

    >>> span(64_000), span(320_000), span(7_500_000)
    ('64 s', '5 min 20 s', '2 h 5 min')
    """
    seconds = round(max(0, length_ms) / 1000)
    if seconds < 120:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _why(reason: str | None) -> str:
    return f": {reason}" if reason else ""


# ---- the event, told while the place is held ---------------------------------------------------------------


def _started(story: Story, record: Started) -> str:
    lost = f"; a part of the log may be lost: {record.lost}" if record.lost else ""
    return f"the server started again: nobody's time ran while it was away, and everybody counts as present{lost}"


def _configured(story: Story, record: Configured) -> str | None:
    before, after = story.settings, record.settings
    story.settings = after
    if before is None:
        return f"settings were changed by {record.actor}{_why(record.reason)}"
    changed = [name for name in after if name not in TEXTS and after[name] != before.get(name)]
    if not changed:
        return None
    if story.state == "lobby" and changed == ["opens_at_ms"] and after["opens_at_ms"] is None:
        return f"the opening was held back by {record.actor}{_why(record.reason)}"
    listed = ", ".join(f"{name} {_plain(before.get(name))} → {_plain(after[name])}" for name in changed)
    return f"settings were changed by {record.actor}: {listed}{_because(record.reason)}"


def _plain(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _because(reason: str | None) -> str:
    return f"; why: {reason}" if reason else ""


def _lobby_opened(story: Story, record: LobbyOpened) -> None:
    story.changed("lobby")


def _opened(story: Story, record: Opened) -> str:
    story.first_opened()
    if not record.seed:
        return "the event opened"
    if story.is_held(record.at_ms):
        story.began("waiting", record.at_ms)
    drawn = "numbers are being" if story.number is None else f"number {story.number}"
    return f"{drawn} drawn at opening from {record.count:,}"


def _paused(story: Story, record: Paused) -> str:
    story.changed("paused", record.reason)
    story.stop(record.at_ms)
    return f"the event paused: {record.reason}"


def _resumed(story: Story, record: Resumed) -> str:
    story.changed("open")
    paused_ms = story.go_on(record.at_ms)
    after = f" after {span(paused_ms)}" if paused_ms else ""
    return f"the event went on{after}; every window lasts as much longer"


def _closed(story: Story, record: Closed) -> str:
    story.changed("closed", record.reason)
    story.go_on(record.at_ms)
    outcome = f" ({record.outcome})" if record.outcome else ""
    left = "" if story.status in ("ready", "active") else "; nobody more is let in"
    return f"the event closed: {record.reason}{outcome}{left}"


def _reopened(story: Story, record: Reopened) -> str:
    story.changed("open")
    return "the event opened again, with everybody at their own place"


def _messaged(story: Story, record: Messaged) -> str:
    if record.reason:
        story.reason = record.reason
        return f"a new reason was given for the pause: {record.reason}"
    return f"everybody in line was told: {record.text}" if record.text else "the message to everybody was taken away"


# ---- records that name many, or an identity -------------------------------------------------------------------


def _joined(story: Story, record: Joined | Readmitted) -> str | None:
    if record.arrival == story.arrival:
        story.joined_ms = record.at_ms
        story.began("lobby" if story.has_lobby else "waiting", record.at_ms)
        return _took_a_place(story, record)
    if record.user_id != story.user_id:
        return None
    if record.arrival > story.arrival:
        return f"joined again at the end, as arrival {record.arrival}, once this place had ended"
    story.earlier.add(record.arrival)
    return f"joined as arrival {record.arrival}: an earlier place of the same visitor"


def _took_a_place(story: Story, record: Joined | Readmitted) -> str:
    in_lobby = story.has_lobby
    place = f"arrival {record.arrival}" if in_lobby else f"number {record.arrival}"
    if isinstance(record, Readmitted):
        return f"taken up again as {place}, on the word of its token: a part of the log was lost"
    more = [
        f"priority level {record.level}" if record.level else "",
        f"a group that counts as {record.size}" if record.size > 1 else "",
        "on an enqueue token of the shop" if record.signed else "",
        f"while the event was paused{_why(story.reason)}" if story.state == "paused" else "",
        "a number is drawn at opening" if in_lobby else "",
    ]
    return ", ".join(["joined the lobby as " + place if in_lobby else "joined as " + place, *filter(None, more)])


def _of_an_earlier_place(story: Story, record: Any) -> str | None:
    ended = _ENDS.get(type(record))
    return None if ended is None else f"the earlier place, arrival {record.arrival}, {ended(record)}"


def _parked(story: Story, record: Parked) -> str | None:
    if story.number is None or story.number not in record.numbers:
        return None
    story.began("parked", record.at_ms)
    silent_ms = record.at_ms - record.last_seen_ms[record.numbers.index(story.number)]
    visible, kept = story.setting_s("presence_timeout_s"), story.setting_s("grace_s")
    allowed = f" (presence timeout {visible}{_patience(story, silent_ms)})" if visible else ""
    stays = f"; the place is kept for {kept}" if kept else ""
    return f"stepped over: not heard of for {span(silent_ms)}{allowed}{stays}"


def _patience(story: Story, silent_ms: int) -> str:
    """Name the other timeout too where somebody was silent for so long that the tab may have been hidden."""
    hidden_s = None if story.settings is None else story.settings["presence_timeout_hidden_s"]
    is_longer = isinstance(hidden_s, int) and silent_ms > hidden_s * 1000
    return f", {story.setting_s('presence_timeout_hidden_s')} in a hidden tab" if is_longer else ""


def _released(story: Story, record: Released) -> str | None:
    if story.number not in record.numbers:
        return None
    if not record.manual:
        return f"let in{_let_in(story, record)}"
    by_hand = f" by hand by {record.actor}, {len(record.numbers):,} at once"
    return f"let in{by_hand}{_let_in(story, record)}{_because(record.reason)}"


def _let_in(story: Story, record: Released | Admitted) -> str:
    story.began("ready", record.at_ms)
    story.releases += 1
    again = " again" if story.releases > 1 else ""
    left = story.left_until(record.until_ms, record.at_ms)
    claim = f"; to be claimed within {left}" if left else ""
    return f"{again}, {span(record.at_ms - story.joined_ms)} after joining{claim}"


def _banned(story: Story, record: Banned) -> str | None:
    if record.user_id != story.user_id:
        return None
    return f"banned from this event by {record.actor}{_why(record.reason)}"


# ---- records that name one place --------------------------------------------------------------------------------


def _returned(story: Story, record: Returned) -> str:
    away = f" after {span(record.at_ms - story.since_ms)}" if story.status == "parked" else ""
    story.began("waiting", record.at_ms)
    return f"came back to the own place{away}"


def _admitted(story: Story, record: Admitted) -> str:
    return f"let in ahead of the others by {record.actor}{_let_in(story, record)}{_because(record.reason)}"


def _lapsed(story: Story, record: Lapsed) -> str:
    story.began("parked", record.at_ms)
    kept = story.setting_s("grace_s")
    stays = f"; the place is kept for {kept}" if kept else ""
    return f"turn not claimed in time; one more turn after being heard of again{stays}"


def _redeemed(story: Story, record: Redeemed) -> str:
    story.began("active", record.at_ms)
    length, most = (story.left_until(end_ms, record.at_ms) for end_ms in (record.until_ms, record.limit_ms))
    session = f"; a session of {length} began, {most} at most" if length else ""
    if record.assumed:
        return f"counted as entered when the turn was over (this event redeems offline){session}"
    request = f" (request {record.request})" if record.request else ""
    return f"pass redeemed by {record.actor}{request}{session}"


def _extended(story: Story, record: Extended) -> str:
    what = {"ready": "time to claim the turn", "active": "session"}.get(story.status, "time")
    left = story.left_until(record.until_ms, record.at_ms)
    return f"{what} extended by {record.actor}" + (f": {left} from then" if left else "")


def _expired(story: Story, record: Expired) -> str:
    after = span(record.at_ms - story.since_ms) if story.since_ms else None
    story.began("ended", record.at_ms)
    told = _EXPIRED[record.cause]
    return f"expired: {told}" + (f" ({after} after it began)" if after and record.cause == "session" else "")


def _left(story: Story, record: Left) -> str:
    inside = ", although let in" if story.status in ("ready", "active") else ""
    story.began("ended", record.at_ms)
    return f"left of their own accord{inside}"


def _completed(story: Story, record: Completed) -> str:
    story.began("ended", record.at_ms)
    return _said_done(record)


def _said_done(record: Completed) -> str:
    late = ", after the session had run out" if record.late else ""
    return f"{record.outcome}, as {record.actor} said{late}"


def _removed(story: Story, record: Removed) -> str:
    story.began("ended", record.at_ms)
    return f"removed by {record.actor}{_why(record.reason)}"


def _transferred(story: Story, record: Transferred) -> str:
    how = (
        "taken over on an enqueue token" if record.signed else "moved to another device, or taken over with a site key"
    )
    return f"{how}; whoever held it before only reads from here on"


_EXPIRED: Mapping[str, str] = MappingProxyType(
    {
        "absent": "not heard of again in time after being stepped over",
        "unclaimed": "the second turn was not claimed either",
        "session": "the session ran out",
    }
)
# How a place ended, where it is not the one this is about.
_ENDS: Mapping[type[Record], Callable[[Any], str]] = MappingProxyType(
    {
        Expired: lambda record: f"expired: {_EXPIRED[record.cause]}",
        Left: lambda record: "was left by the visitor",
        Completed: lambda record: f"ended: {_said_done(record)}",
        Removed: lambda record: f"was removed by {record.actor}{_why(record.reason)}",
    }
)
_Say: TypeAlias = Callable[[Story, Any], str | None]
_OF_THE_EVENT: Mapping[type[Record], _Say] = MappingProxyType(
    {
        Started: _started,
        Configured: _configured,
        LobbyOpened: _lobby_opened,
        Opened: _opened,
        Paused: _paused,
        Resumed: _resumed,
        Closed: _closed,
        Reopened: _reopened,
        Messaged: _messaged,
    }
)
_OF_MANY: Mapping[type[Record], _Say] = MappingProxyType(
    {Joined: _joined, Readmitted: _joined, Parked: _parked, Released: _released, Banned: _banned}
)
_OF_THE_PLACE: Mapping[type[Record], _Say] = MappingProxyType(
    {
        Returned: _returned,
        Admitted: _admitted,
        Lapsed: _lapsed,
        Redeemed: _redeemed,
        Extended: _extended,
        Expired: _expired,
        Left: _left,
        Completed: _completed,
        Removed: _removed,
        Transferred: _transferred,
    }
)
