"""Keys that servers share: sealed on their way, believed by all before they sign, kept by each, never half changed."""

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.errors import BadConfiguration, Refused, StorageFailed
from server.admin_keys import AdminKeys, NewKeyRequest, RotateRequest
from server.key_files import KeyFolder, ring_to_bytes
from server.key_kinds import Key
from server.key_ring import Change, KeyRing, digest_of, first_keys, new_text
from server.keys import load_or_create, read_key_file, stored_ring
from server.replication import key_sharing
from server.replication.key_sharing import SharedKeys, open_ring, seal_ring
from server.replication.link import LinkClosed
from server.replication.messages import Ring
from server.routes import Call
from tests.server.rings import WallClock

KEY, OTHER = digest_of("one"), digest_of("another")


def keys_of(now_ms: int, replication: str = "") -> list[Key]:
    texts = {kind: new_text(kind) for kind in ("admin", "site", "replication")}
    if replication:
        texts["replication"] = replication
    return first_keys(now_ms, texts)


class Server:
    """The keys of one server: its folder (None: an edge), its clock, and how it opens links."""

    def __init__(self, place: Path | None, shown: str = "", clock: WallClock | None = None) -> None:
        self.clock = clock or WallClock()
        self.data = place
        ring = None if place is None else stored_ring(place, self.clock)
        self.shared = SharedKeys(ring, shown, None if place is None else place / "keys", self.clock)

    @classmethod
    def primary(cls, place: Path) -> "Server":
        load_or_create(place, WallClock())
        server = cls(place)
        server.shared.lead(nobody)
        return server

    @property
    def ring(self) -> KeyRing:
        return self.shared.ring

    @property
    def key(self) -> str:
        """The digest in its ring of the first replication key."""
        return self.ring.live("replication")[0].digest or ""

    def stored(self) -> list[Key]:
        """Return the ring as the next start has it."""
        assert self.data is not None
        ring = stored_ring(self.data, self.clock)
        assert ring is not None
        return ring.all()


async def nobody(generation: int, ring_for: Callable[[str], Ring | None]) -> None:
    """Hand nothing on."""


def bare(keys: Sequence[Key]) -> list[Key]:
    """Return keys without what each server knows of its own files."""
    return [replace(key, in_file=False) for key in keys]


@pytest.fixture
def primary(tmp_path: Path) -> Server:
    return Server.primary(tmp_path / "primary")


# ---- sealing ------------------------------------------------------------------------------------------


def test_what_was_sealed_is_what_is_opened_and_nothing_of_it_shows() -> None:
    keys = keys_of(1)
    sealed = seal_ring(keys, KEY)
    assert open_ring(sealed, KEY, 1) == keys
    assert sealed != seal_ring(keys, KEY), "never the same bytes twice"
    for key in keys:
        assert key.id.encode() not in sealed and (key.digest or key.id).encode() not in sealed


def test_another_key_opens_nothing() -> None:
    with pytest.raises(Refused, match="not sealed under this replication key"):
        open_ring(seal_ring(keys_of(1), KEY), OTHER, 1)


def test_a_bit_that_is_flipped_anywhere_is_noticed() -> None:
    sealed = seal_ring(keys_of(1), KEY)
    for place in range(len(sealed)):
        data = bytearray(sealed)
        data[place] ^= 1 << place % 8
        with pytest.raises(Refused):
            open_ring(bytes(data), KEY, 1)


@pytest.mark.parametrize("length", [0, 1, 11, 12, 27, 28, 100])
def test_a_part_of_it_is_no_ring(length: int) -> None:
    with pytest.raises(Refused):
        open_ring(seal_ring(keys_of(1), KEY)[:length], KEY, 1)


def test_a_ring_that_lacks_something_is_not_taken_however_well_it_is_sealed() -> None:
    keys = keys_of(1)
    for missing in ("draw", "pass-id", "pass", "queue", "session", "admin"):
        with pytest.raises(Refused, match=f"no key of kind {missing} goes on"):
            open_ring(seal_ring([key for key in keys if key.kind != missing], KEY), KEY, 1)
    with pytest.raises(Refused, match="two of the keys are the same"):
        open_ring(seal_ring([*keys, keys[0]], KEY), KEY, 1)


def test_a_ring_of_a_later_version_is_refused_and_not_guessed_at(primary: Server) -> None:
    content = json.loads(ring_to_bytes(keys_of(1)))
    content["keys"][0]["colour"] = "blue"
    follower = Server(None, primary.key)
    sealed = _sealed_raw(json.dumps(content).encode(), KEY)
    with pytest.raises(LinkClosed, match="no key ring of this version"):
        follower.shared.take(sealed, KEY)
    assert not follower.shared.has_ring


def _sealed_raw(content: bytes, key: str) -> bytes:
    nonce = os.urandom(key_sharing.NONCE_BYTES)
    return nonce + key_sharing._cipher(key).encrypt(nonce, content, None)


# ---- a follower's folder --------------------------------------------------------------------------------


def test_a_follower_keeps_the_ring_it_is_handed_and_has_it_after_a_restart(primary: Server, tmp_path: Path) -> None:
    follower = Server(tmp_path / "follower", primary.key)
    assert not follower.shared.has_ring
    follower.shared.take(primary.shared.sealed(primary.key).sealed, primary.key)
    assert follower.ring.all() == follower.stored() == bare(primary.ring.all())
    assert (follower.ring.draw_key, follower.ring.pass_id_key) == (primary.ring.draw_key, primary.ring.pass_id_key)
    place = tmp_path / "follower" / "keys"
    assert [path.name for path in place.iterdir()] == ["ring.json"]
    assert place.stat().st_mode & 0o777 == 0o700 and (place / "ring.json").stat().st_mode & 0o777 == 0o600
    assert Server(tmp_path / "follower", primary.key).ring.secrets("queue") == primary.ring.secrets("queue")


def test_a_change_reaches_the_folder_and_whoever_built_something_out_of_the_keys(
    primary: Server, tmp_path: Path
) -> None:
    follower, told = Server(tmp_path / "follower", primary.key), []
    follower.shared.take(primary.shared.sealed(primary.key).sealed, primary.key)
    follower.ring.on_change(lambda: told.append(follower.ring.secrets("queue")[1]))
    primary.ring.commit(primary.ring.rotation("queue"))
    follower.shared.take(primary.shared.sealed(primary.key).sealed, primary.key)
    assert told == [primary.ring.signing("queue").id]
    assert follower.ring.all() == follower.stored() == bare(primary.ring.all())


def test_a_ring_that_is_the_same_is_not_written_again(primary: Server, tmp_path: Path) -> None:
    follower = Server(tmp_path / "follower", primary.key)
    follower.shared.take(primary.shared.sealed(primary.key).sealed, primary.key)
    before = (tmp_path / "follower" / "keys" / "ring.json").stat().st_ino
    follower.shared.take(primary.shared.sealed(primary.key).sealed, primary.key)
    assert (tmp_path / "follower" / "keys" / "ring.json").stat().st_ino == before


def test_an_edge_has_the_keys_and_no_folder(primary: Server, tmp_path: Path) -> None:
    edge = Server(None, primary.key)
    edge.shared.take(primary.shared.sealed(primary.key).sealed, primary.key)
    edge.shared.take(primary.shared.sealed(primary.key).sealed, primary.key)
    assert edge.ring.all() == bare(primary.ring.all())
    assert [path.name for path in tmp_path.iterdir()] == ["primary"]


def test_the_replication_key_may_lie_in_the_folder_before_there_is_a_ring(primary: Server, tmp_path: Path) -> None:
    assert primary.data is not None
    text = (primary.data / "keys" / "replication.key").read_text()
    place = tmp_path / "follower" / "keys"
    place.mkdir(mode=0o700, parents=True)
    (place / "replication.key").write_text(text)
    (place / "replication.key").chmod(0o600)
    follower = Server(tmp_path / "follower", primary.key)
    assert not follower.shared.has_ring
    follower.shared.take(primary.shared.sealed(primary.key).sealed, primary.key)
    kept = {key.kind: key.in_file for key in follower.stored()}
    assert kept["replication"] and not kept["admin"] and not kept["site"], "in a file is what this folder has in one"
    follower.ring.commit(follower.ring.creation("site", "shop"))
    assert (place / "replication.key").read_text() == text, "a change after a promotion leaves it where it is"


def test_a_primary_that_becomes_a_follower_keeps_the_texts_it_has(primary: Server, tmp_path: Path) -> None:
    assert primary.data is not None
    heir = Server(tmp_path / "heir", primary.key)
    heir.shared.take(primary.shared.sealed(primary.key).sealed, primary.key)
    heir.ring.commit(heir.ring.rotation("site"))
    primary.shared.lead(None)
    primary.shared.take(heir.shared.sealed(heir.key).sealed, heir.key)
    keys, _ = load_or_create(primary.data, primary.clock)
    assert keys.admin == (primary.data / "keys" / "admin.key").read_text().strip(), "it could lead again as it is"
    assert bare(primary.stored()) == bare(heir.ring.all())


def test_what_others_may_read_is_refused_on_a_follower_too(primary: Server, tmp_path: Path) -> None:
    follower = Server(tmp_path / "follower", primary.key)
    follower.shared.take(primary.shared.sealed(primary.key).sealed, primary.key)
    for name in ("keys", "keys/ring.json"):
        (tmp_path / "follower" / name).chmod(0o755)
        with pytest.raises(BadConfiguration, match="chmod go="):
            stored_ring(tmp_path / "follower", WallClock())
        (tmp_path / "follower" / name).chmod(0o700)


def test_a_ring_that_cannot_be_written_is_not_believed(primary: Server, tmp_path: Path) -> None:
    follower = Server(tmp_path / "follower", primary.key)
    follower.shared.take(primary.shared.sealed(primary.key).sealed, primary.key)
    before = follower.ring.all()
    (tmp_path / "follower" / "keys").rename(tmp_path / "away")
    (tmp_path / "follower" / "keys").write_text("in the way")
    primary.ring.commit(primary.ring.rotation("queue"))
    with pytest.raises(StorageFailed):
        follower.shared.take(primary.shared.sealed(primary.key).sealed, primary.key)
    assert follower.ring.all() == before


def test_a_start_that_was_killed_before_the_first_ring_leaves_a_folder_to_go_on_with(
    primary: Server, tmp_path: Path
) -> None:
    place = tmp_path / "follower" / "keys"
    place.mkdir(mode=0o700, parents=True)
    (place / "ring.json.tmp").write_text("half a ri")
    follower = Server(tmp_path / "follower", primary.key)
    follower.shared.take(primary.shared.sealed(primary.key).sealed, primary.key)
    assert follower.stored() == bare(primary.ring.all())


# ---- which keys open links ------------------------------------------------------------------------------


def test_a_follower_that_has_no_ring_yet_shows_the_key_it_was_started_with(tmp_path: Path) -> None:
    assert Server(tmp_path / "follower", KEY).shared.handshake_keys() == [KEY]


def test_a_primary_believes_the_keys_of_its_ring_and_no_other(primary: Server) -> None:
    old = primary.key
    primary.ring.commit(primary.ring.rotation("replication", 60))
    new = primary.ring.live("replication")[-1].digest
    assert primary.shared.handshake_keys() == [old, new]
    primary.clock.pass_s(60)
    assert primary.shared.handshake_keys() == [new]


def test_a_follower_shows_its_own_key_first_and_all_its_ring_believes(primary: Server, tmp_path: Path) -> None:
    primary.ring.commit(primary.ring.creation("replication", "second"))
    first, second = (key.digest for key in primary.ring.live("replication"))
    follower = Server(tmp_path / "follower", second or "")
    follower.shared.take(primary.shared.sealed(primary.key).sealed, primary.key)
    assert follower.shared.handshake_keys() == [second, first]


def test_a_key_that_is_newer_than_the_ring_is_shown_until_this_server_leads(primary: Server, tmp_path: Path) -> None:
    follower = Server(tmp_path / "follower", primary.key)
    follower.shared.take(primary.shared.sealed(primary.key).sealed, primary.key)
    again = Server(tmp_path / "follower", OTHER)
    assert again.shared.handshake_keys() == [OTHER, primary.key]
    again.shared.lead(nobody)
    assert again.shared.handshake_keys() == [primary.key], "nobody gets in by a key that its ring does not hold"


def test_a_key_that_ended_is_not_shown_and_lets_nobody_in(primary: Server, tmp_path: Path) -> None:
    follower = Server(tmp_path / "follower", primary.key)
    primary.ring.commit(primary.ring.rotation("replication", 60))
    follower.shared.take(primary.shared.sealed(primary.key).sealed, primary.key)
    follower.clock.pass_s(61)
    assert follower.shared.handshake_keys() == [primary.ring.live("replication")[-1].digest]


def test_where_no_key_is_believed_nobody_gets_in(primary: Server) -> None:
    primary.ring.commit(primary.ring.revocation(primary.ring.live("replication")[0].id))
    [key] = primary.shared.handshake_keys()
    assert len(key) == 64 and key != Server(None).shared.handshake_keys()[0], "it is one that nobody has"


def test_a_server_that_was_started_with_nothing_believes_nobody() -> None:
    [key] = Server(None, "").shared.handshake_keys()
    assert len(key) == 64


# ---- changes ------------------------------------------------------------------------------------------


class Followers:
    """Followers of a primary, as its publisher has them: each confirms when it is told to."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.rings: list[Ring | None] = []
        self.confirmed = asyncio.Event()
        self.asked = asyncio.Event()
        server.shared.lead(self.hand_on)

    async def hand_on(self, generation: int, ring_for: Callable[[str], Ring | None]) -> None:
        self.rings = [ring_for(self.server.key), ring_for(OTHER)]
        assert all(ring is None or ring.generation == generation for ring in self.rings)
        self.asked.set()
        await self.confirmed.wait()


def admin_of(server: Server) -> AdminKeys:
    return AdminKeys(server.ring, server.shared)


def call(body: object) -> Any:
    return Call(None, "", None, body)  # type: ignore[arg-type]


async def test_a_new_key_signs_only_when_every_follower_has_confirmed_it(primary: Server, tmp_path: Path) -> None:
    followers, old = Followers(primary), primary.ring.signing("queue").id
    changing = asyncio.create_task(admin_of(primary).rotate_key(call(RotateRequest(kind="queue")), "owner"))
    await asyncio.wait_for(followers.asked.wait(), 2)
    [ring, stranger] = followers.rings
    assert ring is not None and stranger is None, "who came with a key that is not in the ring gets none"
    follower = Server(tmp_path / "follower", primary.key)
    follower.shared.take(ring.sealed, primary.key)
    new = follower.ring.signing("queue").id
    assert new != old and primary.ring.signing("queue").id == old and not changing.done()
    assert bare(primary.stored()) == follower.ring.all(), "it is on the disk before it is handed on"
    followers.confirmed.set()
    answer = await asyncio.wait_for(changing, 2)
    assert answer.status == 201 and primary.ring.signing("queue").id == new


async def test_who_is_welcomed_while_keys_change_is_given_the_new_ring(primary: Server, tmp_path: Path) -> None:
    followers = Followers(primary)
    changing = asyncio.create_task(admin_of(primary).rotate_key(call(RotateRequest(kind="queue")), "owner"))
    await asyncio.wait_for(followers.asked.wait(), 2)
    welcomed = primary.shared.sealed(primary.key)
    assert followers.rings[0] is not None and welcomed.generation == followers.rings[0].generation
    late = Server(tmp_path / "late", primary.key)
    late.shared.take(welcomed.sealed, primary.key)
    followers.confirmed.set()
    await asyncio.wait_for(changing, 2)
    assert late.ring.all() == bare(primary.ring.all())
    assert primary.shared.sealed(primary.key).generation >= welcomed.generation


async def test_each_change_has_a_number_of_its_own(primary: Server) -> None:
    followers = Followers(primary)
    followers.confirmed.set()
    numbers = []
    for _ in range(3):
        await admin_of(primary).rotate_key(call(RotateRequest(kind="queue")), "owner")
        assert followers.rings[0] is not None
        numbers.append(followers.rings[0].generation)
        primary.clock.pass_s(1)
        primary.ring.turn()
    assert numbers == sorted(set(numbers))


async def test_who_came_with_a_key_that_a_change_ends_is_not_told_the_next_one(primary: Server) -> None:
    followers = Followers(primary)
    followers.confirmed.set()
    await admin_of(primary).rotate_key(call(RotateRequest(kind="replication", overlap_s=3600)), "owner")
    assert followers.rings[0] is not None, "in the overlap it goes on"
    old = primary.ring.live("replication")[0]
    await primary.shared.share(primary.ring.revocation(old.id))
    assert followers.rings[0] is None


async def test_a_follower_changes_no_keys(primary: Server) -> None:
    primary.shared.lead(None)
    before, admin = primary.ring.all(), admin_of(primary)
    body = NewKeyRequest("site", "shop")
    for change in (admin.create_key(call(body), "owner"), admin.rotate_key(call(RotateRequest(kind="queue")), "owner")):
        with pytest.raises(Refused) as caught:
            await change
        assert (caught.value.code, caught.value.status) == ("not_primary", 503)
    assert primary.ring.all() == before == primary.stored()
    with pytest.raises(Refused):
        await primary.shared.share(primary.ring.rotation("queue"))


async def test_a_primary_that_loses_the_lead_while_keys_change_believes_what_the_next_one_has(
    primary: Server, tmp_path: Path
) -> None:
    followers = Followers(primary)
    heir = Server(tmp_path / "heir", primary.key)
    heir.shared.take(primary.shared.sealed(primary.key).sealed, primary.key)
    before = primary.ring.all()
    changing = asyncio.create_task(admin_of(primary).rotate_key(call(RotateRequest(kind="queue")), "owner"))
    await asyncio.wait_for(followers.asked.wait(), 2)
    primary.shared.lead(None)
    followers.confirmed.set()
    with pytest.raises(Refused, match="stopped to be the primary") as caught:
        await asyncio.wait_for(changing, 2)
    assert caught.value.code == "not_primary"
    assert primary.ring.all() == before and primary.stored() != before, "the disk is ahead"
    primary.shared.take(heir.shared.sealed(heir.key).sealed, heir.key)
    assert primary.stored() == before, "the same ring is written all the same"


async def test_a_change_that_cannot_be_written_reaches_nobody(primary: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    followers, before = Followers(primary), primary.ring.all()

    def fails(change: Change) -> None:
        raise StorageFailed("the disk is gone")

    monkeypatch.setattr(primary.ring, "write", fails)
    with pytest.raises(Refused, match="nothing was changed"):
        await admin_of(primary).rotate_key(call(RotateRequest(kind="queue")), "owner")
    assert not followers.asked.is_set() and primary.ring.all() == before


# ---- the key file of a follower -------------------------------------------------------------------------


def test_a_key_file_is_read_or_refused_in_a_line(tmp_path: Path) -> None:
    path, text = tmp_path / "replication.key", new_text("replication")
    path.write_text(f"{text}\n")
    assert read_key_file(path) == text
    for content in ("", "stn_admin_abc", f"{text} {text}", f"{text}\n{text}", "stn_replication_ü"):
        path.write_text(content)
        with pytest.raises(BadConfiguration, match="replication key") as caught:
            read_key_file(path)
        assert text not in str(caught.value)
    with pytest.raises(BadConfiguration, match="No such file"):
        read_key_file(tmp_path / "none")


def test_texts_in_files_are_found_by_kind_and_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    keys, _ = load_or_create(tmp_path, WallClock())
    folder = KeyFolder(tmp_path / "keys")
    assert folder.digests_in_files() == {
        (kind, digest_of(getattr(keys, kind))) for kind in ("admin", "site", "replication")
    }
    (tmp_path / "keys" / "admin.key").chmod(0o644)
    (tmp_path / "keys" / "site.key").write_text("nonsense")
    assert folder.digests_in_files() == {("replication", digest_of(keys.replication))}
