"""What tests want of a key folder: every secret in it, and a wall clock that they may set."""

import json
from pathlib import Path


class WallClock:
    """Unix time in milliseconds, as a test says."""

    def __init__(self, now_ms: int = 1_790_000_000_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def pass_s(self, seconds: float) -> None:
        """Let time pass."""
        self.now_ms += round(seconds * 1000)


def stored_keys(data: Path) -> list[dict[str, object]]:
    """Return the keys of ring.json as they stand there."""
    keys: list[dict[str, object]] = json.loads((data / "keys" / "ring.json").read_text())["keys"]
    return keys


def secrets_in(data: Path) -> list[str]:
    """Return every secret of a data folder as the text it is stored as."""
    texts = [path.read_text().strip() for path in (data / "keys").glob("*.key")]
    return texts + [str(key["secret"]) for key in stored_keys(data) if "secret" in key]
