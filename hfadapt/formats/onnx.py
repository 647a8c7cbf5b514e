"""One ONNX file for ONNX Runtime: float32, or with matrices in 8 bits; batch and length are free.

Its packages: `pip install "hfadapt[onnx]"`.

transformers' own exporter writes the graph of the merged model, and ONNX Runtime's tools round it. `int8-dynamic`
rounds weights now and activations as they come, which transformers bear; `int8-static` also fixes the ranges of
activations, from training rows, which only convolutional nets bear. Labels and how rows are read travel in the
file's metadata. Models that write have a cache of keys and values (_onnx_cached.py).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.formats import Form, Format, Head, Runner
from hfadapt.formats import _onnx_cached as cached
from hfadapt.formats import _onnx_graph as graph
from hfadapt.formats import _single_file as single
from hfadapt.formats._single_file import DYNAMIC, FLOAT, STATIC, SingleFile

if TYPE_CHECKING:
    import torch

    from hfadapt.run_folder import Cell

FILE, GENERATION = "model.onnx", "generation_config.json"


WRITING = """\
import numpy as np
import onnxruntime
from transformers import AutoTokenizer

tokenizer, session = AutoTokenizer.from_pretrained("."), onnxruntime.InferenceSession("{file}")
ids, written = tokenizer({prompt})["input_ids"], []
kept = [each for each in session.get_inputs() if each.name.startswith("past_key_values")]
past = {{each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32) for each in kept}}
while len(written) < 32:
    seen = next(iter(past.values())).shape[2]
    arrays = {{
        "input_ids": np.array([ids]),
        "attention_mask": np.ones((1, seen + len(ids)), np.int64),
        "position_ids": np.arange(seen, seen + len(ids))[None],
    }}
    logits, *present = session.run(None, {{**arrays, **past}})
    past, ids = dict(zip(past, present)), [int(logits[0, -1].argmax())]
    if ids[0] == tokenizer.eos_token_id:
        break
    written += ids
print(tokenizer.decode(written))"""


class Onnx(SingleFile):
    """model.onnx, with config and tokenizer beside it.

    Attributes:
        files: Of each form the files below the folder, the one that is opened first; the float one is the last.
    """

    name = "onnx"
    files: Mapping[str, tuple[str, ...]] = dict.fromkeys((each.own for each in (FLOAT, DYNAMIC, STATIC)), (FILE,))
    packages = ("onnx", "onnxscript", "onnxruntime")
    library = "onnx"
    rounds = "values"
    extra = "onnx"
    writes = True
    """Whether models that write texts can be held, with a cache of keys and values."""

    @property
    def runtime(self) -> str:
        """ONNX Runtime."""
        return f"onnxruntime {version('onnxruntime')}"

    def unfit(self, task: str, config: Mapping[str, Any]) -> str | None:
        """Models that write texts and keep something else than keys and values."""
        if self.writes and registry.task(task).writes:
            return cached.unfit(config)
        return super().unfit(task, config)

    def holds(self, name: str, whole: bool) -> bool:
        """The graph with its weights, and transformers' config."""
        return name in ("config.json", GENERATION) or any(name in each for each in self.files.values())

    def needed(self, whole: bool) -> frozenset[str]:
        """Config, and the file that all forms have."""
        return frozenset({self.files[FLOAT.own][0], "config.json"})

    def head(self, path: Path) -> Head | None:
        """All that is readable: names and metadata."""
        return Head(0, vocabulary=False, text=graph.words(path)) if path.suffix == ".onnx" else None

    def write(self, cell: Cell, form: Form | None, folder: Path, device: torch.device) -> Any:
        """Merges in float32, makes the graph, and rounds it where the form says so."""
        assert form is not None
        base = single.open_float(cell)
        outputs = self.outputs(cell.lock.task)
        writes = registry.task(cell.lock.task).writes
        examples = () if writes else single.made_simple(cell, base)
        if writes:
            base.model.generation_config.save_pretrained(folder)

        def graph_of() -> Any:
            if not writes:
                make = functools.partial(graph.exported, outputs=outputs)
                return single.graph_of(cell, base, examples, "ONNX", make)
            with single.no_graph(base.model, "ONNX"):
                return cached.exported(base.model)

        made = single.once((self.name, cell.folder, outputs), graph_of)
        about, names = single.about(cell, base.tokenizer), self.files[form.own]
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
        if form.own != FLOAT.own:
            fixed = form.own == STATIC.own
            feeds = [single.inputs_of(cell, base, [each])[0] for each in examples] if fixed else None
            graph.quantise(made, folder / names[0], about, feeds, reduce_range=single.saturates(cell.lock.target))
        if form.own == FLOAT.own or len(names) > 1:
            graph.save(made, folder / names[-1], about)
        single.write_beside(cell, base, folder)
        return base.model.to(device)

    def together(self) -> AbstractContextManager[None]:
        """The graph is made once."""
        return single.shared()

    def opened(self, folder: Path) -> Any:
        """A session of ONNX Runtime on the CPU."""
        return _opened(folder, self._file(folder))

    def faults(self, cell: Cell, folder: Path, model: Any) -> Iterator[str]:
        """Weights that are no numbers or not the model's, unknown operators, paths, and what it tells wrongly."""
        for path in sorted(folder.rglob("*.onnx")):
            yield from graph.faults(path, model, single.places(cell))
            yield from single.untold(cell, graph.about(path))

    def outputs(self, task: str) -> tuple[str, ...]:
        """The outputs that are kept, of a task's model."""
        kind = registry.task(task)
        return (kind.file_reads or kind.reads,)

    def _file(self, folder: Path) -> Path:
        """The file of a folder that is opened."""
        names = [name for each in self.files.values() for name in each if len(each) > 1] + [*self.files[FLOAT.own]]
        return next((folder / name for name in names if (folder / name).is_file()), folder / names[-1])

    def operators(self, folder: Path) -> dict[str, int]:
        """By the names of ONNX, those of ONNX Runtime alone with their domain."""
        return graph.operators(self._file(folder))

    def usage(self, cell: Cell) -> str:
        """Lines that need ONNX Runtime and what reads a row."""
        task, name = registry.task(cell.lock.task), self.files[FLOAT.own][0]
        if task.writes:
            prompt, whole = single.prompted(cell, "example")
            said = json.dumps(prompt, ensure_ascii=False) + (", add_special_tokens=False" if whole else "")
            return WRITING.format(file=name, prompt=said)
        imports, example, lines = single.reading(cell)
        return (
            f"import json\n\nimport numpy as np\nimport onnxruntime\n{imports}\n\n"
            f'{example}\n{lines}\n\nsession = onnxruntime.InferenceSession("{name}")\n'
            'labels = json.loads(session.get_modelmeta().custom_metadata_map["hfadapt.labels"])\n'
            "names = [each.name for each in session.get_inputs()]\n"
            f'out = session.run(["{task.file_reads or task.reads}"], {{name: inputs[name] for name in names}})[0][0]\n'
            f"{task.reading}"
        )


# --- running ---------------------------------------------------------------------------------------------------------


def _opened(folder: Path, file: Path) -> Runner | cached.Writer:
    """The file in ONNX Runtime, with the labels that it names itself.

    Raises:
        RunError: ONNX Runtime refuses the file.
    """
    import torch

    session = graph.session(file, torch.get_num_threads())
    config = single.config_of(folder, session.get_modelmeta().custom_metadata_map)
    inputs = {each.name: graph.NUMPY[each.type] for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]

    def run(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return dict(zip(names, graph.run(session, arrays), strict=True))

    past = {
        each.name: (each.shape[1], each.shape[3]) for each in session.get_inputs() if each.name.startswith(cached.PAST)
    }
    if past:
        from transformers import GenerationConfig

        return cached.Writer(run, past, config, GenerationConfig.from_pretrained(folder))
    padding = {"input_ids": getattr(config, "pad_token_id", None) or 0}
    return Runner(run, inputs, config, padding=padding)


KIND: Format = Onnx()
