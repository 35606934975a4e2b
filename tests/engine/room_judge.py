"""The judge: reads the records of one event, and nothing else, and says whether the promises were kept.

Never over the cap by a release, never over the rate in any window, the released were the head of the line, a place is
parked only when a release reaches it, one live place an identity, one entry a pass, no number twice, and the
draw's secret nowhere before the opening.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.draw import commitment_of, mixed, order
from engine.records import (
    Admitted,
    Completed,
    Configured,
    Deleted,
    Expired,
    Joined,
    Lapsed,
    Left,
    LobbyOpened,
    Opened,
    Parked,
    Purged,
    Readmitted,
    Record,
    Redeemed,
    Released,
    Removed,
    Returned,
    encode,
)
from engine.settings import Settings, settings_from

LINE = ("waiting",)
INSIDE = ("ready", "active")


@dataclass
class Seen:
    """One place, as its records tell it."""

    user_id: str
    key: int
    size: int
    level: int = 0
    status: str = "waiting"
    late: str = "unexplained"
    redeemed: set[str] = field(default_factory=set)


class Judge:
    """Takes records in order; raises AssertionError at the first broken promise."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.places: dict[int, Seen] = {}
        self.arrival_of: dict[int, int] = {}
        self.batches: list[tuple[int, int]] = []
        self.commitment = ""
        self.last_arrival = 0
        self.skipped = dict.fromkeys(("absent", "unclaimed", "removed", "left"), 0)
        self.overtaken = dict.fromkeys(("returned", "readmitted", "unexplained"), 0)
        self.newest: dict[int, int] = {}
        self.released = self.admitted = self.completed = self.peak_inside = 0
        self.state = "draft"

    def take(self, record: Record) -> None:
        """Judge one record."""
        match record:
            case Configured():
                self.settings = settings_from(record.settings)
            case LobbyOpened():
                self.state, self.commitment = "lobby", record.commitment
            case Opened():
                self._opened(record)
            case Joined():
                assert record.arrival > self.last_arrival, f"arrival {record.arrival} was given out before"
                self.last_arrival = record.arrival
                self._joined(record.arrival, Seen(record.user_id, record.key, record.size, record.level))
            case Readmitted():
                self._joined(record.arrival, Seen(record.user_id, record.key, 1, late="readmitted"))
            case Parked():
                self._parked(record)
            case Released():
                self._released(record)
            case Admitted():
                self._let_in(record.arrival)
                self.admitted += 1
            case Redeemed():
                self._redeemed(record)
            case Purged():
                self.places.clear()
            case Deleted():
                self.__init__()  # type: ignore[misc]
            case Returned():
                self._move(record.arrival, "parked", "waiting")
            case Lapsed():
                self.skipped["unclaimed"] += 1
                self._move(record.arrival, "ready", "parked")
                self.places[record.arrival].late = "returned"
            case Expired() | Left() | Removed() | Completed():
                self._ended(record)
            case _:
                pass

    def _joined(self, arrival: int, place: Seen) -> None:
        assert arrival not in self.places, f"arrival {arrival} was given out twice"
        live = {its.user_id for its in self.places.values() if its.status != "ended"}
        assert place.user_id not in live, f"{place.user_id} holds two places"
        place.status = "lobby" if self.state == "lobby" else "waiting"
        self.places[arrival] = place
        if self.state != "lobby":
            self.arrival_of[place.key & 0xFFFF_FFFF] = arrival

    def _opened(self, record: Opened) -> None:
        self.state = "open"
        lobby = [arrival for arrival, its in self.places.items() if its.status == "lobby"]
        assert record.count == len(lobby)
        if not record.seed:
            assert not lobby and not self.commitment, "a lobby was opened without its seed"
            return
        secret = bytes.fromhex(record.seed)
        assert commitment_of(secret) == self.commitment, "another seed than the one committed to"
        for number, arrival in enumerate(order(mixed(secret, record.beacon), lobby), 1):
            place = self.places[arrival]
            effective = max(1, number - place.level * self.settings.priority_boost)
            place.status, place.key = "waiting", effective << 32 | number
            self.arrival_of[number] = arrival

    def _line(self) -> list[int]:
        waiting = (place for place in self.places.values() if place.status == "waiting")
        return [place.key & 0xFFFF_FFFF for place in sorted(waiting, key=lambda place: place.key)]

    def _parked(self, record: Parked) -> None:
        assert len(record.numbers) == len(record.last_seen_ms)
        for number in record.numbers:
            self._move(self.arrival_of[number], "waiting", "parked")
            self.places[self.arrival_of[number]].late = "returned"
        self.skipped["absent"] += len(record.numbers)

    def _released(self, record: Released) -> None:
        assert list(record.numbers) == self._line()[: len(record.numbers)], "the released were not the head"
        self.released += len(record.numbers)
        for number in record.numbers:
            self._let_in(self.arrival_of[number])
            if not record.manual:
                self._note_overtaking(number, self.places[self.arrival_of[number]])
        if not record.manual and self.settings.queueing != "passthrough":
            self.batches.append((record.at_ms, len(record.numbers)))
            begin_ms = record.at_ms - self.settings.batch_interval_s * 1000
            window = sum(count for at_ms, count in self.batches if at_ms > begin_ms)
            assert window <= self.settings.batch_size, f"{window} released in one window"

    def _note_overtaking(self, number: int, place: Seen) -> None:
        """Whoever comes after a later number of the same level was overtaken, and there is a reason."""
        if number < self.newest.get(place.level, 0):
            self.overtaken[place.late] += 1
        self.newest[place.level] = max(number, self.newest.get(place.level, 0))

    def _ended(self, record: Expired | Left | Removed | Completed) -> None:
        place = self.places[record.arrival]
        if isinstance(record, Left | Removed) and place.status in ("lobby", "waiting", "parked"):
            self.skipped["left" if isinstance(record, Left) else "removed"] += 1
        if isinstance(record, Expired) and record.cause == "unclaimed":
            self.skipped["unclaimed"] += 1
        self.completed += isinstance(record, Completed)
        place.status = "ended"

    def _let_in(self, arrival: int) -> None:
        place, settings = self.places[arrival], self.settings
        assert place.status in ("waiting", "parked")
        place.status = "ready"
        inside = sum(its.size for its in self.places.values() if its.status in INSIDE)
        self.peak_inside = max(self.peak_inside, inside)
        most = settings.max_active
        assert most is None or inside <= most - settings.safety_margin, f"{inside} inside"

    def _redeemed(self, record: Redeemed) -> None:
        self._move(record.arrival, "ready", "active")
        redeemed = self.places[record.arrival].redeemed
        assert record.assumed == (record.jti == ""), "a session is assumed exactly where no pass was shown"
        assert record.jti not in redeemed, f"pass {record.jti} let in twice"
        redeemed.add(record.jti)

    def _move(self, arrival: int, before: str, after: str) -> None:
        assert self.places[arrival].status == before, f"arrival {arrival} was not {before}"
        self.places[arrival].status = after


def judge(log: Iterable[Record]) -> Judge:
    """Judge a whole log of one event; returns the judge, who has counted what was not as it should be."""
    its = Judge()
    log = list(log)
    for record in log:
        its.take(record)
    revealed = [index for index, record in enumerate(log) if isinstance(record, Opened) and record.seed]
    for index in revealed:
        seed = log[index].seed  # type: ignore[union-attr]
        lobby = max(i for i in range(index) if isinstance(log[i], LobbyOpened))
        assert seed not in repr([encode(record) for record in log[lobby:index]]), "the seed was told before the opening"
    return its
