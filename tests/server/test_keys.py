"""Keys on disk, the gate that asks for them, and who is calling."""

import os
import stat
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from engine.errors import BadConfiguration, Refused
from server.keys import Gate, Keys, client_address, load_or_create, new_key


def request(authorization: str | None = None, *, peer: str = "203.0.113.7", forwarded: str = "") -> web.BaseRequest:
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    if authorization is not None:
        headers["Authorization"] = authorization
    made: Any = make_mocked_request("GET", "/", headers)
    return made.clone(remote=peer)  # type: ignore[no-any-return]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return load_or_create(tmp_path / "data")[0]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# ---- on disk ----------------------------------------------------------------------------------------


def test_the_first_start_makes_keys_that_nobody_else_can_read(tmp_path: Path) -> None:
    data = tmp_path / "deep" / "data"
    keys, fresh = load_or_create(data)
    assert fresh
    assert keys.admin.startswith("stn_admin_") and keys.site.startswith("stn_site_")
    assert stat.S_IMODE((data / "keys").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (data / "keys").iterdir()} == {0o600}
    assert sorted(path.name for path in data.iterdir()) == ["keys"]


def test_the_next_start_reads_the_same_keys(tmp_path: Path) -> None:
    assert load_or_create(tmp_path)[0] == load_or_create(tmp_path)[0]
    assert load_or_create(tmp_path)[1] is False


def test_two_folders_never_share_a_key(tmp_path: Path) -> None:
    first, second = load_or_create(tmp_path / "a")[0], load_or_create(tmp_path / "b")[0]
    assert first.admin != second.admin and first.queue_secrets != second.queue_secrets


def test_keys_do_not_show_in_a_repr(keys: Keys) -> None:
    assert keys.admin not in repr(keys) and keys.site not in f"{keys}"


def test_a_lost_folder_beside_a_log_is_refused_until_somebody_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(BadConfiguration, match="empty folder"):
        load_or_create(tmp_path)
    (tmp_path / "keys").mkdir(mode=0o700)
    assert load_or_create(tmp_path)[1] is True


def test_a_missing_file_is_refused_and_not_made_anew(tmp_path: Path) -> None:
    load_or_create(tmp_path)
    (tmp_path / "keys" / "queue.key").unlink()
    with pytest.raises(BadConfiguration, match=r"queue\.key"):
        load_or_create(tmp_path)


@pytest.mark.parametrize("name", ["keys", "keys/admin.key", "keys/queue.key"])
def test_what_others_can_read_is_refused(tmp_path: Path, name: str) -> None:
    load_or_create(tmp_path)
    os.chmod(tmp_path / name, 0o755 if name == "keys" else 0o640)
    with pytest.raises(BadConfiguration, match="chmod"):
        load_or_create(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "secret",
        "stn_admin_",
        "stn_admin_short",
        "stn_admin_" + "A" * 43,
        "stn_admin_" + "changeme" * 6,
        "stn_admin_ThisIsAnExampleKeyForTheDocsPages0123456789",
        "stn_admin_" + "!" * 43,
        "stn_site_xGh2kq0ZrT9vYw3sB7nLpE5dCfJ8aMuQ1oViHy4KtRw",
        "stn_admin_xGh2kq0ZrT9vYw3sB7nLpE5dCfJ8aMuQ1oViHy4KtRw\nanother",
    ],
)
def test_weak_short_sample_and_misplaced_keys_are_refused(tmp_path: Path, line: str) -> None:
    load_or_create(tmp_path)
    (tmp_path / "keys" / "admin.key").write_text(line + "\n")
    with pytest.raises(BadConfiguration, match=r"admin\.key") as caught:
        load_or_create(tmp_path)
    assert len(line) < 40 or line[10:] not in str(caught.value)


def test_a_new_queue_key_in_front_signs_while_the_old_one_is_still_believed(tmp_path: Path) -> None:
    old = load_or_create(tmp_path)[0]
    path = tmp_path / "keys" / "queue.key"
    path.write_text(f"fresh {new_key('x').removeprefix('stn_x_')}\n" + path.read_text())
    keys = load_or_create(tmp_path)[0]
    assert keys.queue_signing == "fresh"
    assert keys.queue_secrets[old.queue_signing] == old.queue_secrets[old.queue_signing]


def test_queue_ids_must_differ(tmp_path: Path) -> None:
    load_or_create(tmp_path)
    path = tmp_path / "keys" / "queue.key"
    path.write_text(path.read_text() * 2)
    with pytest.raises(BadConfiguration, match="an id of its own"):
        load_or_create(tmp_path)


# ---- the gate -----------------------------------------------------------------------------------------


def test_the_gate_names_who_shows_a_good_key(keys: Keys) -> None:
    gate = Gate(keys, Clock())
    assert gate.admin(request(f"Bearer {keys.admin}")) == "admin"
    assert gate.site(request(f"bearer {keys.site}")) == "site"
    assert gate.is_site(request(f"Bearer {keys.site}"))


def test_kinds_of_keys_cannot_stand_in_for_each_other(keys: Keys) -> None:
    gate = Gate(keys, Clock())
    for shown in (keys.site, keys.replication):
        with pytest.raises(Refused, match="no admin key") as caught:
            gate.admin(request(f"Bearer {shown}"))
        assert caught.value.code == "bad_token" and shown not in str(caught.value)
    assert not gate.is_site(request(f"Bearer {keys.admin}"))


@pytest.mark.parametrize("shown", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer " + "x" * 5000, "Bearer ü€"])
def test_anything_else_is_a_bad_token(keys: Keys, shown: str | None) -> None:
    gate = Gate(keys, Clock())
    with pytest.raises(Refused) as caught:
        gate.admin(request(shown))
    assert caught.value.status == 401
    assert not gate.is_site(request(shown))


def test_ten_bad_keys_within_a_minute_lock_their_address_out_until_it_is_over(keys: Keys) -> None:
    clock = Clock()
    gate = Gate(keys, clock)

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
    gate = Gate(keys, Clock())
    for _ in range(20):
        with pytest.raises(Refused):
            gate.admin(request("Bearer wrong"))
    assert gate.admin(request(f"Bearer {keys.admin}")) == "admin"


def test_asking_whether_it_is_a_site_is_no_offence(keys: Keys) -> None:
    gate = Gate(keys, Clock())
    assert not any(gate.is_site(request("Bearer eyJhbGciOi.a.b")) for _ in range(50))
    with pytest.raises(Refused) as caught:
        gate.site(request("Bearer wrong"))
    assert caught.value.code == "bad_token"


def test_the_table_of_addresses_is_bounded(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.keys.ADDRESSES_LIMIT", 3)
    gate = Gate(keys, Clock())
    for number in range(5):
        with pytest.raises(Refused):
            gate.admin(request("Bearer wrong", peer=f"203.0.113.{number}"))
    assert list(gate._bad) == ["203.0.113.2", "203.0.113.3", "203.0.113.4"]


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
