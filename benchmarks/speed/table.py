"""From speed.json and its like to figures with intervals, gates and a Markdown table. Standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

README = "README.md"
BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"
COMMAND = "python benchmarks/speed.py"
# Two-sided 95 % quantile of Student's t for 1 … 10 degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
LOSS_TOLERANCE = 0.02
CURVE_TOLERANCE = 0.05
POINTS = 1.0


def ratio_interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of ratios and its 95 % t interval on the logarithm; one ratio has no interval (NaN)."""
    logs = [math.log(ratio) for ratio in ratios]
    middle = statistics.fmean(logs)
    if len(logs) < 2:
        return math.exp(middle), math.nan, math.nan
    quantile = T95[len(logs) - 2] if len(logs) - 1 <= len(T95) else 1.96
    half = quantile * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def process_seconds(run: dict[str, Any]) -> float:
    """From start to end of the process, without what only the benchmark did inside."""
    return float(run["wall_seconds"] - run["overhead_seconds"])


def neighbours(runs: Sequence[dict[str, Any]], tool: str, ours: str = "hfadapt") -> list[tuple[dict, list[dict]]]:
    """Each finished run of a tool with hfadapt's runs just before and after it (A-B-A), of the same seed."""
    found = []
    for i, run in enumerate(runs):
        if run["tool"] != tool or "failed" in run:
            continue
        beside = [
            runs[j]
            for j in (i - 1, i + 1)
            if 0 <= j < len(runs)
            and runs[j]["tool"] == ours
            and runs[j]["seed"] == run["seed"]
            and "failed" not in runs[j]
        ]
        if beside:
            found.append((run, beside))
    return found


def time_to_loss(run: dict[str, Any], target: float) -> float | None:
    """Seconds of the training loop until the held-out loss is down at `target`, linear between evaluations."""
    before: tuple[float, float] | None = None
    for step, loss in sorted(run["validation"].items(), key=lambda item: int(item[0])):
        seconds = run["validation_seconds"][step]
        if loss <= target:
            if before is None or before[1] <= loss:
                return float(seconds)
            share = (before[1] - target) / (before[1] - loss)
            return float(before[0] + share * (seconds - before[0]))
        before = (seconds, loss)
    return None


def flops_per_run(workload: dict[str, Any]) -> float:
    """Needed floating-point operations: 4 per weight of a linear layer and token (forward, and the gradient of the
    input; frozen weights have none of their own), and per weight of the head and label. Attention is left out."""
    body = workload["linear_weights"] * workload["tokens"]
    return float(4 * (body + workload["head_weights"] * workload["labels"]))


def equality(workload: dict[str, Any], tool: str) -> list[str]:
    """What stands against comparing this tool's speed with hfadapt's; empty when nothing does."""
    runs = [run for run in workload["runs"] if run["tool"] == tool and "failed" not in run]
    ours = [run for run in workload["runs"] if run["tool"] == "hfadapt" and "failed" not in run]
    wrong = []
    gaps = [
        abs(run["first_batch_loss"] - run["reference"]["loss"]) for run in runs if run["first_batch_loss"] is not None
    ]
    if not gaps:
        wrong.append("first batch not comparable")
    elif max(gaps) > LOSS_TOLERANCE:
        wrong.append(f"first batch's loss off by {max(gaps):.3f}")
    if tool != "hfadapt" and ours:
        curves = curve_gaps(workload, tool)
        if curves and statistics.median(curves) > CURVE_TOLERANCE:
            wrong.append(f"losses of steps off by {statistics.median(curves):.3f} (median)")
        if runs[0]["accuracy"] is not None:
            gap = 100 * (mean(runs, "accuracy") - mean(ours, "accuracy"))
            if abs(gap) > POINTS:
                wrong.append(f"accuracy {gap:+.1f} points")
    return wrong


def curve_gaps(workload: dict[str, Any], tool: str) -> list[float]:
    """|loss - hfadapt's loss| of every step, where both were fed the same batches."""
    gaps = []
    for run, beside in neighbours(workload["runs"], tool):
        if run["order"] == "same" and len(run["losses"]) == len(beside[0]["losses"]):
            gaps += [abs(a - b) for a, b in zip(run["losses"], beside[0]["losses"], strict=True)]
    return gaps


def mean(runs: Sequence[dict[str, Any]], key: str) -> float:
    """Of one figure, each seed counting once."""
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        by_seed.setdefault(run["seed"], []).append(run[key])
    return statistics.fmean(statistics.fmean(values) for values in by_seed.values())


def summarise(workload: dict[str, Any]) -> list[dict[str, Any]]:
    """One row of figures for each tool, failed ones included, in the order they ran."""
    runs = workload["runs"]
    good = [run for run in runs if "failed" not in run]
    finals = [
        list(losses)[-1]
        for run in good
        if (losses := [loss for _, loss in sorted((int(s), v) for s, v in run["validation"].items())])
    ]
    target = max(finals) if finals else math.nan
    peak = workload["machine"]["matmul"]["flops_per_second"]
    rows = []
    for tool in dict.fromkeys(run["tool"] for run in runs):
        mine = [run for run in good if run["tool"] == tool]
        if not mine:
            failed = next(run for run in runs if run["tool"] == tool)
            rows.append({"tool": tool, "failed": failed["failed"]})
            continue
        pairs = neighbours(runs, tool)
        loop = [statistics.fmean(b["loop_seconds"] for b in beside) for _, beside in pairs]
        wall = [statistics.fmean(process_seconds(b) for b in beside) for _, beside in pairs]
        seconds = statistics.median(run["loop_seconds"] for run in mine)
        reached = [time for run in mine if (time := time_to_loss(run, target)) is not None]
        memory = [run["gpu"]["peak_reserved_bytes"] if run["gpu"] else run["peak_resident_bytes"] for run in mine]
        last = workload["batch_rows"] and max(1, len(mine[0]["losses"]) // 10)
        rows.append(
            {
                "tool": tool,
                "default": tool in workload["defaults"],
                "runs": len(mine),
                "tokens_per_second": workload["tokens"] / seconds,
                "labels_per_second": workload["labels"] / seconds,
                "loop_ratio": ratio_interval([r["loop_seconds"] / a for (r, _), a in zip(pairs, loop, strict=True)])
                if pairs and tool != "hfadapt"
                else None,
                "process_seconds": statistics.median(process_seconds(run) for run in mine),
                "process_ratio": ratio_interval([process_seconds(r) / a for (r, _), a in zip(pairs, wall, strict=True)])
                if pairs and tool != "hfadapt"
                else None,
                "target_loss": target,
                "seconds_to_target": statistics.median(reached) if reached else None,
                "peak_bytes": statistics.median(memory),
                "mfu": flops_per_run(workload) / seconds / peak,
                "train_loss": statistics.median(statistics.fmean(run["losses"][-last:]) for run in mine),
                "test_loss": mean(mine, "test_loss"),
                "accuracy": mean(mine, "accuracy") if mine[0]["accuracy"] is not None else None,
                "unequal": equality(workload, tool),
            }
        )
    return rows


# --- Markdown --------------------------------------------------------------------------------------------------------


def document(record: dict[str, Any]) -> str:
    """All tables with what they mean."""
    parts = []
    for name, workload in record.get("workloads", {}).items():
        parts.append(cotrain_section(workload) if name == "cotrain" else section(name, workload))
    return "\n\n".join(parts)


def section(name: str, workload: dict[str, Any]) -> str:
    """One workload."""
    rows = summarise(workload)
    where = place(workload["machine"])
    target = next((row["target_loss"] for row in rows if "target_loss" in row), math.nan)
    text = [
        f"**{name}**: {workload['what']}; effective batch {workload['batch_rows']}, {len(workload['seeds'])} seeds, "
        f"{where}.",
        "",
        "| tool | tokens/s | labels/s | speed-up | process | speed-up | to loss "
        f"{target:.3f} | peak memory | MFU | last losses | held-out loss | accuracy | parity check |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        text.append(failed_line(row) if "failed" in row else line(row))
    text.append("")
    text.append(legend(workload))
    return "\n".join(text)


def line(row: dict[str, Any]) -> str:
    """One tool."""
    reached = f"{row['seconds_to_target']:.1f} s" if row["seconds_to_target"] is not None else "not reached"
    accuracy = f"{row['accuracy']:.3f}" if row["accuracy"] is not None else "–"
    cells = [
        row["tool"] + (" (defaults)" if row["default"] else ""),
        f"{row['tokens_per_second']:,.0f}",
        f"{row['labels_per_second']:,.0f}",
        show_ratio(row["loop_ratio"]),
        f"{row['process_seconds']:.1f} s",
        show_ratio(row["process_ratio"]),
        reached,
        f"{row['peak_bytes'] / 2**30:.2f} GiB",
        f"{100 * row['mfu']:.1f} %",
        f"{row['train_loss']:.3f}",
        f"{row['test_loss']:.3f}",
        accuracy,
        "; ".join(row["unequal"]) or "passed",
    ]
    return "| " + " | ".join(cells) + " |"


def failed_line(row: dict[str, Any]) -> str:
    """A tool that did not finish."""
    reason = row["failed"].replace("|", "/")[:120]
    return f"| {row['tool']} | failed: {reason}" + " |" * 12


def show_ratio(ratio: tuple[float, float, float] | None) -> str:
    """`4.1× (3.8 … 4.4)`; a dash for hfadapt itself."""
    if ratio is None:
        return "–"
    middle, low, high = ratio
    return f"{middle:.2f}×" if math.isnan(low) else f"{middle:.2f}× ({low:.2f} … {high:.2f})"


def place(machine: dict[str, Any]) -> str:
    """`Intel(R) Xeon(R) Processor (AVX-512, AMX), 2 cores`, or the GPU."""
    if machine["matmul"]["gpu"]:
        return str(machine["matmul"]["gpu"])
    families = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_bf16": "AMX"}
    best = [name for feature, name in families.items() if feature in machine["features"]][-2:]
    if "avx512_bf16" in machine["features"] and "AMX" not in best:
        best.append("bfloat16")
    within = f" ({', '.join(name for name in best if name != 'AVX2' or len(best) == 1)})" if best else ""
    return f"{machine['processor']}{within}, {machine['cores']} cores"


def legend(workload: dict[str, Any]) -> str:
    """What the rows and columns mean."""
    matmul = workload["machine"]["matmul"]
    lines = [f"- {tool}: {note}" for tool, note in workload["notes"].items() if note]
    lines += [
        f"- MFU = 4 · (linear weights · tokens + head weights · labels) / seconds / "
        f"{matmul['flops_per_second'] / 1e12:.3g} TFLOP/s, the {matmul['dtype']} matrix product measured in the same "
        "session; attention is left out.",
        "- Speed-ups are hfadapt's over the tool: geometric means over the seeds against hfadapt's runs just before "
        "and after, with 95 % t intervals. Held-out figures are scored for all tools by one float32 program on the "
        "storage they trained on.",
        f"- Parity check: first batch's loss within {LOSS_TOLERANCE} of a float32 reference; median loss of a step "
        f"within {CURVE_TOLERANCE} of hfadapt's where batches are the same; accuracy within {POINTS:.0f} point "
        f"({workload['test_rows']} held-out rows, mean over the seeds).",
    ]
    return "\n".join(lines)


def cotrain_section(workload: dict[str, Any]) -> str:
    """Four domains together against one after the other."""
    runs = workload["runs"]
    text = [f"**cotrain**: {workload['what']}.", ""]
    if failed := next((run for run in runs if "failed" in run), None):
        return "\n".join([*text, f"failed: `{failed['command']}`: {failed['failed'].splitlines()[-1][:200]}"])
    ratios, loops = [], []
    for i, run in enumerate(runs):
        if run["kind"] == "together":
            beside = [runs[j] for j in (i - 1, i + 1) if 0 <= j < len(runs) and runs[j]["kind"] == "apart"]
            ratios.append(run["wall_seconds"] / statistics.fmean(b["wall_seconds"] for b in beside))
            loops.append(loop_seconds(run) / statistics.fmean(loop_seconds(b) for b in beside))
    text += ["| | training loop | process | peak memory |", "|---|---:|---:|---:|"]
    for kind in ("apart", "together"):
        mine = [run for run in runs if run["kind"] == kind]
        seconds = statistics.median(loop_seconds(run) for run in mine)
        wall = statistics.median(run["wall_seconds"] for run in mine)
        peak = statistics.median(run["peak_resident_bytes"] for run in mine) / 2**30
        text.append(f"| {kind} | {seconds:.1f} s | {wall:.1f} s | {peak:.2f} GiB |")
    text.append(f"| together / apart | {show_ratio(ratio_interval(loops))} | {show_ratio(ratio_interval(ratios))} | |")
    domains = {
        domain: max(
            abs(a["domains"][domain]["final_loss"] - b["domains"][domain]["final_loss"])
            for a in runs
            for b in runs
            if a["seed"] == b["seed"] and domain in a["domains"] and domain in b["domains"]
        )
        for domain in runs[0]["domains"]
    }
    text += ["", "Final losses differ by at most " + ", ".join(f"{gap:.1e} ({d})" for d, gap in domains.items()) + "."]
    return "\n".join(text)


def loop_seconds(run: dict[str, Any]) -> float:
    """Training loops of all domains: one after the other, or of one loop the share that each cell notes."""
    return float(sum(cell["seconds"] for cell in run["domains"].values()))


def readme_region(records: Sequence[dict[str, Any]]) -> str:
    """What stands between the README's markers: the tables of each machine."""
    parts = [readme_part(record) for record in records]
    return "\n\n".join([*parts, "Speed-ups are hfadapt's over the row's tool. [What is compared](benchmarks/NOTES.md)"])


def readme_part(record: dict[str, Any]) -> str:
    """The tables of one machine."""
    machines = {place(workload["machine"]) for workload in record["workloads"].values()}
    text = [f"On {'; '.join(sorted(machines))}:", ""]
    for name, workload in record.get("workloads", {}).items():
        if name == "cotrain":
            text += [cotrain_section(workload), ""]
            continue
        rows = summarise(workload)
        text += [
            f"**{workload['what']}**",
            "",
            "| tool | tokens/s | speed-up | process | speed-up | peak memory | held-out loss | accuracy "
            "| parity check |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---|",
        ]
        for row in rows:
            if "failed" in row:
                text.append(f"| {row['tool']} | failed" + " |" * 8)
                continue
            accuracy = f"{row['accuracy']:.3f}" if row["accuracy"] is not None else "–"
            text.append(
                f"| {row['tool']} | {row['tokens_per_second']:,.0f} | {show_ratio(row['loop_ratio'])} "
                f"| {row['process_seconds']:.0f} s | {show_ratio(row['process_ratio'])} "
                f"| {row['peak_bytes'] / 2**30:.2f} GiB | {row['test_loss']:.3f} | {accuracy} "
                f"| {'; '.join(row['unequal']) or 'passed'} |"
            )
        text.append("")
    return "\n".join(text).strip()


def readme_with(readme: str, records: Sequence[dict[str, Any]]) -> str:
    """The README with the region between its markers renewed; unchanged when it has none."""
    if BEGIN not in readme or END not in readme:
        return readme
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{readme_region(records)}\n{END}{tail}"
