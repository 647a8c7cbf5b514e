"""One ONNX file for ONNX Runtime: float32, or with matrices in 8 bits; batch and length are free.

Its packages: `pip install "hfadapt[onnx]"`.

transformers' own exporter writes the graph of the merged model, and ONNX Runtime's tools round it. `int8-dynamic`
rounds weights now and activations as they come, which transformers bear; `int8-static` also fixes the ranges of
activations, from training rows, which only convolutional nets bear. Labels and how rows are read travel in the
file's metadata.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.formats import Estimate, Form, Format, Head, Runner
from hfadapt.formats import _onnx_graph as graph
from hfadapt.hardware import catalogue
from hfadapt.models.base import BaseRef
from hfadapt.models.facts import ModelFacts, load_config
from hfadapt.models.load import Base, load_processor, source_of
from hfadapt.models.merge import open_merged

if TYPE_CHECKING:
    import torch

    from hfadapt.modalities import Example
    from hfadapt.recipe.schema import Lock
    from hfadapt.records.stages import Manifest
    from hfadapt.run_folder import Cell

FILE = "model.onnx"
MOST_BYTES = int(1.8 * (1 << 30))
"""One file holds less than 2 GiB."""
SAME = 1e-3
FLOAT, DYNAMIC, STATIC = (Form(name, True, own=name) for name in ("float32", "int8-dynamic", "int8-static"))
EXAMPLE = "example"
SUMS = {"avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}
"""Instruction sets of x86 that sum products of 8 bits in 32, or come with one that does."""
ROWS = 2
"""Of the example from which the graph is made: one row, or one token, would be taken as the only size."""


class Onnx(Format):
    """model.onnx, with config and tokenizer beside it.

    Attributes:
        files: Of each form the files below the folder, the one that is opened first; the float one is the last.
    """

    name = "onnx"
    needs_base = False
    files: Mapping[str, tuple[str, ...]] = dict.fromkeys((each.own for each in (FLOAT, DYNAMIC, STATIC)), (FILE,))
    packages = ("onnx", "onnxscript", "onnxruntime")
    library = "onnx"
    extra = "onnx"

    @property
    def runtime(self) -> str:
        """ONNX Runtime."""
        return f"onnxruntime {version('onnxruntime')}"

    def unfit(self, task: str, config: Mapping[str, Any]) -> str | None:
        """Models that write texts, which need a cache of keys and values."""
        kind = registry.task(task)
        return f"{kind.title} needs a cache of keys and values, which this format has not" if kind.writes else None

    def estimates(self, facts: ModelFacts) -> tuple[Estimate, ...]:
        """A byte or four for a weight, and a little for ranges and names."""
        rounded = STATIC if facts.pointwise else DYNAMIC
        return (
            Estimate(rounded.own, int(facts.parameters * 1.05), "int8"),
            Estimate(FLOAT.own, int(facts.parameters * 4.02), "float32"),
        )

    def forms(self, lock: Lock) -> tuple[Form, ...]:
        """The smallest that its kind of net bears, then float32."""
        return (STATIC if _convolutional(lock) else DYNAMIC, FLOAT)

    def refusal(self, cell: Cell) -> str | None:
        """As `unfit`, and models too large for one file."""
        lock = cell.lock
        if why := self.unfit(lock.task, load_config(BaseRef.of(lock).location).to_dict()):
            return why
        size = sum(path.stat().st_size for path in Path(source_of(BaseRef.of(lock)).path).glob("*.safetensors"))
        return f"a base of {size / (1 << 30):.1f} GiB; one file holds less than 2 GiB" if size > MOST_BYTES else None

    def holds(self, name: str, whole: bool) -> bool:
        """The graph with its weights, and transformers' config."""
        return name == "config.json" or any(name in each for each in self.files.values())

    def needed(self, whole: bool) -> frozenset[str]:
        """Config, and the file that all forms have."""
        return frozenset({self.files[FLOAT.own][0], "config.json"})

    def head(self, path: Path) -> Head | None:
        """All that is readable: names and metadata."""
        return Head(0, vocabulary=False, text=graph.words(path)) if path.suffix == ".onnx" else None

    def write(self, cell: Cell, form: Form | None, folder: Path, device: torch.device) -> Any:
        """Merges in float32, makes the graph, and rounds it where the form says so."""
        import torch

        assert form is not None
        cpu = torch.device("cpu")
        # A quantised base as training saw it: the file is float32 or rounded anew, whichever weights it starts from.
        packed = registry.quant(cell.lock.quant).quantised
        base = open_merged(cell.lock, cell.data.labels, cell.adapter, "float32", cpu, dequantised=packed)
        examples = _examples(cell, base, "train", cell.lock.export.calibration_rows)
        made = _exported(cell, base, examples)
        about, names = _about(cell, base.tokenizer), self.files[form.own]
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
        if form.own != FLOAT.own:
            fixed = form.own == STATIC.own
            feeds = [_inputs(cell, base.model, [each], base.pad_token_id)[0] for each in examples] if fixed else None
            graph.quantise(made, folder / names[0], about, feeds, reduce_range=saturates(cell.lock.target))
        if form.own == FLOAT.own or len(names) > 1:
            graph.save(made, folder / names[-1], about)
        base.model.config.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        width = int(base.model.config.get_text_config().hidden_size) if registry.task(cell.lock.task).files else 0
        registry.task(cell.lock.task).write_beside(folder, base.tokenizer, cell.lock.data.max_length, width)
        return base.model.to(device)

    def tolerance(self, cell: Cell, form: Form | None) -> float | None:
        """float32 is kept."""
        return SAME if form is None or form.own == FLOAT.own else None

    def reopen(self, cell: Cell, folder: Path, device: torch.device) -> Any:
        """A session of ONNX Runtime on the CPU."""
        return _opened(folder, self._file(folder))

    def faults(self, cell: Cell, folder: Path, model: Any) -> Iterator[str]:
        """Weights that are no numbers or not the model's, operators that ONNX Runtime lacks, and paths."""
        here = {str(cell.folder.resolve()), os.getcwd(), os.path.expanduser("~"), os.path.dirname(os.__file__)}
        for path in sorted(folder.rglob("*.onnx")):
            yield from graph.faults(path, model, sorted(here))

    def _file(self, folder: Path) -> Path:
        """The file of a folder that is opened."""
        names = [name for each in self.files.values() for name in each if len(each) > 1] + [*self.files[FLOAT.own]]
        return next((folder / name for name in names if (folder / name).is_file()), folder / names[-1])

    def operators(self, folder: Path) -> dict[str, int]:
        """By the names of ONNX, those of ONNX Runtime alone with their domain."""
        return graph.operators(self._file(folder))

    def open(self, folder: Path, manifest: Manifest, lock: Lock, device: torch.device) -> Base:
        """A session, and the processor beside the file."""
        ref = BaseRef.of(lock).at(folder)
        source = source_of(ref)
        task = registry.task(lock.task)
        model = _opened(folder, self._file(folder))
        processor = load_processor(source, task.modality, lock.data.max_length)
        return Base(source, model, processor, (), (), 0, 0, {})

    def usage(self, cell: Cell) -> str:
        """Lines that need ONNX Runtime and what reads a row."""
        task, name = registry.task(cell.lock.task), self.files[FLOAT.own][0]
        kind = registry.modality(task.modality)
        config = load_config(BaseRef.of(cell.lock).location)
        arguments = dict(kind.arguments(config, cell.lock.data.max_length))
        reading = kind.reading.format(max_length=cell.lock.data.max_length, arguments=arguments)
        example = f'"{EXAMPLE}{kind.suffixes[0]}"  # a file of yours' if kind.suffixes else f'"{EXAMPLE}"'
        return (
            f"import json\n\nimport numpy as np\nimport onnxruntime\n{kind.imports}\n\n"
            f'example = {example}\n{reading}\n\nsession = onnxruntime.InferenceSession("{name}")\n'
            'labels = json.loads(session.get_modelmeta().custom_metadata_map["hfadapt.labels"])\n'
            "names = [each.name for each in session.get_inputs()]\n"
            "out = session.run(None, {name: inputs[name] for name in names})[0][0]\n"
            f"{task.reading}"
        )

    def tried(self, cell: Cell, folder: Path) -> str | None:
        """What the lines print of a text, or of the file of the first test row."""
        kind = registry.modality(registry.task(cell.lock.task).modality)
        code = self.usage(cell)
        with tempfile.TemporaryDirectory() as place:
            if kind.suffixes:
                path = Path(place) / f"{EXAMPLE}{kind.suffixes[0]}"
                path.write_bytes(next(iter(cell.read_split("test")))[kind.name])
                code = code.replace(json.dumps(path.name), json.dumps(str(path)), 1)
            # Without the paths and settings of this process: what a stranger has, and no hfadapt.
            command = [sys.executable, "-I", "-c", code]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(
                "the lines of the README fail", place="README.md", got=done.stderr.strip().splitlines()[-1][:300]
            )
        return done.stdout.strip()


# --- writing ---------------------------------------------------------------------------------------------------------


def _convolutional(lock: Lock) -> bool:
    """Whether a net has no attention, whose activations have ranges that no fixed 8 bits hold."""
    return not hasattr(load_config(BaseRef.of(lock).location), "num_attention_heads")


def saturates(target: str) -> bool:
    """Whether sums of 8-bit products may overflow 16 bits on a target: x86 before VNNI."""
    machine = catalogue.target(target)
    x86 = machine.architecture.lower() in ("x86_64", "amd64")
    return x86 and not SUMS & set(machine.features)


def _examples(cell: Cell, base: Base, split: str, count: int) -> Sequence[Example]:
    """Single sequences of the first rows of a split, at least `ROWS`."""
    from itertools import islice

    rows = list(islice(cell.read_split(split), max(count, ROWS)))
    lock = cell.lock
    found = registry.task(lock.task).encode(
        rows, base.tokenizer, max_length=lock.data.max_length, labels=cell.data.labels
    )
    return found[:count] if count >= ROWS else found[:ROWS]


def _inputs(cell: Cell, model: Any, examples: Sequence[Example], pad: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the task gives to a model for examples: tensors, and other arguments."""
    import torch

    task, given = registry.task(cell.lock.task), {}

    class Listening:
        """A model that remembers what it was asked."""

        def __call__(self, **inputs: Any) -> Any:
            given.update(inputs)
            return model(**inputs)

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

    with torch.inference_mode():
        task.label_logits(Listening(), task.collate(examples, pad))
    tensors = {name: value.clone() for name, value in given.items() if isinstance(value, torch.Tensor)}
    return tensors, {name: value for name, value in given.items() if name not in tensors}


def _exported(cell: Cell, base: Base, examples: Sequence[Example]) -> Any:
    """The graph as an `onnx.ModelProto`, with the task's output alone.

    Raises:
        RunError: torch or transformers cannot make a graph of this architecture.
    """
    task = registry.task(cell.lock.task)
    order = sorted(examples, key=lambda example: -example.size)
    tensors, options = _inputs(cell, base.model, order[:ROWS], base.pad_token_id)
    shapes: dict[str, Any] = {
        name: _free_axes(value, registry.modality(task.modality).one_size) for name, value in tensors.items()
    }
    for name, value in options.items():
        shapes[name] = None
        tensors[name] = value
    try:
        return graph.exported(base.model, tensors, shapes, task.reads)
    except Exception as error:
        # The exporters raise errors of every kind.
        raise RunError(
            "no ONNX graph can be made of this model",
            place=type(base.model).__name__,
            got=f"{type(error).__name__}: {' '.join(str(error).split())}"[:400],
            fix="export it as merged, which every tool of transformers reads",
        ) from error


def _free_axes(value: Any, one_size: bool) -> dict[int, str]:
    """The axes of any size: rows, and tokens where rows differ in length."""
    return {0: "batch"} if one_size or value.ndim != 2 else {0: "batch", 1: "length"}


def _about(cell: Cell, processor: Any) -> dict[str, str]:
    """What the file says of itself."""
    lock = cell.lock
    kind = registry.modality(registry.task(lock.task).modality)
    found = {"task": lock.task, "labels": json.dumps(list(cell.data.labels)), "max_length": str(lock.data.max_length)}
    if not kind.tokens:
        found["preprocessing"] = processor.inner.to_json_string()
    return {f"hfadapt.{name}": value for name, value in found.items()}


# --- running ---------------------------------------------------------------------------------------------------------


def _opened(folder: Path, file: Path) -> Runner:
    """The file in ONNX Runtime, with the labels that it names itself.

    Raises:
        RunError: ONNX Runtime refuses the file.
    """
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    session = graph.session(file, torch.get_num_threads())
    said = session.get_modelmeta().custom_metadata_map
    labels = json.loads(said.get("hfadapt.labels", "[]"))
    if labels and config.id2label is not None and len(labels) == config.num_labels:
        config.id2label = dict(enumerate(labels))
    inputs = {each.name: graph.NUMPY[each.type] for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]

    def run(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return dict(zip(names, graph.run(session, arrays), strict=True))

    padding = {"input_ids": getattr(config, "pad_token_id", None) or 0}
    return Runner(run, inputs, config, padding=padding)


KIND: Format = Onnx()
