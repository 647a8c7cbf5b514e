"""C++ of this package, compiled once for this processor and kept in the cache folder.

Two libraries: `passes` (kernels.cpp, element-wise, for every CPU) and `tiles` (products.cpp, row_attention.cpp: matrix
products on AMX tiles, only where the processor has them). Either is None where it cannot be made; callers then use
torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensor

from hfadapt.core import samples
from hfadapt.core.errors import RequestError
from hfadapt.hardware import catalogue

HERE = Path(__file__).parent
SWITCH = "HFADAPT_KERNELS"
"""Set to `off`, nothing is compiled and plain torch is used; `passes` leaves out the tiles only."""
ALLOWED = ("", "on", "passes", "off")
FLAGS = (
    *("-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math"),
    *("-fno-signed-zeros", "-freciprocal-math"),
)
ATTENTION = ("attention_common.h", "attention_forward.h", "attention_backward.h")
TILE_FEATURES = {"amx_bf16", "avx512_bf16"}


@cache
def passes() -> ctypes.CDLL | None:
    """The element-wise kernels, or None when there is no compiler that can make them."""
    return _library(["kernels.cpp"], headers=["lanes.h"]) if switch() != "off" else None


@cache
def tiles() -> ctypes.CDLL | None:
    """The products on AMX tiles, or None where the processor, the system or the compiler cannot."""
    if switch() in ("off", "passes") or not set(catalogue.cpu_features()) >= TILE_FEATURES:
        return None
    found = _library(["products.cpp", "row_attention.cpp"], headers=["lanes.h", "tiles.h", *ATTENTION])
    return found if found is not None and found.tiles_permitted() else None


def switch() -> str:
    """Raises RequestError for a word that is none of `ALLOWED`."""
    asked = os.environ.get(SWITCH, "").lower()
    if asked not in ALLOWED:
        raise RequestError(
            "no such setting of the compiled kernels",
            place=f"environment variable {SWITCH}",
            got=asked,
            allowed=", ".join(word for word in ALLOWED if word),
            fix="unset it: what this machine can do is used by itself",
        )
    return asked


def _library(sources: Sequence[str], headers: Sequence[str] = ()) -> ctypes.CDLL | None:
    compiler = next((found for name in _compilers() if (found := shutil.which(name))), None)
    if compiler is None:
        return None
    native = "-mcpu=native" if platform.machine().lower() in ("arm64", "aarch64") else "-march=native"
    texts = [(HERE / name).read_text(encoding="utf-8") for name in (*headers, *sources)]
    known = [*texts, compiler, native, *catalogue.cpu_features(), catalogue.processor_name()]
    name = hashlib.sha256("\n".join(known).encode()).hexdigest()[:24]
    path = samples.cache_folder() / "kernels" / f"{name}.so"
    # OpenMP of the same name as torch's is shared with it; a compiler without OpenMP makes kernels of one thread.
    for options in ((native, "-fopenmp"), (native,)):
        if path.exists() or _compile([compiler, *FLAGS, *options, *(str(HERE / name) for name in sources)], path):
            try:
                return ctypes.CDLL(str(path))
            except OSError:
                path.unlink(missing_ok=True)
    return None


def _compilers() -> list[str]:
    asked = os.environ.get("CXX")
    return [*([asked] if asked else []), "g++", "c++", "clang++"]


def _compile(command: list[str], path: Path) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tmp-") as folder:
            made = Path(folder) / path.name
            done = subprocess.run([*command, "-o", str(made)], capture_output=True, timeout=120)
            if done.returncode == 0:
                made.replace(path)
            return done.returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def is_fake(tensor: torch.Tensor) -> bool:
    """Fake tensors have sizes and no memory: what a kernel would write is not missed."""
    return isinstance(tensor, FakeTensor)


@dataclass(frozen=True)
class Machine:
    """What another machine than this one has: compiled passes, and tiles for products and for attention."""

    passes: bool
    products: bool
    attention: bool


class _Assumed:
    machine: Machine | None = None


@contextmanager
def assuming(machine: Machine) -> Iterator[None]:
    """While inside, fake tensors are worked on as on that machine."""
    before, _Assumed.machine = _Assumed.machine, machine
    try:
        yield
    finally:
        _Assumed.machine = before


def assumed(tensor: torch.Tensor) -> Machine | None:
    """The machine that this tensor is on, where that is another one."""
    return _Assumed.machine if is_fake(tensor) else None


def has_tiles(tensor: torch.Tensor, use: Literal["products", "attention"]) -> bool:
    """Whether products or attention of this tensor can run on tiles."""
    other = assumed(tensor)
    return tiles() is not None if other is None else bool(getattr(other, use))


@cache
def function(found: ctypes.CDLL, name: str) -> Any:
    """A function of a library that returns nothing."""
    wanted = getattr(found, name)
    wanted.restype = None
    return wanted


def addresses(arguments: Sequence[Any]) -> list[Any]:
    """Arguments as C takes them: tensors by address (None is null), numbers as int64, bool as int, float as float."""
    plain: list[Any] = []
    for value in arguments:
        if value is None:
            plain.append(ctypes.c_void_p(0))
        elif isinstance(value, torch.Tensor):
            plain.append(ctypes.c_void_p(value.data_ptr()))
        elif isinstance(value, bool):
            plain.append(ctypes.c_int(value))
        elif isinstance(value, float):
            plain.append(ctypes.c_float(value))
        else:
            plain.append(ctypes.c_int64(value))
    return plain
