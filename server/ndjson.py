"""Long answers, a JSON document a line, streamed in blocks to whoever keeps reading."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import hdrs, web

NDJSON = "application/x-ndjson"
WRITE_TIMEOUT_S = 30.0
_HEADERS = {
    hdrs.CONTENT_TYPE: NDJSON,
    hdrs.CACHE_CONTROL: "no-store",
    "X-Content-Type-Options": "nosniff",
    hdrs.SERVER: "Stanchion",
}


async def stream_lines(request: web.BaseRequest, blocks: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    """Write blocks of lines; what cannot be begun is refused before the head is written.

    A reader that takes nothing for WRITE_TIMEOUT_S is cut off.
    """
    async with aclosing(blocks):
        block = await anext(blocks, b"")
        response = web.StreamResponse(headers=_HEADERS)
        await response.prepare(request)
        if request.method != "HEAD":
            try:
                while block:
                    async with asyncio.timeout(WRITE_TIMEOUT_S):
                        await response.write(block)
                    block = await anext(blocks, b"")
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError("the client does not read what it asked for") from None
        await response.write_eof()
    return response
