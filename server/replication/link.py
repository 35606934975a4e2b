"""A link carries whole messages between two processes, in order, until it closes."""

from typing import Protocol


class LinkClosed(Exception):
    """The other side is gone, or nothing it says can be believed any more."""


class Link(Protocol):
    """Messages as bytes; the network of the tests is a second implementation."""

    async def send(self, data: bytes) -> None:
        """Send one message; waits while too much is under way. Raises LinkClosed."""

    async def receive(self) -> bytes:
        """Return the next message; raises LinkClosed."""

    def close(self) -> None:
        """End the link; whoever waits on it is told LinkClosed."""
