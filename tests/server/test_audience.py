"""The audience: sockets stand by their place in line, come, move and go, and a walk over them is not disturbed."""

from hypothesis import given
from hypothesis import strategies as st

from engine.actor import Holder
from server.audience import Audience, Socket
from tests.server.test_push import Wire


def socket_at(order: int) -> Socket:
    wire = Wire()
    return Socket("e1", Holder(order, "u"), order, wire, shown=None, is_stream=False, now_s=0.0)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 8)), st.data())
def test_sockets_stand_where_they_were_put_last(orders: list[int], data: st.DataObject) -> None:
    audience, here = Audience(), [socket_at(order) for order in orders]
    for socket in here:
        audience.add(socket)
    for socket in list(here):
        act = data.draw(st.sampled_from(["stay", "move", "go", "go twice"]))
        if act == "move":
            audience.move(socket, data.draw(st.integers(0, 8)))
        elif act != "stay":
            assert audience.remove(socket)
            here.remove(socket)
        if act == "go twice":
            assert not audience.remove(socket)
            audience.move(socket, 3)
            assert socket.order == 3 and socket not in audience.at(3)
    assert sorted(audience.sockets, key=id) == sorted(here, key=id)
    assert all(socket in audience.at(socket.order) for socket in here)
    assert [socket.order for socket in audience.sockets] == sorted(socket.order for socket in here)


@given(st.lists(st.integers(0, 30)), st.integers(1, 10))
def test_a_walk_in_groups_meets_every_socket_once_in_order(orders: list[int], size: int) -> None:
    audience = Audience()
    for order in orders:
        audience.add(socket_at(order))
    groups = list(audience.groups(size))
    walked = [socket for group in groups for socket in group]
    assert [socket.order for socket in walked] == sorted(orders)
    assert len(set(map(id, walked))) == len(orders)
    for group in groups:
        assert group and all(socket.order == group[-1].order for socket in group[size:]), (
            "only the last place is longer"
        )


def test_who_comes_or_goes_during_a_walk_does_not_disturb_it() -> None:
    audience = Audience()
    sockets = {order: socket_at(order) for order in (1, 3, 5, 7)}
    for socket in sockets.values():
        audience.add(socket)
    walk = audience.groups(2)
    assert next(walk) == [sockets[1], sockets[3]]
    for order in (3, 5):
        audience.remove(sockets[order])
    audience.add(socket_at(2))
    audience.add(socket_at(6))
    audience.move(sockets[1], 8)
    assert [[socket.order for socket in group] for group in walk] == [[6, 7], [8]], (
        "the walk meets who moves ahead again"
    )


def test_a_socket_is_its_holders_unless_it_is_said_otherwise() -> None:
    assert socket_at(1).is_holder
    wire = Wire()
    old = Socket("e1", Holder(1, "u"), 1, wire, shown=4, is_stream=True, now_s=2.0, is_holder=False)  # type: ignore[arg-type]
    assert (old.is_holder, old.shown, old.is_stream, old.heard_s) == (False, 4, True, 2.0)
