"""An exported .tflite file on emulated ARM processors beside the same file here: do phones compute the same?

    python benchmarks/qemu.py FOLDER CELL                  FOLDER: by `hfadapt export CELL --format litert`
    python benchmarks/qemu.py FOLDER CELL --json out.json  the first test rows of CELL, 16 unless --rows says more

Emulation shows that no instruction is missing and that numbers are the same; it says nothing of time. On a Debian
machine (apt, dpkg-deb) it fetches QEMU's user mode and an aarch64 Python of Debian trixie, and LiteRT's and numpy's
aarch64 wheels, about 150 MB, through the machine's own apt and pip, into a folder of its own, once. Nothing is
installed and no root is needed. QEMU 7.2, which Debian 12 has, crashes in LiteRT.

Answers may differ by one step of the file's last rounding; where a file rounds as it goes, or not at all, by a
hundredth of their spread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SUITE, PYTHON = "trixie", "3.13"
PROCESSORS = ("cortex-a53", "cortex-a76")
WHEELS = ("ai-edge-litert==2.3.0", "numpy==2.4.6")
PACKAGES = (f"python{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libstdc++6", "zlib1g")
ROWS = 16
WORKER = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
run = Interpreter(sys.argv[1], num_threads=1).get_signature_runner()
rows = np.load(sys.argv[2])
details = run.get_input_details()
answers = [
    run(**{name: rows[name][i : i + 1].astype(each["dtype"]) for name, each in details.items()})
    for i in range(len(rows[next(iter(details))]))
]
np.savez(sys.argv[3], **{name: np.concatenate([each[name] for each in answers]) for name in answers[0]})
"""


def called(command: list[str | Path], **more: Any) -> str:
    """What a program prints; ends with its own words where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **more)
    if done.returncode:
        sys.exit(f"{command[0]} failed ({done.returncode}): {done.stderr.strip()[-800:]}")
    return done.stdout


# --- what is fetched -------------------------------------------------------------------------------------------------


def apt_options(folder: Path, architecture: str) -> list[str]:
    """Options under which apt knows one suite and one architecture, and keeps all it has in a folder."""
    for name in ("etc/apt/apt.conf.d", "state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    archives = called(["apt-get", "indextargets", "--format", "$(REPO_URI)"]).split()
    archive = next((each for each in archives if "security" not in each), None)
    if archive is None:
        sys.exit("apt knows no archive here: add one, then apt-get update")
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    source = f"deb [arch={architecture} signed-by={keys}] {archive} {SUITE} main\n"
    (folder / "etc/apt/sources.list").write_text(source)
    options = {
        "Dir::Etc::SourceList": folder / "etc/apt/sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "true",
    }
    return [part for name, value in options.items() for part in ("-o", f"{name}={value}")]


def unpacked(folder: Path, architecture: str, packages: tuple[str, ...], root: Path) -> None:
    """Fetches Debian packages with all that they need, and unpacks them into `root`."""
    options = apt_options(folder, architecture)
    called(["apt-get", *options, "update"])
    called(["apt-get", *options, "install", "--yes", "--download-only", *packages])
    (root / "usr/lib").mkdir(parents=True, exist_ok=True)
    if not (root / "lib").is_symlink():
        # As in Debian, whose packages expect it.
        (root / "lib").symlink_to("usr/lib")
    for package in sorted((folder / "cache/archives").glob("*.deb")):
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as tar:
            subprocess.run(["tar", "-x", "--keep-directory-symlink", "-C", str(root)], stdin=tar.stdout, check=True)


def fetched(folder: Path) -> tuple[Path, Path]:
    """QEMU and the root of an aarch64 system in a folder; made where they are not there yet."""
    qemu, root, done = folder / "qemu/usr/bin/qemu-aarch64", folder / "root", folder / "done.json"
    asked = json.dumps([SUITE, PYTHON, PACKAGES, WHEELS])
    if not done.exists() or done.read_text() != asked:
        print(f"fetching QEMU and an aarch64 Python into {folder}, about 150 MB", flush=True)
        host = called(["dpkg", "--print-architecture"]).strip()
        unpacked(folder / "apt-host", host, ("qemu-user",), folder / "qemu")
        unpacked(folder / "apt-arm64", "arm64", PACKAGES, root)
        platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 27, 28, 34)]
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-compile",
            "--upgrade",
        ]
        one = ["--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", f"--target={root}/wheels"]
        called([*pip, *platforms, *one, *WHEELS])
        done.write_text(asked)
    return qemu, root


# --- what is compared ------------------------------------------------------------------------------------------------


def asked_here(folder: Path, cell: Path, count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What the file is given for a cell's first test rows, and what it answers here: arrays (N, …) by name."""
    from itertools import islice

    from hfadapt import load_adapted
    from hfadapt.core import registry
    from hfadapt.run_folder import find_cell

    adapted, found = load_adapted(folder), find_cell(cell)
    column = registry.modality_of(found.lock.task).name
    runner = adapted.model
    own, given, answers = runner.run, [], []

    def run(arrays: Any) -> Any:
        given.append(arrays)
        answers.append(own(arrays))
        return answers[-1]

    runner.run = run
    adapted.predict([row[column] for row in islice(found.read_split("test"), count)])
    return stacked(given), stacked(answers)


def stacked(each: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Batches of one row as one array by name."""
    return {name: np.concatenate([arrays[name] for arrays in each]) for name in each[0]}


def last_step(model: Path) -> float:
    """The step to which a file with fixed ranges rounds its answer; 0 for others."""
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model.read_bytes(), 0)).subgraphs[0]
    answer = graph.outputs[0]
    makers = [each for each in graph.operators if answer in each.outputs]
    for index in (answer, *(index for each in makers for index in each.inputs)):
        said = graph.tensors[index].quantization
        if said is not None and said.scale is not None and len(said.scale) == 1:
            return float(said.scale[0])
    return 0.0


def emulated(
    qemu: Path, root: Path, processor: str, model: Path, inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The answers of a processor to the same inputs."""
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        arrays: Any = dict(inputs)
        np.savez(work / "rows.npz", **arrays)
        (work / "worker.py").write_text(WORKER)
        variables = {"PYTHONHOME": f"{root}/usr", "PYTHONPATH": f"{root}/wheels", "PATH": os.environ["PATH"]}
        program = [root / f"usr/bin/python{PYTHON}", work / "worker.py", model, work / "rows.npz", work / "answers.npz"]
        called([qemu, "-cpu", processor, "-L", root, *program], env=variables)
        return dict(np.load(work / "answers.npz"))


def main() -> int:
    """Prints a table; 1 where a processor answers in another way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cell", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--cpu", nargs="+", default=PROCESSORS)
    parser.add_argument("--place", type=Path, default=Path.home() / ".cache/hfadapt/qemu", help="where QEMU is kept")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    place = given.place.resolve()
    place.mkdir(parents=True, exist_ok=True)
    qemu, root = fetched(place)
    model = (given.folder / "model.tflite").resolve()
    inputs, here = asked_here(given.folder, given.cell, given.rows)
    step = last_step(model)
    name, own = next(iter(here.items()))
    allowed = step * 1.001 or float(own.max() - own.min()) / 100
    results = []
    for processor in given.cpu:
        started = time.monotonic()
        there = emulated(qemu, root, processor, model, inputs)[name]
        apart = float(np.abs(there - own).max())
        results.append(
            {
                "processor": processor,
                "rows": len(own),
                "difference": apart,
                "same": bool(np.isfinite(there).all()) and apart <= allowed,
                "same_choice": float((there.argmax(-1) == own.argmax(-1)).mean()),
                "seconds": round(time.monotonic() - started, 1),
            }
        )
    print(f"{model.name}, {model.stat().st_size:,} bytes; {name} of {len(own)} rows beside this machine's")
    print(f"allowed: {allowed:.3g}" + (", a step of rounding" if step else ", a hundredth of the spread"))
    for each in results:
        print(
            f"{each['processor']:12} largest difference {each['difference']:.3g}, same choice "
            f"{each['same_choice']:.1%}, {each['seconds']} s emulated: {'the same' if each['same'] else 'NOT the same'}"
        )
    if given.json:
        version = called([qemu, "--version"]).splitlines()[0]
        found = {"bytes": model.stat().st_size, "allowed": allowed, "step": step, "qemu": version, "results": results}
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(not all(each["same"] for each in results))


if __name__ == "__main__":
    sys.exit(main())
