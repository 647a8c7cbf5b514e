"""Records of evidence as the evaluation leaves them, for tests of what reads them: card, report, publish.

The figures are invented but consistent: with the rows and the metrics of the example cells in `cards/examples/`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from hfadapt.records.evidence import (
    Attack,
    Calibration,
    Canaries,
    CanaryGroup,
    Compute,
    DriftRecord,
    Efficiency,
    Energy,
    Estimate,
    FailingExample,
    Membership,
    PairedTest,
    PersonalData,
    Perturbation,
    ReliabilityBin,
    SecurityRecord,
    Slice,
    TransferCell,
    TransferRecord,
    TransferTarget,
    Variant,
    Verbatim,
)
from hfadapt.records.stages import CellState, EvaluationRecord, Metric, TrainRecord

DOMAINS = ("tweets", "movies", "products")
TARGETS = ("this-machine",)


def estimate(value: float, spread: float, rows: int) -> Estimate:
    return Estimate(value=value, low=value - spread, high=value + spread, rows=rows)


def attack(name: str, auc: float, tpr: float = 0.02) -> Attack:
    return Attack(name=name, auc=estimate(auc, 0.04, 800), tpr_at_1pct_fpr=estimate(tpr, 0.01, 800))


def security(domain: str = "tweets", target: str = "this-machine", *, generates: bool = False) -> SecurityRecord:
    attacks = (attack("loss difference", 0.631, 0.061), attack("loss", 0.602), attack("min-k", 0.588))
    return SecurityRecord(
        domain=domain,
        target=target,
        membership=Membership(
            members=400, non_members=400, attacks=attacks, blind=attack("bag of words", 0.512), leaks=True
        ),
        canaries=Canaries(
            planted=16,
            references=1000,
            threshold_bits=8.0,
            groups=tuple(
                CanaryGroup(
                    repeats=repeats,
                    canaries=8,
                    exposure_median_bits=median,
                    exposure_most_bits=most,
                    found=found,
                    p_value=chance,
                )
                for repeats, median, most, found, chance in (
                    (0, 1.1, 8.2, 1, 0.03),
                    (1, 1.3, 3.2, 0, 1.0),
                    (16, 9.6, 10.0, 7, 1e-9),
                )
            ),
            found=True,
        )
        if generates
        else None,
        verbatim=Verbatim(
            prompts=100,
            prefix_tokens=16,
            continued_tokens=32,
            rate=estimate(0.03, 0.02, 100),
            base_rate=Estimate(value=0.0, low=0.0, high=0.036, rows=100),
            held_out_rate=Estimate(value=0.01, low=0.0003, high=0.054, rows=100),
        )
        if generates
        else None,
        personal_data=PersonalData(generations=100, found={"e-mail": 2, "telephone": 0}, repeated=1)
        if generates
        else None,
        robustness=tuple(
            Perturbation(
                name=name,
                share=0.1,
                changed_rows=rows - 12,
                rows=rows,
                metric=metric,
                base_clean=clean[0],
                base_changed=clean[0] - drop / 2,
                adapter_clean=clean[1],
                adapter_changed=clean[1] - drop,
                drop=estimate(drop, 0.03, rows),
                base_drop=estimate(drop / 2, 0.03, rows),
            )
            for rows, metric, clean in ((120, "label_accuracy", (0.5, 0.8)),) * generates
            or ((400, "accuracy", (0.6525, 0.8)),)
            for name, drop in (("typos", 0.085), ("case", 0.012), ("word swap", 0.041))
        ),
        seconds=21.5,
    )


def drift(
    domain: str = "tweets", target: str = "this-machine", *, generates: bool = False, rows: int = 0
) -> DriftRecord:
    metric, value = ("label_accuracy", 0.8) if generates else ("accuracy", 0.8)
    rows = rows or (120 if generates else 400)
    storage = "nf4" if generates else "float32"

    def variant(name: str, stored: str, merged: bool, kl: float, most: float, delta: float) -> Variant:
        low, high = delta - 0.01, delta + 0.01
        return Variant(
            name=name, storage=stored, merged=merged, kl_nats=kl, max_logit_difference=most, metric=metric,
            value=value + delta, delta=delta, low=low, high=high,
        )  # fmt: skip

    return DriftRecord(
        domain=domain,
        target=target,
        reference=f"the adapter on the base in {storage}, as it was trained",
        rows=rows,
        variants=(
            variant("merged-float32", "float32", True, 2.1e-12, 3.3e-6, 0.0),
            variant("adapter-bfloat16", "bfloat16", False, 0.0004, 0.06, 0.0),
            variant("merged-bfloat16", "bfloat16", True, 0.0007, 0.09, -0.001),
            variant("merged-nf4", "nf4", True, 0.0634, 1.41, -0.021),
        ),
        limit_kl_nats=0.02,
        limit_points=0.5,
        refused={"merged-nf4": "its answers differ by 0.0634 nats per label, the limit is 0.02"},
        skipped={"merged-int8": f"the target {target} does not hold weights in int8"},
        labels=rows,
        seconds=17.0,
    )


def transfer(domains: tuple[str, ...] = DOMAINS, target: str = "this-machine") -> TransferRecord:
    cells = []
    for a, adapter in enumerate(domains):
        for d, data in enumerate(domains):
            base = 0.60 + 0.03 * d
            delta = 0.15 if a == d else 0.06 - 0.05 * abs(a - d)
            cells.append(
                TransferCell(
                    adapter=adapter, data=data, rows=400, base=base, value=base + delta, delta=delta,
                    low=delta - 0.03, high=delta + 0.03,
                )
            )  # fmt: skip
    metric = TransferTarget(target=target, metric="accuracy", higher_is_better=True, cells=tuple(cells))
    return TransferRecord(targets=(metric,), inputs_sha256="0" * 64)


def bins(rows: int, sure: float) -> tuple[ReliabilityBin, ...]:
    """Five bins from unsure to sure; `sure` is how far confidence exceeds accuracy."""
    sizes = [rows // 10, rows // 10, rows // 5, rows // 5]
    sizes.append(rows - sum(sizes))
    centres = (0.45, 0.55, 0.65, 0.85, 0.95)
    return tuple(
        ReliabilityBin(rows=size, confidence=centre, accuracy=max(0.0, centre - sure))
        for size, centre in zip(sizes, centres, strict=True)
    )


def slices(metric: str, rows: int, classes: tuple[str, ...]) -> tuple[Slice, ...]:
    half = rows // 2
    found = [
        Slice(by="length", name="up to 22 tokens", metric=metric, rows=half, base=0.66, adapter=0.84, delta=0.18,
              low=0.11, high=0.25),
        Slice(by="length", name="over 22 tokens", metric=metric, rows=rows - half, base=0.645, adapter=0.52,
              delta=-0.125, low=-0.21, high=-0.04),
    ]  # fmt: skip
    for number, name in enumerate(classes):
        found.append(
            Slice(by="class", name=name, metric=metric, rows=rows // 4, base=0.5, adapter=0.6 + 0.1 * number,
                  delta=0.1 + 0.1 * number, low=0.02, high=0.4)
        )  # fmt: skip
    return tuple(found)


def evaluated(record: EvaluationRecord, adapter_bytes: int, *, generates: bool = False) -> EvaluationRecord:
    """An evaluation with every kind of evidence."""
    leading, rows = record.metrics[0], record.rows
    return record.model_copy(
        update={
            "prompts_sha256": "ab" * 32,
            "paired_tests": (
                PairedTest(
                    metric=leading.name, test="mcnemar-exact", better=rows // 5, worse=rows // 20, p_value=1.9e-9
                ),
                PairedTest(
                    metric="loss", test="wilcoxon-signed-rank", better=rows // 2, worse=rows // 4, p_value=0.0004
                ),
            ),
            "slices": slices(leading.name, rows, tuple(record.confusion)[:2]),
            "calibration": Calibration(base=bins(rows, 0.02), adapter=bins(rows, 0.12)),
            "efficiency": Efficiency(
                latency_p50_seconds=0.0213,
                latency_p95_seconds=0.0389,
                base_latency_p50_seconds=0.0187,
                latency_rows=64,
                batch_rows=32,
                rows_per_second=76.5,
                tokens_per_second=1755.2,
                generated_tokens_per_second=14.2 if generates else None,
                adapter_bytes=adapter_bytes,
            ),
            "harness": (
                Metric(name="local_task/acc", base=0.51, adapter=0.53, delta=0.02, low=-0.01, high=0.05, rows=120),
            ),
            "general_text": Metric(
                name="perplexity", base=18.2, adapter=19.1, delta=0.9, low=0.6, high=1.3, rows=64,
                higher_is_better=False,
            )
            if generates
            else None,
            "failures": tuple(
                FailingExample(split_row=row, gold=gold, adapter=said, base=base, confidence=0.97 - 0.05 * n)
                for n, (row, gold, said, base) in enumerate(
                    [(3, "neutral", "positive", "positive"), (11, "negative", "neutral", "neutral")]
                )
            ),
        }
    )  # fmt: skip


def trained(record: TrainRecord) -> TrainRecord:
    """A training whose energy and compute were counted."""
    return record.model_copy(
        update={
            "energy": Energy(joules=5400.0, method="estimated", how="processor seconds times 12 W a core",
                             carbon_grams=0.57, country="Germany"),
            "compute": Compute(tuning_flops=1.06e13, how="four per parameter and token, the base is frozen",
                               base_flops=7.2e16, base_source="the base's paper"),
        }
    )  # fmt: skip


def put(folder: Path, **changes: Any) -> Path:
    """Gives a finished cell every record of evidence; `security`, `drift` or `transfer` = None leaves one out."""
    train = TrainRecord.read(folder / "train.json")
    generates = EvaluationRecord.read(folder / "evaluation.json").metrics[0].name != "accuracy"
    trained(train).write(folder / "train.json")
    record = EvaluationRecord.read(folder / "evaluation.json")
    evaluated(record, train.adapter_bytes, generates=generates).write(folder / "evaluation.json")
    names = {"domain": train.domain, "target": train.target}
    whole = transfer((train.domain, *(name for name in DOMAINS if name != train.domain)), train.target)
    row = whole.targets[0].model_copy(
        update={"cells": tuple(cell for cell in whole.targets[0].cells if cell.adapter == train.domain)}
    )
    records = {
        "security": security(**names, generates=generates),
        "drift": drift(**names, generates=generates),
        "transfer": whole.model_copy(update={"targets": (row,)}),
    } | changes
    for name, found in records.items():
        if found is not None:
            found.write(folder / f"{name}.json")
    return folder


def edit(path: Path, change: Any) -> None:
    """Changes a JSON file in place; `change` gets the content and alters it."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def put_run(
    folder: Path, example: Path, domains: tuple[str, ...] = DOMAINS, targets: tuple[str, ...] = TARGETS
) -> Path:
    """A run of several domains and targets with all evidence, from one example cell; figures differ by cell."""
    for t, target in enumerate(targets):
        for d, domain in enumerate(domains):
            cell = folder / domain / target
            shutil.copytree(example, cell)
            for name in ("train.json", "evaluation.json"):
                edit(cell / name, lambda content, d=domain, t=target: content.update(domain=d, target=t))
            put(cell)
            edit(cell / "evaluation.json", lambda content, s=0.03 * d - 0.01 * t: shift(content, s))
            CellState(status="done").write(cell / "cell.json")
    record = transfer(domains, targets[0])
    record.model_copy(
        update={"targets": tuple(one for target in targets for one in transfer(domains, target).targets)}
    ).write(folder / "transfer.json")
    return folder


def shift(content: dict[str, Any], by: float) -> None:
    """Moves what the adapter reaches, in place."""
    for metric in content["metrics"]:
        for key in ("adapter", "delta", "low", "high", "adapter_low", "adapter_high"):
            metric[key] -= by
    for one in content["slices"]:
        for key in ("adapter", "delta", "low", "high"):
            one[key] -= by
    for one in content["calibration"]["adapter"]:
        one["accuracy"] = max(0.0, one["accuracy"] - by)
    for counts in content["per_class"].values():
        counts["adapter"] -= by
