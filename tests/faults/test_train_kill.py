"""kill -9 while a run saves: whatever the moment, the newest complete checkpoint loads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MOMENTS = 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, to be killed quickly")
def test_the_newest_checkpoint_always_loads(tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "support.saving_loop", str(tmp_path), str(MOMENTS)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    steps = [int(line) for line in found.stdout.split()]
    assert len(steps) == MOMENTS
    assert steps == sorted(steps), "nothing that was complete is ever lost"
    assert steps[-1] > 1, "something was saved between the kills"
