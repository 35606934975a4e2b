"""The event in plain values: states, settings, time, pace and lost history, from docs/states.md; no places in it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.actor import By
from engine.settings import Settings, settings_from

AFTER_START_MS = 60_000
TEXTS = ("name", "page", "return_to", "return_to_origins", "variants", "retention_s")
OPENING = ("queueing", "lobby", "lobby_opens_at_ms", "opens_at_ms")


class No(Exception):
    """The step is refused with one of `codes`, and changes nothing."""

    def __init__(self, *codes: str) -> None:
        super().__init__(", ".join(codes))
        self.codes = codes


class Gap(NamedTuple):
    """Arrivals that were perhaps given out before `epoch` began at `wall_ms`, and lost."""

    first: int
    last: int
    epoch: int
    wall_ms: int


@dataclass
class EventModel:
    """One event as its operator sees it. `wrote` collects the kinds of records that a step is to write."""

    settings: Settings = field(default_factory=Settings)
    state: str = "draft"
    before_opening: str = "draft"
    opened: bool = False
    reason: str | None = None
    outcome: str | None = None
    message: str | None = None
    suspended_ms: int = 0
    stopped_ms: int | None = None
    closed_ms: int = 0
    tick_ms: int = 0
    started_ms: int = 0
    secret: bytes = b""
    beacon: str | None = None
    value: str | None = None
    drawn: tuple[int, ...] | None = None
    wrote: list[str] = field(default_factory=list)

    def time_ms(self, now_ms: int) -> int:
        """Return event time: it stands still while the event is paused."""
        return (now_ms if self.stopped_ms is None else self.stopped_ms) - self.suspended_ms

    def next_release_ms(self, now_ms: int) -> int | None:
        """Return in how many ms a batch is due."""
        if self.state != "open":
            return None
        return max(0, self.tick_ms + self.settings.batch_interval_s * 1000 - self.time_ms(now_ms))

    def tick(self, now_ms: int) -> bool:
        """Return whether a batch is due, and begin the next interval: what it does not use is lost."""
        if self.next_release_ms(now_ms) != 0:
            return False
        self.tick_ms = self.time_ms(now_ms)
        return True

    def configure(self, changes: dict[str, object], by: By, fits: Callable[[set[str], Settings], bool]) -> None:
        """Change settings; what is fixed by now, or does not fit those in line, is refused."""
        before, after = self.settings, settings_from(changes, self.settings)
        changed = {name for name in changes if getattr(before, name) != getattr(after, name)}
        slower = after.batch_size / after.batch_interval_s < before.batch_size / before.batch_interval_s
        moved = "opens_at_ms" in changed and before.opens_at_ms is not None
        wrong = ["conflict"] * (any(map(self._is_fixed, changed)) or not fits(changed, after))
        wrong += ["bad_request"] * (not by.reason and (moved or (slower and self.state != "draft")))
        if wrong:
            raise No(*wrong)
        if changed:
            self.settings = after
            self.wrote.append("configured")

    def _is_fixed(self, name: str) -> bool:
        if self.state == "closed":
            return name not in TEXTS
        return {"draft": False, "lobby": name in OPENING[:2]}.get(self.state, name in OPENING)

    def open_lobby(self, secret: bytes, beacon: str | None) -> None:
        """Open the lobby and bind its draw."""
        if self.state == "lobby":
            return
        if self.state != "draft" or not self.settings.lobby:
            raise No("conflict")
        self.state = self.before_opening = "lobby"
        self.secret, self.beacon = secret, beacon
        self.wrote.append("lobbyopened")

    def open(self, by: By, value: str | None, now_ms: int) -> str:
        """Open, or open again; returns what that was: opened, drawn (`value` is the beacon's), reopened, or "="."""
        if self.state == "paused":
            raise No("conflict")
        if self.state == "open":
            return "="
        how = "reopened" if self.opened else "drawn" if self.before_opening == "lobby" else "opened"
        if how == "drawn" and by.actor == "schedule" and now_ms < self.started_ms + AFTER_START_MS:
            raise No("conflict")
        if how == "drawn" and self.beacon is not None and value is None:
            raise No("bad_request")
        self.value = value if how == "drawn" and self.beacon is not None else self.value
        self.state, self.opened, self.reason, self.outcome = "open", True, None, None
        self.tick_ms = self.time_ms(now_ms)
        self.wrote.append("reopened" if how == "reopened" else "opened")
        return how

    def pause(self, by: By, now_ms: int) -> None:
        """Stop event time; in a lobby, hold the opening."""
        if self.state in ("draft", "closed"):
            raise No("conflict")
        if not by.reason:
            raise No("bad_request")
        if self.state == "lobby":
            if self.settings.opens_at_ms is not None:
                self.settings = settings_from({"opens_at_ms": None}, self.settings)
                self.wrote.append("configured")
        elif self.state == "open":
            self.state, self.stopped_ms, self.reason = "paused", now_ms, by.reason
            self.wrote.append("paused")
        elif by.reason != self.reason:
            self.reason = by.reason
            self.wrote.append("messaged")

    def resume(self, now_ms: int) -> None:
        """Let event time go on."""
        if self.state == "open":
            return
        if self.state != "paused":
            raise No("conflict")
        self._go_on(now_ms)
        self.state, self.reason = "open", None
        self.wrote.append("resumed")

    def _go_on(self, now_ms: int) -> None:
        if self.stopped_ms is not None:
            self.suspended_ms += now_ms - self.stopped_ms
            self.stopped_ms = None

    def close(self, by: By, outcome: str | None, now_ms: int) -> None:
        """Close: nobody moves, those inside run out."""
        if not by.reason:
            raise No("bad_request")
        if self.state == "closed":
            return
        self._go_on(now_ms)
        self.state, self.reason, self.outcome, self.closed_ms = "closed", by.reason, outcome, self.time_ms(now_ms)
        self.wrote.append("closed")

    def tell(self, text: str) -> None:
        """Tell everybody in line something."""
        self.message = text or None
        self.wrote.append("messaged")

    def start(self, now_ms: int) -> None:
        """Begin an epoch: a full interval passes first, and a lobby is not opened by the clock for a minute."""
        self.started_ms = now_ms
        self.tick_ms = self.time_ms(now_ms)
