"""The checker's model on what a sale seldom has: a lobby, a gap, groups, a crash inside a release, a purge."""

from typing import Any

import pytest

from tests.scenarios.evidence import Limits, LogLine
from tests.scenarios.plain_line import PlainLine

SEED = "00" * 32
ORDER_OF_FOUR = {1: 1, 2: 3, 3: 4, 4: 2}  # number → arrival, as docs/draw.md has it for this seed
MINUTE_MS = 60_000


class Written:
    """A log as it is written, a second from record to record, and everything that the model finds."""

    def __init__(self, **settings: Any) -> None:
        self.model = PlainLine()
        self.found: list[str] = []
        self.at_ms = 0
        self.settings = Limits(**settings)
        self.write("started", epoch=1)
        self.write("configured", settings=self.settings)

    def write(self, kind: str, after_ms: int = 1_000, **fields: Any) -> None:
        self.at_ms += after_ms
        line = LogLine(self.model.lsn + 1, kind, self.at_ms, **fields)
        self.found += [f"{fault}: {sentence}" for fault, sentence in self.model.apply(line)]

    def join(self, arrival: int, *, in_lobby: bool = False, **fields: Any) -> None:
        key = arrival << 32 | (0 if in_lobby else arrival)
        self.write("joined", arrival=arrival, key=key, user_id=f"u{arrival}", **fields)

    def release(self, *numbers: int) -> None:
        until_ms = self.at_ms + 1_000 + self.settings.claim_window_s * 1000
        self.write("released", numbers=list(numbers), until_ms=until_ms)

    def kinds(self) -> list[str]:
        return [fault.partition(":")[0] for fault in self.found]


def drawn() -> Written:
    log = Written()
    log.write("lobbyopened")
    for arrival in (1, 2, 3, 4):
        log.join(arrival, in_lobby=True)
    log.write("opened", seed=SEED, count=4)
    return log


def test_a_lobby_is_let_in_in_the_order_of_its_draw() -> None:
    log = drawn()
    assert log.model.arrival_of == ORDER_OF_FOUR
    log.join(5)
    log.release(1, 2, 3, 4, 5)
    assert not log.found
    assert {row.status for row in log.model.rows.values()} == {"ready"}


def test_letting_a_lobby_in_in_the_order_of_joining_is_found() -> None:
    log = drawn()
    log.release(*[number for number, _ in sorted(ORDER_OF_FOUR.items(), key=lambda drawn: drawn[1])])
    assert set(log.kinds()) == {"skipped"}


def test_a_draw_of_more_or_fewer_than_are_in_the_lobby_is_found() -> None:
    log = Written()
    log.write("lobbyopened")
    log.join(1, in_lobby=True)
    log.write("opened", seed=SEED, count=2)
    assert log.kinds() == ["diverged"]


def test_a_level_moves_somebody_ahead_and_keeps_them_behind_their_equals() -> None:
    log = Written(priority_boost=2)
    log.write("lobbyopened")
    for arrival in (1, 2, 3, 4):
        log.join(arrival, in_lobby=True, level=int(arrival == 2))
    log.write("opened", seed=SEED, count=4)
    log.release(1, 2, 4, 3)
    assert not log.found


def test_lost_places_leave_a_gap_and_come_back_out_of_it_once() -> None:
    log = Written()
    log.write("opened")
    log.join(1)
    log.write("started", epoch=2, gap=10)
    log.join(12)
    log.write("readmitted", arrival=5, key=5 << 32 | 5, user_id="lost")
    log.release(1, 5, 12)
    assert not log.found
    log.write("readmitted", arrival=5, key=5 << 32 | 5, user_id="another")
    log.write("readmitted", arrival=20, key=20 << 32 | 20, user_id="liar")
    assert log.kinds() == ["duplicated", "duplicated"]


def test_a_group_counts_by_its_size_under_the_cap() -> None:
    log = Written(max_active=5, safety_margin=1)
    log.write("opened")
    log.join(1, size=3)
    log.join(2)
    log.join(3)
    log.release(1, 2)
    assert not log.found
    log.release(3)
    assert log.kinds() == ["over_cap"]


@pytest.mark.parametrize(("after", "found"), [("started", []), ("resumed", ["diverged", "skipped"])])
def test_a_release_that_went_with_the_process_explains_a_parking_without_it(after: str, found: list[str]) -> None:
    log = Written()
    log.write("opened")
    for arrival in (1, 2, 3):
        log.join(arrival)
    log.write("parked", after_ms=2 * MINUTE_MS, numbers=[2], last_seen_ms=[0])
    log.write(after, epoch=2)
    assert sorted(log.kinds()) == found


def test_stepping_over_all_who_are_absent_needs_nobody_to_be_let_in() -> None:
    log = Written()
    log.write("opened")
    for arrival in (1, 2, 3):
        log.join(arrival)
    log.write("parked", after_ms=2 * MINUTE_MS, numbers=[1, 2], last_seen_ms=[0, 0])
    log.join(4)
    log.write("returned", arrival=1)
    log.release(1, 3, 4)
    assert not log.found


@pytest.mark.parametrize("heard", ["returned", "started", "reopened"])
def test_whoever_was_just_heard_is_not_stepped_over(heard: str) -> None:
    log = Written()
    log.write("opened")
    log.join(1)
    log.write("parked", after_ms=2 * MINUTE_MS, numbers=[1], last_seen_ms=[0])
    log.write("returned", arrival=1)
    assert not log.found
    if heard != "returned":
        log.write("closed", after_ms=2 * MINUTE_MS)
        log.write("reopened", after_ms=2 * MINUTE_MS * (heard == "started"))
        log.write(heard if heard == "started" else "messaged", epoch=2)
    log.write("parked", after_ms=59_000, numbers=[1], last_seen_ms=[0])
    assert log.kinds() == ["skipped"]


def test_time_stands_still_while_the_event_is_paused() -> None:
    log = Written(claim_window_s=10)
    log.write("opened")
    log.join(1)
    log.release(1)
    log.write("paused")
    log.write("resumed", after_ms=MINUTE_MS)
    log.write("lapsed", after_ms=13_999, arrival=1)
    assert log.kinds() == ["cut_short"]


def test_a_turn_may_lapse_once_window_and_leeway_have_run() -> None:
    log = Written(claim_window_s=10)
    log.write("opened")
    log.join(1)
    log.release(1)
    log.write("paused")
    log.write("resumed", after_ms=MINUTE_MS)
    log.write("lapsed", after_ms=14_000, arrival=1)
    assert not log.found


def test_after_a_purge_no_place_is_there_and_no_number_known() -> None:
    log = Written()
    log.write("opened")
    log.join(1)
    log.write("closed")
    log.write("purged")
    assert not log.found
    log.write("left", arrival=1)
    assert log.kinds() == ["diverged"]


def test_a_purge_while_somebody_is_inside_or_the_event_is_open_is_found() -> None:
    log = Written()
    log.write("opened")
    log.join(1)
    log.release(1)
    log.write("purged")
    assert log.kinds() == ["diverged", "diverged"]


@pytest.mark.parametrize("kind", ["resumed", "reopened", "lobbyopened", "a kind of the future"])
def test_what_cannot_happen_to_an_open_event_is_found(kind: str) -> None:
    log = Written()
    log.write("opened")
    log.write(kind)
    assert log.kinds() == ["diverged"]
