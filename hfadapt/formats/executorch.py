"""One .pte program for ExecuTorch, torch's own runtime for phones: float32, or 8 bits with or without fixed ranges.

Its packages: `pip install "hfadapt[executorch]"`.

torch makes the graph of the merged model, and XNNPACK computes what it can of it. `int8-dynamic` rounds the weights of
linear layers and tables now and what goes into a layer as it comes, which transformers bear; `int8-static` also fixes
the ranges, from training rows, which only convolutional nets bear. A program takes one row of any length up to the
longest of training. Labels and how rows are read are part of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.formats import Form, Format, Head, Runner, Shape
from hfadapt.formats import _executorch_file as file
from hfadapt.formats import _executorch_look as look
from hfadapt.formats import _single_file as single
from hfadapt.formats._executorch_android import android
from hfadapt.formats._single_file import DYNAMIC, STATIC, SingleFile
from hfadapt.formats._weights import other_head

if TYPE_CHECKING:
    import torch

    from hfadapt.run_folder import Cell

FILE, GUIDE = "model.pte", "ANDROID.md"
OUTPUT = "hfadapt.output"
CALL = """\
program = Runtime.get().load_program("{file}")
names, labels = (json.loads(program.load_method(f"hfadapt.{{name}}").execute([])[0]) for name in ("inputs", "labels"))
given = [torch.from_numpy(np.asarray(inputs[name])) for name in names]
out = program.load_method("forward").execute(given)[0][0].numpy()
{answer}"""


class ExecuTorch(SingleFile):
    """model.pte, with config and tokenizer beside it."""

    name = "executorch"
    packages = ("executorch",)
    library = "executorch"
    rounds = "rows"
    extra = "executorch"

    @property
    def runtime(self) -> str:
        """ExecuTorch."""
        return f"executorch {version('executorch')}"

    def make_ready(self) -> None:
        """Its binaries have to fit this torch."""
        file.library("runtime")

    def holds(self, name: str, whole: bool) -> bool:
        """The file, how it is called on a phone, and transformers' config."""
        return name in (FILE, GUIDE, "config.json")

    def needed(self, whole: bool) -> frozenset[str]:
        """File and config."""
        return frozenset({FILE, "config.json"})

    def head(self, path: Path) -> Head | None:
        """All that is readable: names and what it says of itself."""
        return Head(0, vocabulary=False, text=file.words(path)) if path.suffix == ".pte" else None

    def write(self, cell: Cell, form: Form | None, folder: Path, device: torch.device) -> Any:
        """Merges in float32, takes out what computes nothing, rounds, and makes the program."""
        assert form is not None
        base, task = single.open_float(cell), registry.task(cell.lock.task)
        reads = task.file_reads or task.reads
        base.model.set_attn_implementation("eager")
        examples = single.made_simple(cell, base)
        rows, options = _rows(cell, base, examples if form.own == STATIC.own else examples[:1])
        about = {**single.about(cell, base.tokenizer), OUTPUT: reads}
        model = copy.deepcopy(base.model) if form.own == DYNAMIC.own else base.model
        with single.no_graph(model):
            if form.own == DYNAMIC.own:
                file.round_embeddings(model)
            one = _one(model, tuple(rows[0]), options, reads)
            made = file.lowered(one, rows, _free(cell, base, rows[0]), form.own, about)
        (folder / FILE).write_bytes(made)
        single.write_beside(cell, base, folder)
        opened = file.Opened(folder / FILE)
        guide = android(FILE, opened, cell.data.labels, task)
        (folder / GUIDE).write_text(guide, encoding="utf-8")
        return base.model.to(device)

    def opened(self, folder: Path) -> Runner:
        """ExecuTorch on the CPU, with the labels that the file names itself."""
        opened = file.Opened(folder / FILE)
        config = single.config_of(folder, opened.about)
        return Runner(opened.runner(opened.about.get(OUTPUT, "logits")), opened.inputs, config, Shape(1))

    def faults(self, cell: Cell, folder: Path, model: Any) -> Iterator[str]:
        """Weights that are no numbers or not the model's, paths, and what it tells wrongly."""
        yield from look.faults(folder / FILE, model, single.places(cell))
        if registry.task(cell.lock.task).outputs(cell.data.labels):
            yield from other_head(look.weights(folder / FILE), model)
        yield from single.untold(cell, file.Opened(folder / FILE).about)

    def operators(self, folder: Path) -> dict[str, int]:
        """By the names of torch, and of XNNPACK for what it computes."""
        return look.operators(folder / FILE)

    def usage(self, cell: Cell) -> str:
        """Lines that need ExecuTorch and what reads a row."""
        task = registry.task(cell.lock.task)
        imports, example, lines = single.reading(cell)
        return (
            "import json\n\nimport executorch.kernels.quantized  # operators of tables in 8 bits\n"
            "import numpy as np\nimport torch\nfrom executorch.runtime import Runtime\n"
            f"{imports}\n\n{example}\n{lines}\n\n{CALL.format(file=FILE, answer=task.reading)}"
        )

    def notes(self, cell: Cell) -> str:
        """Where phones are told of."""
        return f"[{GUIDE}]({GUIDE}) is Kotlin for this file."


def _rows(cell: Cell, base: Any, examples: Any) -> tuple[list[dict[str, torch.Tensor]], dict[str, Any]]:
    """Examples as what the task gives to the model: tensors (1, …) by name, and other arguments."""
    rows: list[dict[str, torch.Tensor]] = []
    options: dict[str, Any] = {}
    for each in examples:
        tensors, options = single.inputs_of(cell, base, [each])
        rows.append({name: value[:1] for name, value in tensors.items()})
    return rows, options


def _free(cell: Cell, base: Any, row: Mapping[str, torch.Tensor]) -> dict[str, dict[int, tuple[str, int]]]:
    """Of each input the axes that rows may differ in, with name and largest size."""
    kind, longest = registry.modality_of(cell.lock.task), cell.lock.data.max_length
    usual = kind.traced(base.model.config, 1, longest)
    length = max(each.shape[1] for each in usual.values())
    return {name: {} if kind.one_size or value.ndim != 2 else {1: ("length", length)} for name, value in row.items()}


def _one(model: Any, names: tuple[str, ...], options: Mapping[str, Any], reads: str) -> torch.nn.Module:
    """A model of values in their order, and of the one output that is read."""
    import torch

    class One(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.model(**dict(zip(names, values, strict=True)), **options)[reads]
            return found

    return One()


KIND: Format = ExecuTorch()
