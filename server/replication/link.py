"""Links: whole messages between two processes, in order; the handshake; and the seal on every message.

**Handshake.** Each side says hello (who it is, a nonce of 32 bytes). Both then know the transcript, the two hellos
as they were sent. First the follower, who opened the link, proves that it holds a replication key: an HMAC over its
role and the transcript. Only then does the primary prove the same, so that it proves nothing to strangers. The role
is part of what is proven, so neither side's proof can be sent back to it; the nonces make every transcript new.

What is keyed with is not the text of the replication key but its digest, which the ring keeps of every key that is
believed; so each of them opens a link while one takes over from another.

**Seal.** From then on every message is 16 bytes of keyed BLAKE2b over a running number and the body, with a key for
each direction made of the transcript, and the body. One that was flipped, lost, repeated or moved fails, and the link
ends. Nothing is hidden: links belong on loopback or a private network, and keys travel sealed (`key_sharing`).
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from hashlib import blake2b, sha256
from typing import Protocol

import msgspec

from engine.errors import NotPermitted
from server.replication.messages import PROTOCOL_VERSION, Hello, Message, Proof

MESSAGE_MAX_BYTES = 8 << 20
MAC_BYTES = 16
NONCE_BYTES = 32
FOLLOWER, PRIMARY = b"stanchion follower", b"stanchion primary"


class LinkClosed(Exception):
    """The other side is gone, or nothing it says can be believed any more."""


class WrongKey(LinkClosed, NotPermitted):
    """The other side does not hold a replication key of this cluster."""


class Link(Protocol):
    """Messages as bytes; the network of the tests is a second implementation."""

    async def send(self, data: bytes) -> None:
        """Send one message; waits while too much is under way. Raises LinkClosed."""

    async def receive(self) -> bytes:
        """Return the next message; raises LinkClosed."""

    def close(self) -> None:
        """End the link; whoever waits on it is told LinkClosed."""


class SealedLink:
    """A link on which both sides have proven who they are. `key` is the digest both hold."""

    def __init__(self, link: Link, key: str, send_key: bytes, receive_key: bytes) -> None:
        self._link = link
        self._send_key, self._receive_key = send_key, receive_key
        self._sent = self._received = 0
        self.key = key

    async def send(self, message: Message) -> None:
        """Send one message; they leave in the order of the calls."""
        body = _encode(message)
        self._sent += 1
        await self._link.send(_mac(self._send_key, self._sent, body) + body)

    async def receive(self) -> Message:
        """Return the next message; raises LinkClosed, also for what is not what was sent."""
        data = await self._link.receive()
        body = data[MAC_BYTES:]
        self._received += 1
        if not hmac.compare_digest(_mac(self._receive_key, self._received, body), data[:MAC_BYTES]):
            self._link.close()
            raise LinkClosed("a message fails its seal")
        return _decoded(self._link, body)

    def close(self) -> None:
        """End the link."""
        self._link.close()


async def greet(link: Link, key: str, node_id: str, url: str) -> tuple[SealedLink, Hello]:
    """Open a link as a follower; returns it sealed, and who answers. Raises WrongKey, LinkClosed."""
    mine = _encode(Hello(PROTOCOL_VERSION, secrets.token_bytes(NONCE_BYTES), node_id, url))
    await link.send(mine)
    theirs = await link.receive()
    hello = _hello(link, theirs)
    transcript = _transcript(mine, theirs)
    await link.send(_encode(Proof(_proof(key, FOLLOWER, transcript))))
    try:
        proof = _decoded(link, await link.receive())
    except LinkClosed:
        raise WrongKey(f"{hello.url or 'the other side'} does not take this replication key") from None
    if not isinstance(proof, Proof) or not hmac.compare_digest(proof.mac, _proof(key, PRIMARY, transcript)):
        link.close()
        raise WrongKey(f"{hello.url or 'the other side'} does not hold this replication key")
    return _sealed(link, key, transcript, FOLLOWER, PRIMARY), hello


async def answer(link: Link, keys: Sequence[str], node_id: str, url: str) -> tuple[SealedLink, Hello]:
    """Answer a link that a follower opened with any of these keys. Raises WrongKey, LinkClosed."""
    theirs = await link.receive()
    hello = _hello(link, theirs)
    mine = _encode(Hello(PROTOCOL_VERSION, secrets.token_bytes(NONCE_BYTES), node_id, url))
    transcript = _transcript(theirs, mine)
    await link.send(mine)
    proof = _decoded(link, await link.receive())
    shown = proof.mac if isinstance(proof, Proof) else b""
    fitting = [key for key in keys if hmac.compare_digest(shown, _proof(key, FOLLOWER, transcript))]
    if not fitting:
        link.close()
        raise WrongKey(f"{hello.url or 'somebody'} does not hold a replication key of this cluster")
    await link.send(_encode(Proof(_proof(fitting[0], PRIMARY, transcript))))
    return _sealed(link, fitting[0], transcript, PRIMARY, FOLLOWER), hello


def _hello(link: Link, data: bytes) -> Hello:
    hello = _decoded(link, data)
    if not isinstance(hello, Hello) or len(hello.nonce) != NONCE_BYTES:
        link.close()
        raise LinkClosed("a hello was due")
    if hello.protocol != PROTOCOL_VERSION:
        link.close()
        raise LinkClosed(f"{hello.url} speaks version {hello.protocol}, this Stanchion speaks {PROTOCOL_VERSION}")
    return hello


def _transcript(follower: bytes, primary: bytes) -> bytes:
    return sha256(len(follower).to_bytes(4, "big") + follower + primary).digest()


def _proof(key: str, role: bytes, transcript: bytes) -> bytes:
    return hmac.new(key.encode(), role + transcript, hashlib.sha256).digest()


def _sealed(link: Link, key: str, transcript: bytes, me: bytes, other: bytes) -> SealedLink:
    keys = [hmac.new(key.encode(), b"seal " + role + transcript, hashlib.sha256).digest() for role in (me, other)]
    return SealedLink(link, key, *keys)


def _mac(key: bytes, number: int, body: bytes) -> bytes:
    mac = blake2b(number.to_bytes(8, "big"), digest_size=MAC_BYTES, key=key)
    mac.update(body)
    return mac.digest()


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Message)


def _decoded(link: Link, body: bytes) -> Message:
    try:
        message: Message = _decoder.decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        link.close()
        raise LinkClosed(f"a message cannot be read: {error}") from None
    return message
