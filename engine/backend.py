"""The contract between the server and whatever holds the line.

A backend speaks the domain's verbs and answers in the words of `engine.views`; never SQL, keys or offsets.
Every answer leaves a backend only when what it says is as durable as the backend declares. Each backend says
what it can do as data, `Capabilities`, and one conformance suite holds each to what it says. Verbs raise
`Refused` and have then changed nothing.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from engine.actor import By
from engine.errors import Refused
from engine.records import Record
from engine.settings import Settings
from engine.views import EventView, Notice, Place, Ranking, ReleaseResult, Stats


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend honours, as data; a setting that needs one that is missing is refused (SETTING_NEEDS)."""

    exact_rank: bool = False
    durable: bool = False
    survives: str = ""
    records: bool = False
    snapshots: bool = False
    draw: bool = False
    presence: bool = False
    signed_joins: bool = False
    offline_redemption: bool = False


# Which capability a setting needs when it is not at its default: name → (capability, what to say).
SETTING_NEEDS: Mapping[str, tuple[str, str]] = {
    "lobby": ("draw", "needs a backend with a draw"),
    "lobby_opens_at_ms": ("draw", "needs a backend with a draw"),
    "join_policy": ("signed_joins", "needs a backend that takes enqueue tokens"),
    "redemption": ("offline_redemption", "needs a backend with passes"),
}


def check_settings(changes: Mapping[str, object], capabilities: Capabilities) -> None:
    """Refuse settings that this backend cannot honour, naming each."""
    defaults = {knob.name: knob.default for knob in fields(Settings)}
    errors = [
        (name, problem)
        for name, (needed, problem) in SETTING_NEEDS.items()
        if name in changes and changes[name] != defaults[name] and not getattr(capabilities, needed)
    ]
    if errors:
        raise Refused("invalid_settings", "; ".join(f"{name} {problem}" for name, problem in errors), errors=errors)


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """How the backend fares: `details` are numbers and words by name, for status pages and metrics."""

    name: str
    epoch: int
    version: int
    durable_version: int
    degraded: tuple[str, ...]
    refuses_joins: str | None
    details: Mapping[str, object]


class Backend(Protocol):
    """About a dozen verbs. `user_id` and `event_id` are checked by the caller; times are the backend's own."""

    capabilities: Capabilities

    async def start(self) -> None:
        """Take up what is stored and begin an epoch; returns when writes are safe."""

    async def close(self) -> None:
        """Finish what was begun and let go of everything."""

    async def join(self, event_id: str, user_id: str, proof: int, level: int = 0) -> Place:
        """Give a place, or answer the one held; `proof` is a digest of what proves holding it, 0 for nothing."""

    async def place(self, event_id: str, arrival: int, user_id: str) -> Place:
        """Answer a held place; no presence."""

    async def touch(self, event_id: str, arrival: int, user_id: str, *, visible: bool = True) -> Place:
        """Note the holder's presence and answer the place."""

    async def leave(self, event_id: str, arrival: int, user_id: str) -> None:
        """Give a place up; repeating it changes nothing."""

    async def complete(self, event_id: str, user_id: str, outcome: str, actor: str) -> Place:
        """End a released visitor's stay; repeating it answers the same."""

    async def release(self, event_id: str, count: int, by: By) -> ReleaseResult:
        """Release by hand: outside the rate, inside the cap."""

    async def tick(self) -> int:
        """Run the batches that are due in any event; returns in how many ms to come again."""

    async def configure(
        self, event_id: str, changes: Mapping[str, object], by: By, *, replace: bool, revision: int | None = None
    ) -> tuple[EventView, bool]:
        """Create or change an event; returns (event, created). `revision` must be the current one when given."""

    async def control(self, event_id: str, action: str, by: By, outcome: str | None = None) -> EventView:
        """Open, pause, resume or close an event."""

    async def tell(self, event_id: str, text: str, by: By) -> EventView:
        """Set the message to everyone in line."""

    async def delete(self, event_id: str, by: By, revision: int | None = None) -> None:
        """Delete an event and everybody's place in it."""

    async def event(self, event_id: str) -> EventView:
        """Answer one event."""

    async def events(self) -> list[EventView]:
        """Answer all events, by id."""

    async def stats(self, event_id: str) -> Stats:
        """Answer the counts of one event."""

    def ranks(self, event_id: str, arrivals: Sequence[int]) -> Ranking:
        """Return positions and waits of arrivals given in line order; 0 for whoever does not wait.

        It may run one commit ahead of durable. Raises Refused when there is no such event.
        """

    def line_order(self, event_id: str, arrival: int) -> int:
        """Return a number that sorts this arrival by its place in line; it never changes. Raises Refused for nobody."""

    def notices(self) -> AsyncIterator[Sequence[Notice]]:
        """Yield what changed, once it is durable, for as long as the backend runs."""

    def records(self, from_version: int) -> AsyncIterator[Sequence[tuple[int, Record]]]:
        """Yield the durable records from an LSN on, to the newest."""

    async def snapshot(self) -> Mapping[str, object]:
        """Write a snapshot now; returns what was written."""

    def status(self) -> BackendStatus:
        """Answer how the backend fares; O(1)."""
