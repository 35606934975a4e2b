"""Keys of a primary and its standby, for real: a change is with both before it is answered, nobody is left between."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, Popen

import pytest

from tests.server.daemons import CLI, Daemon, clean_environment, until

pytestmark = pytest.mark.slow

KEYS = "/v1/admin/keys"


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "primary")
    yield daemon
    daemon.kill()


def standby_of(primary: Daemon, key_file: Path) -> Daemon:
    return Daemon(primary.data.parent / "standby", "--key-file", str(key_file), command=("follow", primary.url))


@pytest.fixture
def standby(primary: Daemon) -> Iterator[Daemon]:
    daemon = standby_of(primary, primary.data / "keys" / "replication.key")
    yield daemon
    if daemon.process.poll() is None:
        daemon.process.send_signal(signal.SIGCONT)
    daemon.kill()


def ids(daemon: Daemon) -> set[str]:
    """Return the ids of the ring on a disk."""
    return {key["id"] for key in json.loads((daemon.data / "keys" / "ring.json").read_text())["keys"]}


def rotated(primary: Daemon, kind: str, **more: object) -> str:
    """Rotate a key; returns the id of the new one."""
    made: str = primary.admin("POST", f"{KEYS}/rotate", {"kind": kind, **more})["key"]["id"]
    return made


def test_a_new_key_is_with_the_standby_when_the_operator_is_answered(primary: Daemon, standby: Daemon) -> None:
    assert ids(standby) == ids(primary)
    assert sorted(path.name for path in (standby.data / "keys").iterdir()) == ["ring.json"]
    new = rotated(primary, "queue")
    assert new in ids(standby)
    status, answer = standby.call("POST", f"{KEYS}/rotate", {"kind": "queue"}, key=primary.admin_key)
    assert (status, answer["code"]) == (503, "not_primary")
    assert standby.call("GET", KEYS, key=primary.admin_key)[0] == 200, "the primary's operators are the standby's"


def test_a_standby_that_does_not_confirm_is_sent_away_and_has_the_ring_when_it_is_back(
    primary: Daemon, standby: Daemon
) -> None:
    standby.process.send_signal(signal.SIGSTOP)
    began_s = time.monotonic()
    new = rotated(primary, "session")
    assert 1.5 < time.monotonic() - began_s < 10, "it waits for two seconds, and goes on without"
    assert new not in ids(standby) and "it did not confirm the new keys" in primary.log()
    standby.process.send_signal(signal.SIGCONT)
    until(lambda: new in ids(standby), "the new ring on the standby")


def test_an_ended_replication_key_opens_nothing_and_its_successor_takes_over_without_a_restart(
    primary: Daemon, standby: Daemon
) -> None:
    new = rotated(primary, "replication", overlap_s=1)
    assert new in ids(standby)
    standby.process.send_signal(signal.SIGSTOP)
    session = rotated(primary, "session")
    standby.process.send_signal(signal.SIGCONT)
    until(lambda: session in ids(standby), "another link, by the key that was learnt meanwhile")
    at_once = rotated(primary, "replication", overlap_s=0)
    until(lambda: "wrong_replication_key" in primary.log(), "the refusal of the key that ended")
    assert at_once not in ids(standby) and standby.process.poll() is None
    assert standby.stop() == 0
    again = standby_of(primary, primary.data / "keys" / "replication.key")
    try:
        until(lambda: at_once in ids(again), "the ring of who was given the new key")
    finally:
        again.kill()


def test_a_primary_with_a_standby_stops_as_soon_as_one_without(primary: Daemon, standby: Daemon) -> None:
    began_s = time.monotonic()
    assert primary.stop() == 0
    assert time.monotonic() - began_s < 10, "a link is no request that it waits for"
    assert standby.stop() == 0


def test_followers_are_taken_in_where_they_are_told_to_come_and_nowhere_else(tmp_path: Path) -> None:
    public = ("--host", "0.0.0.0", "--admin-port", "0", "--public-url", "https://queue.shop.example")
    primary = Daemon(tmp_path / "primary", *public, "--replication-listen", "127.0.0.1:0")
    words = primary.first_line.split()
    urls = [word.rstrip(",;") for word in words if word.startswith("http://")]
    assert len(urls) == 3 and f"followers on {urls[2]}" in primary.first_line
    try:
        key_file = primary.data / "keys" / "replication.key"
        for url in urls[:2]:
            primary.url = url.replace("0.0.0.0", "127.0.0.1")
            assert primary.call("GET", "/v1/replication")[0] == 404, url
        primary.url = urls[2]
        assert primary.call("GET", "/v1/replication")[0] == 400, "it takes a WebSocket"
        assert primary.call("GET", "/v1/admin/status")[0] == 404, "no operator has any business there"
        standby = standby_of(primary, key_file)
        assert ids(standby) == ids(primary)
        standby.kill()
    finally:
        primary.kill()


def test_a_single_server_takes_no_followers_and_says_so(tmp_path: Path) -> None:
    primary = Daemon(tmp_path / "primary", "--replication", "single")
    process = Popen(
        [*CLI, "follow", primary.url, "--key-file", str(primary.data / "keys" / "replication.key"), "--port", "0"],
        stdout=DEVNULL,
        stderr=DEVNULL,
        env=clean_environment(),
        cwd=tmp_path,
    )
    try:
        until(lambda: "it was started with replication=single" in primary.log(), "the refusal")
    finally:
        process.kill()
        process.wait()
        primary.kill()
