"""What keys there are: their kinds, what each may do, and how long an old one lasts once a new one is there.

Bearer keys are shown by whoever calls (site, admin, replication): of those the ring keeps a digest only. Signing
keys never leave this server (pass, queue, session). Of an enqueue key the shop keeps the private half, and the
ring has the public one. Two keys are for ever: the draw's, because what was committed to could not be revealed
without it, and that of pass ids, because a pass minted again must be the same admission.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hmac import compare_digest
from types import MappingProxyType
from typing import Final, NamedTuple

from engine.settings import KNOBS
from engine.tokens import QUEUE_TOKEN_LIFE_S

ROLES: Final = ("viewer", "operator", "owner")
JWKS_MAX_AGE_S = 300
LONGEST_OVERLAP_S = 90 * 86_400
_HOUR_S = 3600


class Kind(NamedTuple):
    """One kind. `is_needed`: one of it must always go on. `why_fixed`: why it is never rotated, "" where it is.

    `lead_s` passes between a new key and its first signature; `overlap_s` is how long, by default, the old one is
    believed from then on: longer than anything lives that it signed.
    """

    is_bearer: bool
    is_needed: bool
    overlap_s: int = 24 * _HOUR_S
    lead_s: int = 0
    why_fixed: str = ""


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "pass": Kind(False, True, KNOBS["claim_max_s"].high + _HOUR_S, JWKS_MAX_AGE_S),
        "queue": Kind(False, True, QUEUE_TOKEN_LIFE_S + _HOUR_S),
        "session": Kind(False, True, KNOBS["session_max_s"].high + KNOBS["exit_grace_s"].high),
        "site": Kind(True, False),
        "admin": Kind(True, True),
        "replication": Kind(True, False),
        "enqueue": Kind(
            False,
            False,
            why_fixed="an enqueue key belongs to the shop: register its new public key, and revoke the old one once "
            "the shop signs with the new one",
        ),
        "draw": Kind(
            False,
            True,
            why_fixed="the draw key is for ever: a draw that was committed to could not be revealed without it",
        ),
        "pass-id": Kind(
            False,
            True,
            why_fixed="the key of pass ids is for ever: a pass minted again under another one would be a second entry",
        ),
    }
)
INTERNAL: Final = frozenset(("draw", "pass-id"))
LISTED: Final = tuple(kind for kind in KINDS if kind not in INTERNAL)
SIGNING: Final = tuple(kind for kind in KINDS if not KINDS[kind].is_bearer and kind != "enqueue")
# Kinds whose first key stands in a file of its own, KIND.key, for the people and programs that show it.
IN_FILES: Final = ("admin", "site", "replication")
SCOPED: Final = ("site", "enqueue")


class Secret:
    """Bytes that show in no repr, no log and no JSON: they come out by `reveal` alone."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash(self._raw)

    def reveal(self) -> bytes:
        """Return the bytes."""
        return self._raw


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the ring. Exactly one of `secret` (signing kinds), `digest` (bearer kinds), `public` (enqueue) is set.

    `events` are the ids it is good for, None for all. It signs from `signs_from_ms` on, and is believed until
    `until_ms`, None while nobody has said when it ends. `in_file` says that its text stands in KIND.key.
    """

    id: str
    kind: str
    name: str
    created_ms: int
    signs_from_ms: int
    until_ms: int | None = None
    role: str | None = None
    events: tuple[str, ...] | None = None
    in_file: bool = False
    secret: Secret | None = None
    digest: str | None = field(default=None, repr=False)
    public: bytes | None = None

    def is_live(self, now_ms: int) -> bool:
        """Return whether it is still believed."""
        return self.until_ms is None or now_ms < self.until_ms

    def covers(self, event_id: str) -> bool:
        """Return whether it is good for an event."""
        return self.events is None or event_id in self.events

    def raw(self) -> bytes:
        """Return the secret bytes of a signing key."""
        assert self.secret is not None, f"{self.id} has no secret here"
        return self.secret.reveal()
