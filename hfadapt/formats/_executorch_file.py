"""ExecuTorch programs: made, rounded, looked at, and opened in ExecuTorch's runtime.

An example is a row (1, …); free axes have names, and each an end up to which the program plans its memory.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RunError
from hfadapt.formats._single_file import FLOAT, STATIC, quietly

if TYPE_CHECKING:
    import torch

OWN = "hfadapt."
"""How methods are called that give nothing but what a program says of itself."""
FORWARD, INPUTS = "forward", "hfadapt.inputs"
TYPES = {3: "int32", 4: "int64", 6: "float32", 11: "bool"}
"""numpy's names of torch's scalar types."""
INT8 = 127
HEADER = slice(8, 12), slice(16, 24)
"""Where a file says that a header follows, and in that how long the graph is that stands before the weights."""


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what ExecuTorch's C++ reports of the processor, and its packages of others: it goes past Python."""
    with quietly(), open(os.devnull, "wb") as nothing:
        kept = os.dup(2)
        try:
            os.dup2(nothing.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@functools.cache
def library(name: str) -> Any:
    """A module of ExecuTorch.

    Raises:
        RunError: it cannot be loaded; its binaries fit few versions of torch.
    """
    try:
        with silent():
            return importlib.import_module(f"executorch.{name}")
    except (ImportError, OSError) as error:
        from importlib.metadata import version

        raise RunError(
            "ExecuTorch cannot be loaded",
            place=f"executorch {version('executorch')}, torch {version('torch')}",
            got=" ".join(str(error).split())[:300],
            fix='pip install "hfadapt[executorch]", into an environment with the torch that its notes name',
        ) from error


# --- making ----------------------------------------------------------------------------------------------------------


def lowered(
    model: torch.nn.Module,
    rows: Sequence[Mapping[str, torch.Tensor]],
    free: Mapping[str, Mapping[int, tuple[str, int]]],
    form: str,
    about: Mapping[str, str],
) -> bytes:
    """A program for XNNPACK, with ExecuTorch's own operators where that has none.

    Args:
        model: Takes the values of a row in their order and gives one tensor.
        rows: An example, and further ones from which ranges are learned.
        free: Of each input the axes of free size: their name and the largest size.
        form: Name of a form; embeddings are rounded in the model itself, by `round_embeddings`.
        about: What the program says of itself.
    """
    import torch

    lower = library("exir").to_edge_transform_and_lower
    partitioner = library("backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner
    example = tuple(rows[0].values())
    dims = {name: torch.export.Dim(name, min=1, max=end) for axes in free.values() for name, end in axes.values()}
    shapes = tuple({axis: dims[each] for axis, (each, _) in free[name].items()} for name in rows[0])
    said = {**about, INPUTS: json.dumps(list(rows[0]))}
    with silent(), torch.no_grad():
        program = torch.export.export(model.eval(), example, dynamic_shapes=(shapes,))
        if form != FLOAT.own:
            rounded = _rounded(program.module(), [tuple(row.values()) for row in rows], form == STATIC.own)
            program = torch.export.export(rounded, example, dynamic_shapes=shapes)
        edge = lower(program, partitioner=[partitioner()], constant_methods=said)
        return bytes(edge.to_executorch().buffer)


def _rounded(graph: Any, rows: Sequence[tuple[torch.Tensor, ...]], fixed: bool) -> Any:
    """A graph with 8 bits: everything, by ranges that rows show, or linear layers alone, by ranges as they come."""
    import torch

    own = library("backends.xnnpack.quantizer.xnnpack_quantizer")
    steps = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")

    class Linear(own.XNNPACKQuantizer):  # type: ignore[name-defined]
        """Leaves numbers as they are, which it would make floats of: some are added to indices."""

        def transform_for_annotation(self, model: Any) -> Any:
            return model

    settings = own.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=not fixed)
    if fixed:
        quantiser = own.XNNPACKQuantizer().set_global(settings)
    else:
        quantiser = Linear().set_operator_type(torch.ops.aten.linear.default, settings)
    prepared = steps.prepare_pt2e(graph, quantiser)
    for row in rows if fixed else rows[:1]:
        prepared(*row)
    return steps.convert_pt2e(prepared)


def round_embeddings(model: torch.nn.Module) -> None:
    """Holds the tables of a model in 8 bits, in place, a step for each row."""
    import torch

    library("exir.passes._quant_patterns_and_replacements")  # which says what the operator does
    look_up = torch.ops.quantized_decomposed.embedding_byte.dtype

    class Table(torch.nn.Module):
        """Rows of 8 bits (V, D) and their steps (V,)."""

        def __init__(self, whole: torch.nn.Embedding) -> None:
            super().__init__()
            # Code of models asks for its size, as of any table.
            self.num_embeddings, self.embedding_dim = whole.num_embeddings, whole.embedding_dim
            self.padding_idx, weight = whole.padding_idx, whole.weight.detach()
            steps = (weight.abs().amax(1) / INT8).clamp(min=torch.finfo(torch.float32).tiny)
            self.register_buffer("rows", (weight / steps[:, None]).round().to(torch.int8))
            self.register_buffer("steps", steps)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = look_up(self.rows, self.steps, None, -INT8 - 1, INT8, ids, dtype=torch.float32)
            return found

    for path, each in list(model.named_modules()):
        # What looks up in another way, as positions that begin at an offset, stays as it is.
        if isinstance(each, torch.nn.Embedding) and type(each).forward is torch.nn.Embedding.forward:
            model.set_submodule(path, Table(each))


# --- running ---------------------------------------------------------------------------------------------------------


class Opened:
    """A program in ExecuTorch's runtime on the CPU, with as many threads as torch has.

    Args:
        path: The file.

    Raises:
        RunError: ExecuTorch refuses it.
    """

    def __init__(self, path: Path) -> None:
        import torch

        runtime, bindings = library("runtime"), library("extension.pybindings.portable_lib")
        library("kernels.quantized")
        try:
            with silent():
                bindings._unsafe_reset_threadpool(torch.get_num_threads())
                self._program = runtime.Runtime.get().load_program(path)
                self._method = self._program.load_method(FORWARD)
                self.about = {name: self._said(name) for name in self._program.method_names if name.startswith(OWN)}
                self._names = tuple(json.loads(self.about[INPUTS]))
        except (RuntimeError, KeyError, ValueError) as error:
            raise RunError("ExecuTorch cannot open the file", place=path.name, got=_short(error)) from None
        meta = self._method.metadata
        tensors = [meta.input_tensor_meta(at) for at in range(meta.num_inputs())]
        self.inputs = {name: TYPES[each.dtype()] for name, each in zip(self._names, tensors, strict=True)}
        self.shapes = {name: tuple(each.sizes()) for name, each in zip(self._names, tensors, strict=True)}
        """The largest that it takes."""
        self.answers = tuple(meta.output_tensor_meta(0).sizes())
        self._alone = threading.Lock()

    def _said(self, name: str) -> str:
        return str(self._program.load_method(name).execute([])[0])

    def runner(self, output: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Runs single rows: arrays in and, by the name that the output is given, out."""
        import torch

        def run(arrays: Mapping[str, Any]) -> dict[str, Any]:
            for name, most in self.shapes.items():
                if len(most) > 1 and arrays[name].shape[1] > most[1]:
                    raise RunError(
                        "a row is longer than the file takes", got=str(arrays[name].shape[1]), allowed=str(most[1])
                    )
            given = [torch.from_numpy(arrays[name].copy()) for name in self._names]
            try:
                # One that asks would write where another is read.
                with self._alone:
                    found = self._method.execute(given)[0].numpy().copy()
            except RuntimeError as error:
                raise RunError("ExecuTorch does not take these rows", got=_short(error)) from None
            return {output: found}

        return run


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def words(path: Path) -> str:
    """What can be read in a file, before its weights."""
    content = path.read_bytes()
    marked, size = HEADER
    end = int.from_bytes(content[size], "little") if content[marked].startswith(b"eh") else len(content)
    return "\n".join(each.decode(errors="replace") for each in re.findall(rb"[^\x00-\x1f]{4,}", content[:end]))
