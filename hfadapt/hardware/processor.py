"""What this process may use of the processor: cores, instruction sets, and the switch that leaves some of these out."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from hfadapt.core.errors import RequestError

BFLOAT16_UNITS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""Instruction sets with products of bfloat16; the last is of ARM."""
FEATURES = tuple(
    "avx2 avx_vnni avx512f avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_bf16 amx_int8 bf16 sve asimddp i8mm".split()  # noqa: SIM905
)
SWITCH = "HFADAPT_ISA"
"""Set to a name of `LEVELS`, everything runs as on a processor of that kind."""


@dataclass(frozen=True)
class Level:
    """A kind of x86 processor: its instruction sets of `FEATURES`, as compilers call it, and what tells the libraries.

    Variables are those of oneDNN (https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html), MKL
    and ATen, which each reads when it is loaded.
    """

    features: frozenset[str]
    march: str
    libraries: dict[str, str]


def _libraries(onednn: str, mkl: str, aten: str) -> dict[str, str]:
    return {"ONEDNN_MAX_CPU_ISA": onednn, "MKL_ENABLE_INSTRUCTIONS": mkl, "ATEN_CPU_CAPABILITY": aten}


LEVELS = {
    "avx2": Level(frozenset({"avx2"}), "x86-64-v3", _libraries("AVX2", "AVX2", "avx2")),
    "avx512": Level(frozenset({"avx2", "avx512f"}), "x86-64-v4", _libraries("AVX512_CORE", "AVX512", "avx512")),
    "avx512_bf16": Level(
        frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}),
        "cooperlake",
        _libraries("AVX512_CORE_BF16", "AVX512", "avx512"),
    ),
}


def level() -> Level | None:
    """The kind of processor that is asked for, or None. Raises RequestError for one that this processor is not."""
    asked = os.environ.get(SWITCH, "").lower()
    if not asked:
        return None
    have = _detected()
    able = [name for name, each in LEVELS.items() if each.features <= set(have)]
    if asked in able:
        return LEVELS[asked]
    raise RequestError(
        "this processor cannot be used as another one" if asked in LEVELS else "no such kind of processor",
        place=f"environment variable {SWITCH}",
        got=asked,
        allowed=", ".join(able) or f"none: the processor has {', '.join(have) or 'no instruction set that is known'}",
        fix="unset it: what this machine can do is used by itself",
    )


def limit_libraries() -> None:
    """Tells the libraries what is asked for; call it before torch is imported. What the environment says holds."""
    found = level()
    for name, value in found.libraries.items() if found else ():
        os.environ.setdefault(name, value)


def compiler_flag() -> str:
    """What makes a compiler use the instructions that there are."""
    found = level()
    if found:
        return f"-march={found.march}"
    return "-mcpu=native" if platform.machine().lower() in ("arm64", "aarch64") else "-march=native"


def cpu_features() -> tuple[str, ...]:
    """Instruction sets that matter for matrix products, as Linux names them; asked from torch elsewhere."""
    found = level()
    return tuple(name for name in _detected() if found is None or name in found.features)


def _detected() -> tuple[str, ...]:
    flags = cpu_flags()
    return _torch_features() if flags is None else tuple(feature for feature in FEATURES if feature in flags)


def cpu_flags() -> frozenset[str] | None:
    """Everything Linux says the processor can do; None on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def _torch_features() -> tuple[str, ...]:
    import torch

    known = torch.backends.cpu.get_cpu_capability().lower()
    return tuple(name for name, marks in (("avx512f", ("avx512",)), ("avx2", ("avx2", "avx512"))) if known in marks)


def processor_name() -> str:
    """The processor as its maker calls it, or its architecture, and as what it is used where that is not all."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} as {os.environ[SWITCH].lower()}" if level() else name


def usable_cores() -> int:
    """Cores this process may run on, under affinity and the control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return cores
