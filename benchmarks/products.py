"""Every way in which one linear layer could be computed here: name -> what makes it from a weight.

Each way is given a float32 weight (N, K), brings it into its own format, and returns a function of x. A way
that can't run on this machine raises PeerUnavailable and says why.

Legend: N output features, K input features, T rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers import PeerUnavailable

Product = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Way:
    """``make(weight_NK)``: the product with one weight, in the format of this way.

    ``bits``: of a stored weight, scales included, for the bytes that must be read. ``dtype``: of x.
    """

    name: str
    weights: str
    bits: float
    make: Callable[[Tensor], Product]
    dtype: torch.dtype = torch.float32


def ways() -> list[Way]:
    bf16 = torch.bfloat16
    return [
        Way("F.linear fp32", "fp32", 32, plain),
        Way("torch.mm(W, x.T) fp32", "fp32", 32, transposed),
        Way("oneDNN fp32, plain weight", "fp32", 32, onednn),
        Way("oneDNN fp32, packed once", "fp32", 32, onednn_packed),
        Way("qvl fp32", "fp32", 32, qvl_linear),
        Way("F.linear bf16", "bf16", 16, plain, bf16),
        Way("oneDNN bf16, plain weight", "bf16", 16, onednn, bf16),
        Way("qvl bf16", "bf16", 16, qvl_linear, bf16),
        Way("torch int8pack", "int8", 8 + 16 / 2048, torch_int8pack, bf16),
        Way("fbgemm dynamic int8", "int8", 8 + 32 / 2048, fbgemm_dynamic),
        Way("onnxruntime MatMulNBits 8", "int8", 8 + 32 / 32, lambda w: onnx_bits(w, 8, 32)),
        Way("qvl int8", "int8", 8 + 16 / 32, lambda w: qvl_int8(w, exact=False)),
        Way("qvl int8 exact", "int8", 8 + 16 / 32, lambda w: qvl_int8(w, exact=True)),
        Way("torch int4pack 64", "int4", 4 + 32 / 64, torch_int4pack, bf16),
        Way("onnxruntime MatMulNBits 4, block 64", "int4", 4 + 32 / 64, lambda w: onnx_bits(w, 4, 64)),
        *(
            Way(f"qvl int4 {g}", "int4", 4 + 24 / g, lambda w, g=g: qvl_int4(w, g, exact=False))  # type: ignore[misc]
            for g in (32, 64, 128)
        ),
        Way("qvl int4 64 exact", "int4", 4 + 24 / 64, lambda w: qvl_int4(w, 64, exact=True)),
    ]


def plain(weight_NK: Tensor) -> Product:
    return lambda x_TK: F.linear(x_TK, weight_NK)


def transposed(weight_NK: Tensor) -> Product:
    return lambda x_TK: torch.mm(weight_NK, x_TK.T)


def onednn(weight_NK: Tensor) -> Product:
    """The operator that torch's own compiler calls; it takes the weight as it lies."""
    operator = _onednn_operator("_linear_pointwise")
    return lambda x_TK: operator(x_TK, weight_NK, None, "none", [], "")


def onednn_packed(weight_NK: Tensor) -> Product:
    packed = _onednn_operator("_reorder_linear_weight")(weight_NK, None)
    operator = _onednn_operator("_linear_pointwise")
    return lambda x_TK: operator(x_TK, packed, None, "none", [], "")


def _onednn_operator(name: str) -> Any:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, name):
        raise PeerUnavailable(f"this torch has no mkldnn.{name}")
    return getattr(torch.ops.mkldnn, name)


def qvl_linear(weight_NK: Tensor) -> Product:
    try:
        from qvl.ops.linear import linear
    except ImportError as error:
        raise PeerUnavailable(f"qvl has no product of its own for this format: {error}") from None
    return lambda x_TK: linear(x_TK, weight_NK)


def qvl_int8(weight_NK: Tensor, *, exact: bool) -> Product:
    from qvl.ops.quantized import quantize_int8, quantized_linear

    packed = quantize_int8(weight_NK)
    return lambda x_TK: quantized_linear(x_TK, packed, exact=exact)


def qvl_int4(weight_NK: Tensor, group: int, *, exact: bool) -> Product:
    from qvl.ops.quantized import quantize_int4, quantized_linear

    packed = quantize_int4(weight_NK, group)
    return lambda x_TK: quantized_linear(x_TK, packed, exact=exact)


def torch_int8pack(weight_NK: Tensor) -> Product:
    """One scale for each output; activations in bf16."""
    wide_NK = weight_NK.float()
    scales_N = wide_NK.abs().amax(1) / 127
    int8_NK = (wide_NK / scales_N[:, None]).round().to(torch.int8)
    narrow_N = scales_N.bfloat16()
    return lambda x_TK: torch.ops.aten._weight_int8pack_mm(x_TK, int8_NK, narrow_N)


def torch_int4pack(weight_NK: Tensor, group: int = 64) -> Product:
    wide_NK = weight_NK.float()
    groups = wide_NK.view(wide_NK.shape[0], -1, group)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = ((high - low) / 15).clamp(min=1e-9)
    q = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.view_as(wide_NK), 1)
    offset = low + scale * 8  # its weight is scale * (q - 8) + offset
    scales = torch.stack([scale, offset], -1).transpose(0, 1).contiguous().bfloat16()
    return lambda x_TK: torch.ops.aten._weight_int4pack_mm_for_cpu(x_TK, packed, group, scales)


def fbgemm_dynamic(weight_NK: Tensor) -> Product:
    """One scale for the whole of x: fast at few rows, but outliers cost every other value its bits."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        raise PeerUnavailable("this torch has no fbgemm")
    wide_NK = weight_NK.float()
    scales_N = wide_NK.abs().amax(1).double() / 127
    quantized = torch.quantize_per_channel(
        wide_NK, scales_N, torch.zeros_like(scales_N, dtype=torch.long), 0, torch.qint8
    )
    packed = torch.ops.quantized.linear_prepack(quantized, None)
    return lambda x_TK: torch.ops.quantized.linear_dynamic(x_TK, packed, False)


def onnx_bits(weight_NK: Tensor, bits: int, block: int) -> Product:
    """onnxruntime's product of block-quantized weights, with activations in 8 bits where it knows how."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise PeerUnavailable("onnxruntime and onnx are not installed: pip install 'qvl[bench]'") from None
    (N, K), top = weight_NK.shape, 2**bits - 1
    groups = weight_NK.float().view(N, K // block, block) if K % block == 0 else None
    if groups is None:
        raise PeerUnavailable(f"MatMulNBits needs inputs in whole blocks of {block}, here are {K}")
    scale = (groups.abs().amax(-1) / (top // 2)).clamp(min=1e-9)
    q = ((groups / scale[..., None]).round() + 2 ** (bits - 1)).clamp(0, top).to(torch.uint8).numpy()
    stored = q if bits == 8 else (q[..., 0::2] | (q[..., 1::2] << 4))
    values = [numpy_helper.from_array(stored, "B"), numpy_helper.from_array(scale.numpy().reshape(-1), "S")]
    node = helper.make_node(
        "MatMulNBits", ["A", "B", "S"], ["Y"], domain="com.microsoft",
        K=K, N=N, bits=bits, block_size=block, accuracy_level=4,
    )  # fmt: skip
    float_type = TensorProto.FLOAT
    graph = helper.make_graph(
        [node], "product",
        [helper.make_tensor_value_info("A", float_type, ["T", K])],
        [helper.make_tensor_value_info("Y", float_type, ["T", N])],
        initializer=values,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, ["CPUExecutionProvider"])
    return lambda x_TK: np.asarray(session.run(None, {"A": x_TK.numpy()})[0])
