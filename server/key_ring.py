"""The key ring: every key of this server, which of them signs, which are still believed, and how they change.

A rotation makes a new key and says of the old one until when it is believed; nothing that the old one signed is
void before. A new pass key is published (in the JWKS) before it signs, so that no site meets a signature of a
key it has not seen. Every such moment is Unix time and stands in the ring, so a restart changes none of them.

A change is worked out first (`creation`, `rotation`, `revocation`: they touch nothing), then written whole, and
only then believed (`commit`). Whoever builds something out of keys asks to be told with `on_change`.
"""

import hashlib
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from engine.errors import Refused
from engine.signatures import public_of
from server.key_kinds import IN_FILES, KINDS, LISTED, ROLES, SCOPED, SIGNING, Key, Secret

ENTROPY_BYTES = 32
KEYS_LIMIT = 1_000
# Who records say did it where it was nobody's key: a key of such a name would forge the audit.
ACTORS = frozenset(("visitor", "pacer", "schedule", "enter", "auth"))


class Change(NamedTuple):
    """What a change leads to: all keys after it, the key it is about, and the text that is shown once ("" for none).

    `what` is the word for the audit, `replaced` the keys that got an end by it.
    """

    what: str
    keys: tuple[Key, ...]
    key: Key
    text: str = ""
    replaced: tuple[Key, ...] = ()


class RingStore(Protocol):
    """Where a ring is kept."""

    def save(self, keys: Sequence[Key], key: Key, text: str) -> None:
        """Write all keys, durably and whole; `text` is what `key` is shown as. Raises StorageFailed."""

    def install(self, keys: Sequence[Key]) -> None:
        """Write a ring that another server handed on. Raises StorageFailed."""


def new_text(kind: str) -> str:
    """Return a bearer key that nobody guesses."""
    return f"stn_{kind}_{urlsafe_b64encode(secrets.token_bytes(ENTROPY_BYTES)).rstrip(b'=').decode()}"


def digest_of(text: str) -> str:
    """Return what is stored of a bearer key. It is 256 random bits, so there is nothing to slow a guesser down for."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def new_id(kind: str) -> str:
    """Return an id that names the kind; that of a pass key is short instead, because every pass carries it."""
    return secrets.token_hex(3) if kind == "pass" else f"{kind}-{secrets.token_hex(4)}"


def new_key(kind: str, name: str, now_ms: int, text: str = "") -> Key:
    """Return a key of a kind that signs, or of one that is shown as `text`."""
    key_id = new_id(kind)
    if KINDS[kind].is_bearer:
        return Key(key_id, kind, name, now_ms, now_ms, digest=digest_of(text))
    return Key(key_id, kind, name, now_ms, now_ms, secret=Secret(secrets.token_bytes(ENTROPY_BYTES)))


def first_keys(now_ms: int, texts: Mapping[str, str], signing: Sequence[str] = SIGNING) -> list[Key]:
    """Return the keys of a first start: one of each kind; `texts` are those that stand in files, by kind."""
    bearers = [replace(new_key(kind, kind, now_ms, texts[kind]), in_file=True) for kind in IN_FILES]
    bearers = [replace(key, role="owner") if key.kind == "admin" else key for key in bearers]
    return bearers + [new_key(kind, kind, now_ms) for kind in signing]


class KeyRing:
    """The keys, changed one change at a time. `wall_ms` is Unix time in milliseconds.

    `draw_key` and `pass_id_key` never change. `generation` grows whenever something about the keys did.
    """

    def __init__(self, keys: Sequence[Key], wall_ms: Callable[[], int], store: RingStore) -> None:
        self._keys = tuple(keys)
        self._wall_ms = wall_ms
        self._store = store
        self._told: list[Callable[[], None]] = []
        self._seen_ms = wall_ms()
        self.generation = 0
        self.draw_key = self.signing("draw").raw()
        self.pass_id_key = self.signing("pass-id").raw()

    # ---- reading ------------------------------------------------------------------------------------

    def now_ms(self) -> int:
        """Return the time that keys are judged by."""
        return self._wall_ms()

    def all(self) -> list[Key]:
        """Return every key there is, as it would be stored."""
        return list(self._keys)

    def live(self, kind: str | None = None) -> list[Key]:
        """Return the keys that are believed now, of one kind or of all."""
        now_ms = self._wall_ms()
        return [key for key in self._keys if kind in (None, key.kind) and key.is_live(now_ms)]

    def listed(self) -> list[Key]:
        """Return the keys an operator may know of."""
        return [key for key in self.live() if key.kind in LISTED]

    def signing(self, kind: str, now_ms: int | None = None) -> Key:
        """Return the key that signs: the one whose turn came last, or comes first where none's has come."""
        now_ms = self._wall_ms() if now_ms is None else now_ms
        live = [key for key in self._keys if key.kind == kind and key.is_live(now_ms)]
        due = [key for key in live if key.signs_from_ms <= now_ms]
        return max(reversed(due), key=_turn) if due else min(live, key=_turn)

    def secrets(self, kind: str) -> tuple[Mapping[str, bytes], str]:
        """Return the secrets of a kind that are believed, by id, and the id of the one that signs."""
        return {key.id: key.raw() for key in self.live(kind)}, self.signing(kind).id

    def pass_keys(self, now_ms: int) -> tuple[str, bytes, Mapping[str, bytes]]:
        """Return the id and the private seed of the key that signs passes, and the public keys to publish, by id."""
        signing = self.signing("pass", now_ms)
        public = {key.id: public_of(key.raw()) for key in self._keys if key.kind == "pass" and key.is_live(now_ms)}
        return signing.id, signing.raw(), public

    def enqueue_keys(self) -> Mapping[str, tuple[bytes, frozenset[str] | None]]:
        """Return the shops' public keys by id, each with the events it is good for (None: all)."""
        return {
            key.id: (key.public or b"", None if key.events is None else frozenset(key.events))
            for key in self.live("enqueue")
        }

    def state(self, key: Key) -> str:
        """Return "published" before a key's turn, "ending" once its end is known, "active" otherwise."""
        if key.until_ms is not None:
            return "ending"
        return "published" if key.signs_from_ms > self._wall_ms() else "active"

    # ---- being told ---------------------------------------------------------------------------------

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back after every change, and after every moment that makes a key sign or end (see `turn`)."""
        self._told.append(callback)

    def turn(self) -> bool:
        """Notice the moments that passed since the last look; returns whether there was one. To be called often."""
        since_ms, now_ms = self._seen_ms, self._wall_ms()
        self._seen_ms = now_ms
        low, high = sorted((since_ms, now_ms))  # a wall clock may also be set back
        moments = (moment for key in self._keys for moment in (key.signs_from_ms, key.until_ms) if moment is not None)
        if any(low < moment <= high for moment in moments):
            self._tell()
            return True
        return False

    def _tell(self) -> None:
        self.generation += 1
        for callback in self._told:
            callback()

    # ---- changing -----------------------------------------------------------------------------------

    def commit(self, change: Change) -> None:
        """Write a change and then believe it; raises StorageFailed, having changed nothing here."""
        self.write(change)
        self.adopt(change)

    def write(self, change: Change) -> None:
        """Write a change; may be called in a thread, with `adopt` to follow in the loop."""
        self._store.save(change.keys, change.key, change.text)

    def adopt(self, change: Change) -> None:
        """Believe a change that was written."""
        self._keys = change.keys
        self._tell()

    def install(self, keys: Sequence[Key]) -> None:
        """Write the ring of another server and believe it from now on; raises StorageFailed with nothing changed."""
        self._store.install(keys)
        self._keys = tuple(keys)
        self.draw_key = self.signing("draw").raw()
        self.pass_id_key = self.signing("pass-id").raw()
        self._tell()

    def creation(
        self,
        kind: str,
        name: str,
        *,
        role: str | None = None,
        events: Sequence[str] | None = None,
        public: bytes | None = None,
    ) -> Change:
        """Work out a new key; one of a kind that signs takes over as in a rotation. Raises Refused."""
        if kind in SIGNING:
            return self.rotation(kind)
        _check_parts(kind, role, events, public)
        if name in ACTORS:
            raise Refused(
                "conflict", f"{name} is what records call this server itself", reason="name_taken", field="name"
            )
        if any(key.name == name for key in self.live(kind)):
            raise Refused("conflict", f"there is a {kind} key of this name already", reason="name_taken", field="name")
        if public is not None and any(key.public == public for key in self.live()):
            raise Refused("conflict", "this public key is registered already", reason="known_key", field="public_key")
        now_ms, scope = self._wall_ms(), None if events is None else tuple(sorted(set(events)))
        if kind == "enqueue":
            key, text = Key(new_id(kind), kind, name, now_ms, now_ms, public=public), ""
        else:
            text = new_text(kind)
            key = new_key(kind, name, now_ms, text)
        return self._change("created", (), replace(key, role=role, events=scope), text)

    def rotation(self, wanted: str, overlap_s: int | None = None) -> Change:
        """Work out a successor of a key, named by id or by kind; the old one ends after the overlap. Raises Refused."""
        old = self._to_rotate(wanted)
        rule, now_ms = KINDS[old.kind], self._wall_ms()
        text = new_text(old.kind) if rule.is_bearer else ""
        fresh = new_key(old.kind, old.name, now_ms, text)
        turn_ms = now_ms + rule.lead_s * 1000
        key = replace(fresh, signs_from_ms=turn_ms, role=old.role, events=old.events, in_file=old.in_file)
        until_ms = turn_ms + (rule.overlap_s if overlap_s is None else overlap_s) * 1000
        return self._change("rotated", (replace(old, until_ms=until_ms, in_file=False),), key, text)

    def _to_rotate(self, wanted: str) -> Key:
        kind = wanted if wanted in KINDS else self._find(wanted).kind
        if KINDS[kind].why_fixed:
            raise Refused("conflict", KINDS[kind].why_fixed, reason="not_rotated")
        going_on = [key for key in self.live(kind) if key.until_ms is None]
        if wanted == kind:
            chosen = [key for key in going_on if key.in_file] or going_on
        else:
            chosen = [key for key in going_on if key.id == wanted]
        if not chosen and wanted == kind:
            raise Refused("not_found", f"there is no key of kind {kind}; make one")
        if not chosen:
            raise Refused("conflict", f"{wanted} is at its end already; a successor was made", reason="ending")
        if len(chosen) > 1:
            raise Refused("conflict", f"there are several {kind} keys; name the id of one", reason="several_keys")
        if chosen[0].signs_from_ms > self._wall_ms():
            detail = f"{chosen[0].id} does not sign yet; wait for its turn, or revoke the key that signs now"
            raise Refused("conflict", detail, reason="rotation_under_way")
        return chosen[0]

    def revocation(self, key_id: str) -> Change:
        """Work out the ring without a key, at once; refuses to take the last of what is needed. Raises Refused."""
        key = self._find(key_id)
        if KINDS[key.kind].is_needed and key.until_ms is None:
            rest = [other for other in self.live(key.kind) if other.until_ms is None and other.id != key_id]
            if not any(other.role in (None, "owner") for other in rest):
                which = "owner's key" if key.role else f"key of kind {key.kind}"
                detail = f"{key_id} is the only {which} that goes on; rotate it, with overlap_s 0 to end it at once"
                raise Refused("conflict", detail, reason="last_key")
        kept = tuple(other for other in self.live() if other.id != key_id)
        return Change("revoked", kept, key)

    def _find(self, key_id: str) -> Key:
        for key in self.live():
            if key.id == key_id:
                if key.kind not in LISTED:
                    raise Refused("conflict", KINDS[key.kind].why_fixed, reason="not_rotated")
                return key
        raise Refused("not_found", "there is no such key")

    def _change(self, what: str, changed: Sequence[Key], key: Key, text: str) -> Change:
        new = {other.id: other for other in changed}
        kept = [new.get(other.id, other) for other in self.live()]
        if len(kept) >= KEYS_LIMIT:
            raise Refused("conflict", f"a ring holds at most {KEYS_LIMIT} keys; revoke some", reason="too_many_keys")
        return Change(what, (*kept, key), key, text, tuple(changed))


def _turn(key: Key) -> int:
    return key.signs_from_ms


def _check_parts(kind: str, role: str | None, events: Sequence[str] | None, public: bytes | None) -> None:
    """Refuse a new key that says too little or too much for its kind."""
    if kind not in LISTED:
        raise Refused("conflict", KINDS[kind].why_fixed, reason="not_rotated", field="kind")
    for field, is_said, is_wanted in (
        ("role", role in ROLES, kind == "admin"),
        ("public_key", public is not None, kind == "enqueue"),
    ):
        if is_wanted and not is_said:
            raise Refused("bad_request", f"{field} is required for a key of kind {kind}", field=field)
    for field, is_said, is_allowed in (
        ("role", role is not None, kind == "admin"),
        ("public_key", public is not None, kind == "enqueue"),
        ("events", events is not None, kind in SCOPED),
    ):
        if is_said and not is_allowed:
            raise Refused("bad_request", f"a key of kind {kind} has no {field}", field=field)
