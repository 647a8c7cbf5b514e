"""A graph for OpenVINO, the runtime of Intel's processors: float32, 8 bits for weights, or 8 bits throughout.

Its packages: `pip install "hfadapt[openvino]"`.

transformers' own exporter makes the graph of the merged model, and NNCF rounds it. `int8-weights` holds matrices and
embeddings in 8 bits and computes in float32; `int8-static` computes in 8 bits, with ranges of activations from
training rows, which is faster on processors that sum such products (VNNI, AMX). Batch and length are free. Labels and
how rows are read travel in the graph.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.formats import Estimate, Form, Format, Head, Runner
from hfadapt.formats import _openvino_graph as graph
from hfadapt.formats import _single_file as single
from hfadapt.formats._single_file import FLOAT, STATIC, SingleFile
from hfadapt.formats._weights import other_head

if TYPE_CHECKING:
    import torch

    from hfadapt.models.facts import ModelFacts
    from hfadapt.run_folder import Cell

FILE, WEIGHTS = "openvino_model.xml", "openvino_model.bin"
"""As optimum-intel calls them, and its users look for them."""
SMALL = Form("int8-weights", True, own="int8-weights")


class OpenVino(SingleFile):
    """A graph and its weights, with config and tokenizer beside them."""

    name = "openvino"
    packages = ("openvino", "nncf")
    library = "openvino"
    extra = "openvino"
    bare = frozenset({WEIGHTS})

    @property
    def runtime(self) -> str:
        """OpenVINO."""
        return f"openvino {version('openvino')}"

    def borne(self, convolutional: bool) -> tuple[Form, ...]:
        """Of convolutions the weights are few, and fixed ranges are borne; of attention it is the other way round."""
        return (STATIC, FLOAT) if convolutional else (SMALL, STATIC, FLOAT)

    def estimates(self, facts: ModelFacts) -> tuple[Estimate, ...]:
        """8 bits for weights do not change the arithmetic."""
        small = SMALL.own
        return tuple(
            Estimate(each.form, each.bytes, "float32" if each.form == small else each.arithmetic)
            for each in super().estimates(facts)
        )

    def holds(self, name: str, whole: bool) -> bool:
        """Graph, weights, and transformers' config."""
        return name in self.needed(whole)

    def needed(self, whole: bool) -> frozenset[str]:
        """All of them."""
        return frozenset({FILE, WEIGHTS, "config.json"})

    def head(self, path: Path) -> Head | None:
        """The weights are numbers alone; the graph is read as any text."""
        return Head(0, vocabulary=False) if path.name == WEIGHTS else None

    def write(self, cell: Cell, form: Form | None, folder: Path, device: torch.device) -> Any:
        """Merges in float32, makes the graph, and rounds it where the form says so."""
        assert form is not None
        base, task = single.open_float(cell), registry.task(cell.lock.task)
        examples = single.made_simple(cell, base)
        make = functools.partial(graph.exported, output=task.file_reads or task.reads)
        made = single.once((self.name, cell.folder), lambda: single.graph_of(cell, base, examples, "OpenVINO", make))
        if form.own == SMALL.own:
            made = graph.with_small_weights(made)
        elif form.own == STATIC.own:
            feeds = [single.inputs_of(cell, base, [each])[0] for each in examples]
            made = graph.with_fixed_ranges(
                made,
                [{name: value.numpy() for name, value in each.items()} for each in feeds],
                attention=not single.convolutional(cell.lock),
                reduce_range=single.saturates(cell.lock.target),
            )
        graph.save(made, folder / FILE, single.about(cell, base.tokenizer))
        single.write_beside(cell, base, folder)
        return base.model.to(device)

    def together(self) -> AbstractContextManager[None]:
        """The graph is made once."""
        return single.shared()

    def opened(self, folder: Path) -> Runner:
        """The graph in OpenVINO, with the labels that it names itself.

        Raises:
            RunError: OpenVINO refuses the file.
        """
        import torch

        made = graph.read(folder / FILE)
        config = single.config_of(folder, graph.about(made))
        padding = {"input_ids": getattr(config, "pad_token_id", None) or 0}
        return Runner(graph.runner(made, torch.get_num_threads()), graph.inputs(made), config, padding=padding)

    def faults(self, cell: Cell, folder: Path, model: Any) -> Iterator[str]:
        """Weights that are no numbers or not the model's, paths, and what it tells wrongly."""
        yield from graph.faults(folder / FILE, model, single.places(cell))
        made = graph.read(folder / FILE)
        # Where ranges are fixed, biases make up for what rounding moves on average.
        if registry.task(cell.lock.task).outputs(cell.data.labels) and graph.RANGE not in graph.operators(made):
            yield from other_head(graph.weights(made), model)
        yield from single.untold(cell, graph.about(made))

    def operators(self, folder: Path) -> dict[str, int]:
        """By OpenVINO's names."""
        return graph.operators(graph.read(folder / FILE))

    def usage(self, cell: Cell) -> str:
        """Lines that need OpenVINO and what reads a row."""
        task = registry.task(cell.lock.task)
        imports, example, lines = single.reading(cell)
        return (
            f"import json\n\nimport numpy as np\nimport openvino\n{imports}\n\n{example}\n{lines}\n\n"
            f'core = openvino.Core()\ngraph = core.read_model("{FILE}")\n'
            f'labels = json.loads(graph.get_rt_info(["{graph.OWN}", "labels"]).value)\n'
            '# Also "GPU", "NPU", "AUTO"; without the setting some processors round to bfloat16.\n'
            f'model = core.compile_model(graph, "CPU", {json.dumps(graph.IN_FLOAT32)})\n'
            "names = [each.any_name for each in model.inputs]\n"
            f'out = model({{name: inputs[name] for name in names}})["{task.file_reads or task.reads}"][0]\n'
            f"{task.reading}"
        )

    def notes(self, cell: Cell) -> str:
        """Where it was not run."""
        return (
            "It was run on a CPU. Intel's GPUs and NPUs take the same files; they were not tried, and may round "
            "more than the table says."
        )


KIND: Format = OpenVino()
