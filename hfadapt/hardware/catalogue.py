"""Targets: the catalogue in targets/*.toml, and `this-machine` by detection.

A target is one TOML table; `[defaults]` of its file and an `extends` name fill what it leaves out. Each figure names
its source. Reading the catalogue needs no torch; detection asks torch for devices, and only when it is called.
"""

from __future__ import annotations

import functools
import platform
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat

from hfadapt.core import registry, resources
from hfadapt.core.errors import RequestError, choice_problem
from hfadapt.core.show import Block, Heading, Shown, Table, Text, show_bytes, show_seconds
from hfadapt.core.spec import Spec
from hfadapt.hardware import rates
from hfadapt.hardware.processor import BFLOAT16_UNITS, cpu_features, processor_name, usable_cores

THIS_MACHINE = "this-machine"
GIB = 1 << 30
Kind = Literal["cpu", "cuda", "rocm", "xpu", "mps", "serve-only"]


class Target(Shown, Spec):
    """One kind of hardware. Memory, rates and bandwidth are those of one device; `devices` says how many there are.

    `dtypes` are the types weights can be stored and multiplied in, `quants` how a base can be stored (every quant says
    so of itself), `tflops` the dense matrix rate by dtype (missing when nobody publishes one), `source` where each
    figure comes from, `busy` that rates were measured beside other programs. Where nothing is trained, `exports` are
    formats that its runtimes open, `most_bytes` and `most_seconds` the budget of a model and of an answer, and
    `latency` the seconds of an answer by arithmetic: a fixed part, and what each multiply-add adds.

    Example:
        >>> from hfadapt import target
        >>> phone = target("android-8gb")
        >>> phone.trains, phone.exports[0]
        (False, 'litert')
    """

    name: str
    title: str
    kind: Kind
    os: tuple[str, ...]
    architecture: str
    memory_bytes: int = Field(gt=0)
    usable_ratio: float = Field(default=1.0, gt=0.0, le=1.0)
    reserved_bytes: int = 0
    free_bytes: int | None = None
    devices: int = Field(default=1, ge=1)
    cores: int | None = None
    compute_capability: float | None = None
    dtypes: tuple[str, ...]
    quants: tuple[str, ...] = ()
    tflops: dict[str, PositiveFloat] = {}
    bandwidth_bytes_per_second: PositiveFloat | None = None
    features: tuple[str, ...] = ()
    trains: bool = True
    exports: tuple[str, ...] = ()
    most_bytes: int | None = None
    most_seconds: PositiveFloat | None = None
    latency: dict[str, tuple[float, float]] = {}
    busy: bool = False
    source: dict[str, str]

    @property
    def budget_bytes(self) -> int:
        """What one process can hold on one device, before any safety margin."""
        usable = int(self.memory_bytes * self.usable_ratio) - self.reserved_bytes
        return max(0, usable if self.free_bytes is None else min(usable, self.free_bytes))

    @property
    def fast_dtype(self) -> str:
        """The dtype with the highest matrix rate; float32 when no rate is known."""
        known = {dtype: rate for dtype, rate in self.tflops.items() if dtype in self.dtypes}
        if not known and self.kind == "mps":
            return "bfloat16"
        return max(known, key=lambda dtype: known[dtype]) if known else "float32"

    @property
    def bfloat16_units(self) -> bool:
        """Whether it has units for products of bfloat16, which take no longer than those of float32; others take many
        times as long."""
        return "bfloat16" in self.dtypes and (not self.on_cpu or bool(BFLOAT16_UNITS & set(self.features)))

    @property
    def on_cpu(self) -> bool:
        """Whether training uses the CPU and main memory."""
        return self.kind == "cpu"

    def blocks(self) -> list[Block]:
        """Every figure with its source."""
        rate = ", ".join(f"{dtype} {value:g} TFLOP/s" for dtype, value in self.tflops.items())
        bandwidth = self.bandwidth_bytes_per_second
        rows = [
            ["kind", self.kind, ""],
            ["systems", f"{', '.join(self.os)}, {self.architecture}", ""],
            ["devices", str(self.devices), ""],
            ["cores", str(self.cores or "not stated"), ""],
            ["memory", show_bytes(self.memory_bytes), self.source.get("memory_gib", "")],
            ["usable share", f"{self.usable_ratio:.0%}", self.source.get("usable_ratio", "")],
            ["reserved", show_bytes(self.reserved_bytes), self.source.get("reserved_gib", "")],
            ["usable for a run", show_bytes(self.budget_bytes), ""],
            ["dtypes", ", ".join(self.dtypes), self.source.get("dtypes", "")],
            ["quants", ", ".join(self.quants), self.source.get("quants", "")],
            ["matrix rate", rate or "not published", self.source.get("tflops", "")],
            [
                "bandwidth",
                f"{bandwidth / 1e9:g} GB/s" if bandwidth else "not published",
                self.source.get("bandwidth_gb_s", ""),
            ],
        ]
        if self.features:
            rows.append(["features", ", ".join(self.features), ""])
        if not self.trains:
            rows.append(["exports", ", ".join(self.exports), self.source.get("exports", "")])
            rows.append(["model, at most", show_bytes(self.most_bytes or 0), self.source.get("most_mb", "")])
            rows.append(["answer, at most", show_seconds(self.most_seconds or 0), self.source.get("most_ms", "")])
            for arithmetic, (fixed, each) in self.latency.items():
                line = f"{fixed * 1e3:g} ms + {each * 1e12:g} ms for 10^9 multiply-adds"
                rows.append([f"latency in {arithmetic}", line, self.source.get("latency", "")])
        verdict = "trains here" if self.trains else "only serves: the adapter is trained on this machine"
        return [
            Heading(f"{self.name}: {self.title}", 1),
            Text(verdict),
            Table(["figure", "value", "source"], rows),
        ]


def names() -> tuple[str, ...]:
    """Every target name, `this-machine` first. Reads TOML only."""
    return (THIS_MACHINE, *_catalogue())


def only_serves(name: str) -> bool:
    """Whether a target of that name does not train. Raises as `target`."""
    return name != THIS_MACHINE and not target(name).trains


def target(name: str) -> Target:
    """The target of that name; `this-machine` is detected.

    Raises:
        RequestError: there is no such target.

    Example:
        >>> from hfadapt import target
        >>> target("android-8gb").trains
        False
    """
    if name == THIS_MACHINE:
        return this_machine()
    table = _catalogue()
    if name not in table:
        problem = choice_problem("there is no target of that name", name, names())
        raise RequestError(problem.what, problems=[problem])
    return _target(name, table[name])


@functools.cache
def _catalogue() -> dict[str, dict[str, Any]]:
    """Tables by name, with defaults and `extends` filled in."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((Path(__file__).parents[1] / "targets").glob("*.toml")):
        tables = dict(resources.toml(path))
        defaults = tables.pop("defaults", {})
        for name, table in tables.items():
            layers = [defaults, tables[table["extends"]] if "extends" in table else {}, table]
            merged = {key: value for layer in layers for key, value in layer.items() if key != "extends"}
            merged["source"] = {key: text for layer in layers for key, text in layer.get("source", {}).items()}
            found[name] = merged
    return found


def _target(name: str, table: dict[str, Any]) -> Target:
    fields = dict(table)
    fields["memory_bytes"] = int(fields.pop("memory_gib") * GIB)
    fields["reserved_bytes"] = int(fields.pop("reserved_gib", 0) * GIB)
    bandwidth = fields.pop("bandwidth_gb_s", None)
    fields["bandwidth_bytes_per_second"] = bandwidth * 1e9 if bandwidth else None
    if "most_mb" in fields:
        fields["most_bytes"] = int(fields.pop("most_mb") * 1e6)
    if "most_ms" in fields:
        fields["most_seconds"] = fields.pop("most_ms") / 1e3
    lines = fields.get("latency", {})
    fields["latency"] = {name: (fixed / 1e3, each / 1e12) for name, (fixed, each) in lines.items()}
    return _with_quants(Target(name=name, **fields))


def _with_quants(found: Target) -> Target:
    known = sorted((registry.quant(name) for name in registry.names("quants")), key=lambda quant: quant.order)
    return found.model_copy(update={"quants": tuple(quant.name for quant in known if quant.held_by(found))})


# --- this machine ----------------------------------------------------------------------------------------------------


def this_machine() -> Target:
    """What this process can use: memory under every control-group limit, cores, CPU features, and GPUs if any.

    With CUDA, ROCm, XPU or MPS devices the target describes one of them and counts them; otherwise the CPU.

    Example:
        >>> from hfadapt import this_machine
        >>> this_machine().trains
        True
    """
    return _with_quants(_with_kept_rates(_accelerator() or _cpu()))


def measure_rates() -> None:
    """Measures how fast this machine's CPU multiplies, in half a second, where a plan would have to guess it."""
    found = _accelerator() or _cpu()
    if found.on_cpu and rates.kept(found.title) is None:
        keep_rates(found, rates.measure(*_measured(found), seconds=rates.SOON, copies=False))


def examined() -> rates.Rates:
    """The rates of this machine, measured now, and kept for plans."""
    found = this_machine()
    measured = rates.measure(*_measured(found), seconds=rates.SECONDS_EACH, copies=True)
    keep_rates(found, measured)
    return measured


def keep_rates(target: Target, measured: rates.Rates) -> None:
    """Keeps measured rates of this machine for later plans."""
    rates.keep(target.title, measured)


def _measured(found: Target) -> tuple[list[str], str, tuple[str, ...], int]:
    dtypes: list[str] = [dtype for dtype in ("float32", "bfloat16") if dtype in found.dtypes]
    return dtypes, found.kind, found.features, found.cores or 1


def _with_kept_rates(found: Target) -> Target:
    """The target with the rates that were measured on it, if any were and are not old."""
    kept = rates.kept(found.title)
    if kept is None:
        return found
    fields: dict[str, Any] = {"busy": kept.busy}
    source, measured = dict(found.source), "measured on this machine"
    if kept.busy:
        measured += " while it was busy: rates may be low"
    known = rates.plausible(kept.tflops, found.features) if found.on_cpu else kept.tflops
    if tflops := {dtype: rate for dtype, rate in known.items() if dtype in found.dtypes}:
        # The estimate of a dtype stays where its measurement made no sense.
        fields["tflops"], source["tflops"] = {**found.tflops, **tflops}, measured
    if bandwidth := kept.bandwidth_bytes_per_second:
        fields["bandwidth_bytes_per_second"], source["bandwidth_gb_s"] = bandwidth, measured
    return found.model_copy(update={**fields, "source": source})


def _system() -> str:
    return {"Darwin": "macos"}.get(platform.system(), platform.system().lower())


def _cpu() -> Target:
    features = cpu_features()
    cores = usable_cores()
    total, free = memory_limits()
    fast_bf16 = bool(BFLOAT16_UNITS & set(features))
    # Cautious clock; `hfadapt doctor` measures the real rates.
    flop_per_cycle = 64 if "avx512f" in features else 32 if "avx2" in features else 16
    float32 = cores * 2.5e9 * flop_per_cycle / 1e12
    gain = 8 if "amx_bf16" in features else 2 if fast_bf16 else 0.5
    return Target(
        name=THIS_MACHINE,
        title=f"this machine: {processor_name()}, {cores} cores",
        kind="cpu",
        os=(_system(),),
        architecture=platform.machine(),
        memory_bytes=total,
        free_bytes=free,
        cores=cores,
        dtypes=("float32", "bfloat16"),
        tflops={"float32": round(float32, 3), "bfloat16": round(float32 * gain, 3)},
        bandwidth_bytes_per_second=None,
        features=features,
        source={
            "memory_gib": "detected: the smaller of physical memory and the control group's limit",
            "tflops": "estimated from cores and instruction sets; hfadapt doctor measures it",
            "quants": "https://github.com/bitsandbytes-foundation/bitsandbytes/blob/main/README.md#system-requirements",
        },
    )


def _accelerator() -> Target | None:
    """The first device of an accelerator that torch can use, or None."""
    if "torch" not in sys.modules and not _may_accelerate():
        return None
    import torch

    if torch.cuda.is_available():
        return _cuda()
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        properties = torch.xpu.get_device_properties(0)
        return _device("xpu", properties.name, int(properties.total_memory), torch.xpu.device_count())
    if torch.backends.mps.is_available():
        total, _ = memory_limits()
        recommended = int(torch.mps.recommended_max_memory())
        return _device("mps", processor_name(), recommended or int(total * 0.67), 1)
    return None


ACCELERATORS = {"": ("nvidia*", "nvhost*", "nvmap", "dxg"), "rocm": ("kfd", "dxg"), "xpu": ("dri", "dxg")}
"""What /dev of Linux has where a build of torch may find an accelerator; the one without a word is for CUDA."""


def _may_accelerate() -> bool:
    """Whether it is worth asking torch, whose import takes seconds."""
    with suppress(PackageNotFoundError):
        _, _, build = version("torch").partition("+")
        if build == "cpu":
            return False
        names = next((names for word, names in ACCELERATORS.items() if word and word in build), ACCELERATORS[""])
        return _system() != "linux" or any(any(Path("/dev").glob(name)) for name in names)
    return True


def _cuda() -> Target:
    import torch

    properties = torch.cuda.get_device_properties(0)
    rocm = torch.version.hip is not None
    capability = float(f"{properties.major}.{properties.minor}")
    catalogued = _same_card(properties.name, int(properties.total_memory)) if not rocm else None
    free, _ = torch.cuda.mem_get_info(0)
    found = _device(
        "rocm" if rocm else "cuda",
        properties.name,
        int(properties.total_memory),
        torch.cuda.device_count(),
        dtypes=("float32", "bfloat16", "float16") if rocm or capability >= 8.0 else ("float32", "float16"),
        capability=capability,
        free=int(free),
    )
    if catalogued is None:
        return found
    source = {**found.source, **{key: catalogued.source[key] for key in ("tflops", "bandwidth_gb_s")}}
    return found.model_copy(
        update={
            "tflops": catalogued.tflops,
            "bandwidth_bytes_per_second": catalogued.bandwidth_bytes_per_second,
            "source": source,
        }
    )


def _device(
    kind: Kind,
    title: str,
    total: int,
    count: int,
    *,
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16"),
    capability: float | None = None,
    free: int | None = None,
) -> Target:
    return Target(
        name=THIS_MACHINE,
        title=f"this machine: {count} x {title}" if count > 1 else f"this machine: {title}",
        kind=kind,
        os=(_system(),),
        architecture=platform.machine(),
        memory_bytes=total,
        free_bytes=free,
        devices=count,
        cores=usable_cores(),
        compute_capability=capability,
        dtypes=dtypes,
        features=cpu_features(),
        source={"memory_gib": "detected through torch", "dtypes": "detected through torch"},
    )


def _same_card(title: str, total_bytes: int) -> Target | None:
    """The single-device catalogue entry whose name is contained in the card's name and whose memory is nearest."""
    words = title.lower().replace("-", " ").split()
    close: list[Target] = []
    for name, table in _catalogue().items():
        parts = [part for part in name.split("-") if not part.endswith("gb") and part != "rtx"]
        if table["kind"] == "cuda" and table.get("devices", 1) == 1 and all(part in words for part in parts):
            close.append(_target(name, table))
    near = [card for card in close if abs(card.memory_bytes * card.usable_ratio / total_bytes - 1) < 0.15]
    return max(near, key=lambda card: len(card.name)) if near else None


def memory_limits() -> tuple[int, int]:
    """Bytes in all and bytes free now, each the smallest of physical memory and all control-group limits above us."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    for limit_bytes, used_bytes in _control_groups():
        total, free = min(total, limit_bytes), min(free, max(0, limit_bytes - used_bytes))
    return total, free


def _control_groups() -> list[tuple[int, int]]:
    """(limit, in use without page cache) of every memory control group this process is in, version 2 or 1."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup")
        limit, usage = "memory.max", "memory.current"
        if controllers:
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        folder = root / group.lstrip("/")
        for place in (folder, *folder.parents):
            if root not in (place, *place.parents):
                break
            if (limit_bytes := _number(place / limit)) is not None and limit_bytes < 1 << 60:
                found.append((limit_bytes, max(0, (_number(place / usage) or 0) - _inactive_cache(place))))
    return found


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _inactive_cache(group: Path) -> int:
    """File cache that the kernel gives back under pressure."""
    try:
        pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        return next((int(value) for key, value in pairs if key in ("inactive_file", "total_inactive_file")), 0)
    except (OSError, ValueError):
        return 0
