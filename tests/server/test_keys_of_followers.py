"""Keys of a primary and its standby, for real: a change is with both before it is answered, nobody is left between."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.daemons import Daemon, until

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
