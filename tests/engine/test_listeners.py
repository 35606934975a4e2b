"""Listeners: everybody hears everything from their first moment on, at their own pace."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from engine.backends.listeners import Listeners
from engine.views import EventChanged, Notice

FIRST, SECOND, THIRD = (EventChanged("e1", version) for version in (1, 2, 3))


async def all_of(batches: AsyncIterator[Sequence[Notice]]) -> list[Notice]:
    return [notice async for batch in batches for notice in batch]


async def test_who_listens_hears_everything_from_the_call_on_though_nobody_has_asked_yet() -> None:
    listeners = Listeners()
    early = listeners.listen()
    listeners.announce([FIRST])
    late = listeners.listen()
    listeners.announce([SECOND, THIRD])
    listeners.end()
    assert await all_of(early) == [FIRST, SECOND, THIRD]
    assert await all_of(late) == [SECOND, THIRD]


async def test_who_is_slow_gets_more_at_once_and_holds_up_nobody() -> None:
    listeners = Listeners()
    slow, quick = listeners.listen(), listeners.listen()
    for notice in (FIRST, SECOND):
        listeners.announce([notice])
        assert await anext(quick) == [notice]
    assert await anext(slow) == [FIRST, SECOND]


async def test_who_waits_is_woken_and_who_has_gone_is_forgotten() -> None:
    listeners = Listeners()
    hearing = asyncio.ensure_future(all_of(listeners.listen()))
    gone = asyncio.ensure_future(all_of(listeners.listen()))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    listeners.announce([FIRST])
    assert len(listeners._listeners) == 1
    listeners.end()
    assert await asyncio.wait_for(hearing, 5) == [FIRST]
    assert listeners._listeners == []
