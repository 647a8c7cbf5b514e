"""`hfadapt doctor --report`: what a bug report should say of a machine, in Markdown.

It is made to be put on the web: no path, no name of a user or host, no token, and nothing that a compiler has said.
"""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, entry_points, requires
from pathlib import Path

from hfadapt import __version__
from hfadapt.cli.doctor import DoctorReport, examine
from hfadapt.core import cache, registry
from hfadapt.core.show import Block, Heading, Table, View, show_bytes
from hfadapt.fast import compiled
from hfadapt.hardware import processor
from hfadapt.hardware.versions import installed

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
SWITCHES = (compiled.SWITCH, processor.SWITCH, *OFFLINE, "OMP_NUM_THREADS")
HARMLESS = re.compile(r"[0-9]{1,4}|on|off|true|false|yes|no|passes|avx[0-9a-z_]{1,12}", re.IGNORECASE)
"""Values of switches that are told; of others only that they are set."""


def bug_report() -> str:
    """This machine and what is installed, as Markdown."""
    return View(_blocks(examine(measure=False)))._repr_markdown_()


def _blocks(found: DoctorReport) -> list[Block]:
    target = found.target
    machine = [
        ["hfadapt", __version__],
        ["Python", f"{platform.python_implementation()} {platform.python_version()}"],
        ["system", f"{platform.system()} {platform.release()} {platform.machine()}, {'-'.join(platform.libc_ver())}"],
        ["processor", processor.processor_name()],
        ["instruction sets", ", ".join(processor.cpu_features()) or "unknown"],
        ["cores", str(target.cores or "unknown")],
        ["training device", f"{target.devices} x {target.kind}: {target.title.removeprefix('this machine: ')}"],
        ["memory", f"{show_bytes(target.memory_bytes)}, {show_bytes(target.budget_bytes)} usable"],
        *([name, _value(name)] for name in SWITCHES if name in os.environ),
    ]
    return [
        Heading("hfadapt doctor --report"),
        Table(["machine", ""], machine),
        Table(["package", "version"], _packages()),
        Table(["capability", "here"], [[each.name, "yes" if each.available else "no"] for each in found.capabilities]),
        Table(["cache", "size"], [[name, show_bytes(size)] for name, size in _caches().items()]),
    ]


def _value(name: str) -> str:
    value = os.environ[name]
    return value if HARMLESS.fullmatch(value) else "set"


def _packages() -> list[list[str]]:
    """What hfadapt can use, where it is installed, and packages that add names to it."""
    named = {re.split(r"[^\w.-]", each, maxsplit=1)[0] for each in _requirements()}
    found = {name: text for name in sorted(named, key=str.lower) if (text := installed(name)) is not None}
    for kind in registry.KINDS:
        for entry in entry_points(group=f"hfadapt.{kind}"):
            if entry.dist is not None:
                found[f"{entry.dist.name} (adds {kind})"] = entry.dist.version
    return [[name, text] for name, text in found.items()]


def _requirements() -> list[str]:
    try:
        return requires("hfadapt") or []
    except PackageNotFoundError:  # run from a checkout
        return []


def _caches() -> dict[str, int]:
    """Bytes of what hfadapt and the Hub's library keep."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return {"hfadapt": _bytes(cache.folder()), "Hugging Face Hub": _bytes(Path(HF_HUB_CACHE))}


def _bytes(folder: Path) -> int:
    """Of all files below, each link and what cannot be read left out."""
    total = 0
    for place, _, files in os.walk(folder, onerror=None):
        for name in files:
            path = Path(place, name)
            try:
                total += 0 if path.is_symlink() else path.stat().st_size
            except OSError:
                continue
    return total
