"""Wire types: the JSON of the visitor and site API, each once, for decoding, encoding and the OpenAPI document.

Fields and their meaning are the contract of `/openapi.json`; times are Unix milliseconds (`*_ms`).
"""

from typing import Annotated, Literal, TypeAlias

import msgspec

from engine.settings import MAX_MS

UserId: TypeAlias = Annotated[
    str, msgspec.Meta(min_length=1, max_length=128, description="1–128 bytes of UTF-8, no control characters")
]
IdempotencyKey: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern="^[!-~]+$")]
Token: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
Shown: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MAX_MS, description="the position shown last; never exceeded")]
Status: TypeAlias = Literal[
    "lobby", "waiting", "parked", "ready", "active", "completed", "expired", "left", "removed", "closed"
]
EventState: TypeAlias = Literal["draft", "lobby", "open", "paused", "closed"]


class JoinRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Who joins; without `user_id` the server makes an unguessable one."""

    user_id: UserId | None = None
    enqueue_token: str | None = None


class SocketJoin(msgspec.Struct, forbid_unknown_fields=True):
    """A join as the first message of a socket."""

    user_id: UserId | None = None
    enqueue_token: str | None = None
    idempotency_key: IdempotencyKey | None = None


class FirstMessage(msgspec.Struct, forbid_unknown_fields=True):
    """What a socket says first, within five seconds: a token it holds, or a join."""

    token: str | None = None
    shown: Shown | None = None
    join: SocketJoin | None = None


class LaterMessage(msgspec.Struct, forbid_unknown_fields=True):
    """What a socket may say later."""

    visible: bool | None = None
    leave: Literal[True] | None = None


class PositionQuery(msgspec.Struct, forbid_unknown_fields=True):
    """What the caller was shown last."""

    shown: Shown | msgspec.UnsetType = msgspec.UNSET


class HeartbeatRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Presence without reading; a hidden tab is given longer patience."""

    visible: bool = True


class AcceptRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The one-time code that another device showed."""

    code: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class ExtendRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Whose session goes on, when a site asks; a visitor's queue token says it all."""

    session: Token | None = None
    user_id: UserId | None = None


class RedeemRequest(msgspec.Struct, forbid_unknown_fields=True, rename={"pass_": "pass"}):
    """The pass a visitor came with."""

    pass_: Token


class CompleteRequest(msgspec.Struct, forbid_unknown_fields=True, rename={"pass_": "pass"}):
    """Whose stay in the booking flow ends (exactly one of the three), and how."""

    user_id: UserId | None = None
    pass_: Token | None = None
    session: Token | None = None
    outcome: Literal["completed", "abandoned"] = "completed"


class EstimateAnswer(msgspec.Struct):
    """The band of the estimate, how sure it is (0–1), and a reason where the number is special."""

    low_seconds: int
    high_seconds: int
    confidence: float
    reason: str | None


class PlaceAnswer(msgspec.Struct, rename={"pass_": "pass"}):
    """One visitor's place; a client ignores an answer with a lower (`epoch`, `version`) than one it has seen."""

    event_id: str
    user_id: str
    status: Status
    cause: str | None
    arrival: int
    number: int | None
    position: int | None
    ahead: int | None
    waiting: int
    estimated_wait_seconds: int | None
    estimate: EstimateAnswer | None
    progress: float
    token: str | None
    pass_: str | None
    pass_expires_ms: int | None
    enter_url: str | None
    poll_after_seconds: int
    message: str | None
    now_ms: int
    epoch: int
    version: int
    stale: bool


class UnprovenPlace(msgspec.Struct):
    """What knowing an id alone shows: no token, no pass."""

    event_id: str
    status: Status
    number: int | None
    position: int | None


class CompletedAnswer(msgspec.Struct):
    """The ended stay."""

    user_id: str
    number: int | None
    status: Status
    version: int


class SessionAnswer(msgspec.Struct):
    """A session in the booking flow: the site may trust `session` until it expires, and extend it up to the maximum."""

    user_id: str
    number: int
    status: Status
    session: str
    session_expires_ms: int
    session_max_expires_ms: int


class TransferAnswer(msgspec.Struct):
    """A code that moves the place to another device: good once, until `expires_ms`; `url` opens the page with it."""

    code: str
    url: str
    expires_ms: int


class ReceiptAnswer(msgspec.Struct):
    """A signed statement that this visitor joined, to be kept: `stanchion verify --receipt` checks it."""

    receipt: str


class BeaconAnswer(msgspec.Struct):
    """A public value that was named before the draw; `value` is null until the event has opened."""

    name: str
    value: str | None


class DrawAnswer(msgspec.Struct):
    """The lobby's draw: what was bound beforehand, and, once the event has opened, all it takes to recompute it."""

    event_id: str
    state: EventState
    draw_id: str
    algorithm: str
    commitment: str
    beacon: BeaconAnswer | None
    seed: str | None
    count: int | None
    entries_sha256: str | None


class DrawnEntry(msgspec.Struct):
    """One line of the draw's entries."""

    arrival: int
    number: int


class PassKey(msgspec.Struct):
    """A public key for passes (RFC 8037)."""

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: str
    kid: str
    use: str
    alg: str


class PassKeys(msgspec.Struct):
    """The public keys that passes are signed with; a new one is published before it signs."""

    keys: list[PassKey]


class EventAnswer(msgspec.Struct):
    """An event as everybody may see it; `serving_number` never falls."""

    event_id: str
    name: str
    state: EventState
    reason: str | None
    now_ms: int
    lobby_opens_at_ms: int | None
    opens_at_ms: int | None
    closes_at_ms: int | None
    waiting: int
    serving_number: int
    rate_per_minute: float
    message: str | None
    outcome: str | None
    draw: DrawAnswer | None
