"""The barrier before a read: no follower answers with less than somebody may have been told already.

It asks the primary how far may be spoken of now, and lets pass whoever asked before that once it is applied here. One
question is under way at a time, and everybody who came meanwhile shares the next: however many read, it costs one
small message each way per round trip.
"""

import asyncio
from collections.abc import Callable

from server.replication.messages import Answer

BARRIER = -1


class Barrier:
    """`ask` sends the question. `is_answered` is False while the primary itself says that it may not speak."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._next: asyncio.Future[None] | None = None
        self._asked: asyncio.Future[None] | None = None
        self._lsn: int | None = None
        self.is_answered = True

    async def passed(self) -> None:
        """Return once everything is applied here that may have been spoken of when this was called."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        waiting = self._next
        if self._asked is None:
            self._ask_next()
        await asyncio.shield(waiting)

    def answered(self, answer: Answer, applied_lsn: int) -> None:
        """Take the primary's answer; one that may not speak holds up nobody, but what is read is not sure."""
        self._lsn, self.is_answered = answer.lsn, not answer.is_refusal
        if answer.is_refusal:
            self._let_pass()
        self.applied(applied_lsn)

    def applied(self, lsn: int) -> None:
        """Let pass whoever waited for what is applied now."""
        if self._lsn is not None and self._lsn <= lsn:
            self._let_pass()

    def give_up(self) -> None:
        """Let everybody pass: nobody can be asked any more. Whoever is asked next has not refused yet."""
        self.is_answered = True
        while self._asked is not None:
            self._let_pass()

    def _let_pass(self) -> None:
        if self._asked is not None and not self._asked.done():
            self._asked.set_result(None)
        self._ask_next()

    def _ask_next(self) -> None:
        self._asked, self._next, self._lsn = self._next, None, None
        if self._asked is not None:
            self._ask()
