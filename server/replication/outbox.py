"""The two directions of a link: what is to be sent, by one task, and what comes, by another."""

import asyncio
from collections.abc import AsyncIterator

from server.replication.link import LinkClosed, SealedLink
from server.replication.messages import Message, SnapshotSlice


class Outbox:
    """What is to be sent, in the order it was put; one task sends it."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._wake = asyncio.Event()

    def put(self, message: Message) -> None:
        """Have a message sent soon."""
        self._messages.append(message)
        self._wake.set()

    async def take(self, message: Message) -> None:
        """Have a message sent soon; does not wait for it."""
        self.put(message)

    async def send_over(self, link: SealedLink) -> None:
        """Send until the link closes."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            messages, self._messages = self._messages, []
            for message in messages:
                await link.send(message)


async def read_into(inbox: "asyncio.Queue[Message]", link: SealedLink, silence_s: float) -> None:
    """Put what comes into the inbox; a primary says something often, so silence means that it is gone.

    Whatever came before the end still counts, so it ends only when all of it was taken.
    """
    try:
        while True:
            async with asyncio.timeout(silence_s):
                message = await link.receive()
            await inbox.put(message)
    except TimeoutError:
        raise LinkClosed(f"nothing was heard for {silence_s:g} s") from None
    except LinkClosed:
        await inbox.join()
        raise


async def slices_of(link: SealedLink) -> AsyncIterator[bytes]:
    """Yield the bytes of a snapshot's file."""
    while True:
        message = await link.receive()
        if not isinstance(message, SnapshotSlice):
            raise LinkClosed("the rest of a snapshot was due")
        yield message.data
        if message.is_last:
            return
