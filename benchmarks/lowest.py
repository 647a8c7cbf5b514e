"""Tests with the oldest packages that pyproject.toml allows, newest where only other packages ask for them.

    python benchmarks/lowest.py [TEST ...]

uv (installed into a temporary folder) resolves the set, which is laid over the packages of this environment. torch is
that of this environment: each of its releases brings gigabytes. Without names of tests those below are run, in some
minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = ("torch==", "triton==", "cuda-", "nvidia-c", "nvidia-n")
QUICK = (
    *("tests/cli/test_cli.py", "tests/recipe/test_reading.py", "tests/files", "tests/pipeline/test_pipeline.py"),
    *("tests/export/test_export.py", "tests/train/test_resuming.py", "tests/contracts/test_adapter_contract.py"),
)


def main() -> int:
    """Resolves, installs, runs; returns pytest's code."""
    with tempfile.TemporaryDirectory(prefix="lowest-") as temporary:
        place = Path(temporary)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", str(place / "uv"), "uv"], check=True)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        resolve = [str(place / "uv/bin/uv"), "pip", "compile", str(ROOT / "pyproject.toml"), "--quiet", "--no-annotate"]
        options = ["--resolution", "lowest-direct", "--python-version", version, "--no-header"]
        found = subprocess.run([*resolve, *options], check=True, capture_output=True, text=True).stdout
        kept = [line for line in found.splitlines() if not line.startswith(TORCH) or line.startswith("nvidia-ml-py")]
        (place / "lowest.txt").write_text("\n".join(kept), encoding="utf-8")
        print("\n".join(kept), flush=True)
        # By this name dill tells packages, which it refers to, from a user's modules, which it pickles whole.
        old = str(place / "site-packages")
        subprocess.run([*pip, "--target", old, "-r", str(place / "lowest.txt")], check=True)
        said = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), old))}
        tests = [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not gpu", "-p", "no:cacheprovider"]
        return subprocess.run([*tests, *(sys.argv[1:] or QUICK)], cwd=ROOT, env=said, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
