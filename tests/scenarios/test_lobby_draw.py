"""A lobby of a hundred thousand on a real daemon: nobody finds the seed before, everybody recomputes the draw after."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.scenarios.independent_draw import problem_of
from tests.scenarios.lobbies import (
    PLAIN,
    WITH_BEACON,
    Lobby,
    Stage,
    cut_short,
    disguises,
    faults,
    fill,
    hiding_places,
    numbers_in,
)
from tests.server.daemons import Daemon, cli
from tests.server.public_draw import verified

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

INDEPENDENT = Path(__file__).with_name("independent_draw.py")
Line: TypeAlias = dict[str, Any]


@dataclass
class Opened:
    """A lobby that was looked through, and then opened."""

    stage: Stage
    before: dict[str, Any]
    everything: dict[str, bytes]
    publication: bytes


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("lobbies") / "full"
    fill(data)
    return data


@pytest.fixture(scope="module")
def daemon(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    data = Path(shutil.copytree(full, tmp_path_factory.mktemp("opened") / "data"))
    started = Daemon(data, "--log-level", "debug")
    yield started
    started.kill()


@pytest.fixture(scope="module")
def opened(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> dict[Lobby, Opened]:
    """Give both lobbies, looked through before either was opened."""
    stages = [Stage(daemon, lobby) for lobby in (PLAIN, WITH_BEACON)]
    before = [stage.draw() for stage in stages]
    folder = tmp_path_factory.mktemp("backups")
    everything = [stage.everything(folder / stage.lobby.event_id) for stage in stages]
    for stage in stages:
        stage.open()
    facts = zip(stages, before, everything, strict=True)
    return {stage.lobby: Opened(stage, was, had, stage.publication()) for stage, was, had in facts}


both = pytest.mark.parametrize("lobby", [PLAIN, WITH_BEACON], ids=lambda lobby: lobby.event_id)


@both
def test_before_the_opening_the_seed_is_nowhere(opened: dict[Lobby, Opened], lobby: Lobby) -> None:
    event = opened[lobby]
    secret = bytes.fromhex(event.stage.draw()["seed"])
    assert (event.before["seed"], event.before["count"], event.before["entries_sha256"]) == (None, None, None)
    assert hiding_places(event.everything, disguises(secret, lobby.beacon)) == []
    commitment = {"commitment": event.before["commitment"].encode()}
    found = " ".join(hiding_places(event.everything, commitment))
    for place in (".seg", ".snap", "/draw", "records?from=1"):
        assert place in found, "what is there is found this way"
    for file in ("keys/ring.json", "keys/admin.key"):
        assert any(path.endswith(file) for path in event.everything), "keys are looked through as well"


@both
def test_after_the_opening_the_seed_is_found_by_the_same_search(opened: dict[Lobby, Opened], lobby: Lobby) -> None:
    draw = opened[lobby].stage.draw()
    now = {str(path): path.read_bytes() for path in opened[lobby].stage.daemon.data.rglob("*.seg")}
    assert hiding_places(now, disguises(bytes.fromhex(draw["seed"]), lobby.beacon))


@both
def test_the_draw_is_what_was_committed_to_and_both_verifiers_confirm_it(
    opened: dict[Lobby, Opened], lobby: Lobby, tmp_path: Path
) -> None:
    event = opened[lobby]
    draw = event.stage.draw()
    assert draw["commitment"] == event.before["commitment"] == sha256(bytes.fromhex(draw["seed"])).hexdigest()
    assert sorted(numbers_in(event.publication)) == lobby.arrivals and draw["count"] == len(lobby.arrivals)
    file = tmp_path / "draw.ndjson"
    file.write_bytes(event.publication)
    known = ["--commitment", event.before["commitment"], *(["--beacon", lobby.beacon] if lobby.beacon else [])]
    for source in (file, event.stage.url):
        told = cli("verify", "--draw", source, *known)
        assert told.returncode == 0, told.stdout + told.stderr
    result = subprocess.run([sys.executable, "-I", INDEPENDENT, file], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "OK\n", "")


# ---- a draw that somebody changed -------------------------------------------------------------------------


def changed_seed(draw: Line, entries: list[Line]) -> None:
    draw["seed"] = sha256(b"another").hexdigest()


def changed_seed_and_commitment(draw: Line, entries: list[Line]) -> None:
    draw["seed"] = sha256(b"another").hexdigest()
    draw["commitment"] = sha256(bytes.fromhex(draw["seed"])).hexdigest()


def changed_beacon(draw: Line, entries: list[Line]) -> None:
    draw["beacon"] = {"name": "Lotto of Saturday", "value": "1 2 3 4 5 6"}


def swapped(draw: Line, entries: list[Line]) -> None:
    one, other = entries[700], entries[701]
    one["arrival"], other["arrival"] = other["arrival"], one["arrival"]


def moved_to_the_front(draw: Line, entries: list[Line]) -> None:
    arrivals = [entry["arrival"] for entry in entries]
    arrivals.insert(0, arrivals.pop(1_500))
    for entry, arrival in zip(entries, arrivals, strict=True):
        entry["arrival"] = arrival


def removed(draw: Line, entries: list[Line]) -> None:
    del entries[700]


def removed_and_counted_again(draw: Line, entries: list[Line]) -> None:
    del entries[700]
    draw["count"] -= 1
    for number, entry in enumerate(entries, 1):
        entry["number"] = number


def added_at_the_end(draw: Line, entries: list[Line]) -> None:
    entries.append({"arrival": 1_000_000, "number": len(entries) + 1})
    draw["count"] += 1


def listed_twice(draw: Line, entries: list[Line]) -> None:
    entries[701]["arrival"] = entries[700]["arrival"]


def changed_count(draw: Line, entries: list[Line]) -> None:
    draw["count"] -= 1


CHANGES: list[Callable[[Line, list[Line]], None]] = [
    changed_seed, changed_seed_and_commitment, changed_beacon, swapped, moved_to_the_front, removed,
    removed_and_counted_again, added_at_the_end, listed_twice, changed_count,
]  # fmt: skip
OF_THE_LARGE = (changed_seed_and_commitment, swapped, removed_and_counted_again)


@pytest.mark.parametrize(
    ("lobby", "change"),
    [(WITH_BEACON, change) for change in CHANGES] + [(PLAIN, change) for change in OF_THE_LARGE],
    ids=lambda it: it.event_id if isinstance(it, Lobby) else it.__name__,
)
def test_whoever_changes_a_published_draw_is_found_out_by_both_verifiers(
    opened: dict[Lobby, Opened],
    lobby: Lobby,
    change: Callable[[Line, list[Line]], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    draw, *entries = [json.loads(line) for line in opened[lobby].publication.splitlines()]
    change(draw, entries)
    lines = [json.dumps(line) for line in (draw, *entries)]
    file = tmp_path / "changed.ndjson"
    file.write_text("\n".join(lines) + "\n")
    verdict = verified(capsys, "--draw", file)
    assert verdict.code == 65 and verdict.err
    assert problem_of(lines)


# ---- the line after it ------------------------------------------------------------------------------------


@both
def test_whoever_comes_late_stands_behind_everybody_who_was_drawn(opened: dict[Lobby, Opened], lobby: Lobby) -> None:
    daemon, event = opened[lobby].stage.daemon, f"/v1/events/{lobby.event_id}"
    drawn = len(lobby.arrivals)
    for late in (1, 2):
        status, place = daemon.call(
            "POST", f"{event}/join", {"user_id": f"late-{late}"}, Idempotency_Key=f"late-{late}"
        )
        assert (status, place["status"], place["number"]) == (201, "waiting", lobby.people + late)
        assert place["position"] == drawn + late


@both
def test_everybody_has_the_place_that_was_published(opened: dict[Lobby, Opened], lobby: Lobby) -> None:
    numbers, daemon = numbers_in(opened[lobby].publication), opened[lobby].stage.daemon
    for arrival in lobby.arrivals[:: len(numbers) // 40]:
        user_id = lobby.user_ids[arrival - 1]
        body, key = {"user_id": user_id}, f"key-{user_id}"
        status, place = daemon.call("POST", f"/v1/events/{lobby.event_id}/join", body, Idempotency_Key=key)
        assert (status, place["arrival"], place["status"]) == (200, arrival, "waiting")
        assert place["number"] == place["position"] == numbers[arrival]


@pytest.mark.parametrize("delay_s", [0.0, 0.04])
def test_a_kill_while_it_draws_changes_no_number(
    opened: dict[Lobby, Opened], full: Path, tmp_path: Path, delay_s: float
) -> None:
    cut = cut_short(Path(shutil.copytree(full, tmp_path / "data")), PLAIN, delay_s)
    assert faults(cut, opened[PLAIN].publication) == []
    assert cut.drawing or delay_s, "the kill right after the opening falls into the draw"
