"""Health: whether the process lives, and whether it takes joins or answers reads. Neither call does any work."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from engine.backend import Backend
from server.answers import Answer, json_answer
from server.routes import Call, Listener, Route


class Liveness(Struct):
    """The process answers."""

    status: Literal["ok"]


class Readiness(Struct):
    """Whether traffic should come here: `refuses` is the code that joins are refused with, null when they are not."""

    ready: bool
    role: Literal["primary", "follower", "none"]
    epoch: Annotated[int, Meta(ge=0)]
    degraded: list[str]
    refuses: str | None


class ReadyQuery(Struct, forbid_unknown_fields=True, rename={"what": "for"}):
    """What the caller is going to send here."""

    what: Literal["joins", "reads"] = "joins"


class Health:
    """Two calls for load balancers. Set `draining` when the process is about to end: it is not ready from then on."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._alive = msgspec.json.encode(Liveness("ok"))
        self.draining = False

    def routes(self) -> list[Route]:
        """Return the rows, served on every listener."""
        ready = {200: Readiness, 503: Readiness}
        return [
            Route(
                "GET",
                "/healthz",
                self.healthz,
                "The process answers",
                {200: Liveness},
                listener=Listener.BOTH,
                tag="health",
            ),
            Route(
                "GET",
                "/readyz",
                self.readyz,
                "Ready for joins, or for reads",
                ready,
                query=ReadyQuery,
                listener=Listener.BOTH,
                tag="health",
            ),
        ]

    async def healthz(self, call: Call) -> Answer:
        """Say that the process answers; looks at nothing."""
        return Answer(200, self._alive)

    async def readyz(self, call: Call) -> Answer:
        """Say whether joins are taken here, or with `for=reads` whether reads are answered; O(1)."""
        status = self._backend.status()
        refuses = "draining" if self.draining else status.refuses_joins
        answers_reads = status.role != "none" and not self.draining
        ready = answers_reads if call.query.what == "reads" else refuses is None
        body = Readiness(ready, status.role, status.epoch, list(status.degraded), refuses)
        answer = json_answer(body, 200 if ready else 503)
        return answer if ready else answer.with_headers(("Retry-After", "5"))
