"""Listeners: who wants to be told of changes, each at a pace of its own."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from engine.views import Notice


class Listeners:
    """Hands notices to everybody who listens. Who is slow gets more at once; nobody holds up anybody."""

    def __init__(self) -> None:
        self._listeners: list[_Listener] = []

    def listen(self) -> AsyncIterator[Sequence[Notice]]:
        """Yield what is announced from this call on, until the end."""
        listener = _Listener()
        self._listeners.append(listener)
        return self._batches(listener)

    async def _batches(self, listener: "_Listener") -> AsyncIterator[Sequence[Notice]]:
        try:
            while batch := await listener.next():
                yield batch
        finally:
            self._listeners.remove(listener)

    def announce(self, notices: Sequence[Notice]) -> None:
        """Tell everybody."""
        for listener in self._listeners:
            listener.put(notices)

    def end(self) -> None:
        """Tell everybody that nothing more will come."""
        for listener in self._listeners:
            listener.end()


class _Listener:
    """What came since it last looked, and a way to wait for more."""

    def __init__(self) -> None:
        self._batch: list[Notice] = []
        self._wake = asyncio.Event()
        self._ended = False

    def put(self, notices: Sequence[Notice]) -> None:
        self._batch += notices
        self._wake.set()

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    async def next(self) -> list[Notice]:
        """Return what came, waiting for something; an empty list at the end."""
        while not self._batch and not self._ended:
            self._wake.clear()
            await self._wake.wait()
        batch, self._batch = self._batch, []
        return batch
