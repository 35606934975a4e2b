"""Once only: a repeated request gets the answer of the first one instead of happening again.

Remembered is what was answered to (who asked, Idempotency-Key). It lives in this process and is gone after a
restart; what a join was answered is durable in another way, as the key's digest stands in the log. A refusal
changed nothing, so it is not remembered and the request may be tried again with the same key.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from engine.errors import Refused
from server.answers import Answer

KEYS_LIMIT = 10_000
BYTES_LIMIT = 32 * 1024 * 1024
LIFE_S = 24 * 3600.0


@dataclass(slots=True)
class _Entry:
    """One key: what was asked, the answer under way or given, and its size once given."""

    request: bytes
    answer: "asyncio.Task[Answer]"
    until_s: float
    size: int | None = None


class OnceOnly:
    """Answers by key, the oldest forgotten first. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float], *, keys_limit: int = KEYS_LIMIT, life_s: float = LIFE_S) -> None:
        self._clock = clock
        self._keys_limit = keys_limit
        self._life_s = life_s
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    async def run(
        self, actor: str, key: str, request: bytes, make: Callable[[], Coroutine[None, None, Answer]]
    ) -> Answer:
        """Answer with `make` the first time, and with that answer after; a duplicate meanwhile waits for it.

        `request` is what must be equal in a repetition. It goes on when the caller is cancelled. Raises
        Refused("conflict") with reason idempotency_key_reused for another request under the same key.
        """
        self._forget_old()
        entry = self._entries.get((actor, key))
        if entry is None:
            task = asyncio.get_running_loop().create_task(make())
            entry = self._entries[actor, key] = _Entry(request, task, self._clock() + self._life_s)
            task.add_done_callback(lambda done: self._settle((actor, key), done))
        elif entry.request != request:
            detail = "this Idempotency-Key was used for another request"
            raise Refused("conflict", detail, reason="idempotency_key_reused", field="Idempotency-Key")
        answer = await asyncio.shield(entry.answer)
        return Answer(answer.status, answer.body, answer.content_type, answer.headers)

    def _settle(self, name: tuple[str, str], done: "asyncio.Task[Answer]") -> None:
        entry = self._entries.get(name)
        if entry is None or entry.answer is not done:
            return
        if done.cancelled() or done.exception() is not None:
            del self._entries[name]
        else:
            entry.size = len(done.result().body)
            self._bytes += entry.size

    def _forget_old(self) -> None:
        now_s = self._clock()
        while self._entries:
            name, entry = next(iter(self._entries.items()))
            full = len(self._entries) >= self._keys_limit or self._bytes > BYTES_LIMIT
            if entry.size is None or not (full or entry.until_s <= now_s):
                break
            del self._entries[name]
            self._bytes -= entry.size
