"""Python and C++ agree on arguments and layouts, and what does not agree, or finds no memory, is refused."""

from __future__ import annotations

import ctypes
import re
import threading
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from hfadapt.cli import doctor
from hfadapt.fast import abi, attention, compiled, kernels, products
from hfadapt.fast.documents import packed_rows
from hfadapt.fast.limits import SWITCH
from hfadapt.fast.products import Frozen, LowRank

C_TYPES = {"i64": ctypes.c_int64, "float": ctypes.c_float, "int": ctypes.c_int, "int32_t": ctypes.c_int32}
STRUCTURES = [structure for group in abi.STRUCTURES.values() for structure in group]
needs_kernels = pytest.mark.skipif(compiled.passes() is None, reason="no C++ compiler here")


def source(*names: str) -> str:
    """Without comments."""
    return re.sub(r"//[^\n]*", "", "\n".join((compiled.SOURCES / name).read_text() for name in names))


def fields(name: str) -> list[tuple[str, type]]:
    """Names and types of a structure's fields in C++; of a nested structure, that in Python of the same name."""
    body = re.search(rf"struct {name} \{{(.*?)\}};", source("products.cpp", "attention_common.h"), re.DOTALL)
    assert body, name
    found = []
    for declaration in body[1].split("(")[0].rsplit(";", 1)[0].split(";"):
        kind, names = re.fullmatch(r"\s*(?:const )?([\w<>]+) (.*)", declaration, re.DOTALL).groups()
        kind = kind.partition("<")[0]
        for each in names.split(","):
            pointer = each.strip().startswith("*")
            other = C_TYPES.get(kind) or getattr(abi, kind, None)
            found.append((each.strip(" *"), ctypes.c_void_p if pointer else other))
    return found


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.__name__)
def test_fields_are_those_of_cpp(structure: type[ctypes.Structure]) -> None:
    assert list(structure._fields_) == fields(structure.__name__)


def test_arguments_are_those_of_cpp() -> None:
    """Of every function of kernels.cpp, as its prototype in the macros has them."""
    kinds = {"void *": abi.ADDRESS, "i64 ": abi.SIZE, "float ": abi.REAL, "int ": abi.FLAG}
    text = source("kernels.cpp").replace("\\\n", "\n").partition("#define EXPORT")[2]
    prototypes = re.findall(r"BOTH\((\w+),\s*\(([^()]*)\),", text) + re.findall(
        r"EXPORT (\w+?)_##NAME\(([^()]*)\)", text
    )
    written = {}
    for name, arguments in prototypes:
        each = [" ".join(argument.split()) for argument in arguments.split(",")]
        written[name] = [next(kind for start, kind in kinds.items() if one.startswith(start)) for one in each]
    mine = {re.sub(r"(_(bf16|f32))+$", "", name): types for name, types in abi.PASSES.items()}
    assert mine == {name: types for name, types in written.items() if name != "NAME"}


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.__name__)
def test_a_library_with_other_sizes_is_refused(
    structure: type[ctypes.Structure], emulated_tiles: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = type(structure.__name__, (structure,), {"_fields_": [("more", ctypes.c_int64)]})
    changed = {
        name: tuple(longer if each is structure else each for each in group) for name, group in abi.STRUCTURES.items()
    }
    monkeypatch.setattr(abi, "STRUCTURES", changed)
    with pytest.raises(ValueError, match=f"{structure.__name__} has {ctypes.sizeof(structure)} bytes in C"):
        abi.bind_tiles(emulated_tiles)


@needs_kernels
def test_a_library_that_cannot_be_bound_is_a_failure_and_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HFADAPT_CACHE", str(tmp_path))
    assert compiled.library("wrong", compiled.PASSES, abi.bind_tiles) is None
    assert "cannot be used" in compiled.failures()["wrong"].output
    assert not list(tmp_path.glob("kernels/*.so"))
    compiled._failures.pop("wrong")


@needs_kernels
def test_wrong_arguments_are_refused() -> None:
    library = compiled.passes()
    with pytest.raises(ctypes.ArgumentError):
        library.gated_f32(1.5, 0, 0, 0, False, 1)
    with pytest.raises(TypeError, match="at least 6 arguments"):
        library.gated_f32(0, 0)
    x = torch.ones(4)
    with pytest.raises(ctypes.ArgumentError):
        kernels._run("gated_f32", x, x, x, x, 4.0, False)


def test_no_memory_is_an_error_and_not_a_crash(emulated_tiles: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "tiles", lambda: emulated_tiles)
    x, y = torch.ones(40, 64).bfloat16(), torch.ones(40, 32).bfloat16()
    layers = [Frozen(torch.ones(32, 64).bfloat16(), None)]
    adapters = [LowRank(0, 40, torch.ones(4, 64).bfloat16(), [torch.ones(4, 32).bfloat16()], [1.0])]
    turned = products._low(x, 1, adapters)[1]
    settings = attention._Settings(packed_rows([40], ["a"]), 1.0, True, 0, torch.bfloat16)
    q = torch.ones(40, 1, 16).bfloat16().requires_grad_()
    work = [
        lambda: products.forward(x, layers, adapters, torch.float32),
        lambda: products.backward_input([y], layers, adapters, torch.float32, True),
        lambda: products.backward_weights(x, [y], adapters, turned, turned),
        lambda: attention._Attention.apply(q, q, q, settings),
    ]
    errors: list[BaseException | None] = []

    def without_memory() -> None:
        """In a thread of its own, which has no memory from earlier calls."""
        for each in work:
            try:
                each()
            except MemoryError as error:
                errors.append(error)
            else:
                errors.append(None)

    short = ctypes.c_int.in_dll(emulated_tiles, "emulated_no_memory")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        short.value = 1
        thread = threading.Thread(target=without_memory)
        thread.start()
        thread.join()
    finally:
        short.value = 0
        torch.set_num_threads(threads)
    assert [type(error) for error in errors] == [MemoryError] * len(work)
    for each in work:
        each()


def test_the_key_changes_with_all_that_a_library_depends_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(compiled.processor.SWITCH, raising=False)  # not of a processor with other flags
    command = ["g++", *compiled.FLAGS, "kernels.cpp"]
    keys = {compiled._key(command), compiled._key([*command, "-O1"]), compiled._key(["clang++", *command[1:]])}
    flags = (compiled.processor, "cpu_flags", lambda: ("another",))
    for place, name, value in ((compiled, "_version", lambda _: "another"), flags):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, value)
            keys.add(compiled._key(command))
    (tmp_path / "kernels.cpp").write_text("another")
    monkeypatch.setattr(compiled, "SOURCES", tmp_path)
    keys.add(compiled._key(command))
    assert len(keys) == 6


@needs_kernels
def test_the_compilers_version_is_known() -> None:
    compiler = next(name for name in compiled._compilers() if compiled._version(name))
    assert re.search(r"\d+\.\d+", compiled._version(compiler))


def test_the_doctor_shows_what_the_compiler_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "my-compiler"
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] || { echo 'kernels.cpp:1: error: no such luck' >&2; exit 1; }\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setenv("HFADAPT_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "passes", compiled.passes.__wrapped__)
    report = doctor.examine(measure=False)
    found = next(each for each in report.capabilities if each.name == "compiled kernels")
    compiled._failures.pop("passes")
    if not report.target.on_cpu:
        pytest.skip("kernels are for CPUs")
    assert not found.available
    assert "no such luck" in found.detail
    assert f"{compiler} -O3" in (found.fix or "")
    assert report.verdict == "limited"


def test_an_installed_package_has_the_sources() -> None:
    root = Path(compiled.__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["hfadapt"]
    files = [path.relative_to(root / "hfadapt").as_posix() for path in compiled.SOURCES.iterdir()]
    assert len(files) > 5
    assert [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)] == []
