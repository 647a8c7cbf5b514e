"""OpenVINO graphs: made, rounded, looked at, and opened in OpenVINO's runtime."""

from __future__ import annotations

import collections
import importlib
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RunError
from hfadapt.formats import _weights
from hfadapt.formats._single_file import quietly
from hfadapt.formats._weights import Weights

if TYPE_CHECKING:
    import numpy as np

OWN = "hfadapt"
"""Under which name the graph tells of itself, among what other tools say of it."""
RANGE = "FakeQuantize"
"""The operator that rounds activations to a fixed range."""
HALF_SCALE = 1 + 128 / 2**12
"""By how much wider than its step a number of 8 bits may be off where the scale is held in 16."""
IN_FILE = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""A setting in the file: without it some processors round activations as they come, and answer in another way than the
file that was judged."""
IN_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
"""A setting of who opens the file, since OpenVINO does not take it from there: without it processors that have products
of bfloat16 compute in it."""


def library(name: str) -> Any:
    """OpenVINO, or a package of its makers. Both report their use where openvino_telemetry is found; hfadapt reports
    nothing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    with quietly():
        found = importlib.import_module(name)
    if name == "nncf":
        found.set_log_level("ERROR")
    return found


def exported(model: Any, inputs: dict[str, Any], shapes: Mapping[str, Any], output: str) -> Any:
    """The graph of a model as an `openvino.Model`.

    Args:
        inputs: An example: tensors, and other arguments, which become part of the graph.
        shapes: For each input its free axes, by number.
        output: The one that is kept.
    """
    library("openvino")
    import torch
    from transformers.exporters.exporter_openvino import OpenVINOConfig, OpenVINOExporter

    free = {name: axes and dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name, axes in shapes.items()}
    with quietly(), torch.no_grad():
        made = OpenVINOExporter().export(model, inputs, config=OpenVINOConfig(dynamic_shapes=free)).program
    for each in list(made.get_parameters()):
        # Other arguments are in the graph already, but still asked for.
        if not isinstance(inputs[each.get_friendly_name()], torch.Tensor) and not each.output(0).get_target_inputs():
            made.remove_parameter(each)
    names = [each.get_any_name() for each in made.outputs]
    if output not in names:
        raise ValueError(f"the graph has no output {output}, but {', '.join(names)}")
    for each in list(made.outputs):
        if output not in each.get_names():
            made.remove_result(each.get_node())
    return made


def with_small_weights(model: Any) -> Any:
    """A copy whose matrices and embeddings are held in 8 bits, one scale for each row; it computes in float32."""
    nncf = library("nncf")
    with quietly():
        return nncf.compress_weights(model.clone(), mode=nncf.CompressWeightsMode.INT8_SYM)


def with_fixed_ranges(
    model: Any, rows: Sequence[Mapping[str, np.ndarray]], *, attention: bool, reduce_range: bool
) -> Any:
    """A copy that computes in 8 bits.

    Args:
        rows: Inputs from which the ranges of activations are learned.
        attention: Whether large activations of few features are moved into the weights, as transformers need it.
        reduce_range: Weights of 7 bits, for processors on which the sums of full ones overflow.
    """
    nncf = library("nncf")
    fix = nncf.OverflowFix.ENABLE if reduce_range else nncf.OverflowFix.DISABLE
    names = [each.get_any_name() for each in model.inputs]
    fed = [{name: row[name] for name in names} for row in rows]
    with quietly():
        return nncf.quantize(
            model.clone(), nncf.Dataset(fed), subset_size=len(fed),
            model_type=nncf.ModelType.TRANSFORMER if attention else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
        )  # fmt: skip


def save(model: Any, path: Path, about: Mapping[str, str]) -> None:
    """Writes a graph and, beside it, its weights, with what it says of itself."""
    openvino = library("openvino")
    for name, value in about.items():
        model.set_rt_info(value, [OWN, name.removeprefix(f"{OWN}.")])
    for name, value in IN_FILE.items():
        model.set_rt_info(value, ["runtime_options", name])
    openvino.save_model(model, str(path), compress_to_fp16=False)


# --- running ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> Any:
    """A file as an `openvino.Model`.

    Raises:
        RunError: OpenVINO refuses it.
    """
    try:
        return library("openvino").Core().read_model(str(path))
    except Exception as error:
        # Of several kinds; the message repeats the path and places in OpenVINO's source.
        said = " ".join(str(error).replace(str(path), path.name).split())[-300:]
        raise RunError("OpenVINO cannot open the file", place=path.name, got=said) from None


def runner(model: Any, threads: int) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Runs batches of a graph on the CPU: arrays in and out, by name.

    Raises:
        RunError: OpenVINO cannot run it.
    """
    settings = {**IN_FLOAT32, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    try:
        request = library("openvino").Core().compile_model(model, "CPU", settings).create_infer_request()
    except Exception as error:
        raise RunError("OpenVINO cannot run the file", got=" ".join(str(error).split())[-300:]) from None

    alone = threading.Lock()

    def run(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            # One for each thread that asks would hold memory of its own.
            with alone:
                found = request.infer(dict(arrays))
        except Exception as error:
            said = " ".join(str(error).split())[-300:]
            raise RunError("OpenVINO does not take these rows", got=said) from None
        rows = len(next(iter(arrays.values())))
        if fewer := [len(value) for value in found.values() if len(value) != rows]:
            # Where a graph is for one length, some others are answered with nothing.
            raise RunError("OpenVINO does not take these rows", got=f"{fewer[0]} answers to {rows} rows")
        return {port.get_any_name(): value for port, value in found.items()}

    return run


def inputs(model: Any) -> dict[str, str]:
    """Names of what a graph takes, with numpy's name of their type."""
    return {each.get_any_name(): each.get_element_type().to_dtype().name for each in model.inputs}


# --- looking ---------------------------------------------------------------------------------------------------------


def about(model: Any) -> dict[str, str]:
    """What a file says of itself, by name."""
    if not model.has_rt_info(OWN):
        return {}
    said = model.get_rt_info([OWN]).value.items()
    return {f"{OWN}.{name}": str(getattr(value, "value", value)) for name, value in said}


def operators(model: Any) -> dict[str, int]:
    """How often each operator stands in a graph, the most frequent first; numbers, inputs and outputs are none."""
    found = (each.get_type_name() for each in model.get_ordered_ops())
    left_out = ("Constant", "Parameter", "Result")
    return dict(collections.Counter(each for each in found if each not in left_out).most_common())


def faults(path: Path, model: Any, places: Sequence[str]) -> Iterator[str]:
    """What is wrong with a file without running it.

    Args:
        model: Of torch, on the CPU; each matrix of the file has to be one of its.
        places: Folders that the file must not name.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    if any(place in text for place in places if len(place) > 4) or re.search(r'File "[^"]+", line', text):
        yield "its metadata names folders of this machine"
    yield from _weights.faults(weights(read(path)), model)


def weights(model: Any) -> Iterator[tuple[str, Weights]]:
    """Names and values of the constant numbers of a graph that are weights, rounded to integers or not.

    What is rounded stands as integers, converted to float, less the zero and times the scale of each row.
    """
    import numpy as np

    scales, plain = set(), []
    for each in model.get_ordered_ops():
        if each.get_type_name() != "Constant":
            continue
        kind = each.get_element_type()
        if kind.is_real():
            plain.append(each)
        elif kind.size == 1 and (steps := _unrounded_by(each)):
            values, step = each.data.astype(np.float32), np.ones(1, dtype=np.float32)
            for name, number, given in steps:
                scales.add(given.get_friendly_name())
                if name == "Subtract":
                    values = values - number
                else:
                    wider = HALF_SCALE if given.get_element_type().bitwidth == 16 else 1.0
                    values, step = values * number, step * np.abs(number) * wider
            yield each.get_friendly_name(), Weights(values, step)
    for each in plain:
        if each.get_friendly_name() not in scales:
            yield each.get_friendly_name(), Weights(each.data.astype(np.float32), np.zeros(1, dtype=np.float32))


def _unrounded_by(constant: Any) -> list[tuple[str, np.ndarray, Any]]:
    """What is done to integers that stand for weights: operator, number, and the constant that it is."""
    found: list[tuple[str, np.ndarray, Any]] = []
    at = constant
    while True:
        users = list(at.output(0).get_target_inputs())
        if len(users) != 1:
            return found
        at = users[0].get_node()
        if at.get_type_name() in ("Subtract", "Multiply"):
            given = at.input_value(1).get_node()
            given = given.input_value(0).get_node() if given.get_type_name() == "Convert" else given
            if given.get_type_name() != "Constant":
                return found
            found.append((at.get_type_name(), given.data.astype("float32"), given))
        elif at.get_type_name() != "Convert":
            return found
