"""Puts what the training made into the package: the newest checkpoint's weights, and the files beside them.

python -m examples.tiny.bundle [RUN]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from examples.tiny.checkpoint import ASSETS, write_small_files
from examples.tiny.train import RUN
from qvl.train import saving

WEIGHTS = "model.safetensors"


def bundle(run: Path, assets: Path = ASSETS) -> int:
    """Returns the step that the weights are of. Raises SystemExit where ``run`` has no whole checkpoint."""
    found = saving.newest(run)
    if found is None:
        raise SystemExit(f"{run} has no checkpoint: python -m examples.tiny.train makes one")
    step, folder = found
    write_small_files(assets)
    shutil.copyfile(folder / WEIGHTS, assets / WEIGHTS)
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", default=RUN)
    print(f"the weights of step {bundle(parser.parse_args().run)} are in {ASSETS}")


if __name__ == "__main__":
    main()
