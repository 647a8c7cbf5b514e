"""Whether the records of a cell are sound: each readable, possible in itself, and in agreement with the others.

A card repeats what the records say; these checks find what no evaluation can have written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import Problem, RunError
from hfadapt.core.spec import Record
from hfadapt.records.evidence import DriftRecord, Estimate, SecurityRecord, TransferRecord
from hfadapt.records.stages import CardRecord, DataRecord, EvaluationRecord, Metric, TrainRecord

NEEDED = (DataRecord, TrainRecord, EvaluationRecord)
AGAIN = "evaluate the cell again: hfadapt evaluate RECIPE"


def kinds() -> list[type[Record]]:
    """The records of a cell that a card is made from."""
    found = [kind for stage in registry.stages() for kind in (*stage.records, *stage.may_write)]
    return [kind for kind in found if kind is not CardRecord]


def check_evidence(folder: Path) -> list[Problem]:
    """Everything that is wrong with the records in a cell's folder."""
    found: dict[type[Record], Any] = {}
    problems: list[Problem] = []
    for kind in kinds():
        if not (folder / kind.FILE).exists():
            continue
        try:
            found[kind] = kind.read(folder / kind.FILE)
        except RunError as error:
            problems += error.problems or [Problem(str(error), str(folder / kind.FILE))]
    problems += _not_finite(folder)
    if problems or any(kind not in found for kind in NEEDED):
        return problems
    train, evaluation = found[TrainRecord], found[EvaluationRecord]
    said: list[tuple[type[Record], str, str]] = [
        (EvaluationRecord, *one) for one in _evaluation(evaluation, train, found[DataRecord])
    ]
    checks: dict[type[Record], Callable[[Any, TrainRecord], Said]] = {
        SecurityRecord: _security, DriftRecord: _drift, TransferRecord: _transfer,
    }  # fmt: skip
    for kind, check in checks.items():
        if kind in found:
            said += [(kind, *one) for one in check(found[kind], train)]
    for kind, record in found.items():
        own = (getattr(record, "domain", train.domain), getattr(record, "target", train.target))
        if own != (train.domain, train.target):
            said.append((kind, "the record is of another cell", "/".join(own)))
    return [Problem(what, str(folder / kind.FILE), got=got, fix=AGAIN) for kind, what, got in said]


def _not_finite(folder: Path) -> Iterator[Problem]:
    """NaN and infinity, which JSON does not have but Python writes."""
    for kind in kinds():
        path = folder / kind.FILE
        if path.exists():
            odd: list[str] = []
            try:
                json.loads(path.read_text(encoding="utf-8"), parse_constant=odd.append)
            except (ValueError, RecursionError):
                continue
            if odd:
                yield Problem("a value in a record is not a number", str(path), got=", ".join(odd), fix=AGAIN)


Said = Iterator[tuple[str, str]]


def _estimate(name: str, found: Estimate, *, share: bool = True) -> Said:
    """An interval holds its value; a share lies between nothing and all; there are rows behind it."""
    if found.low is not None and found.high is not None and not found.low <= found.value <= found.high:
        yield f"the interval of {name} does not hold its value", f"{found.value:g} in [{found.low:g}, {found.high:g}]"
    if share and not 0 <= found.value <= 1:
        yield f"{name} is not a share", f"{found.value:g}"
    if found.rows < 1:
        yield f"there are no rows behind {name}", str(found.rows)


def _metric(metric: Metric) -> Said:
    if metric.base is not None and metric.delta is not None:
        off = abs(metric.adapter - metric.base - metric.delta)
        if off > 1e-6 * max(1.0, abs(metric.base)):
            yield f"the difference of {metric.name} is not adapter minus base", f"{metric.delta:g}"
    if metric.rows < 1:
        yield f"there are no rows behind {metric.name}", str(metric.rows)


def _evaluation(record: EvaluationRecord, train: TrainRecord, data: DataRecord) -> Said:
    rows = record.rows
    if rows != data.splits.get(record.split):
        yield "not all rows of the split were evaluated", f"{rows} of {data.splits.get(record.split)}"
    general = (record.general_text,) if record.general_text else ()
    for metric in (*record.metrics, *general, *record.harness):
        yield from _metric(metric)
    yield from _parts(record, once=registry.schema(data.form).label_kind not in ("classes", "tokens"))
    if record.efficiency:
        if not 0 < record.efficiency.latency_p50_seconds <= record.efficiency.latency_p95_seconds:
            yield "the median latency is above the slowest twentieth's", f"{record.efficiency.latency_p50_seconds:g}"
        if record.efficiency.adapter_bytes != train.adapter_bytes:
            yield "the size of the adapter is not that of train.json", str(record.efficiency.adapter_bytes)


def _parts(record: EvaluationRecord, *, once: bool) -> Said:
    """Tests, slices, bins and examples, which all are of the evaluated rows.

    Args:
        once: Whether one class was chosen for each row, so that the bins count rows.
    """
    rows = record.rows
    for test in record.paired_tests:
        if not 0 <= test.p_value <= 1:
            yield f"the p value of {test.metric} is not between 0 and 1", f"{test.p_value:g}"
        if test.better + test.worse > rows:
            yield f"the test of {test.metric} counts more rows than there are", f"{test.better} and {test.worse}"
    for one in record.slices:
        if not 0 < one.rows <= rows:
            yield f"the slice {one.by} {one.name} has more rows than there are, or none", str(one.rows)
    found = record.calibration
    for who, bins in (("base", found.base), ("adapter", found.adapter)) if found else ():
        if once and bins and sum(one.rows for one in bins) != rows:
            yield f"the reliability of the {who} does not count every row", str(sum(one.rows for one in bins))
        if any(not 0 <= value <= 1 for one in bins for value in (one.confidence, one.accuracy)):
            yield f"the reliability of the {who} is not a share", ""
    if any(not 0 <= one.split_row < rows for one in record.failures):
        yield "a failing example is not a row of the split", ", ".join(str(one.split_row) for one in record.failures)


def _security(record: SecurityRecord, train: TrainRecord) -> Said:
    member = record.membership
    for attack in (*member.attacks, member.blind) if member else ():
        yield from _estimate(f"the area under the curve of {attack.name}", attack.auc)
        yield from _estimate(f"the rate of {attack.name}", attack.tpr_at_1pct_fpr)
    if member and not member.members * member.non_members:
        yield "membership inference without members or without others", f"{member.members}, {member.non_members}"
    if record.canaries:
        # Canaries that were planted no time at all are controls.
        groups = [group for group in record.canaries.groups if group.repeats > 0]
        if sum(group.canaries for group in groups) != record.canaries.planted:
            yield "the groups of canaries are not all that were planted", str(record.canaries.planted)
        if any(group.found > group.canaries for group in groups):
            yield "more canaries were found than planted", ""
        if record.canaries.found and not any(group.found for group in groups):
            yield "whether canaries were found is not what the groups say", str(record.canaries.found)
    if record.verbatim:
        yield from _estimate("verbatim reproduction", record.verbatim.rate)
        yield from _estimate("verbatim reproduction by the base", record.verbatim.base_rate)
        if record.verbatim.held_out_rate:
            yield from _estimate("verbatim reproduction of held-out rows", record.verbatim.held_out_rate)
    if record.personal_data and record.personal_data.repeated > sum(record.personal_data.found.values()):
        yield "more personal data was repeated than found", str(record.personal_data.repeated)
    for one in record.robustness:
        yield from _estimate(f"the drop under {one.name}", one.drop, share=False)
        if one.changed_rows > one.rows:
            yield f"{one.name} changed more rows than there are", str(one.changed_rows)


def _drift(record: DriftRecord, train: TrainRecord) -> Said:
    names = [variant.name for variant in record.variants]
    if len(set(names)) != len(names):
        yield "two variants have one name", ", ".join(names)
    for variant in record.variants:
        if variant.apart < 0 or variant.max_logit_difference < 0:
            yield f"the divergence of {variant.name} is negative", f"{variant.apart:g}"
        if variant.apart > record.limit and variant.name not in record.refused:
            yield f"{variant.name} is above the limit and not refused", f"{variant.apart:g} {record.unit}"
    if strangers := [name for name in record.refused if name not in names]:
        yield "what is refused was not measured", ", ".join(strangers)


def _transfer(record: TransferRecord, train: TrainRecord) -> Said:
    for one in record.targets:
        if one.target != train.target or any(cell.adapter != train.domain for cell in one.cells):
            yield "the row is of another adapter", f"{one.target}: {', '.join(cell.adapter for cell in one.cells)}"
        for cell in one.cells:
            if cell.base is not None and cell.delta is not None and abs(cell.value - cell.base - cell.delta) > 1e-6:
                yield f"the difference on {cell.data} is not adapter minus base", f"{cell.delta:g}"
