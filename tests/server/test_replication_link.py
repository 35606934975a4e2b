"""The handshake and the seal, over links in memory: who gets in, what is believed, and how each attempt ends."""

import asyncio
from collections.abc import Awaitable, Callable
from hashlib import sha256

import msgspec
import pytest

from server.replication import link as links
from server.replication.link import (
    HANDSHAKE_MAX_BYTES,
    KEYS_PROVEN_LIMIT,
    MESSAGE_MAX_BYTES,
    STRANGERS_LIMIT,
    Garbled,
    LinkClosed,
    Reception,
    SealedLink,
    WrongKey,
    answer,
    greet,
)
from server.replication.messages import PROTOCOL_VERSION, Ack, Hello, Peers, Proof

KEY, OTHER = (sha256(text.encode()).hexdigest() for text in ("the key", "another key"))
FOLLOWER, PRIMARY = ("follower", "http://f"), ("primary", "http://p")
NONCE = bytes(32)


class Pipe:
    """One end of a link in memory; `sent` is all that went out here."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.sent: list[bytes] = []
        self.other: Pipe | None = None
        self.is_closed = False

    async def send(self, data: bytes) -> None:
        if self.is_closed:
            raise LinkClosed("closed here")
        self.sent.append(data)
        if self.other is not None:
            self.other.came.put_nowait(data)

    async def receive(self) -> bytes:
        data = None if self.is_closed else await self.came.get()
        if data is None:
            raise LinkClosed("closed there")
        return data

    def close(self) -> None:
        self.is_closed = True
        self.came.put_nowait(None)
        if self.other is not None:
            self.other.came.put_nowait(None)


def pipe() -> tuple[Pipe, Pipe]:
    one, two = Pipe(), Pipe()
    one.other, two.other = two, one
    return one, two


def script(*messages: object) -> Pipe:
    """Return a link on which this comes, whatever is said; bytes come as they are."""
    made = Pipe()
    for message in messages:
        made.came.put_nowait(message if isinstance(message, bytes) else msgspec.msgpack.encode(message))
    made.came.put_nowait(None)
    return made


async def shaken(
    keys: tuple[str, ...] = (KEY,), believed: tuple[str, ...] = (KEY,)
) -> tuple[SealedLink, SealedLink, Pipe, Pipe]:
    """Return both sealed ends of a link in memory, and the ends beneath."""
    one, two = pipe()
    (mine, there), (theirs, here) = await asyncio.gather(greet(one, keys, *FOLLOWER), answer(two, believed, *PRIMARY))
    assert (there.node_id, there.url, here.node_id, here.url) == (*PRIMARY, *FOLLOWER)
    return mine, theirs, one, two


async def both(first: Awaitable[object], second: Awaitable[object]) -> list[BaseException]:
    """Return how two sides failed; both have to."""
    outcomes = await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 1)
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert len(errors) == 2, outcomes
    return errors


# ---- who gets in ----------------------------------------------------------------------------------------


async def test_two_who_hold_the_key_speak_to_each_other_both_ways() -> None:
    mine, theirs, *_ = await shaken()
    for number in range(3):
        await mine.send(Ack(number, 2, 3))
        await theirs.send(Peers([f"http://{number}"]))
        assert await theirs.receive() == Ack(number, 2, 3)
        assert await mine.receive() == Peers([f"http://{number}"])
    assert mine.key == theirs.key == KEY


async def test_a_wrong_key_is_refused_by_name_on_both_sides_and_proves_nothing_to_a_stranger() -> None:
    one, two = pipe()
    errors = await both(greet(one, [OTHER], *FOLLOWER), answer(two, [KEY], *PRIMARY))
    assert [type(error) for error in errors] == [WrongKey, WrongKey]
    assert "http://p does not take" in str(errors[0]) and "http://f does not hold" in str(errors[1])
    assert one.is_closed and two.is_closed
    hello, refusal = two.sent
    assert msgspec.msgpack.decode(refusal, type=Proof).mac == b"" and KEY.encode() not in hello + refusal


async def test_no_key_at_all_is_a_wrong_key() -> None:
    for keys, believed in (((), (KEY,)), ((KEY,), ())):
        one, two = pipe()
        errors = await both(greet(one, keys, *FOLLOWER), answer(two, believed, *PRIMARY))
        assert all(isinstance(error, WrongKey) for error in errors)


async def test_every_key_a_follower_holds_is_tried_and_the_one_that_is_believed_seals() -> None:
    mine, theirs, *_ = await shaken((OTHER, KEY), (KEY,))
    assert mine.key == theirs.key == KEY
    mine, theirs, *_ = await shaken((KEY,), (OTHER, KEY))
    assert mine.key == theirs.key == KEY
    await mine.send(Ack(1, 2, 3))
    assert await theirs.receive() == Ack(1, 2, 3)


async def test_however_many_keys_there_are_a_proof_stays_small() -> None:
    many = tuple(sha256(bytes([number])).hexdigest() for number in range(200))
    _, _, one, _ = await shaken(many, many[:1])
    assert len(one.sent[1]) <= HANDSHAKE_MAX_BYTES
    with pytest.raises(BaseExceptionGroup):
        async with asyncio.TaskGroup() as group:
            late, two = pipe()
            group.create_task(greet(late, many, *FOLLOWER))
            group.create_task(answer(two, many[KEYS_PROVEN_LIMIT:], *PRIMARY))


@pytest.mark.parametrize("proof", [b"", bytes(32), bytes(31), b"x" * 1000])
async def test_a_primary_without_the_key_is_no_primary(proof: bytes) -> None:
    fake = script(Hello(PROTOCOL_VERSION, NONCE, *PRIMARY), Proof(proof))
    with pytest.raises(WrongKey):
        await greet(fake, [KEY], *FOLLOWER)
    assert fake.is_closed


async def test_what_a_side_says_opens_nothing_when_it_is_said_back_to_it() -> None:
    for side, node in ((greet, FOLLOWER), (answer, PRIMARY)):
        mirror = Pipe()
        mirror.other = mirror
        if side is answer:
            mirror.came.put_nowait(msgspec.msgpack.encode(Hello(PROTOCOL_VERSION, NONCE, *FOLLOWER)))
        with pytest.raises(WrongKey if side is greet else LinkClosed):
            await asyncio.wait_for(side(mirror, [KEY], *node), 1)
        assert mirror.is_closed


async def test_two_followers_do_not_take_each_other_for_a_primary() -> None:
    errors = await both(*(greet(end, [KEY], *node) for end, node in zip(pipe(), (FOLLOWER, PRIMARY), strict=True)))
    assert all(isinstance(error, LinkClosed) for error in errors) and any(
        isinstance(error, WrongKey) for error in errors
    )


async def test_a_handshake_that_was_heard_opens_nothing_when_it_is_said_again() -> None:
    mine, _, one, two = await shaken()
    await mine.send(Ack(1, 2, 3))
    with pytest.raises(WrongKey):
        await answer(script(*one.sent), [KEY], *PRIMARY)
    with pytest.raises(WrongKey):
        await greet(script(*two.sent), [KEY], *FOLLOWER)


async def test_a_proof_is_bound_to_every_word_of_both_hellos() -> None:
    for change in (("follower2", "http://f"), ("follower", "http://f2")):
        one, two = Pipe(), Pipe()
        greeting = asyncio.create_task(greet(one, [KEY], *FOLLOWER))
        answering = asyncio.create_task(answer(two, [KEY], *PRIMARY))
        await _until(lambda: one.sent)  # noqa: B023
        hello = msgspec.msgpack.decode(one.sent[0], type=Hello)
        two.came.put_nowait(msgspec.msgpack.encode(msgspec.structs.replace(hello, node_id=change[0], url=change[1])))
        await _until(lambda: two.sent)  # noqa: B023
        one.came.put_nowait(two.sent[0])
        await _until(lambda: len(one.sent) == 2)  # noqa: B023
        two.came.put_nowait(one.sent[1])
        with pytest.raises(WrongKey):
            await asyncio.wait_for(answering, 1)
        one.came.put_nowait(two.sent[1])
        with pytest.raises(WrongKey):
            await asyncio.wait_for(greeting, 1)


async def _until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not happen")


async def test_another_version_is_refused_by_both_sides_and_both_versions_are_named() -> None:
    newer = Hello(PROTOCOL_VERSION + 1, NONCE, *PRIMARY)
    words = f"speaks version {PROTOCOL_VERSION + 1} of replication, this Stanchion version {PROTOCOL_VERSION}$"
    with pytest.raises(LinkClosed, match=words):
        await greet(script(newer), [KEY], *FOLLOWER)
    asked = script(newer)
    with pytest.raises(LinkClosed, match=words):
        await answer(asked, [KEY], *PRIMARY)
    told = msgspec.msgpack.decode(asked.sent[0], type=Hello)
    assert told.protocol == PROTOCOL_VERSION, "the newer one is told which this is, and can say so as well"
    assert len(asked.sent) == 1 and asked.is_closed


async def test_a_later_version_may_say_more_in_its_hello() -> None:
    longer = msgspec.msgpack.encode(["hello", PROTOCOL_VERSION + 1, NONCE, *PRIMARY, "and more", 7])
    with pytest.raises(LinkClosed, match="speaks version"):
        await greet(script(longer), [KEY], *FOLLOWER)


HELLOS: dict[str, object] = {
    "no msgpack": b"\xc1",
    "nothing": b"",
    "something else": Ack(1, 2, 3),
    "a short nonce": Hello(PROTOCOL_VERSION, NONCE[1:], *FOLLOWER),
    "a long nonce": Hello(PROTOCOL_VERSION, NONCE + b"1", *FOLLOWER),
    "no name": Hello(PROTOCOL_VERSION, NONCE, "", "http://f"),
    "a name of two lines": Hello(PROTOCOL_VERSION, NONCE, "a\nb", "http://f"),
    "a long name": Hello(PROTOCOL_VERSION, NONCE, "a" * 65, "http://f"),
    "a long address": Hello(PROTOCOL_VERSION, NONCE, "a", "http://" + "f" * 300),
    "an address of two lines": Hello(PROTOCOL_VERSION, NONCE, "a", "http://f\n"),
    "too much": b"\xc6\x00\x00\x10\x00" + bytes(HANDSHAKE_MAX_BYTES),
    "depth": b"\x91" * 4000,
    "a key of another type": msgspec.msgpack.encode(["hello", "1", NONCE, *FOLLOWER]),
    "an unknown tag": msgspec.msgpack.encode(["hullo", 1, NONCE, *FOLLOWER]),
}


@pytest.mark.parametrize("hello", HELLOS.values(), ids=HELLOS.keys())
async def test_a_hello_that_is_none_closes_the_link(hello: object) -> None:
    for side in (greet, answer):
        link = script(hello)
        with pytest.raises(Garbled):
            await side(link, [KEY], "me", "")
        assert link.is_closed


@pytest.mark.parametrize("proof", [b"", Ack(1, 2, 3), b"\xc4", Proof(bytes(HANDSHAKE_MAX_BYTES))])
async def test_a_proof_that_is_none_closes_the_link(proof: object) -> None:
    for side in (greet, answer):
        link = script(Hello(PROTOCOL_VERSION, NONCE, *FOLLOWER), proof)
        with pytest.raises(Garbled):
            await side(link, [KEY], "me", "")
        assert link.is_closed


async def test_whoever_hangs_up_in_the_middle_leaves_nobody_waiting() -> None:
    hello, proof = Hello(PROTOCOL_VERSION, NONCE, *FOLLOWER), Proof(bytes(32))
    for side in (greet, answer):
        for said in ((), (hello,), (hello, proof)):
            with pytest.raises(LinkClosed):
                await asyncio.wait_for(side(script(*said), [KEY], "me", ""), 1)


async def test_a_server_does_not_follow_itself_nor_a_copy_of_itself() -> None:
    one, two = pipe()
    errors = await both(greet(one, [KEY], *PRIMARY), answer(two, [KEY], *PRIMARY))
    assert all("same server" in str(error) for error in errors)


# ---- strangers ------------------------------------------------------------------------------------------


def reception() -> Reception:
    return Reception(lambda: [KEY], *PRIMARY)


async def test_who_proves_nothing_in_time_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "PROOF_TIMEOUT_S", 0.02)
    door = reception()
    for said in ((), (Hello(PROTOCOL_VERSION, NONCE, *FOLLOWER),)):
        link = Pipe()
        for message in said:
            link.came.put_nowait(msgspec.msgpack.encode(message))
        with pytest.raises(LinkClosed, match="nothing was proven within"):
            await door.admit(link)
        assert link.is_closed
    assert (door.strangers, door.wrong_keys) == (0, 0)


async def test_only_so_many_strangers_wait_at_once_and_their_places_are_given_back() -> None:
    door = reception()
    waiting = [(link, asyncio.create_task(door.admit(link))) for link in (Pipe() for _ in range(STRANGERS_LIMIT))]
    await asyncio.sleep(0)
    assert door.strangers == STRANGERS_LIMIT
    one, two = pipe()
    with pytest.raises(LinkClosed, match="wait to be proven"):
        await door.admit(two)
    assert two.is_closed
    for link, _ in waiting:
        link.close()
    await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)
    assert door.strangers == 0
    one, two = pipe()
    await asyncio.gather(greet(one, [KEY], *FOLLOWER), door.admit(two))
    assert door.strangers == 0, "whoever has proven the key is no stranger"


async def test_wrong_keys_are_counted() -> None:
    door = reception()
    for number in range(3):
        one, two = pipe()
        await both(greet(one, [OTHER], *FOLLOWER), door.admit(two))
        assert (door.wrong_keys, door.strangers) == (number + 1, 0)


# ---- the seal -------------------------------------------------------------------------------------------


async def tampered(change: Callable[[list[bytes]], list[bytes]], count: int = 1) -> None:
    """See that the last of what `change` makes of some messages is not believed, and that the link ends with it."""
    mine, theirs, _, two = await shaken()
    two.other, mine_raw = None, []
    one = mine._link
    assert isinstance(one, Pipe)
    one.other = None
    for number in range(count):
        await mine.send(Ack(number, 2, 3))
        mine_raw.append(one.sent[-1])
    changed = change(mine_raw)
    for data in changed:
        two.came.put_nowait(data)
    for _ in changed[:-1]:
        await theirs.receive()
    with pytest.raises(Garbled):
        await theirs.receive()
    assert two.is_closed
    with pytest.raises(LinkClosed):
        await theirs.receive()


async def test_a_bit_that_is_flipped_anywhere_ends_the_link() -> None:
    mine, theirs, one, two = await shaken()
    one.other = two.other = None
    await mine.send(Ack(1, 2, 3))
    good = one.sent[-1]
    for place in range(len(good) * 8):
        data = bytearray(good)
        data[place // 8] ^= 1 << place % 8
        two.is_closed, two.came, theirs._received = False, asyncio.Queue(), 0
        two.came.put_nowait(bytes(data))
        with pytest.raises(Garbled):
            await theirs.receive()
        assert two.is_closed, place
    two.is_closed, two.came, theirs._received = False, asyncio.Queue(), 0
    two.came.put_nowait(good)
    assert await theirs.receive() == Ack(1, 2, 3), "untouched it is believed"


async def test_a_message_that_is_cut_or_longer_ends_the_link() -> None:
    for cut in range(20):
        await tampered(lambda sent: [sent[0][:cut]])  # noqa: B023
    await tampered(lambda sent: [sent[0][:-1]])
    await tampered(lambda sent: [sent[0] + b"\0"])
    await tampered(lambda sent: [sent[0][1:]])


async def test_a_message_that_is_repeated_lost_or_moved_ends_the_link() -> None:
    await tampered(lambda sent: [sent[0], sent[0]])
    await tampered(lambda sent: [sent[1]], 2)
    await tampered(lambda sent: [sent[0], sent[2], sent[1]][:2], 3)
    await tampered(lambda sent: [sent[0], sent[1], sent[0]], 2)


async def test_a_message_means_nothing_in_the_other_direction_or_on_another_link() -> None:
    mine, theirs, one, two = await shaken()
    one.other = two.other = None
    await mine.send(Ack(1, 2, 3))
    one.came.put_nowait(one.sent[-1])
    with pytest.raises(Garbled):
        await mine.receive()
    _, others, _, elsewhere = await shaken()
    elsewhere.came.put_nowait(one.sent[-1])
    with pytest.raises(Garbled):
        await others.receive()
    two.came.put_nowait(one.sent[-1])
    assert await theirs.receive() == Ack(1, 2, 3)


async def test_what_is_too_large_is_neither_read_nor_sent() -> None:
    mine, theirs, one, two = await shaken()
    two.came.put_nowait(bytes(MESSAGE_MAX_BYTES + 1))
    with pytest.raises(Garbled, match="larger"):
        await theirs.receive()
    with pytest.raises(LinkClosed, match=r"a Peers of \d+ bytes is more than a link carries"):
        await mine.send(Peers(["x" * MESSAGE_MAX_BYTES]))
    assert one.is_closed and two.is_closed


NONSENSE = {
    "no msgpack": b"\xc1",
    "empty": b"",
    "a bomb": b"\xdd\xff\xff\xff\xff",
    "depth": b"\x91" * 100_000,
    "bad text": b"\x92\xa5peers\x91\xa1\xff",
    "an unknown tag": msgspec.msgpack.encode(["nobody", 1]),
    "too few parts": msgspec.msgpack.encode(["ack", 1]),
}


@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_under_a_good_seal_ends_the_link(body: bytes) -> None:
    _, theirs, _, two = await shaken()
    two.came.put_nowait(links._mac(theirs._receive_key, 1, body) + body)
    with pytest.raises(Garbled, match="cannot be read"):
        await theirs.receive()
    assert two.is_closed
