"""The server against its own contract: schemathesis reads /openapi.json and tries to break what it says.

Every check is on (that is the default, and the configuration may then turn one off for an operation that answers
any method), the generation is deterministic and bounded. Where what the schema allows may still be refused is
written down, with the reason, in schemathesis.toml.
"""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

import server.gate
from tests.server.running import running

CONFIG = Path(__file__).with_name("schemathesis.toml")
RUN_TIMEOUT_S = 100
NOT_TESTED = 4  # the updates, the document itself, and what ends keys


@pytest.mark.slow
async def test_schemathesis_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.gate, "BAD_KEYS_LIMIT", 10**9)
    async with running(tmp_path / "data", body_timeout_s=2.0) as target:
        await target.open_event("e1")
        await target.open_event("e2", batch_interval_s=3600)
        for user_id in ("u1", "u2", "u3"):
            await target.place(user_id, "e2")
        token = str((await target.place("u1"))["token"])
        schemathesis = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(CONFIG), "run"]
        process = await asyncio.create_subprocess_exec(
            *schemathesis,
            f"{target.url}/openapi.json",
            *("--header", f"Authorization: Bearer {target.keys.admin}"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path,
            env=os.environ | {"STANCHION_TEST_TOKEN": token},
        )
        async with asyncio.timeout(RUN_TIMEOUT_S):
            told, _ = await process.communicate()
        target.backend.venue.check()
    assert process.returncode == 0, told.decode()
    tested = re.search(r"Tested: ([0-9]+)", told.decode())
    assert tested and int(tested.group(1)) >= len(target.routes) - NOT_TESTED, told.decode()
