"""The built wheel, installed outside the checkout, runs the tests that need no checkout.

    make dist && python benchmarks/installed.py dist/hfadapt-*.whl [TEST ...]

A new environment sees the packages of this one, but not hfadapt: that comes from the wheel alone. Only `tests/` and
the finished cards that they read are copied beside it, so that what the wheel lacks is missed. Without names of tests
those below are run, in some minutes; tests that read the checkout (README, docs, benchmarks) cannot be among them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUICK = (
    *("tests/core", "tests/files", "tests/schemas", "tests/test_run_folder.py"),
    *("tests/recipe/test_reading.py", "tests/recipe/test_sources.py", "tests/recipe/test_saving.py"),
    *("tests/converters", "tests/cli/test_cli.py", "tests/card/test_card_check.py"),
    *("tests/contracts/test_plugin.py", "tests/pipeline/test_pipeline.py", "tests/formats/test_gguf_adapter.py"),
    *("tests/export/test_export.py", "tests/publish", "tests/fast/test_kernels.py", "tests/stages/test_stages.py"),
)


def main() -> int:
    """Installs, copies, runs; returns pytest's code."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("wheel", type=Path)
    asked.add_argument("tests", nargs="*")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory(prefix="installed-") as temporary:
        place = Path(temporary)
        python = _environment(place / "venv")
        wheel = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(given.wheel.resolve())]
        subprocess.run(wheel, check=True)
        for name in ("tests", "cards"):
            shutil.copytree(ROOT / name, place / "alone" / name, ignore=shutil.ignore_patterns("__pycache__"))
        said = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        where = [python, "-c", "import hfadapt; print(hfadapt.__file__)"]
        found = subprocess.run(where, cwd=place, env=said, check=True, capture_output=True, text=True).stdout.strip()
        if not Path(found).is_relative_to(place):
            sys.exit(f"hfadapt comes from {found}, not from the wheel")
        tests = given.tests or QUICK
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir=."]
        options = ["-m", "not slow and not gpu", "-W", "ignore", f"--basetemp={place / 'tmp'}"]
        # Programs that tests start are those of this environment.
        said["PATH"] = f"{Path(python).parent}{os.pathsep}{said['PATH']}"
        return subprocess.run([*command, *options, *tests], cwd=place / "alone", env=said, check=False).returncode


def _environment(folder: Path) -> str:
    """A new environment beside which the packages of this one can be imported; returns its Python."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    inside = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", inside], check=True, capture_output=True, text=True).stdout.strip()
    # A line of a .pth file adds a folder, without the .pth files in it: an editable install of hfadapt stays out.
    (Path(packages) / "these.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return str(python)


if __name__ == "__main__":
    sys.exit(main())
