"""A pair of its own to rehearse with: primary and standby on loopback in a temporary folder, killed and started again.

Both keep their addresses for as long as the rehearsal lasts, dead or alive. Who leads is whoever was started first,
and after each kill the other one: by themselves where there is a witness, or because they are told to (`promote`).
"""

import asyncio
import os
import re
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

from engine.errors import Unreachable

STANCHION = (sys.executable, "-c", "from server.cli import main; main()")
START_LIMIT_S = 30.0
STEP_LIMIT_S = 60.0
CALL_LIMIT_S = 20.0
LOOK_S = 0.02
NEAR_RECORDS = 100
_LISTENS = re.compile(rb"^Stanchion .* on http://", re.MULTILINE)


class Pair:
    """Two processes that hold one line. `leader` is the index of the one that leads, `urls` are where they are.

    Without a witness nobody takes over unless told; `mode` is sync or async.
    """

    def __init__(self, folder: Path, mode: str, witness: str | None, session: aiohttp.ClientSession) -> None:
        self.urls = tuple(f"http://127.0.0.1:{port}" for port in _free_ports(2))
        self.leader = 0
        self.mode = mode
        self._session = session
        self._folders = [folder / "one", folder / "two"]
        self._logs = [folder / "one.log", folder / "two.log"]
        self._flags = ["--replication", mode, "--log-level", "warning", "--segment-mib", "8"]
        self._flags += [] if witness is None else ["--witness", witness]
        self._takes_over = witness is not None
        self._processes: dict[int, asyncio.subprocess.Process] = {}

    async def start(self) -> None:
        """Start both, and wait until an answer of the primary waits for the standby (in async: until that is near)."""
        await self._start(0, "serve")
        await self._follow(1, 0)

    async def kill(self) -> float:
        """Kill whoever leads; the other one leads from now on. Returns when, by the monotonic clock."""
        process = self._processes.pop(self.leader)
        killed_s = time.monotonic()
        process.kill()
        await process.wait()
        self.leader = 1 - self.leader
        return killed_s

    async def succeed(self) -> str | None:
        """Tell the one that is left to lead where nothing else does; returns what may be lost, in its own words."""
        if self._takes_over:
            return None
        answer: Mapping[str, Any] = await self.admin("POST", "/v1/admin/promote", {"old_primary_is_dead": True})
        lost: str | None = answer["lost"]
        return lost

    async def come_back(self) -> None:
        """Start the one that was killed as a follower of the other, and wait until it is in step."""
        await self._follow(1 - self.leader, self.leader)

    async def admin(self, method: str, path: str, body: object = None, *, index: int | None = None) -> Any:
        """Return what the admin API answers, of whoever leads or of one of both; raises Unreachable."""
        try:
            key = (self._folders[0] / "keys" / "admin.key").read_text().strip()
            headers, timeout = {"Authorization": f"Bearer {key}"}, aiohttp.ClientTimeout(CALL_LIMIT_S)
            url = self.urls[self.leader if index is None else index] + path
            async with self._session.request(method, url, json=body, headers=headers, timeout=timeout) as response:
                if response.status >= 300:
                    raise Unreachable(f"{method} {path} was answered {response.status}: {await response.text()}")
                is_json = response.content_type == "application/json"
                return await response.json() if is_json else await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"{method} {path} was not answered: {error or type(error).__name__}") from None

    async def close(self) -> None:
        """End both at once: what they hold is thrown away."""
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        self._processes.clear()

    async def _follow(self, index: int, other: int) -> None:
        key_file = str(self._folders[0] / "keys" / "replication.key")
        await self._start(index, "follow", self.urls[other], "--key-file", key_file)
        deadline_s = time.monotonic() + STEP_LIMIT_S
        while not await self._is_near():
            if time.monotonic() > deadline_s or self._processes[index].returncode is not None:
                raise Unreachable(f"the standby is not in step within {STEP_LIMIT_S:g} s: {self._last_words(index)}")
            await asyncio.sleep(LOOK_S)

    async def _is_near(self) -> bool:
        status = await self.admin("GET", "/v1/admin/status")
        told = status["details"]["replication"]
        if self.mode == "sync":
            return bool(told["in_step"])
        return bool(told["followers"] > 0 and told["lag_records"] < NEAR_RECORDS)

    async def _start(self, index: int, *command: str) -> None:
        port = self.urls[index].rpartition(":")[2]
        arguments = [*command, "--data", str(self._folders[index]), "--port", port, *self._flags]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("STANCHION_")}
        with self._logs[index].open("wb") as output:
            self._processes[index] = process = await asyncio.create_subprocess_exec(
                *STANCHION, *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )
        deadline_s = time.monotonic() + START_LIMIT_S
        while not _LISTENS.search(self._logs[index].read_bytes()):
            if process.returncode is not None or time.monotonic() > deadline_s:
                raise Unreachable(f"`stanchion {command[0]}` did not start: {self._last_words(index)}")
            await asyncio.sleep(LOOK_S)

    def _last_words(self, index: int) -> str:
        return self._logs[index].read_text(errors="replace").strip()[-400:] or "it said nothing"


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on at this moment."""
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in listening]
    for one in listening:
        one.close()
    return ports
