"""Ages: frames that are right are aged from their release, and every way of being wrong is found."""

from array import array

import pytest

from bench.ages import NEVER_MS, Heard, Release, judge, released
from bench.outcome import BenchFailed
from server.audience import text_frame

RELEASES = [Release(10, 2, 1_000_000_000), Release(20, 4, 2_000_000_000)]
NUMBERS = [1, 3, 5]


def place(position: int, version: int) -> bytes:
    payload = b'{"type":"place","position":%d,"ahead":%d,"estimated_wait_seconds":9,"version":%d}'
    return text_frame(payload % (position, position - 1, version))


def ready(version: int) -> bytes:
    return text_frame(b'{"type":"ready","status":"ready","pass":"x","epoch":1,"version":%d}' % version)


def heard(*reads: tuple[int, float, bytes]) -> Heard:
    """Return reads of (socket, seconds, bytes)."""
    owners, seconds, chunks = zip(*reads, strict=True)
    return Heard(array("l", owners), array("q", (int(at_s * 1e9) for at_s in seconds)), list(chunks))


TOLD = [
    (0, 1.1, ready(10)),
    (1, 1.2, place(1, 10)),
    (2, 1.3, place(3, 10)),
    (1, 2.1, ready(21)),
    (2, 2.2, b"\x89\0" + place(1, 25)),
]


def test_frames_are_aged_from_the_newest_release_they_know_of() -> None:
    ages = judge(NUMBERS, heard(*TOLD), RELEASES)
    assert sorted(map(round, ages.frames_ms)) == [100, 100, 200, 200, 300]
    assert sorted(map(round, ages.releases_ms)) == [100, 100, 200, 200, 300] and ages.told == 5


def test_a_release_that_was_skipped_is_as_old_as_the_next_frame_makes_it() -> None:
    ages = judge([5], heard((0, 2.2, place(1, 20))), RELEASES)
    assert list(map(round, ages.frames_ms)) == [200] and sorted(map(round, ages.releases_ms)) == [200, 1200]


def test_a_release_that_a_socket_never_learns_of_counts_as_an_hour() -> None:
    assert list(judge([1], heard((0, 1.1, ready(10))), RELEASES).releases_ms) == pytest.approx([100])
    assert list(judge([3], heard((0, 1.1, place(1, 10))), RELEASES).releases_ms) == pytest.approx([100, NEVER_MS])
    assert list(judge([9], Heard(), RELEASES).releases_ms) == [NEVER_MS, NEVER_MS]


def test_releases_from_before_are_known_to_everybody() -> None:
    before = [Release(5, 1, 0), *RELEASES]
    assert judge([9], heard((0, 1.5, place(7, 12)), (0, 2.5, place(5, 20))), before).told == 2


WRONG = {
    "another position": place(2, 10),
    "ahead does not fit": text_frame(b'{"type":"place","position":3,"ahead":3,"version":10}'),
    "another version": place(3, 20),
    "from before any release": place(5, 9),
    "the turn of somebody who waits": ready(10),
    "the same again": place(3, 10) * 2,
    "older than before": place(1, 20) + place(3, 10),
    "something else": text_frame(b'{"type":"event","state":"paused","version":10}'),
}


@pytest.mark.parametrize("chunk", WRONG.values(), ids=WRONG.keys())
def test_a_frame_that_is_wrong_or_told_twice_fails(chunk: bytes) -> None:
    with pytest.raises(BenchFailed):
        judge([5], heard((0, 1.5, chunk)), RELEASES)


def test_the_log_tells_how_many_were_released_and_nothing_else_may_move_the_line() -> None:
    first = {"lsn": 3, "kind": "released", "numbers": [1, 2]}
    records = [{"lsn": 1, "kind": "joined"}, first, {"lsn": 7, "kind": "released", "numbers": [3]}]
    assert released(records) == [(3, 2), (7, 3)]
    for other in ({"lsn": 4, "kind": "left"}, {"lsn": 4, "kind": "released", "numbers": [4]}):
        with pytest.raises(BenchFailed):
            released([*records[:2], other])
