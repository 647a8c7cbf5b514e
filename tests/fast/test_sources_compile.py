"""All C++ is read by a compiler for every instruction set that it is written for, whatever this machine has."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

import pytest

from hfadapt.fast import compiled

AMX, AVX512, AVX2 = "-march=sapphirerapids", "-march=skylake-avx512", "-march=haswell"
CASES = [
    *(pytest.param("x86_64", AMX, name, id=f"amx_bf16-{name}") for name in (*compiled.PASSES, *compiled.TILES)),
    *(
        pytest.param("x86_64", flag, name, id=f"{title}-{name}")
        for title, flag in (("avx512 without bf16", AVX512), ("avx2", AVX2), ("sse2", "-march=x86-64"))
        for name in compiled.PASSES
    ),
    *(pytest.param("aarch64", "-march=armv8-a", name, id=f"aarch64-{name}") for name in compiled.PASSES),
]
COMPILERS = [name for name in ("g++", "clang++") if shutil.which(name)]


def compiler_for(machine: str, name: str) -> str | None:
    here = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    return shutil.which(name if machine == here else f"{machine}-linux-gnu-{name}")


def said(compiler: str, flag: str, name: str) -> str:
    """What the compiler says of a source, with the flags that it is compiled with and all usual warnings."""
    # -fsyntax-only would do but for intrinsics that `flag` has not: these are only seen when code is made. gcc's own
    # headers leave what an intrinsic overwrites uninitialised.
    allowed = ["-Wno-unknown-warning-option", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
    checks = ["-Wall", "-Werror", *allowed, "-fopenmp", "-O0", "-S"]
    wanted = [each for each in compiled.FLAGS if each not in ("-O3", "-shared")]
    command = [compiler, *wanted, flag, *checks, "-o", os.devnull, str(compiled.SOURCES / name)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr or ("" if done.returncode == 0 else f"exit code {done.returncode}")


@pytest.mark.skipif(not COMPILERS, reason="no C++ compiler")
@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize(("machine", "flag", "source"), CASES)
def test_a_compiler_accepts_it(machine: str, flag: str, source: str, name: str) -> None:
    compiler = compiler_for(machine, name)
    if compiler is None:
        pytest.skip(f"no {name} for {machine}")
    assert said(compiler, flag, source) == ""
