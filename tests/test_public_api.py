"""The public names: few, all there, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hfadapt
from hfadapt.hardware import allocator

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "sklearn", "numpy")


def test_at_most_25_public_names_and_every_one_is_there():
    assert len(hfadapt.__all__) <= 25
    assert set(dir(hfadapt)) == set(hfadapt.__all__)
    assert callable(hfadapt.load_recipe)
    for name in hfadapt.__all__:
        assert getattr(hfadapt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hfadapt.nothing


def test_every_public_name_has_a_type():
    """A name that only `__getattr__` knows is Any to whoever checks types."""
    tree = ast.parse(Path(hfadapt.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {name.asname: (node.module, name.name) for node in block.body for name in node.names}
    assert typed.keys() == set(hfadapt.__all__) - {"__version__"}
    for name, (module, inside) in typed.items():
        assert getattr(importlib.import_module(module), inside) is getattr(hfadapt, name)


@pytest.mark.slow
def test_type_checkers_see_what_each_public_name_is(tmp_path):
    from mypy import api

    names = [name for name in hfadapt.__all__ if name != "__version__"]
    program = tmp_path / "program.py"
    program.write_text("import hfadapt\n" + "".join(f"reveal_type(hfadapt.{name})\n" for name in names))
    root = Path(hfadapt.__file__).parent.parent
    out, err, _ = api.run(["--config-file", str(root / "pyproject.toml"), "--follow-imports=silent", str(program)])
    revealed = re.findall(r'Revealed type is "(.*)"', out)
    assert len(revealed) == len(names), out + err
    assert not [name for name, kind in zip(names, revealed, strict=True) if kind == "Any"]
    assert revealed[names.index("run")].startswith("def (recipe: hfadapt.recipe.schema.Recipe | str | ")


LIGHT = {
    "import": "import hfadapt",
    "help": "import sys; sys.argv = ['hfadapt', '--help']; from hfadapt.__main__ import start; start()",
    "run --help": "import sys; sys.argv = ['hfadapt', 'run', '--help']; from hfadapt.__main__ import start; start()",
}


@pytest.mark.parametrize("what", LIGHT)
def test_is_light(what):
    code = f"""
import json, os, sys
try:
    exec({LIGHT[what]!r})
except SystemExit as ended:
    assert not ended.code, ended.code
print()
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
print({allocator.VARIABLE!r} in os.environ)
"""
    env = {name: value for name, value in os.environ.items() if name != allocator.VARIABLE}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    *_, heavy, restarted = done.stdout.splitlines()
    assert json.loads(heavy) == []
    assert restarted == "False", "started twice to print a help"
    if what != "import":
        assert "RECIPE" in done.stdout or "run" in done.stdout
