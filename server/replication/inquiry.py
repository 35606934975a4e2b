"""Asking the others who leads: before a primary opens, and now and then while it leads."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from engine.errors import Refused
from server.replication.ground import Ground
from server.replication.link import LinkClosed, greet
from server.replication.messages import Follow, Welcome
from snapshots.wal import RESTARTS_PER_TERM

ASK_TIMEOUT_S = 1.0


async def who_leads_since(ground: Ground, urls: Sequence[str], term: int) -> str | None:
    """Return who leads a higher term than this process knows of, None where nobody says so."""
    answers = await asyncio.gather(*(ask(ground, url) for url in urls))
    higher = [
        (welcome.epoch // RESTARTS_PER_TERM, welcome.primary_url or url)
        for url, welcome in zip(urls, answers, strict=True)
        if welcome is not None and welcome.epoch // RESTARTS_PER_TERM > term
    ]
    return max(higher)[1] if higher else None


async def ask(ground: Ground, url: str) -> Welcome | None:
    """Ask one peer who is who; None where it does not answer."""
    with suppress(OSError, TimeoutError, LinkClosed, Refused):
        async with asyncio.timeout(ASK_TIMEOUT_S):
            link = await ground.open_link(url)
            try:
                me = ground.settings
                sealed, _ = await greet(link, ground.keys.handshake_keys(), me.node_id, me.url)
                await sealed.send(Follow(b"", None, 0, 0, False, True))
                welcome = await sealed.receive()
            finally:
                link.close()
        return welcome if isinstance(welcome, Welcome) else None
    return None
