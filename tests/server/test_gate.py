"""The gate: who shows a good key, what they may do with it, who is kept out, and who is calling."""

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from engine.errors import Refused
from server.gate import Gate, client_address
from server.keys import Keys, load_or_create
from tests.server.rings import WallClock

WALL = WallClock()


def request(authorization: str | None = None, *, peer: str = "203.0.113.7", forwarded: str = "") -> web.BaseRequest:
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    if authorization is not None:
        headers["Authorization"] = authorization
    made: Any = make_mocked_request("GET", "/", headers)
    return made.clone(remote=peer)  # type: ignore[no-any-return]


def showing(key: str) -> web.BaseRequest:
    return request(f"Bearer {key}")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return load_or_create(tmp_path / "data", WALL)[0]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_gate_names_who_shows_a_good_key(keys: Keys) -> None:
    gate = Gate(keys.ring, Clock())
    assert gate.admin(request(f"Bearer {keys.admin}")) == "admin"
    assert gate.site(request(f"bearer {keys.site}")) == "site"
    assert gate.is_site(request(f"Bearer {keys.site}"))


def test_kinds_of_keys_cannot_stand_in_for_each_other(keys: Keys) -> None:
    gate = Gate(keys.ring, Clock())
    for shown in (keys.site, keys.replication):
        with pytest.raises(Refused, match="no admin key") as caught:
            gate.admin(request(f"Bearer {shown}"))
        assert caught.value.code == "bad_token" and shown not in str(caught.value)
    assert not gate.is_site(request(f"Bearer {keys.admin}"))


@pytest.mark.parametrize("shown", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer " + "x" * 5000, "Bearer ü€"])
def test_anything_else_is_a_bad_token(keys: Keys, shown: str | None) -> None:
    gate = Gate(keys.ring, Clock())
    with pytest.raises(Refused) as caught:
        gate.admin(request(shown))
    assert caught.value.status == 401
    assert not gate.is_site(request(shown))


def test_ten_bad_keys_within_a_minute_lock_their_address_out_until_it_is_over(keys: Keys) -> None:
    clock = Clock()
    gate = Gate(keys.ring, clock)

    def shown_bad(peer: str) -> Refused:
        with pytest.raises(Refused) as caught:
            gate.admin(request("Bearer stn_admin_wrong", peer=peer))
        return caught.value

    assert {shown_bad("203.0.113.7").code for _ in range(10)} == {"bad_token"}
    clock.now += 20
    locked = shown_bad("203.0.113.7")
    assert (locked.code, locked.retry_after_s) == ("too_many_requests", 40)
    assert shown_bad("203.0.113.8").code == "bad_token"
    clock.now += 41
    assert shown_bad("203.0.113.7").code == "bad_token"


def test_a_good_key_passes_even_where_others_were_locked_out(keys: Keys) -> None:
    gate = Gate(keys.ring, Clock())
    for _ in range(20):
        with pytest.raises(Refused):
            gate.admin(request("Bearer wrong"))
    assert gate.admin(request(f"Bearer {keys.admin}")) == "admin"


def test_asking_whether_it_is_a_site_is_no_offence(keys: Keys) -> None:
    gate = Gate(keys.ring, Clock())
    assert not any(gate.is_site(request("Bearer eyJhbGciOi.a.b")) for _ in range(50))
    with pytest.raises(Refused) as caught:
        gate.site(request("Bearer wrong"))
    assert caught.value.code == "bad_token"


def test_the_table_of_addresses_is_bounded(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.gate.ADDRESSES_LIMIT", 3)
    gate = Gate(keys.ring, Clock())
    for number in range(5):
        with pytest.raises(Refused):
            gate.admin(request("Bearer wrong", peer=f"203.0.113.{number}"))
    assert list(gate._bad) == ["203.0.113.2", "203.0.113.3", "203.0.113.4"]


# ---- roles, scopes and changes ---------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "may"), [("viewer", 1), ("operator", 2), ("owner", 3)])
def test_a_role_may_do_what_lower_roles_may_and_no_more(keys: Keys, role: str, may: int) -> None:
    gate = Gate(keys.ring, Clock())
    change = keys.ring.creation("admin", "night shift", role=role)
    keys.ring.commit(change)
    for index, ask in enumerate((gate.admin, gate.operator, gate.owner)):
        if index < may:
            assert ask(showing(change.text)) == "night shift"
        else:
            with pytest.raises(Refused, match=f"role {ask.__name__}; this one is of role {role}") as caught:
                ask(showing(change.text))
            assert (caught.value.status, caught.value.code) == (403, "forbidden")


def test_a_good_key_that_may_not_do_it_locks_nobody_out(keys: Keys) -> None:
    gate = Gate(keys.ring, Clock())
    change = keys.ring.creation("admin", "watch", role="viewer")
    keys.ring.commit(change)
    for _ in range(30):
        with pytest.raises(Refused) as caught:
            gate.owner(showing(change.text))
        assert caught.value.status == 403


def test_a_site_key_is_good_for_its_events_and_for_others_there_is_nothing(keys: Keys) -> None:
    gate = Gate(keys.ring, Clock())
    change = keys.ring.creation("site", "shop", events=["e1", "e2"])
    keys.ring.commit(change)
    assert gate.site(showing(change.text)) == gate.site(showing(change.text), "e2") == "shop"
    assert gate.is_site(showing(change.text), "e1")
    assert gate.site(showing(keys.site), "e3") == "site"
    for ask in (gate.site, gate.is_site):
        with pytest.raises(Refused) as caught:
            ask(showing(change.text), "e3")
        assert (caught.value.status, caught.value.detail) == (404, "there is no such event")


def test_changes_are_taken_up_at_once(keys: Keys) -> None:
    gate = Gate(keys.ring, Clock())
    change = keys.ring.creation("site", "shop")
    with pytest.raises(Refused):
        gate.site(showing(change.text))
    keys.ring.commit(change)
    assert gate.site(showing(change.text)) == "shop"
    keys.ring.commit(keys.ring.revocation(change.key.id))
    with pytest.raises(Refused):
        gate.site(showing(change.text))
    assert not gate.is_site(showing(change.text))


def test_a_rotated_key_is_good_until_its_end_to_the_millisecond(keys: Keys) -> None:
    gate = Gate(keys.ring, Clock())
    change = keys.ring.rotation("admin", 60)
    keys.ring.commit(change)
    assert gate.owner(showing(keys.admin)) == gate.owner(showing(change.text)) == "admin"
    WALL.pass_s(59.999)
    assert gate.owner(showing(keys.admin)) == "admin"
    WALL.pass_s(0.001)
    with pytest.raises(Refused):
        gate.owner(showing(keys.admin))
    assert gate.owner(showing(change.text)) == "admin"


def test_the_gate_holds_no_key_in_the_clear(keys: Keys) -> None:
    held = repr([(salted, key) for salted, key in Gate(keys.ring, Clock())._keys.items()])
    assert keys.admin not in held and keys.site not in held


# ---- who is calling -----------------------------------------------------------------------------------

PROXIES = [ip_network("10.0.0.0/8"), ip_network("::1/128")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.7", "", "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "6.6.6.6, 198.51.100.1, 10.9.9.9", "198.51.100.1"),
        ("10.0.0.1", "10.1.1.1, 10.2.2.2", "10.1.1.1"),
        ("10.0.0.1", "198.51.100.1, <script>", "10.0.0.1"),
        ("::1", "2001:db8::5", "2001:db8::5"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "", "10.0.0.1"),
    ],
)
def test_forwarded_addresses_are_walked_from_the_right_through_trusted_proxies_only(
    peer: str, forwarded: str, expected: str
) -> None:
    assert client_address(request(peer=peer, forwarded=forwarded), PROXIES) == expected


def test_without_trusted_proxies_the_peer_is_the_caller() -> None:
    assert client_address(request(peer="127.0.0.1", forwarded="198.51.100.1"), ()) == "127.0.0.1"
