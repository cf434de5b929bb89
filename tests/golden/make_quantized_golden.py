"""Writes quantized_golden.json: small layers packed by the programs whose checkpoints qvl reads.

Those programs do not install beside a current torch, so only their packing modules are run, from the unpacked
packages, with nothing else of them imported:

    pip download --no-deps autoawq==0.2.8 auto-gptq==0.7.1      # and unpack both into PACKAGES
    python tests/golden/make_quantized_golden.py PACKAGES

Of each layer the file keeps the tensors as they are stored and the weight (K, N) as the program itself
multiplies with it, in float16. Tensors are their bytes in base64, little endian.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

HERE = Path(__file__).parent
N, K, GROUP = 32, 64, 32


def module_at(path: Path, **stand_ins: ModuleType) -> Any:
    """A module by its file; ``stand_ins``: for what it imports of its own package (dots as underscores)."""
    named = {name.replace("_DOT_", "."): module for name, module in stand_ins.items()}
    sys.modules.update(named)
    spec = importlib.util.spec_from_file_location(path.stem + "_reference", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in named:
        del sys.modules[name]
    return module


def awq_module(packages: Path) -> Any:
    packing = module_at(next(packages.rglob("awq/utils/packing_utils.py")))
    module, utils = ModuleType("module"), ModuleType("utils")
    module.try_import = lambda name: (None, "absent")
    utils.get_best_device = lambda: "cpu"
    return module_at(
        next(packages.rglob("awq/modules/linear/gemm.py")),
        awq=ModuleType("awq"),
        awq_DOT_utils=ModuleType("awq.utils"),
        awq_DOT_utils_DOT_module=module,
        awq_DOT_utils_DOT_utils=utils,
        awq_DOT_utils_DOT_packing_utils=packing,
    )


def layer_of(q_NK: Any, scales_NG: Any, zeros_NG: Any, group_of_K: torch.Tensor) -> Any:
    linear = nn.Linear(K, N, bias=False)
    weight = (q_NK - zeros_NG[:, group_of_K]) * scales_NG[:, group_of_K]
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def integers(bits: int, seed: int, *, lowest_zero: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 2**bits, (N, K), generator=generator)
    scales = (torch.rand(N, K // GROUP, generator=generator) / 10 + 0.01).half().float()
    zeros = torch.randint(lowest_zero, 2**bits, (N, K // GROUP), generator=generator)
    return q, scales, zeros


def awq_case(packages: Path) -> dict[str, Any]:
    module = awq_module(packages)
    q, scales, zeros = integers(4, seed=1)
    layer = layer_of(q, scales, zeros, torch.arange(K) // GROUP)
    by_group = (scales.T.contiguous(), zeros.T.contiguous())
    packed = module.WQLinear_GEMM.from_linear(layer, 4, GROUP, False, *by_group)
    weight = module.dequantize_gemm(packed.qweight, packed.qzeros, packed.scales, 4, GROUP)
    return stored("awq", 4, packed, weight, ("qweight", "qzeros", "scales"))


def gptq_case(packages: Path, bits: int, *, act_order: bool, symmetric: bool, seed: int) -> dict[str, Any]:
    module = module_at(next(packages.rglob("auto_gptq/nn_modules/qlinear/qlinear_cuda.py")))
    q, scales, zeros = integers(bits, seed, lowest_zero=1)  # this packer cannot store 0
    if symmetric:
        zeros = torch.full_like(zeros, 2 ** (bits - 1))
    group_of_K = torch.arange(K) // GROUP
    if act_order:
        group_of_K = group_of_K[torch.randperm(K, generator=torch.Generator().manual_seed(seed))]
    layer = layer_of(q, scales, zeros, group_of_K).half()
    packed = module.QuantLinear(bits, GROUP, K, N, bias=False)
    packed.pack(layer, scales.half(), zeros.clone(), group_of_K.int())
    weight = packed(torch.eye(K).half())
    return stored("gptq", bits, packed, weight, ("qweight", "qzeros", "scales", "g_idx"))


def stored(
    method: str, bits: int, layer: Any, weight: torch.Tensor, names: tuple[str, ...]
) -> dict[str, Any]:
    tensors = {name: as_text(getattr(layer, name)) for name in names}
    return {"method": method, "bits": bits, "tensors": tensors, "weight": as_text(weight.half())}


def as_text(tensor: torch.Tensor) -> dict[str, Any]:
    array = tensor.contiguous().numpy()
    data = base64.b64encode(array.tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": array.shape, "data": data}


def main() -> None:
    packages = Path(sys.argv[1])
    cases = {
        "awq": awq_case(packages),
        "gptq 4": gptq_case(packages, 4, act_order=False, symmetric=False, seed=2),
        "gptq 4 act-order": gptq_case(packages, 4, act_order=True, symmetric=True, seed=3),
        "gptq 8 symmetric": gptq_case(packages, 8, act_order=False, symmetric=True, seed=4),
        "gptq 8": gptq_case(packages, 8, act_order=True, symmetric=False, seed=5),
    }
    (HERE / "quantized_golden.json").write_text(json.dumps(cases) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
