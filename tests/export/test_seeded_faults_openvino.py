"""Faults that are put into OpenVINO graphs on purpose, as test_seeded_faults.py does it with ONNX: all are refused."""

from __future__ import annotations

import functools
import json
import os

import numpy as np
import pytest
import seeded
from seeded import (
    NAMED,
    READ,
    SCORES,
    cells,
    cut_off,
    in_json,
    lowercase,
    of_texts,
    other_adapter,
    other_pooling,
    prepared,
    refusal,
    swapped_ids,
    swapped_words,
    unmerged,
    with_first,
    written,
)

from hfadapt.formats import _openvino_graph as graph
from hfadapt.formats.openvino import FILE, WEIGHTS

openvino = pytest.importorskip("openvino")
__all__ = ["cells", "written"]
SMALL, STATIC = "int8-weights", "int8-static"
Fault = functools.partial(seeded.Fault, format="openvino")


def in_graph(change):
    """A change of the graph as one of the folder."""

    def after(folder):
        made = graph.read(folder / FILE)
        made = change(made) or made
        # What is read lies in the file that is written.
        openvino.save_model(made, folder / "new.xml", compress_to_fp16=False)
        (folder / "new.xml").replace(folder / FILE)
        (folder / "new.bin").replace(folder / WEIGHTS)

    return after


def constants(made, shape):
    """Numbers of a shape, in the order in which they are needed."""
    found = [each for each in made.get_ordered_ops() if each.get_type_name() == "Constant"]
    found = [each for each in found if list(each.get_output_shape(0)) == shape]
    assert found
    return found


def put(constant, values):
    """Other numbers in the place of a constant's."""
    new = openvino.opset13.constant(np.ascontiguousarray(values.astype(constant.data.dtype)))
    new.set_friendly_name(constant.get_friendly_name())
    for each in list(constant.output(0).get_target_inputs()):
        each.replace_source_output(new.output(0))


def replaced(shape, change):
    """Other numbers in the place of the last constant of a shape."""

    @in_graph
    def after(made):
        constant = constants(made, shape)[-1]
        put(constant, change(constant.data.copy()))

    return after


def said(name, value):
    """Another word of the file about itself."""

    @in_graph
    def after(made):
        assert made.get_rt_info([graph.OWN, name]).value != value
        made.set_rt_info(value, [graph.OWN, name])

    return after


@in_graph
def swapped_layers(made):
    matrices = constants(made, [64, 64])
    one, other = matrices[0].data.copy(), matrices[len(matrices) // 2].data.copy()
    put(matrices[0], other)
    put(matrices[len(matrices) // 2], one)


@in_graph
def other_node(made):
    """The output is another tensor of the same shape."""
    (result,) = made.get_results()
    before = result.input_value(0)
    softmax = openvino.opset13.softmax(before, -1)
    softmax.output(0).set_names(before.get_names())
    before.set_names({"inner"})
    result.input(0).replace_source_output(softmax.output(0))


def fixed(axis, size):
    """A graph for one size only."""

    @in_graph
    def after(made):
        shapes = {each: each.get_partial_shape() for each in made.inputs}
        for shape in shapes.values():
            shape[axis] = size
        made.reshape(shapes)

    return after


def in_text(old, new):
    def after(folder):
        text = (folder / FILE).read_text()
        assert old in text
        (folder / FILE).write_text(text.replace(old, new, 1))

    return after


def saturated(monkeypatch, cells):
    """One weight of a matrix is 10,000 times what it is, and all others of its row become nothing beside it."""
    plain = graph.with_small_weights

    def rounded(model):
        model = model.clone()
        constant = constants(model, [128, 64])[0]
        put(constant, constant.data * np.where(np.arange(64) == 0, 1e4, 1))
        return plain(model)

    monkeypatch.setattr(graph, "with_small_weights", rounded)


def constant_rows(monkeypatch, cells):
    """Ranges of activations are learned from grey pictures."""
    plain = graph.with_fixed_ranges
    monkeypatch.setattr(
        graph,
        "with_fixed_ranges",
        lambda model, rows, **named: plain(
            model, [{name: np.zeros_like(value) for name, value in row.items()} for row in rows], **named
        ),
    )


HERE = os.path.dirname(os.__file__)
FAULTS = {
    "labels in another order": Fault(NAMED, said("labels", json.dumps(["good", "bad"]))),
    "ids of labels exchanged beside the file": Fault(NAMED, in_json("config.json", swapped_ids), slow=True),
    "adapter not merged": Fault("nats per label, the limit is", before=unmerged, slow=True),
    "adapter of another domain": Fault("accuracy is worse by", before=other_adapter, slow=True),
    "NaN": Fault("hold NaN or Inf", replaced([2, 64], with_first(np.nan))),
    "Inf": Fault("hold NaN or Inf", replaced([64, 64], with_first(np.inf)), slow=True),
    "denormal numbers": Fault(
        "are denormal numbers", replaced([128, 64], lambda value: np.full_like(value, 1e-40)), slow=True
    ),
    "layers exchanged": Fault(SCORES, swapped_layers),
    "output of another node": Fault(SCORES, other_node, slow=True),
    "length too short": Fault("OpenVINO does not take these rows", fixed(1, 4)),
    "one row only": Fault("OpenVINO does not take these rows", fixed(0, 1), slow=True),
    "operator that is none": Fault("OpenVINO cannot open the file", in_text('type="Tanh"', 'type="NoSuchOperator"')),
    "graph cut off": Fault("OpenVINO cannot open the file", cut_off(FILE), slow=True),
    "weights cut off": Fault("OpenVINO cannot open the file", cut_off(WEIGHTS)),
    "folder of this machine in the file": Fault(
        "its metadata names folders of this machine", said("task", f"{HERE}/x.py"), slow=True
    ),
    "another longest row": Fault("its metadata says hfadapt.max_length = 8", said("max_length", "8")),
    "vocabulary of another tokenizer": Fault(READ, in_json("tokenizer.json", swapped_words), slow=True),
    "tokenizer without capitals": Fault(READ, in_json("tokenizer.json", lowercase), slow=True),
    "one weight of 8 bits far too large": Fault("accuracy is worse by", before=saturated, form=SMALL, slow=True),
    "large weights of 8 bits clipped": Fault(
        "steps of rounding away", replaced([128, 64], lambda value: np.clip(value, -40, 40)), form=SMALL
    ),
    "bias of a rounded head set to zero": Fault(
        "the bias classifier.bias is not in the file", replaced([1, 2], np.zeros_like), form=SMALL, slow=True
    ),
    "other mean and deviation of pixels": Fault(
        READ, prepared(image_mean=[0.485, 0.456, 0.406], image_std=[0.229] * 3), cell="vit"
    ),
    "another preprocessing told in the file": Fault(
        "its metadata says hfadapt.preprocessing", said("preprocessing", '{"image_mean": [0, 0, 0]}'), cell="vit"
    ),
    "ranges learned from grey pictures": Fault(
        "nats per label, the limit is", before=constant_rows, cell="conv", form=STATIC
    ),
    "another pooling told beside the file": Fault(
        READ, in_json("1_Pooling/config.json", other_pooling), cell="sentences"
    ),
}


@pytest.mark.parametrize("name", [of_texts(each.cell, name, slow=each.slow) for name, each in FAULTS.items()])
def test_a_seeded_fault_is_refused(name, cells, written, monkeypatch, tmp_path):
    fault = FAULTS[name]
    assert fault.said in refusal(fault, cells, written, monkeypatch, tmp_path)


SOUND = sorted({(each.cell, each.form) for each in FAULTS.values()})


@pytest.mark.parametrize(("cell", "form"), [of_texts(each[0], *each) for each in SOUND])
def test_a_sound_export_passes_the_same_way(cell, form, cells, written, monkeypatch, tmp_path):
    assert refusal(Fault("", cell=cell, form=form), cells, written, monkeypatch, tmp_path) == ""
