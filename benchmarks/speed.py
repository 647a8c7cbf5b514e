"""How fast hfadapt trains, side by side with other tools, on the same rows from the same start.

    python benchmarks/speed.py                            every CPU workload: prepares, makes environments, runs, prints
    python benchmarks/speed.py --workload minilm-tweets   only this one; may be repeated
    python benchmarks/speed.py --tool hfadapt --tool trl-nf4 --rows 64 --seeds 1 --record /tmp/try.json   a try
    python benchmarks/speed.py --workload smollm2-tweets --tool hfadapt --tool litgpt --seed 18 --seed 19 --add
                                                          more runs beside what was measured before
    python benchmarks/speed.py --device cuda              1B and 8B on a GPU: hfadapt, TRL, unsloth, axolotl
    python benchmarks/speed.py --workload cotrain         four domains together, and one after the other
    python benchmarks/speed.py --record benchmarks/speed_avx2.json    on another kind of processor: a record of its own
    HFADAPT_ISA=avx2 python benchmarks/speed.py …         as on a processor without AVX-512, for all tools
    python benchmarks/speed.py --table                    the tables from all speed*.json, and into the README

Each run is a process of its own in an environment of its own. For every seed, hfadapt runs before and after each other
tool (A-B-A), and a ratio is taken between neighbours. speed.json keeps what the tables are made from; raw logs and the
JSON of every run stay in .work/runs/, which git ignores. What is compared, and what was tried and rejected, is in
NOTES.md; settings are in speed/workloads.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PARTS = HERE / "speed"
ROOT = HERE.parent
sys.path.insert(0, str(PARTS))

from table import COMMAND, README, document, readme_with  # noqa: E402 - their folder was just added
from workloads import ENVIRONMENTS, LORA, SEEDS, TOOLS, WORKLOADS, Workload  # noqa: E402

RECORD = HERE / "speed.json"
RECORDS = sorted(HERE.glob("speed*.json"))
"""One for each kind of processor that the README shows."""
WORK = HERE / ".work"
DIGITS = 7
"""Significant ones of a figure in the record."""
SCORED = "scores.json"


# --- environments ----------------------------------------------------------------------------------------------------


def environment(name: str, arguments: argparse.Namespace) -> Path:
    """The Python of a tool's own environment, made from the package index when it is not there yet."""
    if arguments.here:
        return Path(sys.executable)
    folder = arguments.venvs / name
    python = folder / "bin" / "python"
    ready = folder / "installed"
    wanted = ENVIRONMENTS[name]
    packages = [*wanted["packages"]]
    pins = ["--constraint", str(ROOT / "constraints.txt")] if wanted["constraints"] else []
    if not ready.exists():
        print(f"making {folder} for {name}: {' '.join(packages)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *pins, *packages]
        subprocess.run(command, check=True, cwd=ROOT)
        if arguments.device == "cpu" and "remove" in wanted:
            subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *wanted["remove"]], check=True)
        ready.write_text(" ".join(packages) + "\n", encoding="utf-8")
    return python


def variables(arguments: argparse.Namespace, tool: str) -> dict[str, str]:
    """The environment of a run: as many threads as cores; everything else as the tool's users have it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "MKL_"))}
    kept |= {
        "OMP_NUM_THREADS": str(arguments.threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    if tool in ("hfadapt", "prepare", "score") and arguments.here:
        kept["PYTHONPATH"] = str(ROOT)
    if os.environ.get("HFADAPT_ISA"):
        sys.path.insert(0, str(ROOT))
        from hfadapt.hardware.processor import level

        # Another kind of processor is that for all tools.
        found = level()
        kept |= found.libraries if found else {}
    return kept


# --- one run ---------------------------------------------------------------------------------------------------------


def timed(command: Sequence[str], log: Path, env: dict[str, str], cwd: Path) -> dict[str, Any]:
    """Runs a command; its exit code, seconds from start to end, and the peak of its resident set (getrusage 2)."""
    started = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env, cwd=cwd)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "exit_code": process.returncode,
        "wall_seconds": time.perf_counter() - started,
        "peak_resident_bytes": usage.ru_maxrss * 1024,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }


def one_run(name: str, number: int, tool: str, seed: int, folder: Path, arguments: argparse.Namespace) -> Path:
    """Trains with one tool; returns the run's folder of raw logs, with job.json, log.txt, process.json, result.json."""
    out = arguments.results / name / f"{seed}-{number:02d}-{tool}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    setting = TOOLS[tool]
    job = {
        "tool": tool,
        "workload": name,
        "seed": seed,
        "options": setting.options,
        "out": str(out),
        "prepared": str(folder),
        "cuda": arguments.device == "cuda",
    }
    (out / "job.json").write_text(json.dumps(job, indent=1), encoding="utf-8")
    python = environment(setting.environment, arguments)
    command = [str(python), str(PARTS / setting.runner), str(out / "job.json")]
    process = timed(command, out / "log.txt", variables(arguments, tool), ROOT)
    (out / "process.json").write_text(json.dumps(process, indent=1), encoding="utf-8")
    if process["exit_code"] or not (out / "result.json").exists():
        tail = (out / "log.txt").read_text(errors="replace").strip().splitlines()[-3:]
        print(f"  {tool}, seed {seed}: failed\n    " + "\n    ".join(tail), flush=True)
    else:
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
        print(
            f"  {tool}, seed {seed}: loop {result['loop_seconds']:.1f} s, process {process['wall_seconds']:.1f} s, "
            f"last loss {result['losses'][-1]:.4f}",
            flush=True,
        )
    return out


def sequence(tools: Sequence[str]) -> list[str]:
    """The order of one seed: hfadapt before and after every other tool."""
    others = [tool for tool in tools if tool != "hfadapt"]
    if "hfadapt" not in tools:
        return others
    order = ["hfadapt"]
    for tool in others:
        order += [tool, "hfadapt"]
    return order


# --- one workload ----------------------------------------------------------------------------------------------------


def settings(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What prepare.py is told."""
    workload: Workload = WORKLOADS[name]
    known = asdict(workload)
    del known["tools"]
    known |= {"folder": str(folder), "seeds": arguments.seeds, "cuda": arguments.device == "cuda", "lora": LORA}
    if arguments.rows:
        if arguments.rows % workload.batch_rows:
            raise SystemExit(f"--rows must be a multiple of {workload.batch_rows} for {name}")
        known |= {
            "rows": arguments.rows,
            "validation": min(16, workload.validation),
            "test": min(32, workload.test),
        }
    return known


def run_workload(name: str, arguments: argparse.Namespace, before: dict[str, Any]) -> dict[str, Any]:
    """Prepares, runs every tool for every seed, scores, and returns the workload's part of speed.json.

    Args:
        before: The workload's part so far, whose runs are kept; empty to begin anew.
    """
    workload = WORKLOADS[name]
    tools = [tool for tool in workload.tools if not arguments.tool or tool in arguments.tool]
    tools += [tool for tool in arguments.tool if tool not in tools and tool in TOOLS]
    folder = arguments.work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wanted = settings(name, folder, arguments)
    (folder / "settings.json").write_text(json.dumps(wanted, indent=1), encoding="utf-8")
    print(f"{name}: {workload.what}", flush=True)
    python = environment("hfadapt", arguments)
    env = variables(arguments, "prepare")
    subprocess.run([str(python), str(PARTS / "prepare.py"), str(folder / "settings.json")], check=True, env=env)
    for tool in tools:
        environment(TOOLS[tool].environment, arguments)
    earlier = before.get("runs", [])
    if not earlier:
        shutil.rmtree(arguments.results / name, ignore_errors=True)
    runs: list[Path] = []
    for seed in arguments.seeds:
        for number, tool in enumerate(sequence(tools), sum(run["seed"] == seed for run in earlier)):
            runs.append(one_run(name, number, tool, seed, folder, arguments))
    finished = [str(run) for run in runs if (run / "result.json").exists()]
    env = variables(arguments, "score")
    subprocess.run([str(python), str(PARTS / "score.py"), str(folder), *finished], check=True, env=env)
    prepared = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    collected = [collect(run) for run in runs]
    versions = share_versions(collected, before.get("versions", {}))
    if not arguments.keep:
        for run in runs:
            for path in [*run.glob("*.safetensors"), run / "run", run / "trainer"]:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return {
        "what": workload.what,
        "device": arguments.device,
        "batch_rows": workload.batch_rows,
        "rows": len(prepared["train"]),
        "epochs": prepared["epochs"],
        **totals(prepared),
        "test_rows": len(prepared["test"]),
        "linear_weights": prepared["linear_weights"],
        "head_weights": prepared["head_weights"],
        "seeds": sorted({run["seed"] for run in (*earlier, *collected)}),
        "notes": {**before.get("notes", {}), **{tool: TOOLS[tool].note for tool in tools}},
        "defaults": sorted({*before.get("defaults", []), *(tool for tool in tools if TOOLS[tool].default)}),
        "versions": versions,
        "runs": [*earlier, *collected],
    }


def totals(prepared: dict[str, Any]) -> dict[str, int]:
    """Real tokens and labels of the whole training, epochs included."""
    rows = prepared["train"]
    # Nothing predicts the first token of a text.
    first = 0 if prepared["task"] == "text-classification" else 1
    labels = sum(label != -100 for row in rows for label in row["labels"][first:])
    return {
        "tokens": prepared["epochs"] * sum(len(row["input_ids"]) for row in rows),
        "labels": prepared["epochs"] * labels,
        "longest": max(len(row["input_ids"]) for row in rows),
    }


def collect(run: Path) -> dict[str, Any]:
    """What speed.json keeps of a run: what the tables are made from; a failed one keeps the end of its log."""
    parts = {
        name: json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("job", "process", "result", "scores")
        if (run / f"{name}.json").exists()
    }
    job, process = parts["job"], parts["process"]
    kept: dict[str, Any] = {"tool": job["tool"], "seed": job["seed"], "order": job["options"]["order"]}
    kept |= {name: process[name] for name in ("wall_seconds", "peak_resident_bytes")}
    if "result" not in parts:
        lines = (run / "log.txt").read_text(errors="replace").strip().splitlines()
        return {**kept, "failed": lines[-1] if lines else "no output"}
    result, scores = parts["result"], parts["scores"]
    for name in ("loop_seconds", "overhead_seconds", "gpu", "first_batch_loss", "losses", "remarks", "versions"):
        kept[name] = result[name]
    for name in ("reference", "validation", "test_loss", "accuracy"):
        kept[name] = scores[name]
    kept["validation_seconds"] = {step: result["step_ends_seconds"][int(step) - 1] for step in scores["validation"]}
    return kept


def share_versions(runs: Sequence[dict[str, Any]], known: dict[str, Any]) -> dict[str, Any]:
    """Versions of packages by tool, taken out of its runs; a run with others than the tool's first one keeps them."""
    shared = dict(known)
    for run in runs:
        versions = run.pop("versions", None)
        if versions and shared.setdefault(run["tool"], versions) != versions:
            run["versions"] = versions
    return shared


def rounded(value: Any) -> Any:
    """The same with DIGITS significant digits of every float."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def as_text(value: Any, levels: int = 4, indent: int = 0) -> str:
    """JSON with a line for each thing on `levels` levels, so that a run is one line."""
    if not levels or not value or not isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    inside = [as_text(one, levels - 1, indent + 1) for one in (value.values() if isinstance(value, dict) else value)]
    if isinstance(value, dict):
        inside = [f"{json.dumps(name)}: {one}" for name, one in zip(value, inside, strict=True)]
    start, end = "{}" if isinstance(value, dict) else "[]"
    gap = "\n" + " " * indent
    return start + ",".join(f"{gap} {one}" for one in inside) + gap + end


# --- co-training, in hfadapt itself ----------------------------------------------------------------------------------


def cotrain_commands(folder: Path, python: Path) -> tuple[list[str], list[str]]:
    """THE PLACE TO CHANGE when the recipe's word for training domains together changes.

    The command lines that train four domains of MiniLM one after the other, and together. `train.together` is the field
    that switches it; `--cotrain-apart` and `--cotrain-together` replace either command.
    """
    recipe = folder / "cotrain.yaml"
    domains = {name: {"source": f"sample:vader/{name}"} for name in ("tweets", "movies", "products", "news")}
    recipe.write_text(
        json.dumps(
            {
                "name": "cotrain",
                "model": "sample:minilm-l6",
                "task": "text-classification",
                "domains": domains,
                "adapter": LORA,
                # 8 rows of at most 32 tokens: micro-batches of at most 256 tokens per domain.
                "data": {"train_rows": 640, "validation": 100, "test": 200, "max_length": 32},
                "train": {"batch_rows": 8, "micro_batch_rows": 8, "epochs": 1, "learning_rate": 5e-4},
            },
            indent=1,
        ),
        encoding="utf-8",
    )
    base = [str(python), "-m", "hfadapt", "train", str(recipe)]
    return [*base, "train.together=false"], [*base, "train.together=true"]


def shown(command: list[str], arguments: argparse.Namespace) -> str:
    """A command line as it is recorded, with paths as seen from the repository."""
    line = " ".join(command)
    for folder, short in ((ROOT, ""), (arguments.venvs.resolve(), "venvs/"), (arguments.venvs, "venvs/")):
        line = line.replace(f"{folder}/", short)
    return line


def run_cotrain(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both command lines in turn, as often as there are seeds; times, peaks and final losses of every domain."""
    folder = arguments.work / "cotrain"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    python = environment("hfadapt", arguments)
    apart, together = cotrain_commands(folder, python)
    commands = {
        "apart": shlex.split(arguments.cotrain_apart) if arguments.cotrain_apart else apart,
        "together": shlex.split(arguments.cotrain_together) if arguments.cotrain_together else together,
    }
    env = variables(arguments, "hfadapt")
    runs: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for kind in ("apart", "together", "apart"):
            out = arguments.results / "cotrain" / f"{seed}-{len(runs):02d}-{kind}"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            work = folder / out.name
            command = [*commands[kind], f"train.seed={seed}", "--runs", str(work)]
            process = timed(command, out / "log.txt", env, ROOT)
            cells = {}
            for path in sorted(work.glob("*/*/*/train.json")):
                shutil.copy(path, out / f"{path.parent.parent.name}.json")
                record = json.loads(path.read_text(encoding="utf-8"))
                cells[record["domain"]] = {
                    name: record.get(name) for name in ("seconds", "tokens", "final_loss", "best_validation_loss")
                }
            run = {"kind": kind, "seed": seed, "command": shown(command, arguments), **process, "domains": cells}
            if process["exit_code"]:
                run["failed"] = (out / "log.txt").read_text(errors="replace").strip()[-400:]
            (out / "run.json").write_text(json.dumps(run, indent=1), encoding="utf-8")
            print(f"  cotrain {kind}, seed {seed}: exit {process['exit_code']}, {process['wall_seconds']:.1f} s")
            runs.append(run)
    return {
        "what": "four domains of MiniLM in hfadapt, up to 256 tokens of each at once, together and one by one",
        "device": arguments.device,
        "runs": runs,
    }


# --- the whole -------------------------------------------------------------------------------------------------------

PEAK = """
import json, time, torch
cuda = torch.cuda.is_available() and {cuda}
n, device = (8192, "cuda") if cuda else (1024, "cpu")
best = {{}}
for dtype in (torch.float32, torch.bfloat16):
    a = torch.randn(n, n, dtype=dtype, device=device)
    # A processor without bf16 products takes seconds for one: at least three, then no more than three seconds.
    started, rates = time.perf_counter(), []
    while len(rates) < 3 or (len(rates) < 200 and time.perf_counter() - started < 3):
        t = time.perf_counter()
        a @ a
        if cuda:
            torch.cuda.synchronize()
        rates.append(2 * n**3 / (time.perf_counter() - t))
    best[str(dtype).removeprefix("torch.")] = max(rates)
dtype = max(best, key=best.get)
from hfadapt.hardware.processor import cpu_features, processor_name
matmul = {{"dtype": dtype, "flops_per_second": best[dtype], "threads": torch.get_num_threads(),
  "torch": torch.__version__, "gpu": torch.cuda.get_device_name() if cuda else None}}
print(json.dumps({{"processor": processor_name(), "features": cpu_features(), "matmul": matmul}}))
"""


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """The processor, and the fastest matrix product it reaches here and now (float32 or bfloat16), for the MFU."""
    code = PEAK.format(cuda=arguments.device == "cuda")
    env = variables(arguments, "prepare")
    done = subprocess.run(
        [str(environment("hfadapt", arguments)), "-c", code], check=True, capture_output=True, text=True, env=env
    )
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "processor": told["processor"],
        "cores": os.cpu_count(),
        "features": [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in told["features"]],
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average_at_start": os.getloadavg()[0],
        "matmul": told["matmul"],
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", action="append", default=[], choices=[*WORKLOADS, "cotrain"])
    parser.add_argument("--tool", action="append", default=[], choices=list(TOOLS), help="only these; may be repeated")
    parser.add_argument("--rows", type=int, help="fewer training rows, for a try; a multiple of the effective batch")
    parser.add_argument("--add", action="store_true", help="keep the workload's runs in the record and add to them")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help=f"how many of {SEEDS}")
    parser.add_argument("--seed", type=int, action="append", choices=SEEDS, help="only this one; may be repeated")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="OMP_NUM_THREADS of every run")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--venvs", type=Path, default=WORK / "venvs", help="where environments are made and kept")
    parser.add_argument("--work", type=Path, default=WORK / "rows", help="where prepared rows and models are kept")
    parser.add_argument("--here", action="store_true", help="this Python for every tool, instead of environments")
    parser.add_argument("--keep", action="store_true", help="keep the trained adapters beside the raw logs")
    parser.add_argument("--cotrain-apart", metavar="COMMAND", help="instead of the command of `cotrain_commands`")
    parser.add_argument("--cotrain-together", metavar="COMMAND", help="likewise")
    parser.add_argument("--record", type=Path, default=RECORD, help="the JSON that the table is made from")
    parser.add_argument("--table", action="store_true", help="only print the table of the record, and renew the README")
    arguments = parser.parse_args()
    arguments.seeds = arguments.seed or list(SEEDS[: arguments.seeds])
    # A try with a record elsewhere has its logs there.
    arguments.record = arguments.record.resolve()
    kept = arguments.record.parent == HERE
    arguments.results = WORK / "runs" / arguments.record.stem if kept else arguments.record.with_suffix("")
    return arguments


def main() -> None:
    """Runs what was asked for; workloads that were not keep their earlier results in speed.json."""
    arguments = parse()
    record = json.loads(arguments.record.read_text(encoding="utf-8")) if arguments.record.exists() else {}
    if not arguments.table:
        default = [name for name, workload in WORKLOADS.items() if workload.device == arguments.device]
        names = arguments.workload or [*default, *(["cotrain"] if arguments.device == "cpu" else [])]
        found = machine(arguments)
        for name in names:
            workloads = record.setdefault("workloads", {})
            before = workloads.get(name, {}) if arguments.add else {}
            measured = run_cotrain(arguments) if name == "cotrain" else run_workload(name, arguments, before)
            about = {"command": f"{COMMAND} --workload {name}", "machine": found, "day": time.strftime("%Y-%m-%d")}
            workloads[name] = rounded({**measured, **about})
            arguments.record.write_text(as_text(record) + "\n", encoding="utf-8")
    elif not record:
        raise SystemExit(f"{arguments.record} is not there yet: run python benchmarks/speed.py")
    print(document(record))
    readme = ROOT / README
    if arguments.table and arguments.record in RECORDS:
        records = [json.loads(path.read_text(encoding="utf-8")) for path in RECORDS]
        changed = readme_with(readme.read_text(encoding="utf-8"), records)
        readme.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    main()
