"""The design this project is compared with: a Redis sorted set behind aiohttp (seed, section 1). A process of its own.

Every join is the pipeline of ZADD and HSET followed by ZRANK, every rank a ZRANK, a release what the seed's
`process_batch` does, a completion the removal from the active set. The client is redis-py with hiredis.
"""

import json
import sys
import time

import redis.asyncio
import uvloop
from aiohttp import web

from bench.bare_handler import serve

QUEUE, USERS, ACTIVE = "event:sale:queue", "event:sale:users", "event:sale:active"
CONNECTIONS = 256


class RedisDesign:
    """The seed's `RedisWaitingQueue` with asyncio, and the handlers over it."""

    def __init__(self, port: int) -> None:
        self._redis = redis.asyncio.Redis(port=port, max_connections=CONNECTIONS, decode_responses=True)

    async def join(self, request: web.Request) -> web.Response:
        """Join the queue; answers the position."""
        user_id = (await request.json())["user_id"]
        now_s = time.time()
        pipeline = self._redis.pipeline()
        pipeline.zadd(QUEUE, {user_id: now_s})
        pipeline.hset(USERS, user_id, json.dumps({"joined_at": now_s, "status": "waiting"}))
        await pipeline.execute()
        return web.json_response({"user_id": user_id, "position": await self._position(user_id)}, status=201)

    async def position(self, request: web.Request) -> web.Response:
        """Answer a position."""
        return web.json_response({"position": await self._position(request.match_info["user_id"])})

    async def _position(self, user_id: str) -> int | None:
        rank: int | None = await self._redis.zrank(QUEUE, user_id)  # type: ignore[assignment]
        return None if rank is None else rank + 1

    async def release(self, request: web.Request) -> web.Response:
        """Move the first in the queue to the active set."""
        count = (await request.json())["count"]
        users: list[str] = await self._redis.zrange(QUEUE, 0, count - 1)  # type: ignore[assignment]
        if users:
            pipeline = self._redis.pipeline()
            pipeline.zrem(QUEUE, *users)
            pipeline.sadd(ACTIVE, *users)
            for user in users:
                pipeline.hset(USERS, user, json.dumps({"status": "active", "activated_at": time.time()}))
            await pipeline.execute()
        return web.json_response({"released": users})

    async def complete(self, request: web.Request) -> web.Response:
        """Take a visitor out."""
        user_id = (await request.json())["user_id"]
        pipeline = self._redis.pipeline()
        pipeline.srem(ACTIVE, user_id)
        pipeline.hdel(USERS, user_id)
        await pipeline.execute()
        return web.json_response({"user_id": user_id})


def main() -> None:
    """Serve over the redis-server on a port."""
    design = RedisDesign(int(sys.argv[1]))
    application = web.Application()
    application.router.add_post("/join", design.join)
    application.router.add_get("/position/{user_id}", design.position)
    application.router.add_post("/release", design.release)
    application.router.add_post("/complete", design.complete)
    uvloop.run(serve(application))


if __name__ == "__main__":
    main()
