"""The speed benchmark: its arithmetic, its gates, its table, and the README that shows it."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ROOT / "benchmarks" / "speed"


def part(name: str, folder: Path = PARTS) -> ModuleType:
    """A file of the benchmark as a module; its folder is no package, since tools without hfadapt run it too."""
    known = f"speed_benchmark_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, folder / f"{name}.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[known] = module
        spec.loader.exec_module(module)
    return sys.modules[known]


table, workloads, measure = part("table"), part("workloads"), part("measure")


def run(tool: str, seed: int, seconds: float, **more: Any) -> dict[str, Any]:
    """One finished run of two steps."""
    return {
        "tool": tool,
        "seed": seed,
        "order": "same",
        "wall_seconds": seconds + 10,
        "overhead_seconds": 1.0,
        "peak_resident_bytes": 2**30,
        "loop_seconds": seconds,
        "losses": [4.0, 3.0],
        "first_batch_loss": 4.0,
        "reference": {"loss": 4.0},
        "validation": {"1": 3.0, "2": 2.0},
        "validation_seconds": {"1": seconds / 2, "2": seconds},
        "test_loss": 2.0,
        "accuracy": 0.7,
        "gpu": None,
        **more,
    }


@pytest.fixture
def workload() -> dict[str, Any]:
    """hfadapt takes 10 s a run, the other tool 40 s in seed 1 and 40 s in seed 2."""
    runs = []
    for seed in (1, 2):
        runs += [run("hfadapt", seed, 8.0), run("other", seed, 40.0), run("hfadapt", seed, 12.0)]
    return {
        "what": "a workload",
        "batch_rows": 4,
        "tokens": 4000,
        "labels": 100,
        "test_rows": 400,
        "linear_weights": 1000,
        "head_weights": 500,
        "seeds": [1, 2],
        "notes": {"hfadapt": "as the plan decides", "other": ""},
        "defaults": ["hfadapt"],
        "machine": {
            "processor": "CPU",
            "cores": 2,
            "features": ["avx2"],
            "matmul": {"dtype": "float32", "flops_per_second": 1e6, "gpu": None},
        },
        "runs": runs,
    }


def test_ratio_interval_is_students_t_on_the_logarithm() -> None:
    middle, low, high = table.ratio_interval([2.0, 8.0])
    assert middle == pytest.approx(4.0)
    half = 12.706 * math.log(4.0) / math.sqrt(2) / math.sqrt(2)
    assert math.log(high) - math.log(middle) == pytest.approx(half)
    assert low * high == pytest.approx(16.0)
    assert math.isnan(table.ratio_interval([3.0])[1])


def test_a_tool_is_compared_with_the_runs_beside_it(workload: dict[str, Any]) -> None:
    ours, other = table.summarise(workload)
    assert ours["loop_ratio"] is None
    assert other["loop_ratio"][0] == pytest.approx(4.0)
    assert other["process_ratio"][0] == pytest.approx(49 / 19)
    assert other["tokens_per_second"] == pytest.approx(100.0)
    assert other["labels_per_second"] == pytest.approx(2.5)
    assert other["mfu"] == pytest.approx(4 * (1000 * 4000 + 500 * 100) / 40.0 / 1e6)
    # Another seed's neighbour does not count.
    assert len(table.neighbours(workload["runs"], "other")[0][1]) == 2
    workload["runs"][3]["failed"] = "out of memory"
    assert len(table.neighbours(workload["runs"], "other")[1][1]) == 1


def test_time_to_loss_is_linear_between_evaluations() -> None:
    found = run("x", 1, 10.0)
    assert table.time_to_loss(found, 2.5) == pytest.approx(7.5)
    assert table.time_to_loss(found, 3.5) == pytest.approx(5.0)
    assert table.time_to_loss(found, 1.9) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"first_batch_loss": 4.05}, "first batch's loss off by 0.050"),
        ({"first_batch_loss": None}, "first batch not comparable"),
        ({"losses": [4.0, 3.4]}, "losses of steps off by 0.200"),
        ({"accuracy": 0.66}, "accuracy -4.0 points"),
        ({}, ""),
    ],
)
def test_the_gate_says_what_is_unequal(workload: dict[str, Any], change: dict[str, Any], said: str) -> None:
    for found in workload["runs"]:
        if found["tool"] == "other":
            found.update(change)
    assert said in "; ".join(table.equality(workload, "other"))
    assert bool(table.equality(workload, "other")) == bool(said)
    assert table.equality(workload, "hfadapt") == []


def test_a_tool_that_failed_stays_in_the_table(workload: dict[str, Any]) -> None:
    for found in workload["runs"]:
        if found["tool"] == "other":
            found["failed"] = "ImportError: no | such"
    text = table.section("w", workload)
    assert "| other | failed: ImportError: no / such" in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(columns) == 1


def test_losing_rows_are_shown(workload: dict[str, Any]) -> None:
    for found in workload["runs"]:
        if found["tool"] == "other":
            found["loop_seconds"] = 5.0
    assert "0.50×" in table.section("w", workload)
    assert "0.50×" in table.readme_region([{"workloads": {"w": workload}}])


def test_readme_region_is_replaced_and_nothing_else(workload: dict[str, Any]) -> None:
    records = [{"workloads": {"w": workload}}]
    before = f"# Title\n\n{table.BEGIN}\nold\n{table.END}\n\nrest\n"
    after = table.readme_with(before, records)
    assert after.startswith(f"# Title\n\n{table.BEGIN}\nOn CPU (AVX2), 2 cores:\n\n**a workload**")
    assert after.endswith(f"{table.END}\n\nrest\n")
    assert "old" not in after
    assert table.readme_with(after, records) == after
    assert table.readme_with("no markers", records) == "no markers"


def test_readme_shows_what_the_records_give() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    records = [json.loads(path.read_text(encoding="utf-8")) for path in part("speed", ROOT / "benchmarks").RECORDS]
    assert table.BEGIN in readme
    assert table.readme_with(readme, records) == readme


def test_the_tables_say_which_instructions_the_processor_has() -> None:
    machine = {"processor": "CPU", "cores": 2, "matmul": {"gpu": None}}
    said = {
        ("avx2",): "CPU (AVX2), 2 cores",
        ("avx2", "avx512f"): "CPU (AVX-512), 2 cores",
        ("avx2", "avx512f", "avx512_bf16", "amx_bf16"): "CPU (AVX-512, AMX), 2 cores",
        (): "CPU, 2 cores",
    }
    assert {features: table.place({**machine, "features": list(features)}) for features in said} == said


def test_cotrain_section_takes_the_neighbours_and_the_worst_difference() -> None:
    def cotrain(kind: str, wall: float, seconds: float, loss: float) -> dict[str, Any]:
        cells = {name: {"seconds": seconds, "final_loss": loss} for name in ("a", "b")}
        known = {"kind": kind, "seed": 1, "wall_seconds": wall, "peak_resident_bytes": 2**30}
        return {**known, "domains": cells}

    runs = [cotrain("apart", 20, 4, 1.0), cotrain("together", 15, 6, 1.001), cotrain("apart", 30, 8, 1.0)]
    text = table.cotrain_section({"what": "two domains", "runs": runs})
    assert "| together / apart | 1.00× | 0.60× | |" in text
    assert "1.0e-03 (a)" in text


def test_the_schedule_is_hfadapts(tmp_path: Path) -> None:
    from hfadapt.train.job import Job

    job = measure.Job.__new__(measure.Job)
    job.prepared = {"warmup_ratio": 0.06}
    training = Job.__new__(Job)
    training.total_steps = 25

    class Settings:
        learning_rate, warmup_ratio, hold_ratio, schedule, time = 1.0, 0.06, 0.0, "linear", None

    training.settings = Settings()  # type: ignore[assignment]
    wanted = [training.learning_rate(step) for step in range(1, 26)]
    assert [job.rate_factor(step, 25) for step in range(1, 26)] == wanted


def test_every_workload_can_be_run_as_it_is_described() -> None:
    for name, workload in workloads.WORKLOADS.items():
        assert workload.rows % workload.batch_rows == 0, f"{name}: the last batch would be smaller"
        for tool in workload.tools:
            setting = workloads.TOOLS[tool]
            assert (PARTS / setting.runner).is_file()
            assert setting.environment in workloads.ENVIRONMENTS
            micro = min(int(setting.options.get("micro", workload.batch_rows)), workload.batch_rows)
            assert workload.batch_rows % micro == 0, f"{name}, {tool}: the effective batch is not met"


@pytest.mark.slow
def test_the_harness_measures_and_scores_a_toy(tmp_path: Path) -> None:
    record = tmp_path / "try.json"
    options = ["--here", "--seeds", "1", "--work", str(tmp_path / "rows"), "--record", str(record)]
    command = ["--workload", "tiny", "--tool", "hfadapt", "--tool", "hf-default", *options]
    done = subprocess.run([sys.executable, "benchmarks/speed.py", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    workload = json.loads(record.read_text())["workloads"]["tiny"]
    assert [run["tool"] for run in workload["runs"]] == ["hfadapt", "hf-default", "hfadapt"]
    assert all(table.equality(workload, tool) == [] for tool in ("hfadapt", "hf-default"))


def test_the_clock_leaves_the_benchmarks_own_work_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 5.0, 7.0, 8.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(now))
    clock = measure.Clock()
    clock.start()  # 0
    clock.pause()  # 1
    clock.go()  # 5
    clock.step()  # 7
    clock.step()  # 8
    assert clock.overhead == 4.0
    assert clock.ended == [3.0, 4.0]
    assert clock.step_seconds == [3.0, 1.0]


@pytest.mark.parametrize("means", [False, True])
def test_the_first_batchs_loss_is_per_label_whatever_the_trainer_averages_over(
    monkeypatch: pytest.MonkeyPatch, means: bool
) -> None:
    import torch

    monkeypatch.syspath_prepend(str(PARTS))
    recorder = part("hf_recorder")

    class Trainer:
        model_wrapped = torch.nn.Identity()
        compute_loss_context_manager = staticmethod(nullcontext)

        @staticmethod
        def data_collator(rows: list[dict[str, Any]]) -> dict[str, Any]:
            return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}

        @staticmethod
        def _prepare_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
            return inputs

        @staticmethod
        def compute_loss(model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> Any:
            labels = inputs["labels"][:, 1:]
            losses = labels[labels != -100].float()
            return losses.mean() if means else losses.sum() / num_items_in_batch

    job = measure.Job.__new__(measure.Job)
    job.prepared, job.options, job.batch_rows = {"task": "causal-lm"}, {"micro": 1}, 2
    rows = [{"input_ids": [1, 1, 1], "labels": [-100, 2, 4]}, {"input_ids": [1, 1], "labels": [-100, 9]}]
    assert recorder.first_batch_loss(job, Trainer(), rows, means) == pytest.approx(5.0)


def test_runs_that_share_a_record_do_not_change_it(workload: dict[str, Any]) -> None:
    before = deepcopy(workload)
    table.summarise(workload)
    table.section("w", workload)
    assert workload == before


@pytest.mark.parametrize("path", part("speed", ROOT / "benchmarks").RECORDS, ids=lambda path: path.stem)
def test_the_record_is_what_the_script_writes_and_a_run_is_a_line(path: Path) -> None:
    speed, record = part("speed", ROOT / "benchmarks"), path.read_text(encoding="utf-8")
    found = json.loads(record)
    assert speed.as_text(found) + "\n" == record
    assert speed.rounded(found) == found
    runs = [run for workload in found["workloads"].values() for run in workload["runs"]]
    assert [line for line in record.splitlines() if '"seed":' in line] == [
        line for line in record.splitlines() if line.startswith("    {")
    ]
    assert len([line for line in record.splitlines() if line.startswith("    {")]) == len(runs)
    assert all({"machine", "command", "day"} <= workload.keys() for workload in found["workloads"].values())


def test_a_collected_run_has_what_the_tables_read(tmp_path: Path) -> None:
    speed = part("speed", ROOT / "benchmarks")
    files = {
        "job": {"tool": "other", "seed": 1, "options": {"order": "own"}},
        "process": {"exit_code": 0, "wall_seconds": 9.0, "peak_resident_bytes": 5, "cpu_seconds": 3.0},
        "result": {
            **{"loop_seconds": 4.0, "overhead_seconds": 0.5, "gpu": None, "first_batch_loss": 2.0},
            **{"losses": [2.0, 1.0], "step_ends_seconds": [1.5, 4.0], "remarks": [], "versions": {"torch": "2"}},
        },
        "scores": {"reference": {"loss": 2.0}, "validation": {"2": 1.5}, "test_loss": 1.0, "accuracy": None},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    found = speed.collect(tmp_path)
    assert found["validation_seconds"] == {"2": 4.0}
    assert table.time_to_loss(found, 1.5) == 4.0
    other = {**found, "versions": {"torch": "3"}}
    assert speed.share_versions([found, other], {}) == {"other": {"torch": "2"}}
    assert "versions" not in found
    assert other["versions"] == {"torch": "3"}
    (tmp_path / "result.json").unlink()
    (tmp_path / "log.txt").write_text("one\nout of memory\n")
    assert speed.collect(tmp_path)["failed"] == "out of memory"


def test_what_was_measured_of_frozen_layers() -> None:
    """The page of training shows its table, which is made when the site is built."""
    module = part("frozen_cache", ROOT / "benchmarks")
    results = json.loads(module.RESULTS.read_text())
    assert "<!-- table: frozen_cache -->" in (ROOT / "docs/training.md").read_text(encoding="utf-8")
    kept = [one for one in results if one["kept"]]
    assert all(one["frozen_layers"] > 0 for one in kept)
    for one in kept:
        other = next(
            o for o in results if (o["workload"], o["seed"], o["kept"]) == (one["workload"], one["seed"], False)
        )
        assert abs(one["accuracy"] - other["accuracy"]) < 0.02


def test_what_was_measured_of_pictures() -> None:
    """The page of tasks shows its table; the gains that are promised are in the kept results."""
    module = part("pictures", ROOT / "benchmarks")
    results = json.loads(module.RESULTS.read_text())
    assert "<!-- table: pictures -->" in (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    for one in results:
        if "digits" in one["cell"]:
            assert one["rows"] >= 300
            assert one["low"] > 0
            assert one["delta"] >= (0.05 if one["cell"].startswith("DINOv2") else 0.03)
