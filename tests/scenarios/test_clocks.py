"""Clocks: a wall clock that jumps by hours moves scheduled times alone; no pause and no outage shortens a window."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from engine.actor import Holder, Whom
from engine.signatures import public_of
from server.main import wall_ms
from tests.engine.forging import encoded, parts_of, signed
from tests.scenarios.client import read_lines
from tests.scenarios.crowds import OPERATOR, backend_in, join_all
from tests.scenarios.devices import Device, Doors
from tests.scenarios.history import LogLine
from tests.scenarios.jumping import Seen, drift_ms, jumping_daemon, look
from tests.scenarios.moments import Clock
from tests.server.conftest import StartDaemon
from tests.server.daemons import Daemon, until
from tests.server.running import running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

EVENT, ADMIN = "/v1/events/sale", "/v1/admin/events/sale"
HOUR_S = 3600
PATIENT = {"presence_timeout_s": 3600, "presence_timeout_hidden_s": 3600}
SHOP = bytes(range(32))
LEEWAY_MS = 1_000


# ---- a wall clock that jumps ------------------------------------------------------------------------------


async def begin_sales(data: Path) -> None:
    """Make a folder before any daemon runs over it: one event has somebody parked, one lets one in every second."""
    clock = Clock()
    settings = {"batch_interval_s": 3600, "presence_timeout_s": 15, "presence_timeout_hidden_s": 15}
    async with backend_in(data, clock.monotonic_ms, clock.wall_ms) as backend:
        await backend.configure("sale", {**settings, "claim_window_s": 600}, OPERATOR, replace=True)
        await backend.control("sale", "open", OPERATOR)
        await join_all(backend, "sale", ["parked", "heard"])
        for _ in range(4):
            clock.advance(5)
            await backend.touch("sale", Holder(2, "heard", 0))
        assert (await backend.release("sale", 1, OPERATOR))[:2] == (1, 1)
        await backend.configure("sale", PATIENT, OPERATOR, replace=False)
        await backend.configure("paced", {"batch_size": 1, "batch_interval_s": 1, **PATIENT}, OPERATOR, replace=True)
        await backend.control("paced", "open", OPERATOR)
        await join_all(backend, "paced", [f"u{number}" for number in range(200)])


class Sale:
    """A daemon in the middle of a sale: people in every state that a clock might end."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.tokens: dict[str, str] = {}

    def join(self, user_id: str, event: str = EVENT, **more: object) -> dict[str, Any]:
        status, place = self.daemon.call(
            "POST", f"{event}/join", {"user_id": user_id, **more}, Idempotency_Key=f"key-{user_id}"
        )
        assert status == 201, place
        self.tokens[user_id] = place["token"]
        answer: dict[str, Any] = place
        return answer

    def position(self, user_id: str) -> dict[str, Any]:
        status, place = self.daemon.call("GET", f"{EVENT}/position", key=self.tokens[user_id])
        assert status == 200, place
        answer: dict[str, Any] = place
        return answer

    def redeem(self, pass_: str, key: str) -> tuple[int, Any]:
        body = {"pass": pass_}
        return self.daemon.call("POST", f"{EVENT}/redeem", body, key=self.daemon.site_key, Idempotency_Key=key)

    def let_in(self, *user_ids: str) -> dict[str, str]:
        """Let these join and in; returns their passes."""
        for user_id in user_ids:
            self.join(user_id)
        told = self.daemon.admin("POST", f"{ADMIN}/release", {"count": len(user_ids)})
        assert told["released"] == len(user_ids)
        return {user_id: self.position(user_id)["pass"] for user_id in user_ids}

    def enqueue_token(self, user_id: str, now_ms: int) -> str:
        """Return a shop's word on somebody, good for five minutes of the time that the server tells."""
        claims = {"aud": "sale", "sub": user_id, "jti": f"jti-{user_id}", "exp": now_ms // 1000 + 300}
        return signed(SHOP, {"alg": "EdDSA", "typ": "stanchion-enqueue+jwt", "kid": self.shop}, claims)

    def register_shop(self) -> None:
        body = {"kind": "enqueue", "name": "shop", "public_key": encoded(public_of(SHOP))}
        self.shop = self.daemon.admin("POST", "/v1/admin/keys", body)["key"]["id"]

    def state(self, event_id: str) -> str:
        return str(self.daemon.call("GET", f"/v1/events/{event_id}")[1]["state"])

    def batches(self) -> list[LogLine]:
        """Return the batches of the event that is paced, a second each."""
        lines = read_lines(self.daemon.url, self.daemon.admin_key, LogLine, event_id="paced")
        return [line for line in lines if line.kind == "released"]


def make_scheduled(daemon: Daemon, now_ms: int) -> None:
    """Make events that open and close when the wall clock says so."""
    for event_id, settings in {
        "opens": {"opens_at_ms": now_ms + 20 * HOUR_S * 1000},
        "opens-later": {"opens_at_ms": now_ms + 40 * HOUR_S * 1000},
        "closes": {"closes_at_ms": now_ms + 25 * HOUR_S * 1000},
    }.items():
        daemon.admin("PUT", f"/v1/admin/events/{event_id}", settings)
    daemon.admin("POST", "/v1/admin/events/closes/open", {})


async def test_a_wall_clock_that_jumps_by_thirty_hours_moves_scheduled_times_and_nothing_else(tmp_path: Path) -> None:
    data = tmp_path / "data"
    await begin_sales(data)
    with jumping_daemon(data) as (daemon, wall):
        started_s, sale = time.monotonic(), Sale(daemon)
        sale.register_shop()
        make_scheduled(daemon, wall_ms())
        passes = sale.let_in("held", "active", "forward", "back", "true")
        first = sale.redeem(passes["active"], "active")
        sale.join("waiting")
        code = daemon.call("POST", f"{EVENT}/transfer", key=sale.tokens["waiting"])[1]["code"]
        at_start = look(daemon, "sale")
        assert set(at_start.windows_ms) == {"parked", "heard", "held", "active", "forward", "back", "true"}
        for ahead_h, who in ((30, "forward"), (-30, "back"), (0, "true")):
            wall.set(ahead_h * HOUR_S)
            check_jump(sale, at_start, who, passes[who])
            assert sale.redeem(passes["active"], "active") == first, "a retry is answered the same"
            until(lambda: sale.state("opens") == "open", "the opening")
            until(lambda: sale.state("closes") == "closed", "the closing")
            assert sale.state("opens-later") == "draft"
            check_schedule(sale, who, ahead_h)
        status, moved = daemon.call("POST", f"{EVENT}/transfer/accept", {"code": code}, Idempotency_Key="laptop")
        assert (status, moved["user_id"]) == (200, "waiting")
        check_pace(sale, time.monotonic() - started_s)


def check_jump(sale: Sale, at_start: Seen, who: str, pass_: str) -> None:
    """Hold everything that runs against what ran at the start; `who` redeems a pass from before the jump."""
    now = look(sale.daemon, "sale")
    off = {name: ms for name, ms in drift_ms(at_start, now).items() if abs(ms) > LEEWAY_MS}
    assert not off, f"{who}: these are off by so many ms"
    assert {name: now.statuses[name] for name in at_start.statuses} == at_start.statuses | redeemed_before(who)
    place = sale.position("held")
    assert place["status"] == "ready" and place["pass"], "an old queue token is good"
    claims = parts_of(place["pass"])[1]
    assert abs(int(str(claims["iat"])) * 1000 - place["now_ms"]) < 2_000, "new passes tell the time as before"
    status, session = sale.redeem(pass_, who)
    assert (status, session["user_id"]) == (200, who)
    assert abs(session["session_expires_ms"] - place["now_ms"] - 600_000) < 2_000
    told = sale.daemon.call("POST", f"{EVENT}/extend", {"session": session["session"]}, key=sale.daemon.site_key)
    assert told[0] == 200, "a session token is good"
    signed_in = sale.join(f"signed-{who}", enqueue_token=sale.enqueue_token(f"signed-{who}", place["now_ms"]))
    assert signed_in["status"] == "waiting"
    receipt = sale.daemon.call("GET", f"{EVENT}/receipt", key=sale.tokens["held"])
    assert receipt[0] == 200


def check_schedule(sale: Sale, name: str, ahead_h: int) -> None:
    """Show that the wall clock really jumped: events due before and after the time it shows open, or do not."""
    about_ms = wall_ms() + ahead_h * HOUR_S * 1000
    for event_id, opens_at_ms in ((f"due-{name}", about_ms - 60_000), (f"not-due-{name}", about_ms + 600_000)):
        sale.daemon.admin("PUT", f"/v1/admin/events/{event_id}", {"opens_at_ms": opens_at_ms})
    until(lambda: sale.state(f"due-{name}") == "open", "an opening by the wall clock")
    time.sleep(0.6)  # the schedule looks twice a second
    assert sale.state(f"not-due-{name}") == "draft"


def redeemed_before(who: str) -> dict[str, str]:
    """Return whose status the redeems of earlier jumps changed."""
    order = ("forward", "back", "true")
    return dict.fromkeys(order[: order.index(who)], "active")


def check_pace(sale: Sale, went_by_s: float) -> None:
    """One a second was let in all the while, however the wall clock jumped."""
    times_ms = [line.at_ms for line in sale.batches()]
    assert all(len(line.numbers) == 1 for line in sale.batches())
    assert all(later - earlier >= 1_000 for earlier, later in pairwise(times_ms))
    assert went_by_s * 0.4 < len(times_ms) <= went_by_s


# ---- pauses and outages, by a clock that is moved ----------------------------------------------------------

CLAIM_S, SESSION_S, GRACE_S, LEEWAY_S = 60, 90, 120, 5
SHORT = {
    "presence_timeout_s": 15, "presence_timeout_hidden_s": 15, "batch_interval_s": 3600, "grace_s": GRACE_S,
    "claim_window_s": CLAIM_S, "claim_max_s": 600, "session_ttl_s": SESSION_S, "session_max_s": 600,
}  # fmt: skip


LEFT = {"parked": GRACE_S - 10, "ready": CLAIM_S - 10, "active": SESSION_S - 10}


@asynccontextmanager
async def one_life(data: Path, clock: Clock) -> AsyncIterator[Doors]:
    """Run a server over a folder by this clock."""
    async with running(data, wall_ms=clock.wall_ms, clock_ms=clock.monotonic_ms) as server:
        yield Doors(server, clock)


async def begin(doors: Doors) -> dict[str, Device]:
    """Have one parked, one ready, one active and one waiting; ten seconds of their windows are used up."""
    await doors.server.open_event("e1", **SHORT)
    names = ("parked", "ready", "active", "waiting")
    devices = {name: await doors.comes(name) for name in names}
    for _ in range(4):
        doors.clock.advance(5)
        for name in names[1:]:
            await devices[name].poll()
    assert await doors.release(2) == (2, 1)
    pass_ = (await devices["active"].poll())["pass"]
    assert (await doors.site("/redeem", {"pass": pass_}))[0] == 200
    doors.clock.advance(10)
    await doors.server.backend.tick()
    return devices


async def windows(doors: Doors) -> dict[str, int]:
    """Return how many seconds are left for whoever is still what their name says."""
    places = [await doors.server.backend.find("e1", Whom(user_id=name)) for name in LEFT]
    is_still = zip(LEFT, places, strict=True)
    return {name: (place.window_ms or 0) // 1000 for name, place in is_still if place.status == name}


async def test_a_pause_of_a_day_shortens_nobodys_window(tmp_path: Path) -> None:
    async with one_life(tmp_path / "data", Clock()) as doors:
        devices = await begin(doors)
        assert await windows(doors) == LEFT
        await doors.server.call("POST", "/v1/admin/events/e1/pause", {"reason": "rain"})
        for _ in range(24):
            doors.clock.advance(HOUR_S)
            await doors.server.backend.tick()
            place = await devices["ready"].poll()
            assert place["pass_expires_ms"] - place["now_ms"] == LEFT["ready"] * 1000
            assert await windows(doors) == LEFT
        await doors.server.call("POST", "/v1/admin/events/e1/resume", {})
        await ends_in_time(doors)


async def test_a_pass_is_redeemed_during_a_pause_and_its_session_begins_when_the_pause_is_over(tmp_path: Path) -> None:
    async with one_life(tmp_path / "data", Clock()) as doors:
        devices = await begin(doors)
        pass_ = (await devices["ready"].poll())["pass"]
        await doors.server.call("POST", "/v1/admin/events/e1/pause", {"reason": "rain"})
        doors.clock.advance(HOUR_S)
        assert (await doors.site("/redeem", {"pass": pass_}))[0] == 200, "a pass from before is good"
        doors.clock.advance(HOUR_S)
        await doors.server.backend.tick()
        assert (await doors.server.backend.find("e1", Whom(user_id="ready"))).window_ms == SESSION_S * 1000


@pytest.mark.parametrize("wall_jump_h", [0, 30, -30])
async def test_an_outage_of_an_hour_shortens_nobodys_window_whatever_the_wall_clock_says_after(
    tmp_path: Path, wall_jump_h: int
) -> None:
    clock = Clock()
    async with one_life(tmp_path / "data", clock) as doors:
        devices = await begin(doors)
        await devices["waiting"].ask("POST", "/leave")  # the newest time on record is now
        assert await windows(doors) == LEFT
    clock.advance(HOUR_S)
    clock.jump(wall_jump_h * HOUR_S)
    async with one_life(tmp_path / "data", clock) as doors:
        assert await windows(doors) == {**LEFT, "parked": GRACE_S}, "grace begins anew"
        if wall_jump_h <= 0:  # tokens are good for 24 hours of the wall clock at a start
            devices = {name: Device(doors, name, device.key, device.token) for name, device in devices.items()}
            place = await devices["ready"].poll()
            assert place["pass_expires_ms"] - place["now_ms"] == LEFT["ready"] * 1000
            assert (await doors.site("/redeem", {"pass": place["pass"]}))[0] == 200


async def test_outages_one_after_the_other_do_not_add_up_to_a_lost_window(tmp_path: Path) -> None:
    clock = Clock()
    async with one_life(tmp_path / "data", clock) as doors:
        await begin(doors)
    for _ in range(5):
        clock.advance(HOUR_S)
        async with one_life(tmp_path / "data", clock) as doors:
            await doors.server.backend.tick()
            left = await windows(doors)
            assert set(left) == {"parked", "ready", "active"}
            assert all(left[status] >= least for status, least in LEFT.items())


async def ends_in_time(doors: Doors) -> None:
    """What was left is used up to the second, and no sooner: claim (and its leeway), session, grace."""
    ended: dict[str, int] = {}
    for second in range(GRACE_S):
        await doors.server.backend.tick()
        now = await windows(doors)
        for status in LEFT:
            if status not in now:
                ended.setdefault(status, second)
        doors.clock.advance(1)
    assert ended == {"ready": LEFT["ready"] + LEEWAY_S, "active": LEFT["active"], "parked": LEFT["parked"]}
    lapsed, absent = [await doors.server.backend.find("e1", Whom(user_id=name)) for name in ("ready", "parked")]
    assert (lapsed.status, absent.status, absent.cause) == ("parked", "expired", "absent")


# ---- an outage of a real daemon ----------------------------------------------------------------------------

DOWN_S = 2.5


def test_a_real_kill_and_the_time_it_is_down_shorten_nobodys_window(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    daemon.admin("PUT", ADMIN, {"batch_interval_s": 3600, **PATIENT})
    daemon.admin("POST", f"{ADMIN}/open", {})
    sale = Sale(daemon)
    passes = sale.let_in("held", "active", "later")
    first = sale.redeem(passes["active"], "active")
    before = look(daemon, "sale")
    daemon.kill()
    time.sleep(DOWN_S)
    began_s = time.monotonic()
    sale.daemon = again = start_daemon()
    after = look(again, "sale")
    for who in ("held", "active", "later"):
        lost_ms = before.windows_ms[who] - after.windows_ms[who]
        assert lost_ms <= (after.at_s - began_s) * 1000 + LEEWAY_MS, f"{who}: the time it was down was counted"
    place = sale.position("held")
    assert abs(place["pass_expires_ms"] - place["now_ms"] - after.windows_ms["held"]) < LEEWAY_MS
    assert sale.redeem(passes["active"], "active") == first
    assert sale.redeem(passes["later"], "later")[0] == 200
