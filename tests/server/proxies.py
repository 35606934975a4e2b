"""Real proxies in front of a shop, run with the configurations of docs/forward-auth.md, and a shop behind them."""

import asyncio
import os
import re
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from aiohttp import web

from tests.server.running import Running
from tests.server.shop import Browser

DOCUMENT = Path(__file__).parents[2] / "docs" / "forward-auth.md"
DEADLINE_S = 10.0
NGINX_AROUND = """
daemon off; master_process off; pid nginx.pid; error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    {}
}}
"""


def _only(text: str) -> str:
    return text


# Each proxy: the blocks of the document to write, as which files, what to put around them, and the command.
PROXIES: Mapping[str, tuple[Mapping[str, tuple[str, Callable[[str], str]]], Sequence[str]]] = {
    "nginx": ({"nginx": ("nginx.conf", NGINX_AROUND.format)}, ["nginx", "-e", "stderr", "-p", ".", "-c", "nginx.conf"]),
    "haproxy": (
        {"lua": ("stanchion.lua", _only), "haproxy": ("haproxy.cfg", _only)},
        ["haproxy", "-db", "-f", "haproxy.cfg"],
    ),
}


@dataclass
class Front:
    """A running proxy, and whom the shop behind it has seen."""

    port: int
    seen: list[web.BaseRequest]
    server: Running

    def browser(self) -> Browser:
        """Return a browser that comes through the proxy."""
        behind = replace(self.server, port=self.port)
        return Browser(behind, front={"Host": "shop.example"})


@asynccontextmanager
async def proxy(name: str, server: Running, folder: Path) -> AsyncIterator[Front]:
    """Run a proxy of the document between a shop and a server until the block ends."""
    seen: list[web.BaseRequest] = []
    shop_port, port = free_port(), free_port()
    ports = {"listen 80;": f"listen 127.0.0.1:{port};", "bind :80\n": f"bind 127.0.0.1:{port}\n"}
    backends = {"127.0.0.1:8080": f"127.0.0.1:{server.port}", "127.0.0.1:3000": f"127.0.0.1:{shop_port}"}
    _write(name, folder, ports | backends)

    async def shop(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request)
        return web.Response(text="the shop")

    listening = await asyncio.get_running_loop().create_server(web.Server(shop), "127.0.0.1", shop_port)
    process = await _started(PROXIES[name][1], folder)
    try:
        await _answers(port, process)
        yield Front(port, seen, server)
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), DEADLINE_S)
        listening.close()


def free_port() -> int:
    """Return a port that was free a moment ago: a proxy cannot be told to take any."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _write(name: str, folder: Path, replaced: Mapping[str, str]) -> None:
    folder.mkdir()
    for language, (file, around) in PROXIES[name][0].items():
        (block,) = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
        for before, after in replaced.items():
            block = block.replace(before, after)
        (folder / file).write_text(around(block))


async def _started(command: Sequence[str], folder: Path) -> asyncio.subprocess.Process:
    program = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert program is not None, f"{command[0]} is not installed: see TEST_PACKAGES in the Makefile"
    with (folder / "output").open("wb") as output:
        return await asyncio.create_subprocess_exec(program, *command[1:], cwd=folder, stdout=output, stderr=output)


async def _answers(port: int, process: asyncio.subprocess.Process) -> None:
    """Wait until a port takes connections."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            assert process.returncode is None, "the proxy ended at once; see its output"
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
