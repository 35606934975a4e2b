"""What travels between a primary and its followers, as types; how it is sealed and carried is `link`'s affair.

The follower speaks first (`Follow`), is welcomed or told where else to go, gets a snapshot where its own log does
not lead on, and from then on the same bytes that stand in the primary's log. Every message is one msgpack value.
"""

from typing import TypeAlias

from msgspec import Struct

from snapshots.segments import LogPosition

PROTOCOL_VERSION = 1


class Hello(Struct, tag="hello", array_like=True, frozen=True):
    """Who speaks: the first message of either side; both are part of what the two proofs are made over.

    `node_id` names the process for good (it is kept in the data folder), `url` is where it can be reached.
    """

    protocol: int
    nonce: bytes
    node_id: str
    url: str


class Proof(Struct, tag="proof", array_like=True, frozen=True):
    """That the speaker holds the replication key."""

    mac: bytes


class Follow(Struct, tag="follow", array_like=True, frozen=True):
    """A follower asks for everything behind a position; `position` is None where it holds nothing.

    `committed_lsn` is what it knows to have been spoken of; `epoch` the newest in its log. A visitor (`asks_only`)
    wants to know who is who and goes.
    """

    log_id: bytes
    position: LogPosition | None
    epoch: int
    committed_lsn: int
    is_standby: bool
    asks_only: bool = False


class Welcome(Struct, tag="welcome", array_like=True, frozen=True):
    """The answer: who is primary, of which epoch, and how to begin.

    `begin` is "here" (what follows is behind the position), "cut" (the position is not in this log: cut back to one
    of `starts` and ask again), "snapshot" (slices of one follow), "elsewhere" (ask at `primary_url`; "" if not known)
    or "refused" (`problem` says why). `public_url` is what visitors are told of the primary.
    """

    begin: str
    role: str
    epoch: int
    log_id: bytes
    primary_url: str
    public_url: str
    mode: str
    lease_s: float
    ring: bytes
    peers: list[str]
    starts: list[LogPosition]
    problem: str = ""


class SnapshotSlice(Struct, tag="slice", array_like=True, frozen=True):
    """Bytes of a snapshot's file, in order; `name` is the file's, `is_last` says that it is whole."""

    name: str
    data: bytes
    is_last: bool


class Ship(Struct, tag="ship", array_like=True, frozen=True):
    """Pieces of the log, and how far they may be spoken of.

    `end_lsn` and `end_bytes` say where the primary's log ends (for the lag), `now_ms` is its event time, `sent_ns` its
    CLOCK_BOOTTIME; `in_step`: nothing later is spoken of without this follower.
    """

    pieces: list[bytes]
    committed_lsn: int
    end_lsn: int
    end_bytes: int
    now_ms: int
    sent_ns: int
    in_step: bool


class Ack(Struct, tag="ack", array_like=True, frozen=True):
    """What is on this follower's disk (of an edge: what it applied), and the newest Ship it has seen."""

    lsn: int
    sent_ns: int
    received_bytes: int


class Call(Struct, tag="call", array_like=True, frozen=True):
    """A verb to be run by the primary; see `verbs`."""

    call_id: int
    body: bytes


class Answer(Struct, tag="answer", array_like=True, frozen=True):
    """What a verb came to, or how it was refused; `lsn` is what has to be applied before it is spoken of."""

    call_id: int
    lsn: int
    body: bytes
    is_refusal: bool


class Heard(Struct, tag="heard", array_like=True, frozen=True):
    """Who was heard of in the last second: arrivals by event, those looking and those in hidden tabs."""

    event_id: str
    visible: list[int]
    hidden: list[int]


class Ring(Struct, tag="ring", array_like=True, frozen=True):
    """The key ring after a change, sealed."""

    generation: int
    sealed: bytes


class RingTaken(Struct, tag="ring-taken", array_like=True, frozen=True):
    """This ring is believed here from now on."""

    generation: int


class Peers(Struct, tag="peers", array_like=True, frozen=True):
    """Where the followers are, to be asked when the primary is gone."""

    urls: list[str]


class Handover(Struct, tag="handover", array_like=True, frozen=True):
    """The follower wants to take over: stop, finish, and say so."""


class HandedOver(Struct, tag="handed-over", array_like=True, frozen=True):
    """Everything up to `lsn` is here and there, and nothing more will come; with a problem, nothing was done."""

    lsn: int
    problem: str = ""


Message: TypeAlias = (
    Hello
    | Proof
    | Follow
    | Welcome
    | SnapshotSlice
    | Ship
    | Ack
    | Call
    | Answer
    | Heard
    | Ring
    | RingTaken
    | Peers
    | Handover
    | HandedOver
)
