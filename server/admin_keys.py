"""The admin API for keys: list, create, rotate, revoke. For owners only; listing is for everybody who may read.

A secret is in the answer that made it and in none after, except that the same request with the same
Idempotency-Key gets the same answer while this process runs. Nobody is ever shown a signing key. Every change is
a line in the log, with its actor; the log of records knows nothing of keys.
"""

import asyncio
from base64 import urlsafe_b64encode
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import structlog
from msgspec import UNSET, Meta, Struct, UnsetType

from engine.errors import Refused, StorageFailed
from engine.signatures import public_of
from server.admin import AdminApi
from server.admin_wire import Note
from server.answers import Answer, json_answer, no_content
from server.key_kinds import KINDS, LISTED, LONGEST_OVERLAP_S, ROLES, Key
from server.key_ring import Change, KeyRing
from server.public_keys import read_public_key
from server.replication.key_sharing import SharedKeys
from server.routes import Call, Route

PATH = "/v1/admin/keys"
NAME_LENGTH = 100
NAME = "^[^\\x00-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069]*$"  # what shows as one line
EVENTS_LIMIT = 100

log = structlog.get_logger("stanchion.keys")

KeyId: TypeAlias = Annotated[str, Meta(min_length=1, max_length=32, pattern="^[a-z0-9][a-z0-9_-]*$")]
EventId: TypeAlias = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9_-]{0,63}$")]
Events: TypeAlias = Annotated[list[EventId], Meta(min_length=1, max_length=EVENTS_LIMIT)]
ListedKind: TypeAlias = Literal[LISTED]  # type: ignore[valid-type]
AnyKind: TypeAlias = Literal[tuple(KINDS)]  # type: ignore[valid-type]
RoleName: TypeAlias = Literal[ROLES]  # type: ignore[valid-type]
PublicKey: TypeAlias = Annotated[str, Meta(min_length=1, max_length=2000)]


class KeyFacts(Struct):
    """What may be known of a key: never its secret.

    `state` is published (others may see it, it does not sign yet), active, or ending (believed until `until_ms`).
    `events` are those it is good for, null for all. `public_key` is base64url. `file` of the server's folder of keys
    holds its text.
    """

    id: str
    kind: ListedKind
    name: str
    role: RoleName | None
    events: list[str] | None
    created_ms: int
    signs_from_ms: int
    until_ms: int | None
    state: Literal["published", "active", "ending"]
    public_key: str | None
    file: str | None


class KeysAnswer(Struct):
    """All keys that are believed, the oldest of a kind first."""

    keys: list[KeyFacts]


class NewKeyAnswer(Struct):
    """A key that was just made; `secret` is shown this once, and null where nobody has to show the key."""

    key: KeyFacts
    secret: str | None


class NewKeyRequest(Struct, forbid_unknown_fields=True):
    """A key to be made.

    `role` for kind admin, `events` for site and enqueue, `public_key` for enqueue: the shop's own, base64url, JWK
    or PEM. A new pass, queue or session key takes over as in a rotation.
    """

    kind: ListedKind
    name: Annotated[str, Meta(min_length=1, max_length=NAME_LENGTH, pattern=NAME)]
    role: RoleName | None = None
    events: Events | None = None
    public_key: PublicKey | dict[str, Any] | None = None
    note: Note | None = None


class RotateRequest(Struct, forbid_unknown_fields=True):
    """Which key gets a successor, by `id` or, where one alone can be meant, by `kind`.

    The old one is believed for `overlap_s` more; left out, for longer than anything lives that it signed.
    """

    id: KeyId | None = None
    kind: AnyKind | None = None
    overlap_s: Annotated[int, Meta(ge=0, le=LONGEST_OVERLAP_S)] | None = None
    note: Note | None = None


class RevokeQuery(Struct, forbid_unknown_fields=True):
    """Which key ends at once."""

    id: KeyId
    note: Note | UnsetType = UNSET


class AdminKeys:
    """The handlers, over the ring of this server; one change at a time."""

    def __init__(self, ring: KeyRing, shared: SharedKeys | None = None) -> None:
        self._ring = ring
        self._shared = shared
        self._changing = asyncio.Lock()

    def routes(self, admin: AdminApi) -> list[Route]:
        """Return the rows, behind the admin API's gate."""
        made, once = {201: NewKeyAnswer}, {"Idempotency-Key": "a repeated call with the same key makes one key"}
        changing: dict[str, Any] = {"role": "owner", "problems": (404, 409)}
        return [
            admin.row("GET", PATH, self.list_keys, "All keys, without their secrets", {200: KeysAnswer}),
            admin.row(
                "POST",
                PATH,
                self.create_key,
                "Make a key",
                made,
                role="owner",
                body=NewKeyRequest,
                headers=once,
                problems=(409,),
            ),
            admin.row(
                "POST",
                f"{PATH}/rotate",
                self.rotate_key,
                "Make the successor of a key; the old one ends after an overlap",
                made,
                body=RotateRequest,
                headers=once,
                **changing,
            ),
            admin.row("DELETE", PATH, self.revoke_key, "End a key at once", {204: None}, query=RevokeQuery, **changing),
        ]

    async def list_keys(self, call: Call, actor: str) -> Answer:
        """Answer ids, names, roles, scopes and states."""
        return json_answer(KeysAnswer(all_facts(self._ring)))

    async def create_key(self, call: Call, actor: str) -> Answer:
        """Make a key. For site, admin and replication keys the answer holds the secret, this once."""
        async with self._changing:
            self._check_leading()
            return await self._made(creation(self._ring, call.body), actor, call.body.note)

    async def rotate_key(self, call: Call, actor: str) -> Answer:
        """Make a key's successor: same name, role and scope. Nothing the old one signed is void before its end."""
        async with self._changing:
            self._check_leading()
            return await self._made(rotation(self._ring, call.body), actor, call.body.note)

    async def revoke_key(self, call: Call, actor: str) -> Answer:
        """End a key at once, with everything it signed. The last of a kind that is needed is refused: rotate it."""
        query: RevokeQuery = call.query
        async with self._changing:
            self._check_leading()
            await self._make(self._ring.revocation(query.id), actor, query.note or None)
        return no_content()

    def _check_leading(self) -> None:
        if self._shared is not None:
            self._shared.check_leading()

    async def _made(self, change: Change, actor: str, note: str | None) -> Answer:
        await self._make(change, actor, note)
        return json_answer(new_key_answer(self._ring, change), 201)

    async def _make(self, change: Change, actor: str, note: str | None) -> None:
        """Write a change without stopping the loop, and believe it once it is written and every follower does."""
        try:
            await asyncio.to_thread(self._ring.write, change)
        except StorageFailed as error:
            log.error("keys_not_written", problem=str(error))
            raise Refused("storage_full", "the keys could not be written; nothing was changed") from None
        if self._shared is not None:
            await self._shared.share(change)
        self._ring.adopt(change)
        tell_change(change, actor, note)


def creation(ring: KeyRing, body: NewKeyRequest) -> Change:
    """Work out what a request to make a key asks for; raises Refused."""
    public = None if body.public_key is None else read_public_key(body.public_key)
    return ring.creation(body.kind, body.name, role=body.role, events=body.events, public=public)


def rotation(ring: KeyRing, body: RotateRequest) -> Change:
    """Work out what a request to rotate a key asks for; raises Refused."""
    wanted = body.id or body.kind
    if wanted is None or (body.id is not None and body.kind is not None):
        raise Refused("bad_request", "name the key by id, or by kind", field="id")
    return ring.rotation(wanted, body.overlap_s)


def new_key_answer(ring: KeyRing, change: Change) -> NewKeyAnswer:
    """Return what whoever asked for a new key is told, this once."""
    return NewKeyAnswer(facts_of(ring, change.key), change.text or None)


def all_facts(ring: KeyRing) -> list[KeyFacts]:
    """Return what may be known of all keys, kind by kind, the oldest first."""
    order = {kind: place for place, kind in enumerate(LISTED)}
    keys = sorted(ring.listed(), key=lambda key: (order[key.kind], key.created_ms))
    return [facts_of(ring, key) for key in keys]


def tell_change(change: Change, actor: str, note: str | None) -> None:
    """Write the audit's line about a change: who did what to which key."""
    key = change.key
    log.info(
        f"key_{change.what}",
        actor=actor,
        key_id=key.id,
        kind=key.kind,
        name=key.name,
        role=key.role,
        events=key.events,
        replaced=[f"{old.id} until {old.until_ms}" for old in change.replaced],
        note=note,
    )


def facts_of(ring: KeyRing, key: Key) -> KeyFacts:
    """Return what may be known of a key."""
    public = key.public or (public_of(key.raw()) if key.kind == "pass" else None)
    return msgspec.convert(
        {
            "id": key.id,
            "kind": key.kind,
            "name": key.name,
            "role": key.role,
            "events": key.events,
            "created_ms": key.created_ms,
            "signs_from_ms": key.signs_from_ms,
            "until_ms": key.until_ms,
            "state": ring.state(key),
            "public_key": None if public is None else urlsafe_b64encode(public).rstrip(b"=").decode(),
            "file": f"{key.kind}.key" if key.in_file else None,
        },
        KeyFacts,
    )
