"""The floor of the HTTP figures: the least an aiohttp handler can do with a join. Run as a process of its own.

`web.Application`, one POST, `request.json()`, `json_response`, uvloop, no access log. It remembers nothing.
"""

import asyncio
from itertools import count

import uvloop
from aiohttp import web

BACKLOG = 4096
_numbers = count(1)


async def join(request: web.Request) -> web.Response:
    """Answer who joined, with the next number."""
    body = await request.json()
    return web.json_response({"user_id": body["user_id"], "number": next(_numbers)}, status=201)


async def serve(application: web.Application) -> None:
    """Serve an application on a free port, which is printed, until the process is ended."""
    runner = web.AppRunner(application, access_log=None, handle_signals=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=BACKLOG)
    await site.start()
    print(f"listening on {runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Serve the bare handler."""
    application = web.Application()
    application.router.add_post("/join", join)
    uvloop.run(serve(application))


if __name__ == "__main__":
    main()
