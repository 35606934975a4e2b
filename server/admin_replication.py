"""The admin's call about roles: make this follower the primary."""

from typing import Protocol

import structlog
from msgspec import Struct

from server.admin import AdminApi
from server.answers import Answer, json_answer
from server.routes import Call, Route

log = structlog.get_logger("stanchion.admin")


class PromoteRequest(Struct, forbid_unknown_fields=True):
    """`old_primary_is_dead`: the operator made sure that the old primary is stopped; needed where it is silent."""

    old_primary_is_dead: bool = False


class PromoteAnswer(Struct):
    """This server is the primary of `term` now; `lost` says what may have been lost, null for nothing."""

    role: str
    term: int
    lost: str | None


class Promoter(Protocol):
    """Whoever changes roles."""

    @property
    def role(self) -> str:
        """The role of this process."""

    @property
    def term(self) -> int:
        """The newest term known here."""

    async def promote(self, *, old_primary_is_dead: bool = False) -> str:
        """Become the primary; returns what may have been lost. Raises Refused."""


class AdminReplication:
    """The handler, over whoever changes the role of this process."""

    def __init__(self, promoter: Promoter) -> None:
        self._promoter = promoter

    def routes(self, admin: AdminApi) -> list[Route]:
        """Return the rows, behind the admin API's gate."""
        return [
            admin.row(
                "POST",
                "/v1/admin/promote",
                self.promote,
                "Make this follower the primary",
                {200: PromoteAnswer},
                role="owner",
                body=PromoteRequest,
                problems=(409, 503),
            )
        ]

    async def promote(self, call: Call, actor: str) -> Answer:
        """Ask the old primary to hand over, and lead; where it is silent, only on the word that it is dead."""
        log.info("promote_asked", actor=actor, old_primary_is_dead=call.body.old_primary_is_dead)
        lost = await self._promoter.promote(old_primary_is_dead=call.body.old_primary_is_dead)
        return json_answer(PromoteAnswer(self._promoter.role, self._promoter.term, lost or None))
