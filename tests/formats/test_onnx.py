"""ONNX files as ONNX Runtime runs them: forms, any batch, labels and reading inside, and faults that are found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cells import trained
from tiny import command, labelled, questions, tagged
from tiny_images import make_vision_models, write_folders

from hfadapt import load_adapted
from hfadapt.core import registry
from hfadapt.core.errors import RequestError, RunError
from hfadapt.export.write import export
from hfadapt.formats import _onnx_graph as graph
from hfadapt.formats.onnx import DYNAMIC, FLOAT, STATIC, saturates
from hfadapt.hardware import catalogue

TEXTS = ["lovely bright film superb", "dreadful stale film awful", "the paper window", "a", "warm " * 60]
ONNX = registry.format("onnx")


@pytest.fixture(scope="module")
def classifier(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cls")
    return trained(folder, models / "encoder", "text-classification", labelled(100), dtype="float32")


@pytest.fixture(scope="module")
def folders(classifier, tmp_path_factory):
    """Both forms, exported."""
    place = tmp_path_factory.mktemp("onnx")
    found = {}
    for form in (FLOAT, DYNAMIC):
        found[form.own] = place / form.own
        export(classifier, "onnx", found[form.own], variant=form.own)
    return found


def record(folder):
    return json.loads((folder / "export.json").read_text())


def test_float32_is_the_merged_model_and_int8_is_smaller(classifier, folders):
    whole, small = (record(folders[form.own]) for form in (FLOAT, DYNAMIC))
    assert whole["difference"] < 1e-5
    assert (whole["tolerance"], small["tolerance"]) == (1e-3, None)
    assert whole["judged"][0]["kl_nats"] < 1e-9
    assert 0 < small["judged"][0]["kl_nats"] < 0.02
    assert small["runtime"].startswith("onnxruntime ")
    assert "MatMulInteger" in small["judged"][0]["operators"]
    assert "MatMulInteger" not in whole["judged"][0]["operators"]
    assert small["judged"][0]["bytes"] < 0.4 * whole["judged"][0]["bytes"]
    expected = load_adapted(classifier.folder).predict(TEXTS)
    for form, tolerance in ((FLOAT, 1e-5), (DYNAMIC, 0.06)):
        found = load_adapted(folders[form.own]).predict(TEXTS)
        assert [each.label for each in found] == [each.label for each in expected]
        assert [e.probability for e in found] == pytest.approx([e.probability for e in expected], abs=tolerance)


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 7), (3, 33), (5, 2)])
def test_batch_and_length_are_free(folders, rows, length):
    adapted = load_adapted(folders[FLOAT.own])
    ids = torch.randint(8, 200, (rows, length))
    mask = torch.ones_like(ids)
    mask[-1, length // 2 + 1 :] = 0
    together = adapted.model(input_ids=ids, attention_mask=mask).logits
    alone = [adapted.model(input_ids=ids[i : i + 1], attention_mask=mask[i : i + 1]).logits for i in range(rows)]
    assert together.shape == (rows, 2)
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    kept = int(mask[-1].sum())
    cut = adapted.model(input_ids=ids[-1:, :kept], attention_mask=mask[-1:, :kept]).logits
    assert torch.allclose(together[-1:], cut, atol=1e-5), "what is masked does not count"


def test_labels_and_reading_travel_in_the_file_and_no_folder_does(classifier, folders):
    import onnxruntime

    for folder in folders.values():
        said = onnxruntime.InferenceSession(folder / "model.onnx").get_modelmeta().custom_metadata_map
        assert json.loads(said["hfadapt.labels"]) == ["bad", "good"]
        assert said["hfadapt.max_length"] == str(classifier.lock.data.max_length)
        content = (folder / "model.onnx").read_bytes()
        for place in (os.path.dirname(os.__file__), str(classifier.folder), os.getcwd()):
            assert place.encode() not in content


def test_the_lines_of_the_readme_run_without_hfadapt(classifier, folders):
    folder = folders[DYNAMIC.own]
    readme = (folder / "README.md").read_text()
    code = readme.split("```python\n")[1].split("\n```")[0]
    assert "hfadapt." in code, "the labels are in the file"
    assert "import hfadapt" not in code
    for text in TEXTS[:2]:
        own = code.replace('example = "example"', f"example = {text!r}")
        blocked = "import sys\nsys.modules['hfadapt'] = sys.modules['torch'] = None\n" + own
        done = subprocess.run([sys.executable, "-I", "-c", blocked], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (answer,) = load_adapted(folder).predict([text])
        assert done.stdout.split()[0] == answer.label
    assert "printed:\n\n```\n" in readme


def test_the_command_predicts_with_the_exported_file(folders):
    said = command("predict", folders[DYNAMIC.own], *TEXTS[:2], "--json")
    assert said.code == 0, said.err
    assert [each["label"] for each in json.loads(said.out)] == ["good", "bad"]


def test_language_models_are_refused(models):
    from hfadapt.models.facts import load_config

    config = load_config(str(models / "lm")).to_dict()
    assert "cache of keys and values" in ONNX.unfit("causal-lm", config)
    assert ONNX.unfit("text-classification", config) is None


def test_weights_of_7_bits_where_sums_overflow(monkeypatch):
    machine = catalogue.target("cpu-16gb")
    for name, features, expected in (
        ("x86_64", ("avx2",), True),
        ("x86_64", ("avx2", "avx_vnni"), False),
        ("x86_64", ("avx512f", "avx512_vnni"), False),
        ("x86_64", ("avx2", "amx_bf16"), False),
        ("aarch64", ("asimddp",), False),
    ):
        other = machine.model_copy(update={"architecture": name, "features": features})
        monkeypatch.setattr(catalogue, "target", lambda name, other=other: other)
        assert saturates("any") is expected


# --- faults ----------------------------------------------------------------------------------------------------------


def spoilt(classifier, monkeypatch, change, form=FLOAT):
    """The refusal of an export whose graph is changed after it was made, or "" where it is let through."""
    import onnx

    plain = type(ONNX).write
    if form.own not in MADE:
        folder = Path(tempfile.mkdtemp())
        MADE[form.own] = plain(ONNX, classifier, form, folder, torch.device("cpu")), folder
    model, whole = MADE[form.own]

    def write(self, cell, form, folder, device):
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        proto = onnx.load(folder / "model.onnx")
        change(proto, folder)
        onnx.save(proto, folder / "model.onnx")
        return model

    monkeypatch.setattr(type(ONNX), "write", write)
    with tempfile.TemporaryDirectory() as place:
        try:
            export(classifier, "onnx", Path(place) / "out", variant=form.own)
        except RunError as error:
            return str(error)
    return ""


MADE: dict = {}
"""Of each form the model and its folder, which takes some time to make."""


def weight(proto, name):
    return next(each for each in proto.graph.initializer if name in each.name)


def replaced(proto, name, change):
    from onnx import numpy_helper

    found = weight(proto, name)
    value = change(numpy_helper.to_array(found).copy())
    found.CopyFrom(numpy_helper.from_array(value, found.name))


def labels(proto, folder):
    for each in proto.metadata_props:
        if each.key == "hfadapt.labels":
            each.value = json.dumps(["good", "bad"])


def nan(proto, folder):
    def change(value):
        value.flat[0] = np.nan
        return value

    replaced(proto, "classifier.weight", change)


def unmerged(proto, folder):
    """A matrix as it is without the adapter."""
    for each in proto.graph.initializer:
        if len(each.dims) == 2 and list(each.dims) == [64, 64]:
            replaced(proto, each.name, lambda value: value * 0.97)
            return


def unknown_operator(proto, folder):
    proto.graph.node[0].op_type = "NoSuchOperator"


def foreign_domain(proto, folder):
    import onnx

    node = next(each for each in proto.graph.node if each.op_type == "Tanh")
    node.domain = "some.company"
    proto.opset_import.append(onnx.helper.make_opsetid("some.company", 1))


def path_inside(proto, folder):
    proto.graph.node[0].doc_string = f'File "{os.path.dirname(os.__file__)}/x.py", line 3'


def denormal(proto, folder):
    replaced(proto, "word_embeddings", lambda value: np.full_like(value, 1e-40))


def clipped(proto, folder):
    """The largest values of a rounded matrix at a third of what they are."""
    replaced(proto, "_quantized", lambda value: np.clip(value, -40, 40))


def wrong_tokenizer(proto, folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["Ġlovely"], vocab["Ġfilm"] = vocab["Ġfilm"], vocab["Ġlovely"]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def cut_short(proto, folder):
    """A graph for 4 tokens."""
    for each in proto.graph.input:
        each.type.tensor_type.shape.dim[1].dim_value = 4


FAULTS = {
    "labels": (labels, FLOAT, "names its classes in another way"),
    "NaN": (nan, FLOAT, "hold NaN or Inf"),
    "unmerged": (unmerged, FLOAT, "is none of the model's"),
    "unknown operator": (unknown_operator, FLOAT, "ONNX Runtime cannot open the file"),
    "foreign domain": (foreign_domain, FLOAT, "some.company.Tanh is unknown to ONNX Runtime"),
    "path": (path_inside, FLOAT, "its metadata names folders of this machine"),
    "denormal": (denormal, FLOAT, "are denormal numbers"),
    "saturated": (clipped, DYNAMIC, "steps of rounding away"),
    "tokenizer": (wrong_tokenizer, FLOAT, "reads rows in another way"),
    "too short": (cut_short, FLOAT, "ONNX Runtime does not take these rows"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_is_refused(classifier, monkeypatch, fault):
    change, form, said = FAULTS[fault]
    assert said in spoilt(classifier, monkeypatch, change, form)


def test_a_sound_file_passes_the_same_way(classifier, monkeypatch):
    for form in (FLOAT, DYNAMIC):
        assert spoilt(classifier, monkeypatch, lambda proto, folder: None, form) == ""


# --- other nets and tasks --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Cells of a convolutional net and of a transformer for pictures."""
    place = tmp_path_factory.mktemp("vision")
    make_vision_models(place)
    found = {}
    for name in ("conv", "vit"):
        folder = place / f"run-{name}"
        write_folders(folder / "pictures", 80)
        found[name] = trained(
            folder, place / name, "image-classification", [], domains={"one": {"source": "pictures"}}, dtype="float32"
        )
    return found


def test_a_convolutional_net_learns_its_ranges_from_training_rows(pictures, tmp_path):
    cell = pictures["conv"]
    done = export(cell, "onnx", tmp_path / "out", force=True)
    names = {each.form: each for each in done.record.judged}
    assert list(names) == ["int8-static", "float32"]
    assert not names["float32"].refused
    assert {"QuantizeLinear", "DequantizeLinear"} <= names["int8-static"].operators.keys()
    import onnx

    (tmp_path / "static").mkdir()
    ONNX.write(cell, STATIC, tmp_path / "static", torch.device("cpu"))
    kinds = {
        each.data_type for each in onnx.load(tmp_path / "static/model.onnx").graph.initializer if len(each.dims) == 4
    }
    assert kinds == {onnx.TensorProto.INT8}, "every convolution is rounded"


def test_swapped_preprocessing_is_refused(pictures, tmp_path, monkeypatch):
    plain = type(ONNX).write

    def other(self, cell, form, folder, device):
        model = plain(self, cell, form, folder, device)
        path = folder / "preprocessor_config.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229] * 3}))
        return model

    monkeypatch.setattr(type(ONNX), "write", other)
    with pytest.raises(RunError) as caught:
        export(pictures["vit"], "onnx", tmp_path / "out", variant="float32")
    assert "reads rows in another way" in str(caught.value)


TASKS = {
    "token-classification": lambda: tagged(100),
    "text-regression": lambda: [{"text": row["text"], "score": float(len(row["text"]))} for row in labelled(100)],
    "multi-label-classification": lambda: [{"text": row["text"], "labels": [row["label"]]} for row in labelled(100)],
    "embedding": lambda: questions(100),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_other_tasks_answer_as_they_did(models, tmp_path, task):
    cell = trained(tmp_path, models / "encoder", task, TASKS[task](), dtype="float32")
    done = export(cell, "onnx", tmp_path / "out", variant="float32")
    (judged,) = done.record.judged
    assert judged.agreement == 1.0
    assert judged.kl_nats < 1e-6
    expected = load_adapted(cell.folder).predict(TEXTS)
    found = load_adapted(tmp_path / "out").predict(TEXTS)
    assert [each.label for each in found] == [each.label for each in expected]
    numbers = [(each.number or 0.0, *(each.vector or ())) for each in (*found, *expected)]
    for one, other in zip(numbers[: len(TEXTS)], numbers[len(TEXTS) :], strict=True):
        assert one == pytest.approx(other, abs=1e-3)
    with pytest.raises(RequestError, match="no such variant"):
        export(cell, "onnx", tmp_path / "none", variant="int4")


def test_the_layout_of_transformers_js(classifier, tmp_path):
    done = export(classifier, "transformers-js", tmp_path / "out")
    assert done.record.variant == "int8-dynamic"
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    assert {"onnx/model.onnx", "onnx/model_quantized.onnx", "config.json", "tokenizer.json"} <= names
    assert [each.label for each in load_adapted(tmp_path / "out").predict(TEXTS[:2])] == ["good", "bad"]
    quantised = graph.operators(tmp_path / "out/onnx/model_quantized.onnx")
    assert "MatMulInteger" in quantised
    assert "MatMulInteger" not in graph.operators(tmp_path / "out/onnx/model.onnx")
    readme = (tmp_path / "out/README.md").read_text()
    assert "library_name: transformers.js" in readme
    assert "not run when this was written" in readme
