"""The ring: who signs, who is believed, how that changes, and who is told."""

import json
from collections.abc import Sequence

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Refused, StorageFailed
from engine.signatures import public_of
from server import key_ring
from server.key_kinds import INTERNAL, KINDS, LISTED, SIGNING, Key
from server.key_ring import Change, KeyRing, digest_of, first_keys, new_text
from tests.server.rings import WallClock

LATER_S = 10 * 86_400
SHOP_KEY = bytes(range(100, 132))


class MemoryStore:
    """Keeps what was written; fails when told to."""

    def __init__(self) -> None:
        self.written: list[tuple[Key, ...]] = []
        self.is_broken = False

    def save(self, keys: Sequence[Key], key: Key, text: str) -> None:
        if self.is_broken:
            raise StorageFailed("the disk is gone")
        self.written.append(tuple(keys))


class Bench:
    """A ring, its clock and its store."""

    def __init__(self) -> None:
        self.clock = WallClock()
        self.store = MemoryStore()
        texts = {kind: new_text(kind) for kind in ("admin", "site", "replication")}
        self.ring = KeyRing(first_keys(self.clock(), texts), self.clock, self.store)

    def do(self, change: Change) -> Key:
        self.ring.commit(change)
        return change.key

    def reason(self, key: str, overlap_s: int | None = None) -> str | None:
        with pytest.raises(Refused) as caught:
            self.ring.rotation(key, overlap_s)
        assert caught.value.status == 409
        return caught.value.reason

    def ids(self, kind: str) -> list[str]:
        return [key.id for key in self.ring.live(kind)]

    def reopened(self) -> KeyRing:
        """Return the ring as the next start has it."""
        return KeyRing(self.store.written[-1], self.clock, self.store)


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ---- rotation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["queue", "session"])
def test_after_a_rotation_the_new_key_signs_and_the_old_one_is_believed_until_its_end(bench: Bench, kind: str) -> None:
    old = bench.ring.signing(kind)
    new = bench.do(bench.ring.rotation(kind))
    for ring in (bench.ring, bench.reopened()):
        assert ring.secrets(kind) == ({old.id: old.raw(), new.id: new.raw()}, new.id)
    bench.clock.pass_s(KINDS[kind].overlap_s - 1)
    assert bench.ids(kind) == [old.id, new.id]
    bench.clock.pass_s(1)
    for ring in (bench.ring, bench.reopened()):
        assert ring.secrets(kind) == ({new.id: new.raw()}, new.id)


def test_overlaps_are_longer_than_what_a_key_signed_lives() -> None:
    assert KINDS["queue"].overlap_s > 24 * 3600
    assert KINDS["session"].overlap_s >= 604_800 + 86_400
    assert KINDS["pass"].overlap_s > 86_400
    assert KINDS["pass"].lead_s == 300


def test_a_new_pass_key_is_published_before_it_signs(bench: Bench) -> None:
    old = bench.ring.signing("pass")
    new = bench.do(bench.ring.rotation("pass", 60))
    both = {old.id: public_of(old.raw()), new.id: public_of(new.raw())}
    assert bench.ring.state(new) == "published"
    assert bench.ring.pass_keys(bench.clock()) == (old.id, old.raw(), both)
    bench.clock.pass_s(299.999)
    assert bench.ring.pass_keys(bench.clock()) == (old.id, old.raw(), both)
    bench.clock.pass_s(0.001)
    assert bench.ring.state(new) == "active"
    for ring in (bench.ring, bench.reopened()):
        assert ring.pass_keys(bench.clock()) == (new.id, new.raw(), both)
    bench.clock.pass_s(60)
    assert bench.ring.pass_keys(bench.clock()) == (new.id, new.raw(), {new.id: public_of(new.raw())})


def test_a_published_pass_key_is_not_rotated_before_its_turn(bench: Bench) -> None:
    bench.do(bench.ring.rotation("pass"))
    assert bench.reason("pass") == "rotation_under_way"
    bench.clock.pass_s(300)
    bench.do(bench.ring.rotation("pass"))
    assert len(bench.ids("pass")) == 3


def test_a_leaked_pass_key_can_be_ended_at_once_and_the_published_one_signs(bench: Bench) -> None:
    old = bench.ring.signing("pass")
    new = bench.do(bench.ring.rotation("pass"))
    bench.do(bench.ring.revocation(old.id))
    assert bench.ring.pass_keys(bench.clock()) == (new.id, new.raw(), {new.id: public_of(new.raw())})


def test_a_successor_has_the_name_the_role_the_scope_and_the_file_of_the_old_key(bench: Bench) -> None:
    admin = bench.do(bench.ring.rotation("admin"))
    assert (admin.name, admin.role, admin.in_file) == ("admin", "owner", True)
    shop = bench.do(bench.ring.creation("site", "shop", events=["e2", "e1", "e2"]))
    change = bench.ring.rotation(shop.id, 10)
    assert (change.key.name, change.key.events, change.key.in_file) == ("shop", ("e1", "e2"), False)
    assert change.key.digest == digest_of(change.text) and change.text.startswith("stn_site_")
    assert [key.until_ms for key in change.replaced] == [bench.clock() + 10_000]
    assert sum(key.in_file for key in change.keys) == 3


def test_an_overlap_of_zero_ends_the_old_key_with_the_change(bench: Bench) -> None:
    new = bench.do(bench.ring.rotation("queue", 0))
    assert bench.ids("queue") == [new.id]


def test_of_two_rotations_in_one_millisecond_the_second_signs(bench: Bench) -> None:
    bench.do(bench.ring.rotation("queue"))
    last = bench.do(bench.ring.rotation("queue"))
    assert bench.ring.signing("queue").id == last.id


def test_a_kind_means_the_key_in_the_file_or_the_only_one(bench: Bench) -> None:
    one = bench.do(bench.ring.creation("site", "one"))
    assert bench.ring.rotation("site").key.in_file
    bench.do(bench.ring.revocation(bench.ids("site")[0]))
    assert bench.ring.rotation("site").key.name == "one"
    bench.do(bench.ring.creation("site", "two"))
    assert bench.reason("site") == "several_keys"
    bench.do(bench.ring.rotation(one.id))
    assert bench.reason(one.id) == "ending"
    for key_id in bench.ids("site"):
        bench.do(bench.ring.revocation(key_id))
    with pytest.raises(Refused, match="no key of kind site") as caught:
        bench.ring.rotation("site")
    assert caught.value.status == 404


@pytest.mark.parametrize("kind", ["enqueue", *sorted(INTERNAL)])
def test_what_is_never_rotated_says_why(bench: Bench, kind: str) -> None:
    assert bench.reason(kind) == "not_rotated"
    for key_id in bench.ids(kind):
        assert bench.reason(key_id) == "not_rotated"


def test_a_key_nobody_knows_is_404(bench: Bench) -> None:
    for change in (bench.ring.rotation, bench.ring.revocation):
        with pytest.raises(Refused) as caught:
            change("site-00000000")  # type: ignore[operator]
        assert caught.value.status == 404


# ---- creation and revocation ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "more", "field"),
    [
        ("admin", {}, "role"),
        ("admin", {"role": "king"}, "role"),
        ("admin", {"role": "viewer", "events": ["e1"]}, "events"),
        ("site", {"role": "viewer"}, "role"),
        ("site", {"public": SHOP_KEY}, "public_key"),
        ("replication", {"events": ["e1"]}, "events"),
        ("enqueue", {}, "public_key"),
        ("enqueue", {"public": SHOP_KEY, "role": "owner"}, "role"),
    ],
)
def test_a_new_key_says_what_its_kind_needs_and_nothing_else(
    bench: Bench, kind: str, more: dict[str, object], field: str
) -> None:
    with pytest.raises(Refused) as caught:
        bench.ring.creation(kind, "new", **more)  # type: ignore[arg-type]
    assert (caught.value.status, caught.value.field) == (400, field)


def test_names_are_given_once_a_kind(bench: Bench) -> None:
    bench.do(bench.ring.creation("site", "shop"))
    bench.ring.creation("admin", "shop", role="viewer")
    with pytest.raises(Refused) as caught:
        bench.ring.creation("site", "shop")
    assert caught.value.reason == "name_taken"


@pytest.mark.parametrize("name", ["visitor", "pacer", "schedule", "enter", "auth"])
def test_no_key_is_called_what_records_call_the_server_itself(bench: Bench, name: str) -> None:
    with pytest.raises(Refused, match="what records call this server"):
        bench.ring.creation("admin", name, role="operator")


def test_a_shops_public_key_is_registered_once_with_its_events(bench: Bench) -> None:
    shop = bench.do(bench.ring.creation("enqueue", "shop", public=SHOP_KEY, events=["e1"]))
    other = bench.do(bench.ring.creation("enqueue", "other", public=SHOP_KEY[::-1]))
    assert bench.ring.enqueue_keys() == {shop.id: (SHOP_KEY, frozenset({"e1"})), other.id: (SHOP_KEY[::-1], None)}
    with pytest.raises(Refused) as caught:
        bench.ring.creation("enqueue", "third", public=SHOP_KEY)
    assert caught.value.reason == "known_key"
    bench.do(bench.ring.revocation(shop.id))
    assert list(bench.ring.enqueue_keys()) == [other.id]


@pytest.mark.parametrize("kind", ["pass", "queue", "session"])
def test_making_a_signing_key_is_a_rotation(bench: Bench, kind: str) -> None:
    change = bench.ring.creation(kind, "whatever")
    assert (change.what, change.text, len(change.replaced)) == ("rotated", "", 1)


@pytest.mark.parametrize("kind", [*SIGNING, "admin"])
def test_the_last_key_of_a_kind_that_is_needed_is_not_revoked(bench: Bench, kind: str) -> None:
    with pytest.raises(Refused) as caught:
        bench.ring.revocation(bench.ids(kind)[0])
    assert (caught.value.status, caught.value.reason) == (409, "not_rotated" if kind in INTERNAL else "last_key")


def test_the_last_owner_is_not_revoked_whoever_else_there_is(bench: Bench) -> None:
    owner = bench.ids("admin")[0]
    viewer = bench.do(bench.ring.creation("admin", "watch", role="viewer"))
    bench.do(bench.ring.creation("admin", "night", role="operator"))
    with pytest.raises(Refused, match="owner"):
        bench.ring.revocation(owner)
    bench.do(bench.ring.revocation(viewer.id))
    bench.do(bench.ring.creation("admin", "second", role="owner"))
    bench.do(bench.ring.revocation(owner))
    assert owner not in bench.ids("admin")


def test_a_key_at_its_end_does_not_count_as_one_that_goes_on(bench: Bench) -> None:
    old = bench.ids("queue")[0]
    new = bench.do(bench.ring.rotation("queue"))
    with pytest.raises(Refused, match="only key"):
        bench.ring.revocation(new.id)
    bench.do(bench.ring.revocation(old))
    assert bench.ids("queue") == [new.id]


def test_a_revoked_or_ended_key_is_gone_from_what_is_written(bench: Bench) -> None:
    old = bench.ids("queue")[0]
    bench.do(bench.ring.rotation("queue", 5))
    bench.clock.pass_s(6)
    bench.do(bench.ring.creation("site", "shop"))
    assert old not in [key.id for key in bench.store.written[-1]]


def test_a_ring_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_ring, "KEYS_LIMIT", 9)
    bench.do(bench.ring.creation("site", "ninth"))
    with pytest.raises(Refused) as caught:
        bench.ring.creation("site", "tenth")
    assert caught.value.reason == "too_many_keys"


def test_what_could_not_be_written_is_not_believed(bench: Bench) -> None:
    before, generation = bench.ring.live(), bench.ring.generation
    bench.store.is_broken = True
    with pytest.raises(StorageFailed):
        bench.ring.commit(bench.ring.rotation("queue"))
    assert (bench.ring.live(), bench.ring.generation) == (before, generation)


# ---- who is told, and what of ---------------------------------------------------------------------------


def test_changes_and_moments_are_told_once_each(bench: Bench) -> None:
    told: list[int] = []
    bench.ring.on_change(lambda: told.append(bench.ring.generation))
    bench.do(bench.ring.rotation("pass", 60))
    assert told == [1] and not bench.ring.turn()
    bench.clock.pass_s(299)
    assert not bench.ring.turn()
    bench.clock.pass_s(1)
    assert bench.ring.turn() and not bench.ring.turn() and told == [1, 2]
    bench.clock.pass_s(60)
    assert bench.ring.turn() and not bench.ring.turn() and told == [1, 2, 3]


def test_a_wall_clock_that_is_set_back_is_noticed_too(bench: Bench) -> None:
    old = bench.ring.signing("pass")
    new = bench.do(bench.ring.rotation("pass"))
    bench.clock.pass_s(400)
    assert bench.ring.turn() and bench.ring.signing("pass").id == new.id
    bench.clock.pass_s(-400)
    assert bench.ring.turn() and bench.ring.signing("pass").id == old.id


def test_a_clock_from_before_all_keys_still_finds_one_that_signs(bench: Bench) -> None:
    bench.clock.now_ms = 0
    assert [bench.ring.signing(kind).kind for kind in SIGNING] == list(SIGNING)


def test_only_listed_kinds_are_listed(bench: Bench) -> None:
    assert {key.kind for key in bench.ring.listed()} == set(LISTED) - {"enqueue"}


def test_no_secret_shows_in_a_repr_a_log_line_or_json(bench: Bench) -> None:
    texts: list[str] = []
    for key in bench.ring.live():
        logged = structlog.processors.JSONRenderer(serializer=json.dumps, default=str)(None, "info", {"key": key})
        texts += [repr(key), str(key), str(logged), msgspec.json.encode(key, enc_hook=str).decode()]
    shown = "".join(texts)
    for key in bench.ring.live():
        if key.secret is not None:
            raw = key.raw()
            for form in (repr(raw), raw.hex(), msgspec.json.encode(raw).decode().strip('"=')):
                assert form not in shown
        assert key.digest is None or key.digest not in repr(key)


ROTATIONS = st.tuples(st.sampled_from(["pass", "queue", "session", "admin"]), st.integers(0, LATER_S))


@pytest.mark.slow
@given(st.lists(ROTATIONS, max_size=12))
def test_however_keys_are_rotated_and_whenever_there_is_one_that_signs_and_is_believed(
    steps: list[tuple[str, int]],
) -> None:
    bench = Bench()
    minted: list[tuple[str, str, int]] = []
    for kind, wait_s in steps:
        signing = bench.ring.signing(kind)
        minted.append((kind, signing.id, bench.clock()))
        try:
            bench.do(bench.ring.rotation(kind))
        except Refused as refused:
            assert refused.reason == "rotation_under_way"
        bench.clock.pass_s(wait_s)
        bench.ring.turn()
        for each in KINDS:
            if each != "enqueue":
                assert bench.ring.signing(each) in bench.ring.live(each)
        for kind_then, key_id, at_ms in minted:
            if bench.clock() - at_ms < KINDS[kind_then].overlap_s * 1000:
                assert key_id in bench.ids(kind_then), "something it signed lives still"
