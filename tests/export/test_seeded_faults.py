"""Faults that are put into exports on purpose: whatever is wrong with a file, or with what writes it, it is refused.

docs/devices.md lists them. Each export passes when nothing is done to it, which is tested too.
"""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from seeded import (
    NAMED,
    OTHER,
    READ,
    SCORES,
    Fault,
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

from hfadapt.formats import _onnx_graph as graph
from hfadapt.tasks.embedding.sentence import Sentence

__all__ = ["cells", "written"]
FILE = "model.onnx"
INT8, STATIC = "int8-dynamic", "int8-static"


# --- in the graph ----------------------------------------------------------------------------------------------------


def in_graph(change):
    """A change of the ONNX graph as one of the folder."""

    def after(folder):
        proto = onnx.load(folder / FILE)
        change(proto)
        onnx.save(proto, folder / FILE)

    return after


def weight(proto, name):
    return next(each for each in proto.graph.initializer if name in each.name)


def replaced(name, change):
    """Other numbers in the place of a weight's."""

    @in_graph
    def after(proto):
        found = weight(proto, name)
        value = change(numpy_helper.to_array(found).copy())
        found.CopyFrom(numpy_helper.from_array(value, found.name))

    return after


def said(name, value):
    """Another word of the file about itself."""

    @in_graph
    def after(proto):
        (entry,) = [each for each in proto.metadata_props if each.key == f"hfadapt.{name}"]
        assert entry.value != value
        entry.value = value

    return after


@in_graph
def swapped_layers(proto):
    matrices = [each for each in proto.graph.initializer if list(each.dims) == [64, 64] and "pooler" not in each.name]
    first, last = matrices[0], matrices[len(matrices) // 2]
    one, other = numpy_helper.to_array(first), numpy_helper.to_array(last)
    assert len(matrices) == 8
    assert not np.array_equal(one, other)
    first.CopyFrom(numpy_helper.from_array(other, first.name))
    last.CopyFrom(numpy_helper.from_array(one, last.name))


@in_graph
def without_bias(proto):
    """The answer is that of the node before the last one."""
    last = next(each for each in proto.graph.node if "classifier.bias" in each.input)
    last.input[list(last.input).index("classifier.bias")] = "nothing"
    zeros = numpy_helper.from_array(np.zeros(2, dtype=np.float32), "nothing")
    proto.graph.initializer.append(zeros)


@in_graph
def other_node(proto):
    """The output is another tensor of the same shape."""
    (output,) = proto.graph.output
    proto.graph.node.append(onnx.helper.make_node("Softmax", [output.name], ["other"], axis=-1))
    node = next(each for each in proto.graph.node if output.name in each.output)
    node.output[list(node.output).index(output.name)] = "inner"
    proto.graph.node[-1].input[0], proto.graph.node[-1].output[0] = "inner", output.name


@in_graph
def without_mask(proto):
    """What was filled up counts as if it were text."""
    ones = [
        onnx.helper.make_node("Equal", ["attention_mask", "attention_mask"], ["same"]),
        onnx.helper.make_node("Cast", ["same"], ["ones"], to=onnx.TensorProto.INT64),
    ]
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[place] = "ones"
    for place, node in enumerate(ones):
        proto.graph.node.insert(place, node)


@in_graph
def sure(proto):
    """Every choice stays the same, and every probability is another."""
    (output,) = proto.graph.output
    node = next(each for each in proto.graph.node if output.name in each.output)
    node.output[list(node.output).index(output.name)] = "inner"
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(1.2), "factor"))
    proto.graph.node.append(onnx.helper.make_node("Mul", ["inner", "factor"], [output.name]))


def fixed(axis, size):
    """A graph for one size only."""

    @in_graph
    def after(proto):
        for each in proto.graph.input:
            each.type.tensor_type.shape.dim[axis].dim_value = size

    return after


@in_graph
def unknown_operator(proto):
    proto.graph.node[0].op_type = "NoSuchOperator"


@in_graph
def foreign_domain(proto):
    node = next(each for each in proto.graph.node if each.op_type == "Tanh")
    node.domain = "some.company"
    proto.opset_import.append(onnx.helper.make_opsetid("some.company", 1))


@in_graph
def later_opset(proto):
    next(each for each in proto.opset_import if each.domain in ("", "ai.onnx")).version = 99


@in_graph
def path_inside(proto):
    proto.graph.node[0].doc_string = f'File "{os.path.dirname(os.__file__)}/x.py", line 3'


# --- in what writes --------------------------------------------------------------------------------------------------


def saturated(monkeypatch, cells):
    """One weight of a matrix is 10,000 times what it is, and all others become nothing beside it."""
    plain = graph.quantise

    def quantise(proto, *more, **named):
        found = next(each for each in proto.graph.initializer if list(each.dims) == [64, 128])
        value = numpy_helper.to_array(found).copy()
        value.flat[0] *= 1e4
        found.CopyFrom(numpy_helper.from_array(value, found.name))
        plain(proto, *more, **named)

    monkeypatch.setattr(graph, "quantise", quantise)


def constant_rows(monkeypatch, cells):
    """Ranges of activations are learned from grey pictures."""
    plain = graph.quantise

    def quantise(proto, path, about, rows, **named):
        grey = [{name: torch.zeros_like(value) for name, value in row.items()} for row in rows]
        plain(proto, path, about, grey, **named)

    monkeypatch.setattr(graph, "quantise", quantise)


def long_vectors(monkeypatch, cells):
    """Cosines are the same."""
    plain = Sentence.vectors
    monkeypatch.setattr(Sentence, "vectors", lambda self, *given: 1.01 * plain(self, *given))


def first_token(monkeypatch, cells):
    plain = Sentence.vectors
    monkeypatch.setattr(
        Sentence, "vectors", lambda self, *given: plain(self.model_copy(update={"pooling": "cls"}), *given)
    )


FAULTS = {
    "labels in another order": Fault(NAMED, said("labels", '["good", "bad"]')),
    "ids of labels exchanged beside the file": Fault(NAMED, in_json("config.json", swapped_ids)),
    "labels of a plain model exchanged": Fault(
        NAMED, in_json("config.json", swapped_ids), format="merged", form="merged-float32"
    ),
    "adapter not merged": Fault("nats per label, the limit is", before=unmerged),
    "adapter not merged into a plain model": Fault(
        "as the adapter that was evaluated", before=unmerged, format="merged", form="merged-float32"
    ),
    "adapter of another domain": Fault("accuracy is worse by", before=other_adapter, slow=True),
    "adapter of another domain in a plain model": Fault(
        "as the adapter that was evaluated", before=other_adapter, format="merged", form="merged-float32"
    ),
    "NaN": Fault("hold NaN or Inf", replaced("classifier.weight", with_first(np.nan))),
    "Inf": Fault("hold NaN or Inf", replaced("word_embeddings", with_first(np.inf))),
    "denormal numbers": Fault(
        "are denormal numbers", replaced("word_embeddings", lambda value: np.full_like(value, 1e-40))
    ),
    "layers exchanged": Fault(SCORES, swapped_layers),
    "head without its bias": Fault(SCORES, without_bias),
    "bias of a rounded head set to zero": Fault(
        "the bias classifier.bias is not the model's", replaced("classifier.bias", np.zeros_like), form=INT8
    ),
    "one weight of 8 bits far too large": Fault(OTHER, before=saturated, form=INT8),
    "large weights of 8 bits clipped": Fault(
        "steps of rounding away", replaced("_quantized", lambda value: np.clip(value, -40, 40)), form=INT8
    ),
    "output of another node": Fault(SCORES, other_node),
    "length too short": Fault("ONNX Runtime does not take these rows", fixed(1, 4)),
    "one row only": Fault("ONNX Runtime does not take these rows", fixed(0, 1)),
    "operator that is none": Fault("ONNX Runtime cannot open the file", unknown_operator),
    "operator of another company": Fault("some.company.Tanh is unknown to ONNX Runtime", foreign_domain),
    "operators of a later version": Fault("ONNX Runtime cannot open the file", later_opset),
    "file cut off": Fault("the written files cannot be read", cut_off(FILE)),
    "plain model cut off": Fault(
        "the written files cannot be read", cut_off("model.safetensors"), format="merged", form="merged-float32"
    ),
    "folder of this machine in the file": Fault("its metadata names folders of this machine", path_inside),
    "another longest row": Fault("its metadata says hfadapt.max_length = 8", said("max_length", "8")),
    "vocabulary of another tokenizer": Fault(READ, in_json("tokenizer.json", swapped_words)),
    "tokenizer without capitals": Fault(READ, in_json("tokenizer.json", lowercase)),
    "rows cut at the other end": Fault(
        READ, in_json("tokenizer_config.json", lambda content: content.update(truncation_side="left"))
    ),
    "rows filled up at the other end": Fault(
        "fills up rows in another way", in_json("tokenizer_config.json", lambda c: c.update(padding_side="left"))
    ),
    "rows filled up with another token": Fault(
        "pad_token_id", in_json("tokenizer_config.json", lambda content: content.update(pad_token="<s>"))
    ),
    "one class of several said to be several": Fault(
        "says something else of the model",
        in_json("config.json", lambda content: content.update(problem_type="multi_label_classification")),
    ),
    "mask left out": Fault(SCORES, without_mask),
    "answers too sure": Fault(SCORES, sure),
    "another task told in the file": Fault("its metadata says hfadapt.task", said("task", "text-regression")),
    "other mean and deviation of pixels": Fault(
        READ, prepared(image_mean=[0.485, 0.456, 0.406], image_std=[0.229] * 3), cell="vit"
    ),
    "pixels not brought to one": Fault(READ, prepared(do_rescale=False), cell="vit"),
    "pictures squeezed, not cut": Fault(
        READ, prepared(do_center_crop=False, size={"height": 32, "width": 32}), cell="vit"
    ),
    "pixels not normalised": Fault(READ, prepared(do_normalize=False), cell="vit"),
    "pictures of another size": Fault(READ, prepared(size={"height": 16, "width": 16}), cell="vit"),
    "pictures resized in another way": Fault(READ, prepared(resample=0), cell="vit"),
    "red and blue exchanged": Fault(
        SCORES, replaced("projection.weight", lambda value: value[:, ::-1].copy()), cell="vit"
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
    "another pooling in the graph": Fault("nats per label, the limit is", before=first_token, cell="sentences"),
    "vectors of another length": Fault("other lengths than 1, by up to 0.01", before=long_vectors, cell="sentences"),
}


def test_there_are_enough():
    assert len(FAULTS) >= 20


@pytest.mark.parametrize("name", [of_texts(each.cell, name, slow=each.slow) for name, each in FAULTS.items()])
def test_a_seeded_fault_is_refused(name, cells, written, monkeypatch, tmp_path):
    fault = FAULTS[name]
    assert fault.said in refusal(fault, cells, written, monkeypatch, tmp_path)


SOUND = sorted({(each.cell, each.format, each.form) for each in FAULTS.values()})


@pytest.mark.parametrize(("cell", "format", "form"), [of_texts(each[0], *each) for each in SOUND])
def test_a_sound_export_passes_the_same_way(cell, format, form, cells, written, monkeypatch, tmp_path):
    assert refusal(Fault("", cell=cell, format=format, form=form), cells, written, monkeypatch, tmp_path) == ""
