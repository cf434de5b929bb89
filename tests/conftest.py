"""Fixtures that every folder of tests shares."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches a hub
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if "PYTEST_XDIST_WORKER" in os.environ:  # one process for each core: more threads would only fight
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell ignores Ctrl-C for what runs in its background, and every process started here would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real pictures, videos and the released tokenizer: beside the repository or where QVL_TEST_DATA says."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("QVL_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(
            f"no test data at {folder}; set QVL_TEST_DATA to a folder with images/, videos/, tokenizer/"
        )
    return folder


@pytest.fixture
def run(capsys):
    """Runs a command line in this process: (exit code, stdout, stderr)."""
    from qvl.cli import main

    def run(*words):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run
