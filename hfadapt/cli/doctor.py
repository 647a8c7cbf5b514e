"""What this machine can do, measured where that takes seconds, and what is missing, with the way to get it.

Nothing here uses the network: whether a Hub token is configured is reported, never its value.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Literal

from hfadapt.core import registry
from hfadapt.core.show import Block, Heading, Table, Text, show_bytes
from hfadapt.core.spec import Record, Spec
from hfadapt.fast.limits import SWITCH
from hfadapt.formats import install
from hfadapt.hardware import allocator, catalogue, processor
from hfadapt.hardware.catalogue import Target
from hfadapt.hardware.versions import installed
from hfadapt.quants import is_quantised

CORE = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "huggingface_hub", "safetensors")
OPTIONAL = {
    "tensorboard": ("train.trackers: [tensorboard]", "pip install 'hfadapt[tensorboard]'"),
    "wandb": ("train.trackers: [wandb]", "pip install 'hfadapt[wandb]'"),
    "mlflow": ("train.trackers: [mlflow]", "pip install 'hfadapt[mlflow]'"),
    "trackio": ("train.trackers: [trackio]", "pip install 'hfadapt[trackio]'"),
    "codecarbon": ("energy where no counter can be read, and carbon", "pip install 'hfadapt[energy]'"),
    "lm_eval": ("evaluate.harness", "pip install 'hfadapt[harness]'"),
    "fastapi": ("hfadapt serve", "pip install 'hfadapt[serve]'"),
    "openpyxl": ("Excel workbooks as data", "pip install 'hfadapt[excel]'"),
    "soundfile": ("recordings in FLAC, OGG and MP3", "pip install 'hfadapt[sound]'"),
    "xllamacpp": ("GGUF files run by llama.cpp when they are exported", "pip install 'hfadapt[gguf-run]'"),
    "sentencepiece": ("tokenizers that exist only as SentencePiece files", "pip install sentencepiece"),
}
MATTERS = ("fast bfloat16", "8-bit and 4-bit quantisation", "compiled kernels", "Hugging Face Hub")
"""Without these a recipe is limited; the other capabilities are extras."""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
FIRST_LINES = 3
"""Of what a compiler said."""


class Capability(Spec):
    """One thing a recipe may ask for: whether this machine has it, and how to get it when not."""

    name: str
    available: bool
    detail: str
    fix: str | None = None


class DoctorReport(Record):
    """This machine as hfadapt sees it. Rates are measured, `busy` beside other programs, or None: measuring was off."""

    target: Target
    float32_tflops: float | None
    bfloat16_tflops: float | None
    bandwidth_bytes_per_second: float | None
    busy: bool = False
    packages: dict[str, str]
    capabilities: tuple[Capability, ...]
    verdict: Literal["ready", "limited", "broken"]

    def blocks(self) -> list[Block]:
        """The machine, its rates, package versions, capabilities, and what to do next."""
        target = self.target
        rows = [
            ["processor", processor.processor_name()],
            ["training device", f"{target.kind}: {target.title.removeprefix('this machine: ')}"],
            ["memory", f"{show_bytes(target.memory_bytes)}, {show_bytes(target.budget_bytes)} usable now"],
            ["cores", str(target.cores or "unknown")],
            ["instruction sets", ", ".join(target.features) or "unknown"],
            ["float32 matrix rate", _rate(self.float32_tflops)],
            ["bfloat16 matrix rate", _rate(self.bfloat16_tflops)],
            [
                "memory bandwidth",
                f"{self.bandwidth_bytes_per_second / 1e9:.1f} GB/s"
                if self.bandwidth_bytes_per_second
                else "not measured",
            ],
        ]
        if self.busy:
            rows.append(["load", "busy: rates may be low; run this again when other programs have ended"])
        found = [[c.name, "yes" if c.available else "no", c.detail, c.fix or ""] for c in self.capabilities]
        return [
            Heading("hfadapt doctor", 1),
            Table(["machine", ""], rows),
            Table(["package", "version"], [[name, text] for name, text in self.packages.items()]),
            Table(
                ["capability", "here", "what it means", "how to get it"],
                found,
            ),
            Text(
                {
                    "ready": "Training works at full speed; what says 'no' above is optional.",
                    "limited": "Training works; what says 'no' above is left out or slower.",
                    "broken": "Training cannot start: see what says 'no' and how to get it.",
                }[self.verdict]
            ),
        ]


def _rate(tflops: float | None) -> str:
    return "not measured" if tflops is None else f"{tflops:.3g} TFLOP/s"


def examine(measure: bool = True) -> DoctorReport:
    """Looks at the machine; with `measure` also times matrix products and copies, under 5 s in all, and keeps the rates
    for the time that plans predict.

    Example:
        >>> from hfadapt import examine
        >>> "torch" in examine(measure=False).packages
        True
    """
    target = catalogue.this_machine()
    packages = {name: text for name in CORE if (text := installed(name)) is not None}
    missing = [name for name in CORE if name not in packages]
    float32 = bfloat16 = bandwidth = None
    busy = False
    if measure and "torch" in packages:
        measured = catalogue.examined()
        float32, bfloat16 = (measured.tflops.get(dtype) for dtype in ("float32", "bfloat16"))
        bandwidth, busy = measured.bandwidth_bytes_per_second, measured.busy
    capabilities = (
        Capability(
            name="core packages",
            available=not missing,
            detail="all installed" if not missing else f"missing: {', '.join(missing)}",
            fix=f"pip install {' '.join(missing)}" if missing else None,
        ),
        _gpu(target),
        *_numbers(target, float32, bfloat16),
        _allocator(target),
        *_kernels(target),
        *_extras(),
        _hub(),
    )
    verdict: Literal["ready", "limited", "broken"] = "ready"
    if missing:
        verdict = "broken"
    elif not all(c.available for c in capabilities if c.name in MATTERS):
        verdict = "limited"
    return DoctorReport(
        target=target,
        float32_tflops=float32,
        bfloat16_tflops=bfloat16,
        bandwidth_bytes_per_second=bandwidth,
        busy=busy,
        packages=packages,
        capabilities=capabilities,
        verdict=verdict,
    )


def _gpu(target: Target) -> Capability:
    if not target.on_cpu:
        return Capability(name="accelerator", available=True, detail=f"{target.devices} x {target.kind}")
    return Capability(
        name="accelerator",
        available=False,
        detail="torch finds no CUDA, ROCm, XPU or MPS device; training runs on the CPU",
        fix="on a machine with a GPU, install the torch build for it: https://pytorch.org/get-started/locally/",
    )


def _numbers(target: Target, float32: float | None, bfloat16: float | None) -> list[Capability]:
    """16-bit products, and quantised storage."""
    gain = f", measured {bfloat16 / float32:.1f} times float32" if float32 and bfloat16 else ""
    has_units = target.bfloat16_units or not target.on_cpu
    if float32 and bfloat16:
        has_units = bfloat16 > float32
    fast = "bfloat16" in target.dtypes and has_units
    held = [name for name in target.quants if is_quantised(name)] if importlib.util.find_spec("bitsandbytes") else []
    return [
        Capability(
            name="fast bfloat16",
            available=fast,
            detail=("matrix products run in bfloat16" if fast else "matrix products run in float32 or float16") + gain,
            fix=None if fast else "a CPU with AVX512-BF16 or AMX, or a GPU with compute capability 8.0 and more",
        ),
        Capability(
            name="8-bit and 4-bit quantisation",
            available=bool(held),
            detail=f"bitsandbytes quantises to {', '.join(sorted(held))}" if held else "no bitsandbytes backend here",
            fix=None if held else "needs a CPU with AVX2, or a CUDA, ROCm or XPU device",
        ),
    ]


def _allocator(target: Target) -> Capability:
    fine = allocator.malloc_tuned() or not target.on_cpu
    return Capability(
        name="heap fragmentation",
        available=fine,
        detail="none: malloc is tuned to use freed memory again"
        if fine
        else "glibc malloc is not tuned: expect 1.3 to 4x the predicted peak",
        fix=None
        if fine
        else f"the hfadapt command sets it itself; in a notebook start Python with {allocator.VARIABLE}="
        f"{allocator.TUNABLES}",
    )


def _kernels(target: Target) -> list[Capability]:
    """Kernels are for CPUs; without a compiler torch does their work, at about half the speed and with more memory."""
    from hfadapt.fast import compiled

    if not target.on_cpu:
        return [Capability(name="compiled kernels", available=True, detail="only CPUs need them")]
    passes, tiles = compiled.passes() is not None, compiled.tiles() is not None
    switched = os.environ.get(SWITCH)
    found = []
    for name, short, there, without in (
        ("compiled kernels", "passes", passes, "training takes about twice as long and more memory than planned"),
        ("matmuls on AMX tiles", "tiles", tiles, "torch multiplies the matrices, which takes longer"),
    ):
        if short == "tiles" and not set(processor.cpu_features()) >= compiled.TILE_FEATURES:
            continue
        failure = compiled.failures().get(short)
        detail = without
        fix: str | None = f"unset {SWITCH}" if switched else "install a C++ compiler, such as g++"
        if there:
            detail, fix = "they run", None
        elif failure is not None:
            lines = failure.output.splitlines()
            detail += f"; compiling failed: {' / '.join(lines[:FIRST_LINES])}{' …' if lines[FIRST_LINES:] else ''}"
            fix = f"install a newer compiler, or name one in CXX; all that was said: {failure.command}"
        elif short == "tiles" and passes and not switched:
            fix = "the system does not let this process use tiles: needs Linux 5.16 or newer"
        found.append(Capability(name=name, available=there, detail=detail, fix=fix))
    return found


def _extras() -> list[Capability]:
    """Packages that some recipes and formats need."""
    formats = [registry.format(name) for name in registry.names("formats")]
    written = {
        package: (f"export --format {kind.name}", install(kind, package))
        for kind in reversed(formats)  # of several that need a package the first is named
        for package in kind.packages
    }
    return [
        Capability(
            name=name,
            available=(here := importlib.util.find_spec(name) is not None),
            detail=f"for {use}",
            fix=None if here else fix,
        )
        for name, (use, fix) in {**OPTIONAL, **written}.items()
    ]


def _hub() -> Capability:
    """Whether the Hub may be used and a token is configured; the network is not tried."""
    offline = [name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    try:
        from huggingface_hub import get_token

        token = get_token() is not None
    except ImportError:
        token = False
    detail = f"offline by {', '.join(offline)}" if offline else "not switched off; the network was not tried"
    fixes = [f"unset {' '.join(offline)}"] if offline else []
    if not token:
        fixes.append("to publish or read gated models: hf auth login")
    return Capability(
        name="Hugging Face Hub",
        available=not offline,
        detail=f"{detail}; {'a token is' if token else 'no token is'} configured",
        fix="; ".join(fixes) or None,
    )
