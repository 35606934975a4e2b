"""The public side of the lobby's draw: what was bound beforehand, and all it takes to recompute it."""

from collections.abc import AsyncGenerator

from aiohttp import web

from engine.backend import Backend
from engine.errors import Refused
from engine.views import EventView
from server.answers import Answer, json_answer
from server.ndjson import NDJSON, stream_lines
from server.places import render_draw
from server.routes import Call, Route
from server.wire import DrawAnswer, DrawnEntry

EVENT = "/v1/events/{event_id}"
ENTRIES_PER_BLOCK = 2_000


class Draws:
    """The handlers."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def draw(self, call: Call) -> Answer:
        """Answer the lobby's draw: its commitment, and once the event has opened its seed and what was drawn."""
        return json_answer(_draw_of(await self._backend.event(call.event_id)))

    async def entries(self, call: Call) -> web.StreamResponse:
        """Stream who drew what, one JSON line an arrival in order of number: all that anyone needs to recompute it."""
        draw = _draw_of(await self._backend.event(call.event_id))
        if draw.count is None:
            raise Refused("not_open", "the lobby is drawn when the event opens", reason=draw.state)
        return await stream_lines(call.request, self._blocks(call.event_id))

    async def _blocks(self, event_id: str) -> AsyncGenerator[bytes, None]:
        number = 0
        while entries := await self._backend.draw_entries(event_id, number, ENTRIES_PER_BLOCK):
            yield b"".join(b'{"arrival":%d,"number":%d}\n' % entry for entry in entries)
            number = entries[-1][1]

    def routes(self) -> list[Route]:
        """Return the rows."""
        return [
            Route("GET", f"{EVENT}/draw", self.draw, "Read the lobby's draw", {200: DrawAnswer}),
            Route(
                "GET",
                f"{EVENT}/draw/entries",
                self.entries,
                "Read who drew which number",
                {200: DrawnEntry},
                problems=(409,),
                content_type=NDJSON,
            ),
        ]


def _draw_of(view: EventView) -> DrawAnswer:
    if view.draw is None:
        raise Refused("not_found", "this event has no lobby that was drawn")
    return render_draw(view, view.draw)
