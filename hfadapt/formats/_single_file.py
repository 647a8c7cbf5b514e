"""What formats share that write a merged model as a file for a runtime of its own: forms, examples, labels, trials."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import HfadaptError, RunError
from hfadapt.formats import Estimate, Form, Format, Runner
from hfadapt.hardware import catalogue
from hfadapt.models.base import BaseRef
from hfadapt.models.facts import ModelFacts, load_config
from hfadapt.models.fold import simplify
from hfadapt.models.load import Base, load_processor, source_of
from hfadapt.models.merge import open_merged

if TYPE_CHECKING:
    import torch

    from hfadapt.modalities import Example
    from hfadapt.recipe.schema import Lock
    from hfadapt.records.stages import Manifest
    from hfadapt.run_folder import Cell

MOST_BYTES = int(1.8 * (1 << 30))
"""One file holds less than 2 GiB."""
SAME = 1e-3
FLOAT, DYNAMIC, STATIC = (Form(name, True, own=name) for name in ("float32", "int8-dynamic", "int8-static"))
EXAMPLE = "example"
SUMS = {"avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}
"""Instruction sets of x86 that sum products of 8 bits in 32, or come with one that does."""
ROWS = 2
"""Of the example from which the graph is made: one row, or one token, would be taken as the only size."""
_shared: dict[Hashable, Any] | None = None


class SingleFile(Format):
    """A format whose runtime reads one file."""

    needs_base = False

    def unfit(self, task: str, config: Mapping[str, Any]) -> str | None:
        """Models that write texts, which need a cache of keys and values."""
        kind = registry.task(task)
        return f"{kind.title} needs a cache of keys and values, which this format has not" if kind.writes else None

    def forms(self, lock: Lock) -> tuple[Form, ...]:
        """Those that its kind of net bears, the fastest first."""
        return self.borne(convolutional(lock))

    def borne(self, convolutional: bool) -> tuple[Form, ...]:
        """Likewise, of a net without attention or another."""
        return (STATIC if convolutional else DYNAMIC, FLOAT)

    def estimates(self, facts: ModelFacts) -> tuple[Estimate, ...]:
        """A byte or four for a weight, and a little for ranges and names."""
        kept = facts.parameters - facts.idle_parameters
        # Small layers of convolutions, with a range for each channel: 1.09 to 1.13 were measured.
        byte = 1.1 if facts.pointwise else 1.05
        return tuple(
            Estimate(form.own, int(kept * 4.02), "float32")
            if form is FLOAT
            else Estimate(form.own, int(kept * byte), "int8")
            for form in self.borne(facts.pointwise)
        )

    def refusal(self, cell: Cell) -> str | None:
        """As `unfit`, and models too large for one file."""
        lock = cell.lock
        if why := self.unfit(lock.task, load_config(BaseRef.of(lock).location).to_dict()):
            return why
        size = sum(path.stat().st_size for path in Path(source_of(BaseRef.of(lock)).path).glob("*.safetensors"))
        return f"a base of {size / (1 << 30):.1f} GiB; one file holds less than 2 GiB" if size > MOST_BYTES else None

    def opened(self, folder: Path) -> Runner:
        """A folder's file in its runtime on the CPU, with the labels that it names itself.

        Raises:
            RunError: the runtime refuses the file.
        """
        raise NotImplementedError

    def reopen(self, cell: Cell, folder: Path, device: torch.device) -> Any:
        """In its runtime."""
        return self.opened(folder)

    def open(self, folder: Path, manifest: Manifest, lock: Lock, device: torch.device) -> Base:
        """The file in its runtime, and the processor beside it."""
        source = source_of(BaseRef.of(lock).at(folder))
        processor = load_processor(source, registry.task(lock.task).modality, lock.data.max_length)
        return Base(source, self.opened(folder), processor, (), (), 0, 0, {})

    def tolerance(self, cell: Cell, form: Form | None) -> float | None:
        """float32 is kept."""
        return SAME if form is None or form.own == FLOAT.own else None

    def tried(self, cell: Cell, folder: Path) -> str | None:
        """What the lines print of a text, or of the file of the first test row."""
        kind = registry.modality_of(cell.lock.task)
        code = self.usage(cell)
        with tempfile.TemporaryDirectory() as place:
            if kind.suffixes:
                path = Path(place) / f"{EXAMPLE}{kind.suffixes[0]}"
                path.write_bytes(bytes(next(iter(cell.read_split("test")))[kind.name]))
                code = code.replace(json.dumps(path.name), json.dumps(str(path)), 1)
            # Without the paths and settings of this process: what a stranger has, and no hfadapt.
            command = [sys.executable, "-I", "-c", code]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(
                "the lines of the README fail", place="README.md", got=done.stderr.strip().splitlines()[-1][:300]
            )
        return done.stdout.strip()


def open_float(cell: Cell) -> Base:
    """The merged model in float32 on the CPU.

    A quantised base as training saw it: the file is float32 or rounded anew, whichever weights it starts from.
    """
    import torch

    packed = registry.quant(cell.lock.quant).quantised
    return open_merged(cell.lock, cell.data.labels, cell.adapter, "float32", torch.device("cpu"), dequantised=packed)


def convolutional(lock: Lock) -> bool:
    """Whether a net has no attention, whose activations have ranges that no fixed 8 bits hold."""
    return not hasattr(load_config(BaseRef.of(lock).location), "num_attention_heads")


def examples_of(cell: Cell, base: Base, count: int) -> Sequence[Example]:
    """Single sequences of the first training rows."""
    lock = cell.lock
    rows = list(islice(cell.read_split("train"), count))
    found: Sequence[Example] = registry.task(lock.task).encode(
        rows, base.tokenizer, max_length=lock.data.max_length, labels=cell.data.labels
    )
    return found[:count]


def inputs_of(cell: Cell, base: Base, examples: Sequence[Example]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the task gives to a base's model for examples: tensors, and other arguments."""
    import torch

    task, given = registry.task(cell.lock.task), {}

    class Listening:
        """A model that remembers what it was asked."""

        def __call__(self, **inputs: Any) -> Any:
            given.update(inputs)
            return base.model(**inputs)

        def __getattr__(self, name: str) -> Any:
            return getattr(base.model, name)

    with torch.inference_mode():
        task.label_logits(Listening(), task.collate(examples, base.pad_token_id))
    tensors = {name: value.clone() for name, value in given.items() if isinstance(value, torch.Tensor)}
    return tensors, {name: value for name, value in given.items() if name not in tensors}


def about(cell: Cell, processor: Any) -> dict[str, str]:
    """What a file says of itself, by name: task, labels (JSON), longest row, and for other values than texts the
    settings of their processor and what it or the model is given beside a value (JSON)."""
    lock = cell.lock
    kind = registry.modality_of(lock.task)
    found = {"task": lock.task, "labels": json.dumps(list(cell.data.labels)), "max_length": str(lock.data.max_length)}
    if not kind.tokens:
        found["preprocessing"] = processor.inner.to_json_string()
        arguments = kind.arguments(load_config(BaseRef.of(lock).location), lock.data.max_length)
        found |= {"arguments": json.dumps(dict(arguments))} if arguments else {}
    return {f"hfadapt.{name}": value for name, value in found.items()}


def untold(cell: Cell, said: Mapping[str, str]) -> Iterator[str]:
    """Where a file does not say of itself what `about` says."""
    lock = cell.lock
    kind = registry.modality_of(lock.task)
    wanted = about(cell, load_processor(source_of(BaseRef.of(lock)), kind.name, lock.data.max_length))
    for name, value in wanted.items():
        if name not in said or not _same(said[name], value):
            yield f"its metadata says {name} = {said.get(name, 'nothing')[:80]}, trained with {value[:80]}"


def _same(one: str, other: str) -> bool:
    """Whether two texts are equal, as JSON where both are."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return one == other


def write_beside(cell: Cell, base: Base, folder: Path) -> None:
    """The config, what reads a row, and the task's own files."""
    base.model.config.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    task = registry.task(cell.lock.task)
    task.write_beside(folder, base.model, base.tokenizer, cell.lock.data.max_length)


def config_of(folder: Path, said: Mapping[str, str]) -> Any:
    """The config beside a file, with the labels that the file names itself.

    Args:
        said: As `about` made it.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    labels = json.loads(said.get("hfadapt.labels", "[]"))
    if labels and config.id2label is not None and len(labels) == config.num_labels:
        config.id2label = dict(enumerate(labels))
    return config


def places(cell: Cell) -> Sequence[str]:
    """Folders of this machine, which no file may name."""
    here = {str(cell.folder.resolve()), os.getcwd(), os.path.expanduser("~"), os.path.dirname(os.__file__)}
    return sorted(here)


def reading(cell: Cell) -> tuple[str, str, str]:
    """Python that imports what makes `inputs` of `example`, that names the example, and that makes them."""
    lock = cell.lock
    kind = registry.modality_of(lock.task)
    arguments = dict(kind.arguments(load_config(BaseRef.of(lock).location), lock.data.max_length))
    example = f'"{EXAMPLE}{kind.suffixes[0]}"  # a file of yours' if kind.suffixes else f'"{EXAMPLE}"'
    lines = kind.reading.format(max_length=lock.data.max_length, arguments=arguments)
    return kind.imports, f"example = {example}", lines


def prompted(cell: Cell, text: str) -> tuple[str, bool]:
    """What a model that writes is given for a text, as in training, and whether special tokens are in it already."""
    lock = cell.lock
    template = lock.template_of(lock.domain)
    if template is not None and template.prompt is not None:
        return template.prompt.replace("{text}", text), False
    if not registry.schema(cell.data.form).chat:
        return text, False
    tokenizer = load_processor(source_of(BaseRef.of(lock)), registry.task(lock.task).modality)
    turns = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)), True


# --- making ----------------------------------------------------------------------------------------------------------


def made_simple(cell: Cell, base: Base) -> Sequence[Example]:
    """Takes out of a merged model what computes nothing, makes its output what a file gives, and returns the first
    training rows, from which ranges are learned."""
    examples = examples_of(cell, base, max(cell.lock.export.calibration_rows, ROWS))
    tensors, options = inputs_of(cell, base, examples[:1])
    simplify(base.model, {**tensors, **options})
    base.model = registry.task(cell.lock.task).for_file(base.model, base.tokenizer)
    return examples


def graph_of(cell: Cell, base: Base, examples: Sequence[Example], what: str, make: Callable[..., Any]) -> Any:
    """A graph for any number of rows, and of tokens where rows differ in length.

    Args:
        what: Whose graph it is.
        make: Gets the model, an example (tensors, and other arguments, which become part of the graph), and for each
            input the names of its free axes, by number.

    Raises:
        RunError: torch or transformers cannot make a graph of this architecture.
    """
    one_size = registry.modality_of(cell.lock.task).one_size
    tensors, options = inputs_of(cell, base, sorted(examples, key=lambda example: -example.size)[:ROWS])
    shapes: dict[str, Any] = {
        name: {0: "batch"} if one_size or value.ndim != 2 else {0: "batch", 1: "length"}
        for name, value in tensors.items()
    }
    with no_graph(base.model, what):
        return make(base.model, {**tensors, **options}, {**shapes, **dict.fromkeys(options)})


@contextlib.contextmanager
def no_graph(model: Any, what: str = "") -> Iterator[None]:
    """Raises RunError where exporters, whose errors are of every kind, cannot make a graph of an architecture."""
    try:
        yield
    except HfadaptError:
        raise
    except Exception as error:
        raise RunError(
            f"no {what} graph can be made of this model" if what else "no graph can be made of this model",
            place=type(model).__name__,
            got=f"{type(error).__name__}: {' '.join(str(error).split())}"[:400],
            fix="export it as merged, which every tool of transformers reads",
        ) from error


def saturates(target: str) -> bool:
    """Whether sums of 8-bit products may overflow 16 bits, as on x86 before VNNI: on a target, or here, where files are
    judged."""
    return any(
        machine.architecture.lower() in ("x86_64", "amd64") and not SUMS & set(machine.features)
        for machine in (catalogue.target(target), catalogue.target(catalogue.THIS_MACHINE))
    )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the progress that exporters print and the versions that they warn of."""
    before = {
        name: logging.getLogger(name).level for name in ("transformers", "torch.onnx", "torch.export", "root", "")
    }
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in before:
                logging.getLogger(name).setLevel(logging.ERROR)
            try:
                yield
            finally:
                for name, level in before.items():
                    logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Inside, a graph that `once` was asked for is kept."""
    global _shared
    before, _shared = _shared, {} if _shared is None else _shared
    try:
        yield
    finally:
        _shared = before


def once(name: Hashable, make: Callable[[], Any]) -> Any:
    """The graph of this name, where it was made before in the same `shared`; else it is made."""
    if _shared is None:
        return make()
    if name not in _shared:
        _shared[name] = make()
    return _shared[name]
