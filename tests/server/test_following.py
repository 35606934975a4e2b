"""Followers as real processes: what they answer, what they send on, and how they become primary and back."""

import asyncio
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from server.replication.following import TURNED_AWAY_PAUSE_S, Following, FollowingEvents, LinkOpener
from server.replication.link import Link, LinkClosed, TurnedAway, WrongKey
from server.replication.messages import Welcome
from server.replication.settings import ReplicationSettings
from tests.server.daemons import Daemon, cli, until
from tests.simulation.nodes import OneKey
from tests.simulation.virtual_loop import VirtualLoop, lead

pytestmark = pytest.mark.slow


class Pair:
    """A primary with an open event, and a follower of it."""

    def __init__(self, folder: Path, *, is_edge: bool = False, flags: tuple[str, ...] = ()) -> None:
        self.primary = Daemon(folder / "a", *flags)
        self.folder, self.flags = folder, flags
        self.primary.admin("PUT", "/v1/admin/events/e1", {"batch_size": 1, "batch_interval_s": 3600})
        self.primary.admin("POST", "/v1/admin/events/e1/open", {})
        self.follower = self.follow("b", is_edge=is_edge)

    def follow(self, name: str, *, is_edge: bool = False) -> Daemon:
        key = self.primary.data / "keys" / "replication.key"
        more = ("--key-file", str(key), *self.flags)
        return Daemon(self.folder / name, *more, command=("follow", self.primary.url), keeps_data=not is_edge)

    def join(self, daemon: Daemon, user_id: str) -> tuple[int, Any]:
        body = {"user_id": user_id}
        return daemon.call("POST", "/v1/events/e1/join", body, Idempotency_Key=f"key-{user_id}")

    def in_step(self) -> bool:
        return not self.primary.call("GET", "/readyz")[1]["degraded"]

    def close(self) -> None:
        self.follower.kill()
        self.primary.kill()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path, is_edge=True)
    yield made
    made.close()


def until_ready(daemon: Daemon) -> None:
    until(lambda: daemon.call("GET", "/readyz")[0] == 200, "being ready")


def test_a_visitor_may_join_at_a_follower_and_is_known_everywhere_at_once(pair: Pair) -> None:
    until_ready(pair.follower)
    for count in range(1, 20):
        status, place = pair.join(pair.follower if count % 2 else pair.primary, f"u{count}")
        assert (status, place["number"]) == (201, count)
        for daemon in (pair.follower, pair.primary):
            status, seen = daemon.call("GET", "/v1/events/e1/position", key=place["token"])
            assert (status, seen["position"], seen["stale"]) == (200, count, False)
    assert pair.join(pair.follower, "u1")[0] == 200


async def test_a_socket_at_a_follower_is_told_what_the_primary_decides(pair: Pair) -> None:
    until_ready(pair.follower)
    places = [pair.join(pair.primary, f"u{count}")[1] for count in range(3)]
    address = f"{pair.follower.url}/v1/events/e1/updates"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(address) as last,
        session.ws_connect(address) as first,
    ):
        for socket, place in ((last, places[2]), (first, places[0])):
            await socket.send_json({"token": place["token"]})
            assert (await socket.receive_json(timeout=10))["position"] == place["position"]
        await asyncio.to_thread(pair.primary.admin, "POST", "/v1/admin/events/e1/release", {"count": 1})
        ready = await first.receive_json(timeout=10)
        assert (ready["type"], ready["pass"] is not None) == ("ready", True)
        moved = await last.receive_json(timeout=10)
        assert (moved["type"], moved["position"]) == ("place", 2)
    site = pair.primary.site_key
    body = {"pass": ready["pass"]}
    assert pair.follower.call("POST", "/v1/events/e1/redeem", body, key=site, Idempotency_Key="o1")[0] == 200
    status, used = pair.primary.call("POST", "/v1/events/e1/redeem", body, key=site, Idempotency_Key="o2")
    assert (status, used["code"]) == (409, "pass_used")


def test_whoever_left_at_the_primary_is_gone_at_the_follower(pair: Pair) -> None:
    until_ready(pair.follower)
    for count in range(20):
        _, place = pair.join(pair.primary, f"u{count}")
        assert pair.primary.call("POST", "/v1/events/e1/leave", {}, key=place["token"])[0] == 204
        _, seen = pair.follower.call("GET", "/v1/events/e1/position", key=place["token"])
        assert seen["status"] == "left"


def test_an_operator_may_act_at_a_follower(pair: Pair) -> None:
    until_ready(pair.follower)
    pair.join(pair.primary, "u1")
    key = pair.primary.admin_key
    status, released = pair.follower.call("POST", "/v1/admin/events/e1/release", {"count": 1}, key=key)
    assert (status, released["released"]) == (200, 1)
    assert pair.primary.admin("GET", "/v1/admin/events/e1/stats")["counts"]["ready"] == 1


def test_keys_are_changed_at_the_primary_and_known_at_the_follower(pair: Pair) -> None:
    until_ready(pair.follower)
    body, key = {"kind": "admin", "name": "night", "role": "viewer"}, pair.primary.admin_key
    status, refused = pair.follower.call("POST", "/v1/admin/keys", body, key=key)
    assert (status, refused["code"]) == (503, "not_primary")
    made = pair.primary.admin("POST", "/v1/admin/keys", body)
    assert pair.follower.call("GET", "/v1/admin/status", key=made["secret"])[0] == 200


def test_an_edge_answers_reads_and_keeps_nothing(edge: Pair) -> None:
    until_ready(edge.follower)
    status, place = edge.join(edge.follower, "u1")
    assert (status, place["number"]) == (201, 1)
    assert edge.follower.call("GET", "/v1/events/e1/position", key=place["token"])[1]["position"] == 1
    status, refused = edge.follower.call("POST", "/v1/admin/promote", {}, key=edge.primary.admin_key)
    assert (status, refused["reason"]) == (409, "no_data")


def test_without_a_primary_reads_are_stale_and_writes_are_refused(pair: Pair) -> None:
    until_ready(pair.follower)
    _, place = pair.join(pair.primary, "u1")
    until(pair.in_step, "being in step")
    pair.primary.kill()
    until(lambda: pair.follower.call("GET", "/readyz")[0] == 503, "noticing it")
    status, seen = pair.follower.call("GET", "/v1/events/e1/position", key=place["token"])
    assert (status, seen["position"], seen["stale"]) == (200, 1, True)
    assert pair.follower.call("GET", "/readyz?for=reads")[0] == 200
    status, refused = pair.join(pair.follower, "u2")
    assert (status, refused["code"]) == (503, "not_primary")


def test_a_switchover_loses_nothing_and_the_old_primary_follows(pair: Pair) -> None:
    until(pair.in_step, "being in step")
    _, place = pair.join(pair.primary, "u1")
    status, told = pair.follower.call("POST", "/v1/admin/promote", {}, key=pair.primary.admin_key)
    assert (status, told) == (200, {"role": "primary", "term": 2, "lost": None})
    until(lambda: pair.primary.call("GET", "/readyz")[1]["role"] == "follower", "following")
    until_ready(pair.primary)
    status, second = pair.join(pair.primary, "u2")
    assert (status, second["number"], second["epoch"]) == (201, 2, 2 << 20)
    status, seen = pair.primary.call("GET", "/v1/events/e1/position", key=place["token"])
    assert (status, seen["position"]) == (200, 1)


def test_a_killed_primary_is_succeeded_by_hand_and_comes_back_as_a_follower(pair: Pair) -> None:
    until(pair.in_step, "being in step")
    _, place = pair.join(pair.primary, "u1")
    pair.primary.kill()
    until(lambda: pair.follower.call("GET", "/readyz")[0] == 503, "noticing it")
    status, told = pair.follower.call("POST", "/v1/admin/promote", {}, key=pair.primary.admin_key)
    assert (status, told["term"]) == (200, 2)
    assert "may be missing" in told["lost"] or "LSN" in told["lost"]
    status, seen = pair.follower.call("GET", "/v1/events/e1/position", key=place["token"])
    assert (status, seen["position"]) == (200, 1)
    assert pair.join(pair.follower, "u2")[1]["number"] > 100_000, "numbers go on behind the gap"
    back = Daemon(pair.primary.data, *pair.flags)
    try:
        until_ready(back)
        assert back.call("GET", "/readyz")[1]["role"] == "follower"
        assert back.call("GET", "/v1/events/e1/position", key=place["token"])[1]["position"] == 1
    finally:
        back.kill()


def test_a_promotion_that_begins_at_the_moment_of_the_kill_goes_on_without_the_primary(pair: Pair) -> None:
    until(pair.in_step, "being in step")
    said = {"old_primary_is_dead": True}  # its port may close a moment after its links
    pair.primary.process.send_signal(signal.SIGSTOP)  # it is asked to hand over, and dies before it has
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(pair.follower.call, "POST", "/v1/admin/promote", said, key=pair.primary.admin_key)
        time.sleep(0.3)
        pair.primary.kill()
        status, told = asked.result(20)
    assert status == 200, told
    assert (told["role"], told["term"]) == ("primary", 2)
    assert "LSN" in told["lost"]


def test_a_silent_primary_is_only_succeeded_on_the_operators_word(pair: Pair) -> None:
    until(pair.in_step, "being in step")
    key = pair.primary.admin_key
    pair.primary.process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: pair.follower.call("GET", "/readyz")[0] == 503, "noticing it")
        status, refused = pair.follower.call("POST", "/v1/admin/promote", {}, key=key)
        assert (status, refused["reason"]) == (409, "old_primary_unknown")
        dead = {"old_primary_is_dead": True}
        assert pair.follower.call("POST", "/v1/admin/promote", dead, key=key)[0] == 200
    finally:
        pair.primary.process.send_signal(signal.SIGCONT)
    until(lambda: pair.primary.call("GET", "/readyz")[1]["role"] == "follower", "stepping down")


def test_with_a_lock_as_witness_nobody_waits_for_the_lease_after_a_kill(tmp_path: Path) -> None:
    pair = Pair(
        tmp_path, flags=("--witness", f"flock:{tmp_path}/lease", "--lease-s", "30", "--standby-timeout-s", "60")
    )
    try:
        until(pair.in_step, "being in step")
        _, place = pair.join(pair.primary, "u1")
        pair.primary.kill()
        killed_s = time.monotonic()
        until(lambda: pair.follower.call("GET", "/readyz")[1]["role"] == "primary", "taking over")
        assert time.monotonic() - killed_s < 10, "far less than the lease"
        status, seen = pair.follower.call("GET", "/v1/events/e1/position", key=place["token"])
        assert (status, seen["position"]) == (200, 1)
        assert pair.join(pair.follower, "u2")[1]["number"] == 2
    finally:
        pair.close()


def test_a_wrong_key_is_refused_in_one_line(pair: Pair, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.key"
    wrong.write_text("stn_replication_" + "A1b2C3d4E5f6G7h8" * 3 + "\n")
    refused = cli("follow", pair.primary.url, "--key-file", wrong, "--port", "0")
    assert refused.returncode == 77
    assert "replication key" in refused.stderr
    assert len(refused.stderr.splitlines()) <= 3
    assert "\nstanchion_replication_wrong_keys_total 1.0\n" in pair.primary.call("GET", "/metrics")[1]
    assert pair.join(pair.primary, "u1")[0] == 201


@pytest.mark.parametrize("is_timed", [True, False])
def test_who_was_in_step_seeks_promotion_once_the_promise_is_over_or_where_a_lock_tells_once_the_link_is_lost(
    is_timed: bool,
) -> None:
    async def life(loop: VirtualLoop) -> None:
        following = edge_that_finds(never, loop)
        assert not following.may_seek_promotion(10**12, is_timed=is_timed), "an edge has nothing to lead with"
        following._log = SimpleNamespace()  # type: ignore[assignment]
        assert not following.may_seek_promotion(10**12, is_timed=is_timed), "it never was in step"
        following.in_step, following._link = True, SimpleNamespace()  # type: ignore[assignment]
        assert following.may_seek_promotion(10**12, is_timed=is_timed) == is_timed
        assert not following.may_seek_promotion(0, is_timed=is_timed)
        following._link = None
        assert following.may_seek_promotion(0, is_timed=is_timed) != is_timed

    lead(1, life)


async def never(url: str) -> Link:
    raise LinkClosed(url)


def edge_that_finds(open_link: LinkOpener, loop: VirtualLoop) -> Following:
    """Return a follower without a data folder whose links are these."""
    clocks = (lambda: int(loop.time() * 1e9), lambda: int(loop.time() * 1000))
    events = FollowingEvents(print, print, print, print)
    return Following(
        ReplicationSettings("b", "sim://b"), lambda: ["key"], None, None, open_link, OneKey(), clocks, events
    )


@pytest.mark.parametrize(
    ("error", "tries"),
    [(TurnedAway("it takes no followers"), (14, 16)), (LinkClosed("the connection ended"), (100, 400))],
)
def test_whoever_is_turned_away_asks_again_after_a_while_and_others_at_once(
    error: LinkClosed, tries: tuple[int, int]
) -> None:
    tried: list[str] = []

    async def refuse(url: str) -> Link:
        tried.append(url)
        raise error

    async def life(loop: VirtualLoop) -> None:
        following = edge_that_finds(refuse, loop)
        with suppress(TimeoutError):
            await asyncio.wait_for(following.run(lambda: ["sim://a"]), 15 * TURNED_AWAY_PAUSE_S)

    lead(1, life)
    assert tries[0] <= len(tried) <= tries[1]


def test_a_wrong_key_ends_only_who_never_followed() -> None:
    tried: list[str] = []

    async def refuse(url: str) -> Link:
        tried.append(url)
        raise WrongKey("sim://a does not take this replication key")

    async def life(loop: VirtualLoop) -> None:
        following = edge_that_finds(refuse, loop)
        with pytest.raises(WrongKey):
            await asyncio.wait_for(following.run(lambda: ["sim://a"]), 10)
        assert len(tried) == 1
        following.welcome = Welcome("here", "primary", 1, b"", "", "", "sync", 1.5, b"", [], [])
        with suppress(TimeoutError):
            await asyncio.wait_for(following.run(lambda: ["sim://a"]), 10)
        assert len(tried) > 3

    lead(1, life)
