"""Links: whole messages between two processes, in order; the handshake; and the seal on every message.

**Handshake.** Each side says hello (who it is, a nonce of 32 bytes). Both then know the transcript, the two hellos
as they were sent. First the follower, who opened the link, proves that it holds a replication key: an HMAC over its
role and the transcript. Only then does the primary prove the same, so that it proves nothing to strangers. The role
is part of what is proven, so neither side's proof can be sent back to it; the nonces make every transcript new.

What is keyed with is not the text of a replication key but its digest, which the ring keeps of every key that is
believed; so `ring.json` is as secret as the key. A follower proves every key it holds at once, and the primary goes on
with the first of them that it believes: that is how links survive that one key takes over from another.

**Seal.** From then on every message is 16 bytes of keyed BLAKE2b over a running number and the body, with a key for
each direction made of the transcript, and the body. One that was flipped, lost, repeated or moved fails, and the link
ends. Nothing is hidden: links belong on loopback or a private network, and keys travel sealed (`key_sharing`).
"""

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Sequence
from hashlib import blake2b, sha256
from typing import Protocol

import msgspec

from engine.errors import NotPermitted
from server.replication.messages import PROTOCOL_VERSION, Hello, Message, Proof

MESSAGE_MAX_BYTES = 8 << 20
HANDSHAKE_MESSAGES = 2
HANDSHAKE_MAX_BYTES = 4 << 10
KEYS_PROVEN_LIMIT = 32
MAC_BYTES = 16
NONCE_BYTES = 32
STRANGERS_LIMIT = 64
PROOF_TIMEOUT_S = 5.0
FOLLOWER, PRIMARY = b"stanchion follower", b"stanchion primary"

_PROOF_BYTES = 32
_NODE_ID = re.compile(r"[!-~]{1,64}")
_URL = re.compile(r"[!-~]{0,300}")


class LinkClosed(Exception):
    """The other side is gone, or nothing it says can be believed any more."""


class Garbled(LinkClosed):
    """What came is not what was sent, or cannot be read."""


class TurnedAway(LinkClosed):
    """The other side does not take this follower in, and asking again at once would change nothing."""


class WrongKey(TurnedAway, NotPermitted):
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
        """Send one message; they leave in the order of the calls. Raises LinkClosed."""
        body = _encode(message)
        if len(body) > MESSAGE_MAX_BYTES - MAC_BYTES:
            self._link.close()
            raise LinkClosed(f"a {type(message).__name__} of {len(body)} bytes is more than a link carries")
        self._sent += 1
        await self._link.send(_mac(self._send_key, self._sent, body) + body)

    async def receive(self) -> Message:
        """Return the next message; raises LinkClosed, Garbled for what is not what was sent."""
        data = await self._link.receive()
        if len(data) > MESSAGE_MAX_BYTES:
            raise _garbled(self._link, "a message is larger than any that is sent")
        body = data[MAC_BYTES:]
        self._received += 1
        if not hmac.compare_digest(_mac(self._receive_key, self._received, body), data[:MAC_BYTES]):
            raise _garbled(self._link, "a message fails its seal")
        return _decoded(self._link, body)

    def close(self) -> None:
        """End the link."""
        self._link.close()


# ---- handshake ------------------------------------------------------------------------------------------


async def greet(link: Link, keys: Sequence[str], node_id: str, url: str) -> tuple[SealedLink, Hello]:
    """Open a link as a follower that holds these keys; returns it sealed, and who answers.

    Raises WrongKey, LinkClosed; the link is closed then.
    """
    assert not isinstance(keys, str), "keys are a sequence of digests"
    keys = keys[:KEYS_PROVEN_LIMIT]
    mine = _encode(Hello(PROTOCOL_VERSION, secrets.token_bytes(NONCE_BYTES), node_id, url))
    await link.send(mine)
    theirs = await link.receive()
    hello = _hello(link, theirs)
    transcript = _transcript(mine, theirs)
    await link.send(_encode(Proof(b"".join(_proof(key, FOLLOWER, transcript) for key in keys))))
    proof = _decoded(link, await link.receive(), HANDSHAKE_MAX_BYTES)
    if not isinstance(proof, Proof):
        raise _garbled(link, "a proof was due")
    other = hello.url or "the other side"
    if not proof.mac:
        link.close()
        raise WrongKey(f"{other} does not take this replication key")
    fitting = [key for key in keys if hmac.compare_digest(proof.mac, _proof(key, PRIMARY, transcript))]
    if not fitting:
        link.close()
        raise WrongKey(f"{other} does not hold this replication key")
    _check_other(link, hello, node_id)
    return _sealed(link, fitting[0], transcript, FOLLOWER, PRIMARY), hello


async def answer(link: Link, keys: Sequence[str], node_id: str, url: str) -> tuple[SealedLink, Hello]:
    """Answer a link that a follower opened with any of these keys. Raises WrongKey, LinkClosed; it is closed then."""
    theirs = await link.receive()
    mine = _encode(Hello(PROTOCOL_VERSION, secrets.token_bytes(NONCE_BYTES), node_id, url))
    await link.send(mine)  # also to who speaks another version, so that both can say which
    hello = _hello(link, theirs)
    transcript = _transcript(theirs, mine)
    proof = _decoded(link, await link.receive(), HANDSHAKE_MAX_BYTES)
    if not isinstance(proof, Proof):
        raise _garbled(link, "a proof was due")
    shown = [proof.mac[start : start + _PROOF_BYTES] for start in range(0, len(proof.mac), _PROOF_BYTES)]
    wanted = [_proof(key, FOLLOWER, transcript) for key in keys]
    fitting = [
        keys[index]
        for mac in shown[:KEYS_PROVEN_LIMIT]
        for index, expected in enumerate(wanted)
        if hmac.compare_digest(mac, expected)
    ]
    if not fitting:
        await link.send(_encode(Proof(b"")))
        link.close()
        raise WrongKey(f"{hello.url or 'somebody'} does not hold a replication key of this cluster")
    await link.send(_encode(Proof(_proof(fitting[0], PRIMARY, transcript))))
    _check_other(link, hello, node_id)
    return _sealed(link, fitting[0], transcript, PRIMARY, FOLLOWER), hello


class Reception:
    """Lets links in; bounds how many who have proven nothing yet wait at once, and for how long.

    `wrong_keys` counts who came with a key that is not believed.
    """

    def __init__(self, keys: Callable[[], Sequence[str]], node_id: str, url: str) -> None:
        self._keys = keys
        self._node_id, self._url = node_id, url
        self.strangers = 0
        self.wrong_keys = 0

    async def admit(self, link: Link) -> tuple[SealedLink, Hello]:
        """Return the link sealed, and who opened it. Raises WrongKey, LinkClosed; the link is closed then."""
        if self.strangers >= STRANGERS_LIMIT:
            link.close()
            raise LinkClosed(f"{STRANGERS_LIMIT} links wait to be proven already")
        self.strangers += 1
        try:
            async with asyncio.timeout(PROOF_TIMEOUT_S):
                return await answer(link, self._keys(), self._node_id, self._url)
        except BaseException as error:
            link.close()
            self.wrong_keys += isinstance(error, WrongKey)
            if isinstance(error, TimeoutError):
                raise LinkClosed(f"nothing was proven within {PROOF_TIMEOUT_S:g} s") from None
            raise
        finally:
            self.strangers -= 1


def _hello(link: Link, data: bytes) -> Hello:
    hello = _decoded(link, data, HANDSHAKE_MAX_BYTES)
    if not isinstance(hello, Hello):
        raise _garbled(link, "a hello was due")
    if hello.protocol != PROTOCOL_VERSION:
        link.close()
        raise LinkClosed(
            f"the other side speaks version {hello.protocol} of replication, this Stanchion version {PROTOCOL_VERSION}"
        )
    if len(hello.nonce) != NONCE_BYTES or not _NODE_ID.fullmatch(hello.node_id) or not _URL.fullmatch(hello.url):
        raise _garbled(link, "a hello is out of form")
    return hello


def _check_other(link: Link, hello: Hello, node_id: str) -> None:
    """Refuse a link to oneself, or between a server and one started on a copy of its folder."""
    if hello.node_id == node_id:
        link.close()
        raise LinkClosed("both ends are the same server, or one runs on a copy of the other's folder: remove node.json")


def _transcript(follower: bytes, primary: bytes) -> bytes:
    return sha256(len(follower).to_bytes(4, "big") + follower + primary).digest()


def _proof(key: str, role: bytes, transcript: bytes) -> bytes:
    return hmac.digest(key.encode(), role + transcript, "sha256")


# ---- seal -----------------------------------------------------------------------------------------------


def _sealed(link: Link, key: str, transcript: bytes, me: bytes, other: bytes) -> SealedLink:
    keys = [hmac.new(key.encode(), b"seal " + role + transcript, hashlib.sha256).digest() for role in (me, other)]
    return SealedLink(link, key, *keys)


def _mac(key: bytes, number: int, body: bytes) -> bytes:
    mac = blake2b(number.to_bytes(8, "big"), digest_size=MAC_BYTES, key=key)
    mac.update(body)
    return mac.digest()


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Message)


def _decoded(link: Link, body: bytes, limit_bytes: int = MESSAGE_MAX_BYTES) -> Message:
    if len(body) > limit_bytes:
        raise _garbled(link, "a message is larger than any that is sent")
    try:
        message: Message = _decoder.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _garbled(link, f"a message cannot be read: {error}") from None
    return message


def _garbled(link: Link, why: str) -> Garbled:
    """Close a link and return the reason to raise."""
    link.close()
    return Garbled(why)
