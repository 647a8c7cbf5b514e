"""A stage of another package: multiplies the weights of one layer, and writes what it did into scale.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from hfadapt.core.show import Block, Heading, Table
from hfadapt.core.spec import Record
from hfadapt.models.load import load_base
from hfadapt.models.merge import save_base
from hfadapt.records.stages import PhaseMeasure
from hfadapt.run_folder import Cell
from hfadapt.stages import Context, Section, Stage

FACTOR = 1.5


class ScaleRecord(Record):
    """What was scaled, and by how much."""

    FILE: ClassVar[str] = "scale.json"
    domain: str
    target: str
    factor: float
    tensors: tuple[str, ...]
    memory: dict[str, PhaseMeasure] = {}


class Scale(Stage):
    """The last layer, times FACTOR."""

    name = "scale"
    title = "scaling"
    needs = ("plan",)
    before = ("train",)
    records = (ScaleRecord,)
    phases = ("scale",)
    makes_base = True
    card = (Section("Scaled layer", lambda facts: f"Multiplied by {facts('scale.json#/factor', 'plain')}."),)

    def inputs(self, cell: Cell, context: Context) -> float:
        return FACTOR

    def run(self, cells: Sequence[Cell], context: Context) -> None:
        for cell in cells:
            parent = context.base(cell, self.name)
            base = load_base(parent.stored("none", "float32"), cell.data.labels, torch.device("cpu"))
            named = [(name, p) for name, p in base.model.named_parameters() if ".layer.1." in name and p.dim() == 2]
            for _, parameter in named:
                parameter.data.mul_(FACTOR)
            how = f"{len(named)} weights of the last layer multiplied by {FACTOR:g}"
            save_base(base, cell.made_base(self.name), parent=parent, made_by=self.name, how=how)
            names, measured = tuple(name for name, _ in named), PhaseMeasure(measured_peak_bytes=4096)
            record = ScaleRecord(
                domain=cell.domain, target=cell.target, factor=FACTOR, tensors=names, memory={"scale": measured}
            )
            cell.write(record)

    def report(self, cells: Sequence[Cell]) -> list[Block]:
        rows = [[cell.domain, f"{cell.read(ScaleRecord).factor:g}"] for cell in cells]
        return [Heading("Scaled layers"), Table(["domain", "factor"], rows)] if rows else []


KIND = Scale()
