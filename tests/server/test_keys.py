"""Keys of a data folder: made on the first start, read on every other, refused where something is wrong."""

import os
import stat
from pathlib import Path

import pytest

from engine.errors import BadConfiguration
from server.key_ring import new_text
from server.keys import Keys, load_or_create, open_ring, settle, watch
from tests.server.rings import WallClock, secrets_in

CLOCK = WallClock()


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return load_or_create(tmp_path / "data", CLOCK)[0]


def test_the_first_start_makes_keys_that_nobody_else_can_read(tmp_path: Path) -> None:
    data = tmp_path / "deep" / "data"
    keys, fresh = load_or_create(data, CLOCK)
    assert fresh
    assert keys.admin.startswith("stn_admin_") and keys.site.startswith("stn_site_")
    assert keys.replication.startswith("stn_replication_")
    assert stat.S_IMODE((data / "keys").stat().st_mode) == 0o700
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (data / "keys").iterdir()}
    assert files == dict.fromkeys(("admin.key", "site.key", "replication.key", "ring.json"), 0o600)
    assert sorted(path.name for path in data.iterdir()) == ["keys"]


def test_there_is_one_key_of_each_kind_that_is_needed(keys: Keys) -> None:
    ring = keys.ring
    found = sorted((key.kind, key.name, key.role) for key in ring.live())
    assert found == [
        ("admin", "admin", "owner"),
        ("draw", "draw", None),
        ("pass", "pass", None),
        ("pass-id", "pass-id", None),
        ("queue", "queue", None),
        ("replication", "replication", None),
        ("session", "session", None),
        ("site", "site", None),
    ]
    assert len({ring.draw_key, ring.pass_id_key, *ring.secrets("queue")[0].values()}) == 3
    assert ring.enqueue_keys() == {}


def test_the_next_start_reads_the_same_keys(tmp_path: Path) -> None:
    first, _ = load_or_create(tmp_path, CLOCK)
    again, fresh = load_or_create(tmp_path, CLOCK)
    assert not fresh
    assert (again.admin, again.site, again.replication) == (first.admin, first.site, first.replication)
    assert again.ring.secrets("queue") == first.ring.secrets("queue")
    assert again.ring.pass_keys(CLOCK()) == first.ring.pass_keys(CLOCK())
    assert (again.ring.draw_key, again.ring.pass_id_key) == (first.ring.draw_key, first.ring.pass_id_key)


def test_two_folders_never_share_a_key(tmp_path: Path) -> None:
    load_or_create(tmp_path / "a", CLOCK)
    load_or_create(tmp_path / "b", CLOCK)
    assert not set(secrets_in(tmp_path / "a")) & set(secrets_in(tmp_path / "b"))


def test_keys_do_not_show_in_a_repr(keys: Keys) -> None:
    assert keys.admin not in repr(keys) and keys.site not in f"{keys}"


def test_a_lost_folder_beside_a_log_is_refused_until_somebody_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(BadConfiguration, match="empty folder"):
        load_or_create(tmp_path, CLOCK)
    (tmp_path / "keys").mkdir(mode=0o700)
    assert load_or_create(tmp_path, CLOCK)[1] is True


@pytest.mark.parametrize("name", ["ring.json", "admin.key", "site.key", "replication.key"])
def test_a_missing_file_is_refused_and_not_made_anew(tmp_path: Path, name: str) -> None:
    load_or_create(tmp_path, CLOCK)
    (tmp_path / "keys" / name).unlink()
    with pytest.raises(BadConfiguration, match=f"{name}.*put it back"):
        load_or_create(tmp_path, CLOCK)
    assert not (tmp_path / "keys" / name).exists()


@pytest.mark.parametrize("name", ["keys", "keys/admin.key", "keys/ring.json"])
def test_what_others_can_read_is_refused(tmp_path: Path, name: str) -> None:
    load_or_create(tmp_path, CLOCK)
    os.chmod(tmp_path / name, 0o755 if name == "keys" else 0o640)
    with pytest.raises(BadConfiguration, match="chmod"):
        load_or_create(tmp_path, CLOCK)


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
    load_or_create(tmp_path, CLOCK)
    (tmp_path / "keys" / "admin.key").write_text(line + "\n")
    with pytest.raises(BadConfiguration, match=r"admin\.key") as caught:
        load_or_create(tmp_path, CLOCK)
    assert len(line) < 40 or line[10:] not in str(caught.value)


def test_a_key_in_a_file_that_the_ring_does_not_know_is_refused_with_the_way_out(tmp_path: Path) -> None:
    load_or_create(tmp_path, CLOCK)
    stranger = new_text("admin")
    (tmp_path / "keys" / "admin.key").write_text(stranger + "\n")
    with pytest.raises(BadConfiguration, match="stanchion keys rotate admin --data") as caught:
        load_or_create(tmp_path, CLOCK)
    assert stranger not in str(caught.value)


def test_a_ring_opens_without_the_files_beside_it_so_that_a_lost_key_can_be_replaced(tmp_path: Path) -> None:
    old, _ = load_or_create(tmp_path, CLOCK)
    (tmp_path / "keys" / "admin.key").unlink()
    ring = open_ring(tmp_path, CLOCK)
    ring.commit(ring.rotation("admin", 0))
    keys, fresh = load_or_create(tmp_path, CLOCK)
    assert not fresh and keys.admin.startswith("stn_admin_") and keys.admin != old.admin


def test_a_folder_without_keys_is_no_ring(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match="first start"):
        open_ring(tmp_path, CLOCK)


async def test_a_ring_is_watched_for_its_moments(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = []

    class Stop(Exception):
        """The third turn ends the test."""

    class Ring:
        def turn(self) -> None:
            turns.append(1)
            if len(turns) == 3:
                raise Stop

    monkeypatch.setattr("server.keys.TURN_INTERVAL_S", 0)
    with pytest.raises(Stop):
        await watch(Ring())  # type: ignore[arg-type]


def test_once_the_folder_is_locked_the_keys_are_read_again(tmp_path: Path) -> None:
    before, _ = load_or_create(tmp_path, CLOCK)
    other = open_ring(tmp_path, CLOCK)
    other.commit(other.rotation("admin", 0))
    (tmp_path / "keys" / "site.key.next").write_text(new_text("site"))
    keys = settle(tmp_path, CLOCK)
    assert keys.admin != before.admin and keys.admin == (tmp_path / "keys" / "admin.key").read_text().strip()
    assert keys.ring.draw_key == before.ring.draw_key
    assert not (tmp_path / "keys" / "site.key.next").exists()
