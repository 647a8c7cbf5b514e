"""What is imported is declared, what is declared is imported, and a message that names an extra names a real one."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "hfadapt").rglob("*.py"))}
DISTRIBUTIONS = {
    "PIL": "pillow",
    "lm_eval": "lm-eval",
    "pynvml": "nvidia-ml-py",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Where the package's name is not the module's."""


def names(requirements: list[str]) -> set[str]:
    """The packages of a list of requirements, in one spelling."""
    return {re.split(r"[^A-Za-z0-9._-]", each, maxsplit=1)[0].lower().replace("_", "-") for each in requirements}


CORE = names(PROJECT["dependencies"])
EXTRAS = {name: names(each) for name, each in PROJECT["optional-dependencies"].items() if name != "dev"}


def modules(text: str) -> set[str]:
    """Top-level names of all that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return {name.split(".")[0] for name in found} - {"hfadapt", *sys.stdlib_module_names}


IMPORTED = {path: modules(text) for path, text in SOURCES.items()}


ELSEWHERE = "_litert_worker.py"
"""Run by the Python of another environment, which hfadapt makes."""


def distribution(module: str) -> str:
    return DISTRIBUTIONS.get(module, module.lower().replace("_", "-"))


def test_everything_imported_is_declared() -> None:
    """In the core, or in an extra that some message of hfadapt says how to get."""
    text = "".join(SOURCES.values())
    named = {name for name in EXTRAS if f"hfadapt[{name}]" in text or f'"{name}")' in text}
    declared = CORE.union(*(EXTRAS[name] for name in named))
    missing = {
        f"{path.relative_to(ROOT)}: {module}"
        for path, found in IMPORTED.items()
        for module in found
        if distribution(module) not in declared and path.name != ELSEWHERE
    }
    assert not missing


def test_everything_declared_is_imported() -> None:
    imported = {distribution(module) for found in IMPORTED.values() for module in found}
    assert imported >= CORE


def test_what_tests_skip_without_is_installed_with_them() -> None:
    """So that they run where the checks of every change run, but for Ray, which slow tests alone ask for."""
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("*.py"))
    skipped = {distribution(name) for name in re.findall(r"importorskip\(\"(\w+)", tests)}
    assert skipped >= {"lm-eval", "seqeval"}
    assert skipped - {"ray"} <= names(PROJECT["optional-dependencies"]["dev"])


def test_extras_that_are_named_exist() -> None:
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    named = {extra for text in (*SOURCES.values(), *pages) for extra in re.findall(r"hfadapt\[([a-z-]+)\]", text)}
    assert named <= EXTRAS.keys()
    assert {"harness", "tensorboard", "language", "pii"} <= named


def test_everything_declared_is_pinned() -> None:
    """constraints.txt says with which versions all this is tested."""
    pinned = names((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    assert pinned >= CORE
