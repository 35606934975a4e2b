"""Short ways to ask a backend, in the words of the tests."""

import asyncio
from collections.abc import Awaitable

import pytest

from engine.actor import Entrant, Holder, Whom
from engine.backend import Backend
from engine.errors import Refused
from engine.identities import subject_of
from engine.views import Place, Session


async def refused(call: Awaitable[object], code: str, reason: str | None = None) -> Refused:
    """Expect a refusal; with `reason`, for that reason."""
    with pytest.raises(Refused) as caught:
        await call
    assert caught.value.code == code
    assert reason is None or caught.value.reason == reason
    return caught.value


async def join(backend: Backend, user_id: str, proof: int = 0, **others: object) -> Place:
    """Join event e1."""
    return await backend.join("e1", Entrant(user_id, proof, **others))  # type: ignore[arg-type]


async def join_many(backend: Backend, count: int) -> list[Place]:
    """Let u1, u2, … join event e1, all at once and in this order."""
    return await asyncio.gather(*(join(backend, f"u{index}") for index in range(1, count + 1)))


def holder(place: Place) -> Holder:
    """Return whoever shows the newest token of a place."""
    return Holder(place.arrival, place.user_id, place.generation)


def whom(place: Place) -> Whom:
    """Return how the site names a visitor."""
    return Whom(user_id=place.user_id)


async def now(backend: Backend, place: Place) -> Place:
    """Return what a place is now; no presence."""
    return await backend.find("e1", Whom(arrival=place.arrival))


async def redeem(backend: Backend, place: Place, request: str | None = "k1", release: int = 1) -> Session:
    """Show the pass of a place."""
    return await backend.redeem(
        "e1",
        place.number or 0,
        release,
        subject_of("e1", place.user_id),
        f"jti-{place.number}-{release}",
        request,
        "site",
    )
