"""The hub: frames, order, slices, slow readers; over transports that the test controls."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.actor import Holder, Whom
from engine.backend import BackendStatus
from engine.errors import Refused
from engine.views import BackendChanged, EventChanged, EventGone, LineDrawn, Notice, Place, PlacesChanged, Ranking
from server import push
from server.audience import Socket, close_frame, text_frame
from server.push import Hub
from server.wire import PlaceAnswer


class Wire:
    """A transport whose peer reads when it is told to."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.unread = 0
        self.stalled = False
        self.closed = self.aborted = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent.append(data)
        self.unread = len(data) if self.stalled else 0

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True


class Line:
    """A backend that knows who waits, in order, and what the test announces."""

    def __init__(self, arrivals: Sequence[int]) -> None:
        self.arrivals = list(arrivals)
        self.version = 1
        self.epoch = 3
        self.gone = False
        self.refused = 0
        self.asked: list[int] = []
        self.orders: dict[int, int] = {}
        self.generations: dict[int, int] = {}
        self.status_otherwise = "ready"
        self.refusal = Refused("not_found", "there is no such event")
        self.users: dict[int, str] = {}
        self.least_versions: list[int | None] = []
        self.heard_of: list[tuple[str, list[int], bool]] = []
        self.announced: asyncio.Queue[Sequence[Notice]] = asyncio.Queue()

    def status(self) -> BackendStatus:
        return BackendStatus("line", 3, 1, 1, (), None, {})

    def ranks(self, event_id: str, arrivals: Sequence[int]) -> Ranking:
        self._look()
        self.asked.append(len(arrivals))
        positions = [self.arrivals.index(a) + 1 if a in self.arrivals else 0 for a in arrivals]
        return Ranking(positions, [position * 10 for position in positions], self.version)

    def line_order(self, event_id: str, arrival: int) -> int:
        self._look()
        return self.orders.get(arrival, arrival)

    def _look(self) -> None:
        if self.gone:
            self.refused += 1
            raise self.refusal

    async def find(self, event_id: str, whom: Whom, *, least_version: int | None = None) -> Place:
        arrival = whom.arrival or 0
        self.least_versions.append(least_version)
        status = "waiting" if arrival in self.arrivals else self.status_otherwise
        position = self.arrivals.index(arrival) + 1 if arrival in self.arrivals else None
        generation = self.generations.get(arrival, 0)
        who = (event_id, self.users.get(arrival, f"u{arrival}"), status, None, arrival, arrival)
        window_ms = 1_000 if status == "ready" else None
        more = (window_ms, None, 1, generation, 0, None, 60, None, self.version, False, False)
        return Place(*who, position, len(self.arrivals), None, *more)

    def heard(self, event_id: str, arrivals: Sequence[int], visible: bool) -> None:
        self.heard_of.append((event_id, list(arrivals), visible))

    async def notices(self) -> AsyncIterator[Sequence[Notice]]:
        while True:
            yield await self.announced.get()


def connect(hub: Hub, arrival: int, shown: int | None = None) -> Wire:
    wire = Wire()
    hub.add(socket_of(arrival, wire, shown), 0, waits=False)
    return wire


def socket_of(arrival: int, wire: Wire, shown: int | None = None) -> Socket:
    holder = Holder(arrival, f"u{arrival}")
    return Socket("e1", holder, arrival, wire, shown=shown, is_stream=False, now_s=0.0)  # type: ignore[arg-type]


class Desk:
    """Renders places, with a pass for those who are ready and hold the place."""

    def render(self, place: Place, token: str | None, shown: int | None = None) -> PlaceAnswer:
        pass_ = "a pass" if place.status == "ready" and place.proven else None
        who = (place.event_id, place.user_id, place.status, None, place.arrival, place.number)
        where = (place.position, None, place.waiting, None, None, 0.0)
        return PlaceAnswer(*who, *where, token, pass_, None, None, 5, None, 0, 3, place.version, False)  # type: ignore[arg-type]


def hub_over(line: Line) -> Hub:
    return Hub(line, Desk())  # type: ignore[arg-type]


def position_frame(position: int, version: int = 1) -> bytes:
    numbers = (position, position - 1, position * 10, version)
    return text_frame(b'{"type":"place","position":%d,"ahead":%d,"estimated_wait_seconds":%d,"version":%d}' % numbers)


@given(st.binary(max_size=70_000).filter(lambda payload: len(payload) < 65_536))
def test_a_text_frame_carries_its_length_as_the_rfc_says(payload: bytes) -> None:
    frame = text_frame(payload)
    assert frame[0] == 0x81 and frame.endswith(payload)
    if len(payload) < 126:
        assert frame[1] == len(payload) and len(frame) == len(payload) + 2
    else:
        assert frame[1] == 126 and int.from_bytes(frame[2:4], "big") == len(payload) and len(frame) == len(payload) + 4


def test_a_close_frame_carries_its_code() -> None:
    assert close_frame(4001) == b"\x88\x02" + (4001).to_bytes(2, "big")


async def test_a_sweep_writes_each_position_once_and_only_when_it_fell() -> None:
    line = Line(range(1, 301))
    hub = hub_over(line)
    wires = [connect(hub, arrival) for arrival in line.arrivals]
    await hub.sweep("e1")
    assert [wire.sent for wire in wires] == [[position_frame(position)] for position in range(1, 301)]
    await hub.sweep("e1")
    assert all(len(wire.sent) == 1 for wire in wires)
    del line.arrivals[:100]
    line.version = 2
    await hub.sweep("e1")
    assert [len(wire.sent) for wire in wires] == [1] * 100 + [2] * 200
    assert wires[100].sent[1] == position_frame(1, 2)
    assert max(line.asked) <= push.SOCKETS_PER_RANKING


async def test_a_position_that_would_rise_is_not_sent() -> None:
    line = Line([5, 1])
    hub = hub_over(line)
    wire = connect(hub, 1, shown=1)
    await hub.sweep("e1")
    assert wire.sent == []


async def test_a_stalled_reader_costs_one_frame_delays_nobody_and_gets_the_newest_state() -> None:
    line = Line(range(1, 51))
    hub = hub_over(line)
    wires = [connect(hub, arrival) for arrival in line.arrivals]
    stalled = wires[40]
    stalled.stalled = True
    for version in range(1, 11):
        line.version = version
        await hub.sweep("e1")
        line.arrivals.pop(0)
    assert len(stalled.sent) == 1
    assert len(wires[41].sent) == 10
    stalled.stalled, stalled.unread = False, 0
    await hub.sweep("e1")
    assert stalled.sent[1:] == [position_frame(31, 10)]
    assert hub.stats()["slow_skipped"] == 9


async def test_a_reader_stalled_for_too_long_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line([1, 2])
    hub = hub_over(line)
    wire = connect(hub, 2)
    wire.stalled = True
    await hub.sweep("e1")
    line.arrivals.pop(0)
    await hub.sweep("e1")
    assert not wire.closed
    monkeypatch.setattr(push, "SLOW_AFTER_S", -1.0)
    await hub.sweep("e1")
    assert wire.closed and hub.stats()["slow_closed"] == 1


async def test_the_sweep_goes_in_line_order_and_lets_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "SLICE_S", 0.0)
    line = Line(range(1, 1_001))
    hub = hub_over(line)
    for arrival in reversed(line.arrivals):
        connect(hub, arrival)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await hub.sweep("e1")
    task.cancel()
    assert turns >= 1_000 // push.SOCKETS_PER_RANKING - 1


async def test_those_released_are_told_first_and_the_others_after() -> None:
    line = Line(range(1, 4))
    hub = hub_over(line)
    wires = [connect(hub, arrival) for arrival in (1, 2, 3)]
    running = asyncio.create_task(hub.run())
    await _until(lambda: all(wire.sent for wire in wires))
    line.arrivals.pop(0)
    line.version = 2
    await line.announced.put([PlacesChanged("e1", (1,), "ready", 2)])
    await _until(lambda: all(len(wire.sent) == 2 for wire in wires))
    assert b'"type":"ready"' in wires[0].sent[1]
    assert wires[1].sent[1] == position_frame(1, 2)
    running.cancel()
    await asyncio.wait([running])


async def test_a_socket_from_before_a_transfer_is_told_of_its_turn_without_the_pass() -> None:
    line = Line([])
    hub = hub_over(line)
    wire = connect(hub, 1)
    line.generations[1] = 1
    await hub._take(PlacesChanged("e1", (1,), "ready", 2))
    assert b'"status":"ready"' in wire.sent[-1] and b"a pass" not in wire.sent[-1]


async def test_a_draw_puts_sockets_where_their_numbers_are_and_tells_them() -> None:
    line = Line([])
    hub = hub_over(line)
    wires = {arrival: connect(hub, arrival) for arrival in (1, 2, 3)}
    line.arrivals, line.orders = [3, 1, 2], {1: 20, 2: 30, 3: 10}
    await hub._take(LineDrawn("e1", 2))
    await hub.sweep("e1")
    assert [b'"position":%d' % position in wires[arrival].sent[0] for position, arrival in enumerate((3, 1, 2), 1)] == [
        True
    ] * 3
    assert all(len(wire.sent) == 1 for wire in wires.values())
    for arrival, wire in wires.items():
        (socket,) = hub._audiences["e1"].at(line.orders[arrival])
        assert socket.transport is wire
        hub.remove(socket)
    assert hub.stats()["sockets"] == 0


async def test_sweeps_of_one_event_keep_their_distance() -> None:
    line = Line(range(1, 100))
    hub = hub_over(line)
    connect(hub, 99)
    running = asyncio.create_task(hub.run())
    await line.announced.put([PlacesChanged("e1", (1,), "left", 2)])
    await _until(lambda: hub.stats()["sweeps"] == 1)
    started = asyncio.get_running_loop().time()
    await line.announced.put([PlacesChanged("e1", (1,), "left", 2)])
    await _until(lambda: hub.stats()["sweeps"] == 2)
    assert asyncio.get_running_loop().time() - started > 0.4
    running.cancel()
    await asyncio.wait([running])


async def test_whoever_comes_while_the_line_moves_is_told_what_was_missed_and_nobody_else_is_swept() -> None:
    line = Line([3, 4])
    hub = hub_over(line)
    behind, let_in = Wire(), Wire()
    hub.add(socket_of(4, behind, shown=3), 0, waits=True)
    hub.add(socket_of(2, let_in, shown=1), 0, waits=True)
    running = asyncio.create_task(hub.run())
    await _until(lambda: behind.sent and let_in.sent)
    assert behind.sent == [position_frame(2)]
    assert b'"type":"ready"' in let_in.sent[0] and len(let_in.sent) == 1
    assert hub.stats()["sweeps"] == 0
    running.cancel()
    await asyncio.wait([running])


async def test_whoever_comes_with_a_place_newer_than_every_notice_is_not_looked_at_again() -> None:
    line = Line([3, 4])
    hub = hub_over(line)
    running = asyncio.create_task(hub.run())
    await line.announced.put([EventChanged("other", 7)])
    await _until(lambda: hub._noticed_version == 7)
    wires = {version: Wire() for version in (6, 7, 8)}
    for version, wire in wires.items():
        hub.add(socket_of(4, wire, shown=3), version, waits=True)
    await _until(lambda: wires[6].sent and wires[7].sent)
    await asyncio.sleep(0)
    assert not wires[8].sent and not hub._newcomers
    await line.announced.put([BackendChanged(2)])
    await _until(lambda: hub._noticed_version == 2)
    running.cancel()
    await asyncio.wait([running])


async def test_who_was_heard_of_is_told_to_the_backend_at_once_and_an_old_device_is_no_word_of_its_holder() -> None:
    line = Line([1, 2, 3, 4])
    hub = hub_over(line)
    running = asyncio.create_task(hub.run())
    for arrival in line.arrivals:
        socket = socket_of(arrival, Wire())
        socket.visible = arrival != 4
        socket.is_holder = arrival != 3
        hub.hear(socket, 7.0)
        assert socket.heard_s == 7.0
    await _until(lambda: line.heard_of)
    assert line.heard_of == [("e1", [1, 2], True), ("e1", [4], False)]
    running.cancel()
    await asyncio.wait([running])


async def test_closed_sockets_leave_the_wheel_of_pings_before_anybody_is_passed_over() -> None:
    hub = hub_over(Line(range(1, 41)))
    wires = [connect(hub, arrival) for arrival in range(1, 41)]
    for socket in list(hub._audiences["e1"].sockets)[:38]:
        hub.remove(socket)
    assert [socket.transport for socket in hub._turn(1)] == [wires[38]]
    assert [socket.transport for socket in hub._turn(5)] == [wires[39], wires[38]]
    assert len(hub._pings) == 2


async def test_a_reader_too_slow_to_be_told_it_is_its_turn_is_sent_to_ask_again() -> None:
    line = Line([1])
    hub = hub_over(line)
    wire = connect(hub, 1)
    wire.unread = 10
    await hub._take(PlacesChanged("e1", (1,), "ready", 2))
    assert wire.aborted and wire.sent == []


async def test_a_deleted_event_and_a_drain_close_with_their_codes() -> None:
    line = Line([1])
    hub = hub_over(line)
    gone, back_off = connect(hub, 1), None
    await hub._take(EventGone("e1", 2))
    assert gone.sent[-1] == close_frame(4410)
    hub = hub_over(line)
    back_off = connect(hub, 1)
    await hub.close()
    assert back_off.sent[-1] == close_frame(4001) and hub.draining


async def test_an_event_that_goes_while_its_line_is_swept_ends_nothing_but_itself() -> None:
    line = Line([1, 2])
    hub = hub_over(line)
    wires = [connect(hub, arrival) for arrival in (1, 2)]
    running = asyncio.create_task(hub.run())
    await _until(lambda: all(wire.sent for wire in wires))
    line.gone = True
    await line.announced.put([PlacesChanged("e1", (1,), "left", 2)])
    await _until(lambda: line.refused >= 1)
    hub._audiences["e1"].dirty = True
    hub._wake.set()
    await _until(lambda: line.refused >= 2)
    await line.announced.put([EventGone("e1", 3)])
    await _until(lambda: all(wire.closed for wire in wires))
    assert not running.done()
    running.cancel()
    await asyncio.wait([running])


async def test_who_is_removed_is_written_to_no_more() -> None:
    line = Line([1])
    hub = hub_over(line)
    wire = Wire()
    socket = Socket("e1", Holder(1, "u1"), 1, wire, shown=None, is_stream=False, now_s=0.0)  # type: ignore[arg-type]
    hub.add(socket, 0, waits=False)
    hub.remove(socket)
    hub.remove(socket)
    await hub.sweep("e1")
    assert wire.sent == [] and hub.stats()["sockets"] == 0


async def test_silent_sockets_are_pinged_and_dead_ones_cut_off() -> None:
    line = Line([1, 2])
    hub = hub_over(line)
    alive, dead = connect(hub, 1), connect(hub, 2)
    for socket in list(hub._pings):
        socket.heard_s = asyncio.get_running_loop().time() if socket.holder.arrival == 1 else -1e9
    await hub._each(hub._turn(10), hub._ping)
    assert alive.sent == [push.PING_FRAME] and dead.closed


# ---- another backend ----------------------------------------------------------------------------------


async def test_when_the_backend_changes_everybody_is_told_their_place_where_it_is_now() -> None:
    line = Line([1, 2, 3])
    hub = hub_over(line)
    wires = {arrival: connect(hub, arrival) for arrival in (1, 2, 3, 4)}
    line.arrivals, line.orders, line.epoch, line.version = [3, 1, 2], {3: 0}, 4, 90
    line.status_otherwise = "completed"
    await hub._take(BackendChanged(90))
    assert line.least_versions == [90] * 4
    for position, arrival in enumerate((3, 1, 2), 1):
        (frame,) = wires[arrival].sent
        assert b'"type":"place"' in frame and b'"position":%d,' % position in frame
    assert b'"status":"completed"' in wires[4].sent[0]
    audience = hub._audiences["e1"]
    assert [socket.order for socket in audience.sockets] == [0, 1, 2, 4] and audience.dirty


async def test_who_has_no_place_with_the_new_backend_is_to_come_again_with_the_token() -> None:
    line = Line([1, 2])
    hub = hub_over(line)
    wires = [connect(hub, arrival) for arrival in (1, 2)]
    line.users[1] = "somebody else"
    await hub._take(BackendChanged(90))
    assert wires[0].sent == [close_frame(4001)] and wires[0].closed
    assert b'"type":"place"' in wires[1].sent[0] and not wires[1].closed
    line.gone = True
    await hub._take(BackendChanged(91))
    assert wires[1].sent[1:] == [close_frame(4001)]


async def test_a_change_of_the_backend_reaches_sockets_as_a_notice_and_frames_carry_the_epoch_of_now() -> None:
    line = Line([1, 2])
    hub = hub_over(line)
    wire = Wire()
    holder = Holder(1, "u1")
    hub.add(Socket("e1", holder, 1, wire, shown=9, is_stream=True, now_s=0.0), 0, waits=False)  # type: ignore[arg-type]
    running = asyncio.create_task(hub.run())
    await _until(lambda: wire.sent)
    assert wire.sent[-1].startswith(b"id: 3-1\n")
    line.epoch, line.version = 4, 2
    line.announced.put_nowait([BackendChanged(2)])
    await _until(lambda: len(wire.sent) > 1)
    assert wire.sent[-1].startswith(b"id: 4-2\n")
    running.cancel()
    await asyncio.wait([running])


async def test_who_is_new_while_nobody_answers_is_to_come_again_and_not_told_that_the_event_is_gone() -> None:
    line = Line([1, 2])
    line.gone, line.refusal = True, Refused("not_primary", "between two roles")
    hub = hub_over(line)
    running = asyncio.create_task(hub.run())
    wire = connect(hub, 1)
    await _until(lambda: wire.closed)
    assert wire.sent == [close_frame(4001)]
    running.cancel()
    await asyncio.wait([running])


async def _until(condition: object) -> None:
    deadline = asyncio.get_running_loop().time() + 5
    while not condition():  # type: ignore[operator]
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.005)
