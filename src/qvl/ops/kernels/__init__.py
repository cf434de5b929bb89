"""The library of kernels that is compiled when qvl is installed: found, loaded and called here.

It is plain C++ behind a C interface (``native/``), built for every instruction set that the compiler knows;
the best one that runs here is chosen when it is loaded. The environment variable QVL_KERNELS chooses another:
the name of a set ("avx512bf16", "avx512vnni", "avx512", "avxvnni", "avx2", "neon", "scalar"), or "off". Where
the library is missing (no compiler at the install) everything runs on torch's own operators.

The functions here know addresses and sizes; which tensors may come this way is decided by their callers, such
as `qvl.ops.linear` and `qvl.ops.quantized`.

Legend: M rows, N output features, K input features.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvl.errors import UnsupportedError

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
BY_COUNT, FEW, MANY = 0, 1, 2  # the ways of a product, by its number of rows
_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")

# Of the C functions: result and arguments, as letters of _TYPES. Declared in native/api.cpp.
_SIGNATURES = {
    "qvl_use_threads_of": ("-", "p"),
    "qvl_kernels": ("p", "s"),
    "qvl_name": ("s", "p"),
    "qvl_product": ("-", "p ii pppp qqqq i"),
    "qvl_quantized_product": ("-", "p iiipii ppppp qqqq i"),
    "qvl_attention": ("-", "p p"),
    "qvl_packed_attention": ("-", "p p"),
    "qvl_rms_norm": ("-", "p i ppp qqq f i"),
    "qvl_rotary": ("-", "p ii pppp qqqqq i"),
    "qvl_silu_product": ("-", "p i ppp q i"),
}
_TYPES: dict[str, Any] = {
    "-": None,
    "p": ctypes.c_void_p,
    "s": ctypes.c_char_p,
    "i": ctypes.c_int,
    "q": ctypes.c_int64,
    "f": ctypes.c_float,
}


class Kernels:
    """One instruction set of the library, called ``name``.

    Tensors lie on the CPU, their last axis contiguous.
    """

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        handle = ctypes.c_void_p(library.qvl_kernels(name.encode()))
        if not handle:
            raise UnsupportedError(
                f"QVL_KERNELS is {name!r}, which this processor or this build does not have; "
                "leave it unset for the best one"
            )
        self.name: str = library.qvl_name(handle).decode()
        self._product = partial(library.qvl_product, handle)
        self._quantized_product = partial(library.qvl_quantized_product, handle)
        # As in C, without their first argument: for `attention`, `elementwise` and `packed` beside this file.
        self.attention = partial(library.qvl_attention, handle)
        self.packed_attention = partial(library.qvl_packed_attention, handle)
        self.rms_norm = partial(library.qvl_rms_norm, handle)
        self.rotary = partial(library.qvl_rotary, handle)
        self.silu_product = partial(library.qvl_silu_product, handle)

    def product(self, x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, way: int = BY_COUNT) -> Tensor:
        """x W^T + b, float32 or bfloat16 throughout, products added up in float32: (M, N).

        ``way``: `FEW` reads the weight once at the speed of memory, `MANY` unpacks it in blocks and
        multiplies them at full rate, `BY_COUNT` takes the one that is faster for M rows.
        """
        (M, K), N = x_MK.shape, weight_NK.shape[0]
        y_MN = x_MK.new_empty(M, N)
        bias = None if bias_N is None else bias_N.data_ptr()
        self._product(
            way,
            DTYPES[x_MK.dtype],
            x_MK.data_ptr(),
            weight_NK.data_ptr(),
            bias,
            y_MN.data_ptr(),
            M,
            N,
            K,
            x_MK.stride(0),
            torch.get_num_threads(),
        )
        return y_MN

    def quantized_product(
        self,
        x_MK: Tensor,
        out_features: int,
        bits: int,
        group: int,
        qweight: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        bias_N: Tensor | None,
        *,
        exact: bool,
        way: int = BY_COUNT,
    ) -> Tensor:
        """x W^T + b for a packed weight (layout: `qvl.ops.quantized`), in the dtype of x: (M, N).

        ``exact``: take x as it is; otherwise it is quantized to 8 bits. ``way``: as for `product`, if exact.
        """
        M, K = x_MK.shape
        y_MN = x_MK.new_empty(M, out_features)
        self._quantized_product(
            exact,
            way,
            DTYPES[x_MK.dtype],
            x_MK.data_ptr(),
            bits,
            group,
            qweight.data_ptr(),
            scales.data_ptr(),
            None if zeros is None else zeros.data_ptr(),
            None if bias_N is None else bias_N.data_ptr(),
            y_MN.data_ptr(),
            M,
            out_features,
            K,
            x_MK.stride(0),
            torch.get_num_threads(),
        )
        return y_MN


def kernels() -> Kernels | None:
    """The kernels to use, or None where there are none, QVL_KERNELS is "off", or `torch.compile` is tracing.

    Raises UnsupportedError for a name in QVL_KERNELS that is not to be had.
    """
    if torch.compiler.is_compiling():
        return None
    return load(os.environ.get("QVL_KERNELS", ""))


@cache
def load(name: str) -> Kernels | None:
    """The kernels of that name ("" is the best that runs here, "off" is None)."""
    if name == "off":
        return None
    library = _library()
    if library is None:
        if name:
            raise UnsupportedError(
                f"QVL_KERNELS is {name!r}, but qvl was installed without its kernels: "
                "no C++ compiler was found"
            )
        return None
    return Kernels(library, name)


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    """The library with its functions declared, running on torch's threads."""
    found = [path for folder in __path__ if (path := Path(folder) / f"qvl_kernels{_SUFFIX}").is_file()]
    if not found:
        return None
    library = ctypes.CDLL(str(found[0]))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype = _TYPES[result]
        function.argtypes = [_TYPES[letter] for letter in arguments.replace(" ", "")]
    library.qvl_use_threads_of(_parallel_region())
    return library


def _parallel_region() -> int | None:
    """The address of GOMP_parallel in the OpenMP runtime that torch has loaded; None runs on one thread.

    Looked up through a library of torch's: another package may have loaded a runtime of its own.
    """
    folder = Path(torch.__file__).parent / "lib"
    for name in (f"libtorch_global_deps{_SUFFIX}", f"libtorch_cpu{_SUFFIX}"):
        try:
            return ctypes.cast(ctypes.CDLL(str(folder / name)).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None
