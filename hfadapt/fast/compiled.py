"""The C++ in csrc/, compiled once for this processor and kept in the cache folder.

Two libraries: `passes` (kernels.cpp, element-wise, for every CPU) and `tiles` (products.cpp, row_attention.cpp: matrix
products on AMX tiles, only where the processor has them). Either is None where it cannot be made; callers then use
torch, and `failures` says why.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch._subclasses.fake_tensor import FakeTensor

from hfadapt.core import cache
from hfadapt.core.errors import RequestError
from hfadapt.fast import abi
from hfadapt.fast.limits import SWITCH
from hfadapt.hardware import processor

SOURCES = Path(__file__).parent / "csrc"
LIBRARY = "library.so"
COMPILER_SECONDS = 600
"""Only for one that hangs; a busy machine may take its time."""
ALLOWED = ("", "on", "passes", "off")
FLAGS = (
    *("-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math"),
    *("-fno-signed-zeros", "-freciprocal-math", "-std=gnu++17"),
)
PASSES, TILES = ("kernels.cpp",), ("products.cpp", "row_attention.cpp")
TILE_FEATURES = {"amx_bf16", "avx512_bf16"}


@dataclass(frozen=True)
class Failure:
    """Why a library is not there: the command that was to make it, and what came of it."""

    command: str
    output: str


_failures: dict[str, Failure] = {}


def failures() -> dict[str, Failure]:
    """Of `passes` and `tiles`, as far as they were asked for, a compiler is there and they could not be made."""
    return dict(_failures)


@functools.cache
def passes() -> ctypes.CDLL | None:
    """The element-wise kernels, or None when there is no compiler that can make them."""
    return library("passes", PASSES, abi.bind_passes) if switch() != "off" else None


@functools.cache
def tiles() -> ctypes.CDLL | None:
    """The products on AMX tiles, or None where the processor, the system or the compiler cannot."""
    if switch() in ("off", "passes") or not set(processor.cpu_features()) >= TILE_FEATURES:
        return None
    found = library("tiles", TILES, abi.bind_tiles)
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


def library(
    name: str, sources: Sequence[str], bind: Callable[[ctypes.CDLL], None], options: Sequence[str] = ()
) -> ctypes.CDLL | None:
    """Sources of csrc/ as a library, from the cache or compiled now; None with an entry in `failures` if neither works.

    Args:
        bind: Gives its functions their types, or raises AttributeError or ValueError.
        options: Further ones of the compiler.
    """
    _failures.pop(name, None)
    compiler = next((there for each in _compilers() if (there := shutil.which(each))), None)
    if compiler is None:
        return None
    command = [compiler, *FLAGS, processor.compiler_flag(), *options, *(str(SOURCES / source) for source in sources)]

    def make(folder: Path) -> None:
        # OpenMP of the same name as torch's is shared with it; a compiler without OpenMP makes kernels of one thread.
        for attempt in ([*command, "-fopenmp"], command):
            failed = _compile(attempt, folder / LIBRARY)
            if failed is None:
                try:
                    bind(ctypes.CDLL(str(folder / LIBRARY)))
                    _failures.pop(name, None)
                    return
                except (OSError, AttributeError, ValueError) as error:
                    failed = f"what was compiled cannot be used: {error}"
            _failures[name] = Failure(shlex.join([*attempt, "-o", os.devnull]), failed)
        raise _CannotCompile

    try:
        # What was written is compared first: a library that was cut off would end the process.
        found = ctypes.CDLL(str(cache.made(cache.folder() / "kernels" / _key(command), make) / LIBRARY))
        bind(found)
    except (_CannotCompile, OSError, AttributeError, ValueError):
        return None
    return found


class _CannotCompile(Exception):
    """No library came of it."""


def _key(command: Sequence[str]) -> str:
    """Changes with all that the library depends on: sources, command, the compiler's version, and the processor."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(SOURCES.iterdir()) if path.suffix in (".cpp", ".h")]
    # `native` may use all that the processor has, of which `cpu_features` is a part.
    machine = [processor.processor_name(), *sorted(processor.cpu_flags() or processor.cpu_features())]
    known = [*texts, *command, _version(command[0]), *machine]
    return hashlib.sha256("\0".join(known).encode()).hexdigest()[:24]


@functools.cache
def _version(compiler: str) -> str:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _compilers() -> list[str]:
    asked = os.environ.get("CXX")
    return [*([asked] if asked else []), "g++", "c++", "clang++"]


def _compile(command: list[str], path: Path) -> str | None:
    """What went wrong, or None."""
    try:
        done = subprocess.run(
            [*command, "-o", str(path)], capture_output=True, text=True, errors="replace", timeout=COMPILER_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode == 0:
        return None
    return done.stderr.strip() or f"it ended with exit code {done.returncode} and said nothing"


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
