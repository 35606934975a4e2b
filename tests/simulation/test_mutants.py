"""The simulation finds what it is there for: each way of breaking replication shows in some of its lives."""

import subprocess
import sys

import pytest

from tests.simulation.mutants import ROOT, mutants

LIVES = 150


@pytest.mark.slow
@pytest.mark.parametrize("name", [mutant.name for mutant in mutants()])
def test_broken_replication_is_found(name: str) -> None:
    command = [sys.executable, "-m", "tests.simulation", "--mutant", name, "--seeds", str(LIVES)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert run.returncode == 1, f"{LIVES} lives, and nothing was found"
    assert "VIOLATION in seed" in run.stdout, run.stderr
