"""The seat: the one backend that the rest of a process holds, whoever sits in it.

A process may be primary now and follower later. `take` binds every verb to the backend that answers from now on, so
that going through the seat costs nothing; `vacate` binds them to a refusal. Its notices go on over all roles: after
each change of whoever sits there comes a BackendChanged, and nothing that changed since is missed.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NoReturn

from engine.backend import Backend, BackendStatus, Capabilities
from engine.backends.listeners import Listeners
from engine.errors import Refused
from engine.views import BackendChanged, Notice

# What the seat answers itself; every other verb of the contract is bound to whoever sits there.
ITS_OWN = frozenset(("start", "close", "heard", "notices", "status"))
VERBS = tuple(
    name for name, value in vars(Backend).items() if callable(value) and name[0] != "_" and name not in ITS_OWN
)


class Seat(Backend):
    """Delegates to the backend of the role this process has; make one with `Seat.empty()`."""

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self._capabilities = Capabilities()
        self._epoch = 0
        self._version = 0
        self._why = Refused("not_primary", "this server has just started", retry_after_s=1)
        self._listeners = Listeners()
        self._handing_on: asyncio.Task[None] | None = None
        self.vacate(self._why)

    @classmethod
    def empty(cls) -> "Seat":
        """Return a seat in which nobody sits yet."""
        return cls()

    # ---- whoever sits there -------------------------------------------------------------------------

    def take(self, backend: Backend) -> None:
        """Let a backend that has started answer from now on; whoever takes the one before away closes it."""
        if backend is self._backend:
            return
        self._backend = backend
        self._capabilities = backend.capabilities
        for verb in VERBS:
            setattr(self, verb, getattr(backend, verb))
        self._follow(backend)

    def vacate(self, why: Refused) -> None:
        """Refuse everything for this reason until the next backend is there."""
        if self._backend is not None:
            status = self._backend.status()
            self._epoch, self._version = status.epoch, status.version
        self._backend = None
        self._why = why
        refuse = _refusing(why)
        for verb in VERBS:
            setattr(self, verb, refuse)
        self._stop_following()

    def _follow(self, backend: Backend) -> None:
        """Hand on what it announces from now on, after the word that everything may have changed."""
        self._stop_following()
        self._listeners.announce([BackendChanged(backend.status().version)])
        self._handing_on = asyncio.create_task(self._hand_on(backend.notices()))

    def _stop_following(self) -> None:
        if self._handing_on is not None:
            self._handing_on.cancel()
            self._handing_on = None

    async def _hand_on(self, batches: AsyncIterator[Sequence[Notice]]) -> None:
        async for batch in batches:
            self._listeners.announce(batch)

    # ---- the seat's own -----------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """Those of whoever sits there, or sat there last."""
        return self._capabilities

    @property
    def epoch(self) -> int:
        """That of whoever sits there, or sat there last."""
        return self._epoch if self._backend is None else self._backend.epoch

    @property
    def is_stale(self) -> bool:
        """Whether answers may be old."""
        return self._backend is None or self._backend.is_stale

    async def start(self) -> None:
        """Nothing is to be done: who takes the seat has started."""

    async def close(self) -> None:
        """Close whoever sits there; the notices end."""
        backend = self._backend
        self.vacate(Refused("backend_unavailable", "this server is shutting down", retry_after_s=5))
        self._listeners.end()
        if backend is not None:
            await backend.close()

    def heard(self, event_id: str, arrivals: Sequence[int], visible: bool) -> None:
        """Note presence; where nobody sits, nobody is asked: after the change everybody counts as just heard."""
        if self._backend is not None:
            self._backend.heard(event_id, arrivals, visible)

    def status(self) -> BackendStatus:
        """Answer how whoever sits there fares; it is never refused."""
        if self._backend is not None:
            return self._backend.status()
        return BackendStatus(
            "none", self._epoch, self._version, self._version, (self._why.detail,), self._why.code, {}, "none", True
        )

    def notices(self) -> AsyncIterator[Sequence[Notice]]:
        """Yield what changed, from one role to the next, until the seat is closed."""
        return self._listeners.listen()


def _refusing(why: Refused) -> Callable[..., NoReturn]:
    """Return a verb that refuses, with an error of its own each time: an error that is raised holds its traceback."""

    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise why.again()

    return refuse
