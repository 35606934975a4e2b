"""Lobbies full of people in a data folder, and what a daemon over it publishes, exports and keeps before and after.

`python -m tests.scenarios.lobbies --kills 20` opens the same lobby of 100,000 again and again and kills the daemon
while it draws: whoever was told a number has it afterwards, and the draw is the same every time.
"""

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import threading
import urllib.request
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from engine.actor import Holder
from server.main import monotonic_ms, wall_ms
from tests.scenarios.client import Connection, Reply, connections, gather_over, request
from tests.scenarios.crowds import OPERATOR, backend_in, join_all, key_of
from tests.server.daemons import Daemon, cli, until

CROWD, LEAVERS = 100_000, 1_000
ASKED = 50
NAME_OF_BEACON, BEACON = "Lotto of Saturday", "7 11 23 31 40 42 Zürich"


class Lobby(NamedTuple):
    """One event of the folder: who came, who left again, and the beacon it is drawn with, None without."""

    event_id: str
    people: int
    leavers: int
    beacon: str | None

    @property
    def user_ids(self) -> list[str]:
        """Return everybody who came, in order of arrival."""
        return [f"{self.event_id}-{arrival}" for arrival in range(1, self.people + 1)]

    @property
    def arrivals(self) -> list[int]:
        """Return the arrivals that are drawn."""
        gone = set(self._gone())
        return [arrival for arrival in range(1, self.people + 1) if arrival not in gone]

    def _gone(self) -> Iterator[int]:
        every = self.people // self.leavers
        return iter(range(every, self.people + 1, every))


PLAIN = Lobby("plain", CROWD, LEAVERS, None)
WITH_BEACON = Lobby("beacon", 2_000, 20, BEACON)


def fill(data: Path, lobbies: Sequence[Lobby] = (PLAIN, WITH_BEACON)) -> None:
    """Make a data folder in which these lobbies are open and full."""
    uvloop.run(_fill(data, lobbies))


async def _fill(data: Path, lobbies: Sequence[Lobby]) -> None:
    async with backend_in(data, monotonic_ms, wall_ms) as backend:
        for lobby in lobbies:
            await backend.configure(lobby.event_id, {"lobby": True, "batch_interval_s": 3600}, OPERATOR, replace=True)
            beacon = None if lobby.beacon is None else NAME_OF_BEACON
            await backend.control(lobby.event_id, "lobby", OPERATOR, beacon=beacon)
            places = await join_all(backend, lobby.event_id, lobby.user_ids)
            for arrival in lobby._gone():
                await backend.leave(lobby.event_id, Holder(arrival, places[arrival - 1].user_id, 0))


# ---- what a daemon says of it -----------------------------------------------------------------------------


@dataclass(slots=True)
class Stage:
    """A daemon over a folder of lobbies, asked about one of them."""

    daemon: Daemon
    lobby: Lobby

    @property
    def url(self) -> str:
        """Return the event's public address."""
        return f"{self.daemon.url}/v1/events/{self.lobby.event_id}"

    @property
    def admin(self) -> str:
        """Return the path of the event in the admin API."""
        return f"/v1/admin/events/{self.lobby.event_id}"

    def raw(self, address: str) -> bytes:
        """Return the bytes of an answer, asked for with the admin key."""
        asked = urllib.request.Request(address, headers={"Authorization": f"Bearer {self.daemon.admin_key}"})
        with urllib.request.urlopen(asked, timeout=30) as response:
            answer: bytes = response.read()
        return answer

    def draw(self) -> dict[str, Any]:
        """Return what is public of the draw."""
        told: dict[str, Any] = json.loads(self.raw(f"{self.url}/draw"))
        return told

    def open(self) -> None:
        """Open the event, with the value of the beacon where it has one."""
        body = {} if self.lobby.beacon is None else {"beacon": self.lobby.beacon}
        self.daemon.admin("POST", f"{self.admin}/open", body)

    def publication(self) -> bytes:
        """Return the draw and its entries as docs/draw.md puts them together, once all of it is there."""
        until(lambda: self.draw()["entries_sha256"], "the draw")
        return self.raw(f"{self.url}/draw") + b"\n" + self.raw(f"{self.url}/draw/entries")

    def everything(self, backup: Path) -> dict[str, bytes]:
        """Return all that can be had of the event and all that lies on the disk, a backup of it included."""
        self.daemon.admin("POST", "/v1/admin/snapshot", {})
        done = cli("backup", self.daemon.data, backup)
        assert done.returncode == 0, done.stderr
        paths = ("/v1/admin/status", "/metrics", "/readyz", "/v1/admin/keys", "/v1/admin/events", f"{self.admin}/stats")
        answers = [*paths, f"{self.admin}/records?from=1", f"{self.admin}/fairness", f"{self.admin}/visitors?limit=100"]
        addresses = [self.url, f"{self.url}/draw", *(self.daemon.url + path for path in answers)]
        found = {address: self.raw(address) for address in addresses}
        found["what the daemon logged"] = self.daemon.log().encode()
        found["what the backup said"] = (done.stdout + done.stderr).encode()
        for folder in (self.daemon.data, backup):
            found |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return found


def disguises(secret: bytes, beacon: str | None) -> dict[str, bytes]:
    """Return every form in which a secret, or the seed made of it, might lie about."""
    seeds = {"secret": secret} | ({} if beacon is None else {"seed": sha256(secret + beacon.encode()).digest()})
    forms: dict[str, bytes] = {}
    for name, seed in seeds.items():
        forms |= {f"{name}, raw": seed, f"{name}, backwards": seed[::-1], f"{name}, half": seed[:16]}
        forms |= {f"{name}, hex": seed.hex().encode(), f"{name}, HEX": seed.hex().upper().encode()}
        for shift in range(3):  # in base64 it looks different at each of three places
            for encode in (b64encode, urlsafe_b64encode):
                text = encode(bytes(shift) + seed + bytes(3))
                forms[f"{name}, {encode.__name__}, moved by {shift}"] = text[(4 if shift else 0) : 40]
    return forms


def hiding_places(everything: Mapping[str, bytes], forms: Mapping[str, bytes]) -> list[str]:
    """Return where one of the forms is found."""
    return [f"{form} in {name}" for name, content in everything.items() for form, it in forms.items() if it in content]


# ---- a kill while it draws ----------------------------------------------------------------------------------


class Cut(NamedTuple):
    """A draw that was cut short: who had been told what right before, and what is published after the restart."""

    drawing: bool
    told: dict[int, int]
    publication: bytes


def cut_short(data: Path, lobby: Lobby, delay_s: float) -> Cut:
    """Open, kill the daemon while it draws, start it again, and say what is published then."""
    daemon = Daemon(data)
    try:
        drawing, told = asyncio.run(_open_and_kill(Stage(daemon, lobby), delay_s))
    finally:
        daemon.kill()
    again = Daemon(data)
    try:
        stage = Stage(again, lobby)
        if stage.draw()["seed"] is None:
            stage.open()
        return Cut(drawing, told, stage.publication())
    finally:
        again.kill()


async def _open_and_kill(stage: Stage, delay_s: float) -> tuple[bool, dict[int, int]]:
    """Return whether it was still drawing when it was looked at last, and what numbers had been told by then."""
    event = f"/v1/events/{stage.lobby.event_id}"
    chosen = random.Random(delay_s).sample(stage.lobby.arrivals, ASKED)
    with connections([await Connection.open(stage.daemon.url) for _ in range(4)]) as pool:
        names = [stage.lobby.user_ids[arrival - 1] for arrival in chosen]
        joins = [request("POST", f"{event}/join", {"user_id": name}, key=key_of(name)) for name in names]
        tokens = [json.loads(reply.body)["token"] for reply in await gather_over(pool, joins)]
        opening = threading.Thread(target=_open_anyhow, args=(stage,))
        opening.start()
        looks = [request("GET", f"{event}/position", bearer=token) for token in tokens]
        while json.loads((await pool[0].ask(request("GET", event))).body)["state"] == "lobby":
            pass
        await asyncio.sleep(delay_s)
        places = [json.loads(reply.body) for reply in await gather_over(pool, looks)]
        last: Reply = await pool[0].ask(looks[0])
        stage.daemon.process.kill()
    await asyncio.to_thread(opening.join)
    numbers = {place["arrival"]: place["number"] for place in places if place["number"] is not None}
    return any(place["status"] == "lobby" for place in (*places, json.loads(last.body))), numbers


def _open_anyhow(stage: Stage) -> None:
    with suppress(OSError):
        stage.open()


def numbers_in(publication: bytes) -> dict[int, int]:
    """Return arrival → number."""
    entries = [json.loads(line) for line in publication.splitlines()[1:]]
    return {entry["arrival"]: entry["number"] for entry in entries}


def faults(cut: Cut, undisturbed: bytes) -> list[str]:
    """Return what became different by a kill."""
    numbers = numbers_in(undisturbed)
    wrong = [arrival for arrival, number in cut.told.items() if numbers[arrival] != number]
    found = [f"arrivals {wrong} were told other numbers before the kill"] if wrong else []
    return found + ["the draw is another one after the kill"] * (cut.publication != undisturbed)


def undisturbed(data: Path, lobby: Lobby) -> bytes:
    """Return what is published when nothing happens."""
    daemon = Daemon(data)
    try:
        stage = Stage(daemon, lobby)
        stage.open()
        return stage.publication()
    finally:
        daemon.kill()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign; returns 1 when anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how often the daemon is killed while it draws")
    chosen = parser.parse_args(arguments)
    found, drawing = [], 0
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / "full"
        fill(full, [PLAIN])
        expected = undisturbed(Path(shutil.copytree(full, Path(folder) / "undisturbed")), PLAIN)
        for kill in range(chosen.kills):
            data = Path(shutil.copytree(full, Path(folder) / f"kill-{kill}"))
            cut = cut_short(data, PLAIN, 0.25 * kill / chosen.kills)
            drawing += cut.drawing
            found += [f"kill {kill}: {fault}" for fault in faults(cut, expected)]
            shutil.rmtree(data)
    print(f"{chosen.kills} kills, {drawing} of them while {CROWD} places were being drawn")
    print("\n".join(found) or "the draw was the same each time")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
