"""Instruction sets: those of the processor, or of another kind that HFADAPT_ISA asks for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tiny import command

from hfadapt.core.errors import RequestError
from hfadapt.hardware import processor

MANY = frozenset("avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_bf16 amx_int8".split())  # noqa: SIM905


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A processor that has everything, as far as Linux says."""
    monkeypatch.setattr(processor, "cpu_flags", lambda: MANY)
    monkeypatch.delenv(processor.SWITCH, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("asked", "features"),
    [
        ("", tuple(name for name in processor.FEATURES if name in MANY)),
        ("avx2", ("avx2",)),
        ("AVX512", ("avx2", "avx512f")),
        ("avx512_bf16", ("avx2", "avx512f", "avx512_vnni", "avx512_bf16")),
    ],
)
def test_it_is_used_as_one_of_the_kind_that_is_asked_for(
    large: pytest.MonkeyPatch, asked: str, features: tuple[str, ...]
) -> None:
    name = processor.processor_name()
    large.setenv(processor.SWITCH, asked)
    assert processor.cpu_features() == features
    assert processor.processor_name() == (f"{name} as {asked.lower()}" if asked else name)
    assert processor.compiler_flag().endswith("native") == (not asked)


def test_the_libraries_are_told_unless_they_have_been(large: pytest.MonkeyPatch) -> None:
    large.setenv(processor.SWITCH, "avx2")
    large.setattr(os, "environ", {**os.environ, "ATEN_CPU_CAPABILITY": "default"})
    processor.limit_libraries()
    told = {name: os.environ[name] for name in processor.LEVELS["avx2"].libraries}
    assert told == {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "default",
    }


@pytest.mark.parametrize(("asked", "words"), [("neon", "no such kind"), ("avx512", "cannot be used as another")])
def test_what_the_processor_is_not_is_refused(monkeypatch: pytest.MonkeyPatch, asked: str, words: str) -> None:
    monkeypatch.setattr(processor, "cpu_flags", lambda: frozenset({"avx2"}))
    monkeypatch.setenv(processor.SWITCH, asked)
    with pytest.raises(RequestError, match=words) as error:
        processor.cpu_features()
    assert "avx2" in str(error.value)


def test_the_command_line_says_so(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(processor.SWITCH, "avx1024")
    done = command("list", "targets", folder=tmp_path)
    assert done.code == 2
    assert "HFADAPT_ISA" in done.err


@pytest.mark.skipif("avx2" not in processor.cpu_features(), reason="a processor without AVX2")
def test_torch_and_kernels_are_limited_by_the_command_line(tmp_path) -> None:
    """In a process of its own, as libraries read their variables when they are loaded."""
    lines = (
        "from hfadapt.hardware.processor import limit_libraries; limit_libraries(); import torch",
        "from hfadapt.fast import compiled, path",
        "print(torch.backends.cpu.get_cpu_capability(), path.product_dtype('float32', torch.device('cpu')))",
        "print(compiled.tiles(), compiled.failures())",
    )
    given = {**os.environ, processor.SWITCH: "avx2", "HFADAPT_CACHE": str(tmp_path)}
    given = {name: value for name, value in given.items() if name not in processor.LEVELS["avx2"].libraries}
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], env=given, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["AVX2 None", "None {}"], done.stderr
