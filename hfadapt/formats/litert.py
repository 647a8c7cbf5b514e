"""One .tflite file for LiteRT, the runtime of phones and boards: float32, or 8 bits with or without fixed ranges.

torch makes the graph of the merged model here, and LiteRT's converter, in an environment of its own, makes the file of
it. `int8-dynamic` rounds weights now and activations as they come, which transformers bear; `int8-static` also fixes
the ranges of activations, from training rows, which only convolutional nets bear. A file takes one row of one length.
What runs it: `pip install "hfadapt[litert]"`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.formats import Form, Format, Head, Runner, Shape
from hfadapt.formats import _litert_environment as environment
from hfadapt.formats import _litert_file as file
from hfadapt.formats import _single_file as single
from hfadapt.formats._litert_android import android
from hfadapt.formats._single_file import DYNAMIC, FLOAT, STATIC, SingleFile
from hfadapt.formats._weights import other_head
from hfadapt.models.fold import simplify
from hfadapt.models.load import Base

if TYPE_CHECKING:
    import numpy as np
    import torch

    from hfadapt.run_folder import Cell

FILE, GUIDE = "model.tflite", "ANDROID.md"
RECIPES = {FLOAT.own: None, DYNAMIC.own: "dynamic_wi8_afp32", STATIC.own: "static_wi8_ai8"}
"""What LiteRT's quantiser calls the forms."""
CALL = """\
model = Interpreter("{file}").get_signature_runner()
labels = json.load(open("hfadapt.json"))["labels"]
given = {{}}
for name, each in model.get_input_details().items():
    missing = [(0, size - has) for size, has in zip(each["shape"], inputs[name].shape)]
    given[name] = np.pad(inputs[name], missing).astype(each["dtype"])
out = model(**given)["{reads}"][0]
{answer}"""


class LiteRt(SingleFile):
    """model.tflite, with config and tokenizer beside it."""

    name = "litert"
    packages = ("ai_edge_litert",)
    library = "litert"
    rounds = "rows"
    extra = "litert"

    @property
    def runtime(self) -> str:
        """LiteRT's interpreter."""
        return f"ai-edge-litert {version('ai-edge-litert')}"

    def make_ready(self) -> None:
        """The environment of its converter."""
        environment.python()

    def borne(self, convolutional: bool) -> tuple[Form, ...]:
        """A net whose fixed ranges lose too much may bear ranges as they come."""
        return (STATIC, DYNAMIC, FLOAT) if convolutional else (DYNAMIC, FLOAT)

    def holds(self, name: str, whole: bool) -> bool:
        """The file, how it is called on a phone, and transformers' config."""
        return name in (FILE, GUIDE, "config.json")

    def needed(self, whole: bool) -> frozenset[str]:
        """File and config."""
        return frozenset({FILE, "config.json"})

    def head(self, path: Path) -> Head | None:
        """All that is readable: names and metadata."""
        return Head(0, vocabulary=False, text=file.words(path)) if path.suffix == ".tflite" else None

    def write(self, cell: Cell, form: Form | None, folder: Path, device: torch.device) -> Any:
        """Merges in float32, takes out what computes nothing, and has the converter make the file."""
        import torch

        assert form is not None
        base, task = single.open_float(cell), registry.task(cell.lock.task)
        reads = task.file_reads or task.reads
        base.model.set_attn_implementation("eager")
        rows, options = _rows(cell, base, cell.lock.export.calibration_rows if form.own == STATIC.own else 1)
        simplify(base.model, {**{name: torch.from_numpy(values[:1]) for name, values in rows.items()}, **options})
        base.model = task.for_file(base.model, base.tokenizer)
        about = single.about(cell, base.tokenizer)
        with tempfile.TemporaryDirectory(prefix="hfadapt-") as made:
            place = Path(made)
            save_job(base.model, reads, rows, place, options)
            environment.convert(place, RECIPES[form.own], about)
            shutil.move(place / FILE, folder / FILE)
        single.write_beside(cell, base, folder)
        guide = android(folder / FILE, task, cell.data.labels, about, base.pad_token_id)
        (folder / GUIDE).write_text(guide, encoding="utf-8")
        return base.model.to(device)

    def opened(self, folder: Path) -> Runner:
        """The file in the interpreter, with the labels that it names itself.

        Raises:
            RunError: LiteRT refuses the file.
        """
        import torch

        opened = file.opened(folder / FILE, torch.get_num_threads())
        config = single.config_of(folder, file.about(folder / FILE))
        length = next((shape[1] for shape in opened.shapes.values() if len(shape) == 2), None)
        padding = {"input_ids": getattr(config, "pad_token_id", None) or 0}
        return Runner(opened.run, opened.inputs, config, Shape(1, length), padding)

    def faults(self, cell: Cell, folder: Path, model: Any) -> Iterator[str]:
        """Weights that are no numbers or not the model's, unknown operators, paths, and what it tells wrongly."""
        yield from file.faults(folder / FILE, model, single.places(cell))
        if registry.task(cell.lock.task).outputs(cell.data.labels):
            yield from other_head(file.weights(folder / FILE), model)
        yield from single.untold(cell, file.about(folder / FILE))

    def operators(self, folder: Path) -> dict[str, int]:
        """By LiteRT's names."""
        return file.operators(folder / FILE)

    def usage(self, cell: Cell) -> str:
        """Lines that need LiteRT and what reads a row."""
        task = registry.task(cell.lock.task)
        imports, example, lines = single.reading(cell)
        call = CALL.format(file=FILE, reads=task.file_reads or task.reads, answer=task.reading)
        return (
            "import json\n\nimport numpy as np\nfrom ai_edge_litert.interpreter import Interpreter\n"
            f"{imports}\n\n{example}\n{lines}\n\n{call}"
        )

    def notes(self, cell: Cell) -> str:
        """Where the other runtimes are told of."""
        return f"[{GUIDE}]({GUIDE}) is Kotlin for this file."


# --- writing ---------------------------------------------------------------------------------------------------------


def _rows(cell: Cell, base: Base, count: int) -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]]:
    """The first training rows as what the task gives to the model: arrays (N, …) by name, all of the longest length,
    and other arguments."""
    import numpy as np

    lock = cell.lock
    kind = registry.modality_of(lock.task)
    usual = kind.traced(base.model.config, 1, lock.data.max_length)
    length = max(each.shape[1] for each in usual.values())
    found: dict[str, list[np.ndarray]] = {}
    for example in single.examples_of(cell, base, count):
        tensors, options = single.inputs_of(cell, base, [example])
        for name, tensor in tensors.items():
            values = tensor[:1].numpy()
            if values.ndim == 2:
                fill = base.pad_token_id if name == "input_ids" else 0
                values = np.pad(values, [(0, 0), (0, length - values.shape[1])], constant_values=fill)
            found.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in found.items()}, options


def save_job(
    model: Any, reads: str, rows: Mapping[str, np.ndarray], folder: Path, options: Mapping[str, Any] = {}
) -> None:
    """Writes what the converter takes: the graph that torch sees for one row, and the rows.

    Args:
        reads: Name of the output that is kept.
        rows: Arrays (N, …) by name of what the model takes.
        options: Its other arguments, which become part of the graph.

    Raises:
        RunError: torch cannot make a graph of this architecture.
    """
    import numpy as np
    import torch

    class One(torch.nn.Module):
        """The model with the one output that is read."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {reads: self.model(**inputs, **options)[reads]}

    example = {name: torch.from_numpy(values[:1].copy()) for name, values in rows.items()}
    with single.no_graph(model), torch.no_grad():
        program = _without_masked_writes(torch.export.export(One().eval(), (), example))
        torch.export.save(program, folder / "graph.pt2")
    arrays: Any = dict(rows)
    np.savez(folder / "rows.npz", **arrays)


def _without_masked_writes(program: Any) -> Any:
    """A graph in which `x[mask] = number` is a choice between both, as the converter takes it."""
    import torch

    aten = torch.ops.aten
    if not any(node.target in (aten.index_put.default, aten.index_put_.default) for node in program.graph.nodes):
        return program

    def chosen(self: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
        (mask, *more) = indices
        if more or mask is None or mask.dtype != torch.bool or values.numel() != 1 or accumulate:
            return NotImplemented
        wide = mask.reshape(*mask.shape, *(1,) * (self.dim() - mask.dim()))
        return torch.where(wide, values.to(self.dtype).reshape(()), self)

    return program.run_decompositions({aten.index_put.default: chosen})


KIND: Format = LiteRt()
