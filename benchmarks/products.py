"""Products of one core in float32 by the libraries that there are: is one of them faster than torch's own?

    python benchmarks/products.py                      this processor; the table in Markdown
    HFADAPT_ISA=avx2 python benchmarks/products.py     as on one without AVX-512

Shapes are those of a training step: rows of a batch times frozen weights, and the narrow products of LoRA. Packed means
that the weight was put into the order of the library's kernels before, which is not timed. OpenBLAS is the one that
numpy brings; BLIS is timed where the package `blis` can be imported. Each figure is the fastest of many calls, in
GFLOP/s, so that other programs on the machine count little.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from time import perf_counter
from typing import Any

from hfadapt.hardware.processor import SWITCH, cpu_features, limit_libraries, processor_name

SHAPES = (
    *((750, 384, 384), (750, 384, 1536), (750, 1536, 384), (576, 576, 576), (576, 576, 1536), (576, 1536, 576)),
    *((750, 384, 16), (750, 16, 384)),
)
"""Rows, inputs, outputs: MiniLM, SmolLM2, and what is narrow."""


def fastest(call: Callable[[], Any], seconds: float) -> float:
    """Seconds of the fastest call within a time."""
    call()
    least, end = float("inf"), perf_counter() + seconds
    while (started := perf_counter()) < end:
        call()
        least = min(least, perf_counter() - started)
    return least


def ways(rows: int, inputs: int, outputs: int) -> dict[str, Callable[[], Any]]:
    """One product, by each library."""
    import numpy as np
    import torch

    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    turned = weight.t().contiguous()
    packed_mkl = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    onednn = torch.ops.mkldnn._linear_pointwise
    found: dict[str, Callable[[], Any]] = {
        "torch": lambda: torch.nn.functional.linear(x, weight),
        "torch, turned": lambda: x @ turned,
        "MKL, packed": lambda: torch.ops.mkl._mkl_linear(x, packed_mkl, weight, None, rows),
        "oneDNN": lambda: onednn(x, weight, None, "none", [], ""),
        "oneDNN, packed": lambda: onednn(x, packed, None, "none", [], ""),
        "OpenBLAS": lambda: x.numpy() @ turned.numpy(),
    }
    try:
        from blis.py import gemm
    except ImportError:
        pass
    else:
        into = np.zeros((rows, outputs), np.float32)
        found["BLIS"] = lambda: gemm(x.numpy(), turned.numpy(), out=into)
    expected = found["torch"]().numpy()
    for name, call in found.items():
        assert np.allclose(np.asarray(call()), expected, atol=1e-3), name
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each figure")
    seconds = parser.parse_args().seconds
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["BLIS_NUM_THREADS"] = "1"
    if os.environ.get(SWITCH, "").lower() == "avx2":
        os.environ["OPENBLAS_CORETYPE"], os.environ["BLIS_ARCH_TYPE"] = "Haswell", "haswell"
    limit_libraries()
    print(f"{processor_name()} ({', '.join(cpu_features())}), load {os.getloadavg()[0]:.1f}\n")
    for number, (rows, inputs, outputs) in enumerate(SHAPES):
        found = ways(rows, inputs, outputs)
        if not number:
            print(f"| rows x inputs x outputs | {' | '.join(found)} |\n|---|{'---:|' * len(found)}")
        rates = [2 * rows * inputs * outputs / fastest(call, seconds) / 1e9 for call in found.values()]
        print(f"| {rows} x {inputs} x {outputs} | {' | '.join(f'{rate:.0f}' for rate in rates)} |", flush=True)


if __name__ == "__main__":
    main()
