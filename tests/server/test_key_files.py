"""The key folder: what is written is whole at every moment, and what is read is refused where it is wrong."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import BadConfiguration, StorageFailed
from server import key_files
from server.key_files import KeyFolder
from server.key_kinds import Key
from server.key_ring import Change, KeyRing, digest_of, new_text
from tests.server.rings import WallClock

CLOCK = WallClock()


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    made = KeyFolder(tmp_path / "keys")
    made.create(CLOCK())
    return made


def ring_of(folder: KeyFolder) -> KeyRing:
    return KeyRing(folder.load(CLOCK()), CLOCK, folder)


def edit(folder: KeyFolder, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the keys of ring.json as a hand would."""
    path = folder.place / "ring.json"
    content = json.loads(path.read_text())
    change(content["keys"])
    path.write_text(json.dumps(content))


def of_kind(keys: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(key for key in keys if key["kind"] == kind)


# ---- changes --------------------------------------------------------------------------------------------


CHANGES: dict[str, Callable[[KeyRing], Change]] = {
    "rotate admin": lambda ring: ring.rotation("admin", 60),
    "rotate admin at once": lambda ring: ring.rotation("admin", 0),
    "rotate queue": lambda ring: ring.rotation("queue"),
    "create site": lambda ring: ring.creation("site", "shop", events=["e1"]),
    "create enqueue": lambda ring: ring.creation("enqueue", "shop", public=bytes(range(32))),
    "revoke site": lambda ring: ring.revocation(ring.live("site")[0].id),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_written_is_what_is_read(folder: KeyFolder, name: str) -> None:
    ring = ring_of(folder)
    change = CHANGES[name](ring)
    ring.commit(change)
    again = folder.load(CLOCK())
    assert [_facts(key) for key in again] == [_facts(key) for key in change.keys]
    texts = folder.texts(again)
    assert ("site" in texts) == (name != "revoke site") == (folder.place / "site.key").exists()
    if name.startswith("rotate admin"):
        assert texts["admin"] == change.text


def _facts(key: Key) -> tuple[object, ...]:
    secret = key.secret and key.raw()
    return key.id, key.kind, key.name, key.until_ms, key.role, key.events, key.in_file, secret, key.digest, key.public


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_a_kill_at_any_moment_leaves_the_ring_before_or_the_ring_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Every call that changes the disk is in its turn the last one that happens."""
    outcomes = set()
    for last in range(100):
        folder = KeyFolder(tmp_path / f"{last}" / "keys")
        folder.create(CLOCK())
        ring = ring_of(folder)
        before = [key.id for key in folder.load(CLOCK())]
        change = CHANGES[name](ring)
        with monkeypatch.context() as patched:
            _kill_after(patched, last)
            is_killed = _ends(lambda ring=ring, change=change: ring.commit(change))
        found = folder.load(CLOCK())
        ids, after = [key.id for key in found], [key.id for key in change.keys]
        assert ids in (before, after)
        outcomes.add(ids == after)
        for kind, text in folder.texts(found).items():
            assert any(key.digest == digest_of(text) and key.kind == kind and key.in_file for key in found)
        told = folder.texts(found)
        folder.settle(found)
        assert {kind: (folder.place / f"{kind}.key").read_text().strip() for kind in told} == told
        assert not list(folder.place.glob("*.next"))
        if not is_killed:
            assert outcomes == {True, False}
            return
    raise AssertionError("it never ended")


def _ends(act: Callable[[], None]) -> bool:
    """Return whether the process ended in the middle of something."""
    try:
        act()
    except Killed:
        return True
    return False


def _kill_after(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Let so many calls that change the disk happen, and none after."""
    calls: list[str] = []
    for name in ("rename", "fsync", "open", "unlink"):
        real = getattr(os, name)

        def call(*args: Any, _name: str = name, _real: Any = real, **more: Any) -> Any:
            if len(calls) >= last:
                raise Killed
            calls.append(_name)
            return _real(*args, **more)

        monkeypatch.setattr(key_files.os, name, call)


def test_a_folder_that_cannot_be_written_changes_nothing(folder: KeyFolder) -> None:
    ring = ring_of(folder)
    before = ring.live()
    folder.place.rename(folder.place.with_name("elsewhere"))
    with pytest.raises(StorageFailed, match="cannot write keys"):
        ring.commit(ring.rotation("admin"))
    assert ring.live() == before


# ---- what is refused --------------------------------------------------------------------------------------


def _copy_secret(keys: list[dict[str, Any]]) -> None:
    of_kind(keys, "session")["secret"] = of_kind(keys, "queue")["secret"]


def _register(keys: list[dict[str, Any]], public: str) -> None:
    keys.append({**of_kind(keys, "draw"), "id": "shop", "kind": "enqueue", "secret": None, "public": public})


WRONG: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "two equal secrets": (_copy_secret, "the same"),
    "two equal ids": (lambda keys: keys[1].update(id=keys[0]["id"]), "the same"),
    "a short secret": (lambda keys: of_kind(keys, "draw").update(secret="c2hvcnQ"), "32 random bytes"),
    "a patterned secret": (lambda keys: of_kind(keys, "queue").update(secret="A" * 43), "weak"),
    "a sample": (
        lambda keys: of_kind(keys, "pass").update(secret="ThisIsAnExampleKeyForTheDocsPages0123456789"),
        "weak or a sample",
    ),
    "no base64url": (lambda keys: of_kind(keys, "pass").update(secret="!" * 43), "base64url"),
    "no queue key": (lambda keys: keys.remove(of_kind(keys, "queue")), "no key of kind queue"),
    "no owner": (lambda keys: of_kind(keys, "admin").update(role="viewer"), "no key of kind admin"),
    "no draw key": (lambda keys: keys.remove(of_kind(keys, "draw")), "no key of kind draw"),
    "only a queue key that ends": (lambda keys: of_kind(keys, "queue").update(until_ms=2**50), "no key of kind queue"),
    "a digest that is none": (lambda keys: of_kind(keys, "site").update(digest="12"), "64 hexadecimal"),
    "a bearer key in the clear": (lambda keys: of_kind(keys, "site").update(secret="x" * 43), "digest"),
    "a role for a site": (lambda keys: of_kind(keys, "site").update(role="owner"), "role"),
    "events that are none": (lambda keys: of_kind(keys, "site").update(events=["A B"]), "events"),
    "an id that is none": (lambda keys: keys[0].update(id="../x"), "id of its own"),
    "a field nobody knows": (lambda keys: keys[0].update(colour="red"), "no key ring of this version"),
    "a kind nobody knows": (lambda keys: keys[0].update(kind="magic"), "no key ring of this version"),
    "two keys in one file": (
        lambda keys: keys.append({**of_kind(keys, "site"), "id": "s2", "digest": "0" * 64}),
        "at most one",
    ),
    "a short public key": (lambda keys: _register(keys, "AA"), "32 bytes"),
    "a weak public key": (lambda keys: _register(keys, "A" * 43), "anyone could sign"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_ring_that_is_wrong_is_refused_and_no_secret_is_told(folder: KeyFolder, name: str) -> None:
    change, told = WRONG[name]
    edit(folder, change)
    with pytest.raises(BadConfiguration, match=r"ring\.json.*" + told) as caught:
        folder.load(CLOCK())
    for key in json.loads((folder.place / "ring.json").read_text())["keys"]:
        assert not key.get("secret") or len(key["secret"]) < 20 or key["secret"] not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"format": 2, "keys": []}', b"[" * 5000])
def test_what_is_no_ring_is_refused(folder: KeyFolder, content: bytes) -> None:
    (folder.place / "ring.json").write_bytes(content)
    with pytest.raises(BadConfiguration, match="no key ring of this version"):
        folder.load(CLOCK())


def test_a_waiting_text_that_the_ring_does_not_know_is_thrown_away(folder: KeyFolder) -> None:
    waiting = folder.place / "admin.key.next"
    waiting.write_text(new_text("admin"))
    keys = folder.load(CLOCK())
    assert waiting.exists() and folder.texts(keys)["admin"] == (folder.place / "admin.key").read_text().strip()
    folder.settle(keys)
    assert not waiting.exists() and "admin" in folder.texts(keys)


# ---- a folder of the version before rings -----------------------------------------------------------------


def _earlier(folder: KeyFolder) -> list[str]:
    """Make of a folder what the version before rings had; returns the queue's secrets."""
    secrets = [new_text("x").removeprefix("stn_x_") for _ in range(2)]
    (folder.place / "ring.json").unlink()
    path = folder.place / "queue.key"
    path.write_text(f"qnew {secrets[0]}\nqold {secrets[1]}\n")
    path.chmod(0o600)
    return secrets


def test_a_folder_of_the_version_before_keeps_its_keys_and_gets_the_new_ones(folder: KeyFolder) -> None:
    before = folder.texts(folder.load(CLOCK()))
    _earlier(folder)
    ring = ring_of(folder)
    assert folder.texts(ring.live()) == before
    secrets, signing = ring.secrets("queue")
    assert (set(secrets), signing) == ({"qnew", "qold"}, "qnew")
    assert sorted(path.name for path in folder.place.iterdir()) == [
        "admin.key",
        "replication.key",
        "ring.json",
        "site.key",
    ]
    assert ring_of(folder).pass_keys(CLOCK()) == ring.pass_keys(CLOCK())
    CLOCK.pass_s(25 * 3600)
    assert list(ring.secrets("queue")[0]) == ["qnew"]


@pytest.mark.parametrize("lines", ["", "one", "qa {0}\nqa {1}", "qa {0}\nqb {0}", "qa " + "A" * 43])
def test_an_earlier_queue_file_is_held_to_the_same(folder: KeyFolder, lines: str) -> None:
    secrets = _earlier(folder)
    (folder.place / "queue.key").write_text(lines.format(*secrets))
    with pytest.raises(BadConfiguration, match=r"queue\.key"):
        folder.load(CLOCK())
    assert not (folder.place / "ring.json").exists()
