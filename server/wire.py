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
Shown: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MAX_MS, description="the position shown last; never exceeded")]
Status: TypeAlias = Literal[
    "lobby", "waiting", "parked", "ready", "active", "completed", "expired", "left", "removed", "closed"
]


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


class CompleteRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Whose stay in the booking flow ends, and how."""

    user_id: UserId
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
    number: int
    status: Status
    version: int


class DrawAnswer(msgspec.Struct):
    """The lobby's draw."""

    commitment: str
    seed: str | None
    algorithm: str
    count: int | None


class EventAnswer(msgspec.Struct):
    """An event as everybody may see it; `serving_number` never falls."""

    event_id: str
    name: str
    state: Literal["draft", "lobby", "open", "paused", "closed"]
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
