"""The instruction sets of the kernels: a test that asks for `offered` runs on each that is to be had here."""

import pytest

from qvl.errors import UnsupportedError
from qvl.ops.kernels import load

SETS = ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "neon")


@pytest.fixture(params=SETS)
def offered(request, monkeypatch):
    """The kernels of one set, which `kernels()` then gives too."""
    if load("") is None:
        pytest.skip("qvl was installed without its kernels: no C++ compiler")
    try:
        found = load(request.param)
    except UnsupportedError:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("QVL_KERNELS", request.param)
    return found
