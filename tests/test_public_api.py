"""The public names: few, all there, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import hfadapt

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "sklearn", "numpy")


def test_at_most_25_public_names_and_every_one_is_there():
    assert len(hfadapt.__all__) <= 25
    assert set(dir(hfadapt)) == set(hfadapt.__all__)
    assert callable(hfadapt.load_recipe)
    for name in hfadapt.__all__:
        assert getattr(hfadapt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hfadapt.nothing


LIGHT = {
    "import": "import hfadapt",
    "help": "import sys; sys.argv = ['hfadapt', '--help']; from hfadapt.cli.app import main; main()",
    "run --help": "import sys; sys.argv = ['hfadapt', 'run', '--help']; from hfadapt.cli.app import main; main()",
}


@pytest.mark.parametrize("what", LIGHT)
def test_is_light(what):
    code = f"""
import json, sys
try:
    exec({LIGHT[what]!r})
except SystemExit as ended:
    assert not ended.code, ended.code
print()
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
    if what != "import":
        assert "RECIPE" in done.stdout or "run" in done.stdout
