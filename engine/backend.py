"""The contract between the server and whatever holds the line.

A backend speaks the domain's verbs and answers in the words of `engine.views`; never SQL, keys or offsets.
Every answer leaves a backend only when what it says is as durable as the backend declares. Each backend says
what it can do as data, `Capabilities`, and one conformance suite holds each to what it says. Verbs raise
`Refused` and have then changed nothing.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol, TypeAlias

from engine.actor import By, Entrant, Holder, Whom
from engine.errors import Refused
from engine.records import Record
from engine.settings import Settings
from engine.views import EventView, Fairness, Notice, Place, Ranking, ReleaseResult, Session, Stats


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


Role: TypeAlias = Literal["primary", "follower", "none"]


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """How the backend fares: `details` are numbers and words by name, for status pages and metrics.

    `role` is "primary" (it decides), "follower" (it reads for itself and sends on what is to be decided) or "none".
    """

    name: str
    epoch: int
    version: int
    durable_version: int
    degraded: tuple[str, ...]
    refuses_joins: str | None
    details: Mapping[str, object]
    role: Role = "primary"
    is_stale: bool = False


class Backend(Protocol):
    """The domain's verbs. `user_id` and `event_id` are checked by the caller; times are the backend's own."""

    @property
    def capabilities(self) -> Capabilities:
        """What it honours."""

    @property
    def epoch(self) -> int:
        """The epoch it is in; it grows with every start and with every change of who decides. O(1)."""

    @property
    def is_stale(self) -> bool:
        """Whether answers may be older than what was answered elsewhere before; O(1)."""

    async def start(self) -> None:
        """Take up what is stored and begin an epoch; returns when writes are safe."""

    async def close(self) -> None:
        """Finish what was begun and let go of everything."""

    async def join(self, event_id: str, entrant: Entrant) -> Place:
        """Give a place, or answer the one held."""

    async def place(self, event_id: str, holder: Holder) -> Place:
        """Answer a held place; no presence."""

    async def touch(self, event_id: str, holder: Holder, *, visible: bool = True) -> Place:
        """Note the holder's presence and answer the place; not `proven` where the token is from before a transfer."""

    def heard(self, event_id: str, arrivals: Sequence[int], visible: bool) -> None:
        """Note the presence of many at once; O(1) each, no answer. Who is not there any more is passed over."""

    async def leave(self, event_id: str, holder: Holder) -> None:
        """Give a place up; repeating it changes nothing."""

    async def extend_claim(self, event_id: str, holder: Holder) -> Place:
        """Give a ready visitor more time to claim the turn."""

    async def transfer(self, event_id: str, holder: Holder, proof: int) -> Place:
        """Make whoever shows a transfer code the holder; its generation is the one it was made for."""

    async def readmit(self, event_id: str, holder: Holder, epoch: int, issued_ms: int) -> Place:
        """Take up a place that was lost with a tail of the log, on the word of its token."""

    # ---- the site and the operator about one visitor

    async def redeem(
        self, event_id: str, number: int, release: int, subject: str, jti: str, request: str | None, actor: str
    ) -> Session:
        """Redeem the pass of one release of a number: once, and again for the same `request`."""

    async def session(self, event_id: str, whom: Whom) -> Session | None:
        """Answer the session somebody is in, or whose confirmation page may still be seen."""

    async def extend_session(self, event_id: str, whom: Whom, actor: str) -> Session:
        """Give an active visitor more time."""

    async def complete(self, event_id: str, whom: Whom, outcome: str, actor: str) -> Place:
        """End a released visitor's stay; repeating it answers the same."""

    async def admit(self, event_id: str, whom: Whom, by: By) -> Place:
        """Let one visitor in ahead of the others."""

    async def remove(self, event_id: str, whom: Whom, by: By, *, ban: bool = False) -> Place:
        """Take a place away; with `ban` for good."""

    async def find(self, event_id: str, whom: Whom, *, least_version: int | None = None) -> Place:
        """Answer anybody's place; no presence.

        Who was told of a change at `least_version` is content with an answer as of then, and waits for nothing newer.
        """

    async def visitors(self, event_id: str, status: str | None, after_arrival: int, limit: int) -> list[Place]:
        """Answer places by arrival."""

    # ---- releases

    async def release(self, event_id: str, count: int, by: By) -> ReleaseResult:
        """Release by hand: outside the rate, inside the cap."""

    async def tick(self) -> int:
        """Run the batches that are due in any event; returns in how many ms to come again."""

    async def configure(
        self, event_id: str, changes: Mapping[str, object], by: By, *, replace: bool, revision: int | None = None
    ) -> tuple[EventView, bool]:
        """Create or change an event; returns (event, created). `revision` must be the current one when given."""

    async def control(
        self, event_id: str, action: str, by: By, outcome: str | None = None, beacon: str | None = None
    ) -> EventView:
        """Open the lobby or the event, pause, resume or close it.

        `beacon` names a public value when the lobby opens, and is that value when the event does.
        """

    async def tell(self, event_id: str, text: str, by: By) -> EventView:
        """Set the message to everyone in line."""

    async def delete(self, event_id: str, by: By, revision: int | None = None) -> None:
        """Delete an event and everybody's place in it."""

    async def event(self, event_id: str, *, least_version: int | None = None) -> EventView:
        """Answer one event, as of `least_version` at least where it is given."""

    async def events(self) -> list[EventView]:
        """Answer all events, by id."""

    async def stats(self, event_id: str) -> Stats:
        """Answer the counts of one event."""

    async def fairness(self, event_id: str) -> Fairness:
        """Answer how fair it has been."""

    async def draw_entries(self, event_id: str, after_number: int, limit: int) -> list[tuple[int, int]]:
        """Answer (arrival, number) of the lobby's draw, in order of number."""

    def ranks(self, event_id: str, arrivals: Sequence[int]) -> Ranking:
        """Return positions and waits of arrivals given in line order; 0 for whoever does not wait.

        It may run one commit ahead of durable. Raises Refused when there is no such event.
        """

    def line_order(self, event_id: str, arrival: int) -> int:
        """Return a number that sorts this arrival by its place in line; only a draw changes it. Raises Refused."""

    def notices(self) -> AsyncIterator[Sequence[Notice]]:
        """Yield what changed from this call on, once it is durable, for as long as the backend runs."""

    def records(self, from_version: int) -> AsyncIterator[Sequence[tuple[int, Record]]]:
        """Yield the durable records from an LSN on, to the newest."""

    async def snapshot(self) -> Mapping[str, object]:
        """Write a snapshot now; returns what was written."""

    def status(self) -> BackendStatus:
        """Answer how the backend fares; O(1)."""
