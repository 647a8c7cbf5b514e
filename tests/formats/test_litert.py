"""LiteRT files: run, looked at, told of on Android. What needs the converter is run where HFADAPT_LITERT_PYTHON names
a Python that has it; two small files that it made are part of the tests (make_litert_files.py renews them)."""

from __future__ import annotations

import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from ai_edge_litert.tools import flatbuffer_utils
from cells import trained, trained_on_sounds
from make_litert_files import HERE, LABELS, LENGTH, Tiny
from tiny import command, labelled, questions
from tiny_images import make_vision_models, write_folders
from tiny_sounds import make_hearing_models, write_sounds

from hfadapt import load_adapted
from hfadapt.core import registry
from hfadapt.core.errors import RequestError, RunError
from hfadapt.export.write import export
from hfadapt.formats import _litert_environment as environment
from hfadapt.formats import _litert_file as file
from hfadapt.formats import _litert_worker as worker
from hfadapt.formats import litert
from hfadapt.formats._litert_android import android
from hfadapt.formats._weights import other_head
from hfadapt.models.facts import model_facts

FILES = {"float": 1e-5, "int8": 0.05}
"""Their names, and how far answers may be from torch's."""
converter = pytest.mark.skipif(
    environment.VARIABLE not in os.environ, reason=f"{environment.VARIABLE} names no Python with LiteRT's converter"
)


@pytest.fixture
def folder(tmp_path, request):
    """A folder as it is exported, but for its papers."""
    shutil.copy(HERE / f"tiny_{getattr(request, 'param', 'float')}.tflite", tmp_path / "model.tflite")
    config = {"model_type": "bert", "num_labels": 3, "id2label": {"0": "x", "1": "y", "2": "z"}, "pad_token_id": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("folder", FILES, indirect=True)
@pytest.mark.parametrize(("rows", "length"), [(1, LENGTH), (1, 3), (5, 6)])
def test_rows_of_any_number_up_to_its_length(folder, rows, length, request):
    runner = litert.KIND.reopen(None, folder, torch.device("cpu"))
    ids = torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[-1, 2:] = 0
    with torch.no_grad():
        expected = Tiny()(ids, mask)["logits"]
    found = runner(input_ids=ids, attention_mask=mask).logits
    assert found.shape == (rows, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=FILES[request.node.callspec.params["folder"]])


def test_a_longer_row_is_refused(folder):
    runner = litert.KIND.reopen(None, folder, torch.device("cpu"))
    ids = torch.ones(1, LENGTH + 1, dtype=torch.int64)
    with pytest.raises(RunError, match="longer than the file takes"):
        runner(input_ids=ids, attention_mask=ids)


def test_labels_are_those_in_the_file(folder):
    config = litert.KIND.reopen(None, folder, torch.device("cpu")).config
    assert config.id2label == dict(enumerate(LABELS))


def test_operators_and_words(folder):
    assert file.operators(folder / "model.tflite")["FULLY_CONNECTED"] == 2
    words = file.words(folder / "model.tflite")
    assert "input_ids" in words
    assert '["bad", "good", "so-so"]' in words
    assert litert.KIND.head(folder / "model.tflite").text == words
    assert litert.KIND.head(folder / "config.json") is None


@pytest.mark.parametrize("folder", FILES, indirect=True)
def test_names_between_the_ends_are_short(folder):
    path = folder / "model.tflite"
    before = file.opened(path, 1)
    feeds = {name: np.ones(shape, dtype=before.inputs[name]) for name, shape in before.shapes.items()}
    expected, size = before.run(feeds), path.stat().st_size
    long = "Tiny/torch.nn.modules.linear.Linear_classifier;1;Tiny/torch.nn.modules.linear.Linear_inner"
    model = flatbuffer_utils.read_model(str(path))
    for tensor in model.subgraphs[0].tensors:
        tensor.name = long.encode()
    flatbuffer_utils.write_model(model, str(path))
    assert path.stat().st_size > size
    worker.tell(path, {"hfadapt.more": "told"})
    assert "torch.nn" not in "\n".join(name for name, _ in file.weights(path))
    assert "Linear_classifier" in file.words(path)
    assert path.stat().st_size <= 1.05 * size
    assert file.about(path)["hfadapt.more"] == "told"
    after = file.opened(path, 1)
    assert (after.inputs, after.shapes, after.answers) == (before.inputs, before.shapes, before.answers)
    for name, value in after.run(feeds).items():
        np.testing.assert_array_equal(value, expected[name])


def test_a_file_that_is_cut_off_is_refused(folder):
    content = (folder / "model.tflite").read_bytes()
    (folder / "model.tflite").write_bytes(content[: len(content) // 3])
    with pytest.raises(RunError, match="LiteRT cannot open the file"):
        litert.KIND.reopen(None, folder, torch.device("cpu"))


# --- faults ----------------------------------------------------------------------------------------------------------


def nan(model, weights):
    weights[0] = np.nan


def unmerged(model, weights):
    """As an adapter of rank 1 would leave it."""
    weights += np.outer(np.sin(np.arange(50)), np.cos(np.arange(16))).ravel() * np.abs(weights).max() / 20


def normed(model, weights):
    """As the converter leaves it where a norm comes before."""
    weights *= np.tile(np.linspace(0.7, 1.0, 16), 50)


def clipped(model, weights):
    np.clip(weights, -40, 40, out=weights)


def denormal(model, weights):
    weights[:] = 1e-40


def foreign(model, weights):
    code = model.operatorCodes[0]
    code.builtinCode, code.deprecatedBuiltinCode, code.customCode = 32, 32, b"SomeCompanyOp"


def path_inside(model, weights):
    model.description = os.getcwd().encode()


FAULTS = {
    "sound": (lambda model, weights: None, ""),
    "NaN": (nan, "hold NaN or Inf"),
    "normed": (normed, ""),
    "unmerged": (unmerged, "are none of the model's"),
    "clipped": (clipped, "steps of rounding away"),
    "denormal": (denormal, "are denormal numbers"),
    "foreign": (foreign, "are no part of LiteRT"),
    "path": (path_inside, "its metadata names folders of this machine"),
}
CASES = [("float", name) for name in FAULTS if name != "clipped"]
CASES += [("int8", name) for name in ("sound", "unmerged", "clipped", "foreign", "path")]


@pytest.mark.parametrize(("folder", "fault"), CASES, indirect=["folder"])
def test_what_is_wrong_with_a_file_is_found(folder, fault):
    from ai_edge_litert.tools import flatbuffer_utils

    change, said = FAULTS[fault]
    path = folder / "model.tflite"
    model = flatbuffer_utils.read_model(str(path))
    tensors = [each for each in model.subgraphs[0].tensors if list(each.shape or ()) == [50, 16]]
    buffer = next(model.buffers[each.buffer] for each in tensors if model.buffers[each.buffer].data is not None)
    rounded = path.stat().st_size < (HERE / "tiny_float.tflite").stat().st_size
    weights = np.frombuffer(bytes(buffer.data), dtype=np.int8 if rounded else np.float32).copy()
    held = weights.astype(np.float32)
    change(model, held)
    held = np.round(held) if rounded else held
    buffer.data = np.frombuffer(held.astype(weights.dtype).tobytes(), dtype=np.uint8)
    flatbuffer_utils.write_model(model, str(path))
    found = "; ".join(file.faults(path, Tiny(), [os.getcwd()]))
    assert said in found
    assert bool(found) is bool(said)


@pytest.mark.parametrize("folder", FILES, indirect=True)
def test_a_head_without_its_bias_is_found(folder):
    """It may cost less than the gate lets through."""
    path, model = folder / "model.tflite", Tiny()
    assert list(other_head(file.weights(path), model)) == []
    with torch.no_grad():
        model.classifier.bias += 0.01
    assert list(other_head(file.weights(path), model)) == ["the bias classifier.bias is not in the file"]


# --- on Android ------------------------------------------------------------------------------------------------------


def test_kotlin_has_the_names_and_sizes_of_the_file(folder):
    page = android(folder / "model.tflite", registry.task("text-classification"), ['"$a"', "b", "c"], {}, 7)
    assert '"input_ids" to input_ids' in page
    assert "input_ids: Array<IntArray>" in page
    assert "Array(1) { FloatArray(3) }" in page
    assert 'listOf("\\"\\$a\\"", "b", "c")' in page
    assert "at most 8; fill the rest with 7" in page
    assert "**not run**" in page
    assert "{" not in page.split("```kotlin")[0].split("android {")[0], "nothing is left to fill in"


# --- the converter's environment -------------------------------------------------------------------------------------


def test_a_variable_that_names_no_python(monkeypatch, tmp_path):
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(RequestError, match="no Python there") as caught:
        environment.python()
    assert f"unset {environment.VARIABLE}" in str(caught.value)


def test_a_python_without_the_converter(monkeypatch, tmp_path):
    monkeypatch.setenv(environment.VARIABLE, sys.executable)
    rows = {name: np.ones((1, LENGTH), dtype=np.int64) for name in ("input_ids", "attention_mask")}
    litert.save_job(Tiny(), "logits", rows, tmp_path)
    with pytest.raises(RunError, match="No module named 'litert_torch'") as caught:
        environment.convert(tmp_path, None, {})
    assert f"unset {environment.VARIABLE}" in str(caught.value)


def test_language_models_are_refused():
    assert "cache of keys and values" in litert.KIND.unfit("causal-lm", {})
    assert registry.format("litert").unfit("text-classification", {}) is None


@pytest.mark.parametrize(
    ("model", "task", "forms"),
    [
        ("sample:efficientnet-lite0", "image-classification", ["int8-static", "int8-dynamic", "float32"]),
        ("sample:minilm-l6", "text-classification", ["int8-dynamic", "float32"]),
    ],
)
def test_what_the_plan_promises_is_what_is_written(model, task, forms):
    facts = model_facts(model, task, 10)
    found = litert.KIND.estimates(facts)
    assert [each.form for each in found] == forms
    assert [each.arithmetic for each in found] == ["int8"] * (len(forms) - 1) + ["float32"]
    assert found[0].bytes < 0.3 * found[-1].bytes


# --- with the converter ----------------------------------------------------------------------------------------------


@converter
def test_texts(models, tmp_path):
    cell = trained(tmp_path, models / "encoder", "text-classification", labelled(100), dtype="float32")
    texts = ["lovely bright film superb", "dreadful stale film awful", "warm " * 200]
    expected = load_adapted(cell.folder).predict(texts)
    done = export(cell, "litert", tmp_path / "out", force=True)
    judged = {each.form: each for each in done.record.judged}
    assert list(judged) == ["int8-dynamic", "float32"]
    assert judged["float32"].kl_nats < 1e-9
    assert judged["int8-dynamic"].bytes < 0.5 * judged["float32"].bytes
    found = load_adapted(tmp_path / "out").predict(texts)
    assert [each.label for each in found] == [each.label for each in expected]
    assert [each.probability for each in found] == pytest.approx([e.probability for e in expected], abs=0.06)
    readme = (tmp_path / "out/README.md").read_text()
    assert "printed:\n\n```\n" in readme
    assert "(ANDROID.md)" in readme
    said = command("predict", tmp_path / "out", *texts[:2], "--json")
    assert [each["label"] for each in json.loads(said.out)] == ["good", "bad"]


@converter
@pytest.mark.slow
@pytest.mark.parametrize("name", ["whisper", "wave"])
def test_sounds(tmp_path, name):
    """One takes spectrograms of one length, the other samples with a mask, behind which it writes zeros."""
    cell, paths = trained_on_sounds(tmp_path, name)
    done = export(cell, "litert", tmp_path / "out", force=True)
    assert not any(each.refused for each in done.record.judged)
    said = command("predict", tmp_path / "out", *paths, "--json")
    assert [each["label"] for each in json.loads(said.out)] == [path.parent.name for path in paths]
    page = (tmp_path / "out/ANDROID.md").read_text()
    assert "one channel at 16000 Hz" in page


@converter
def test_vectors(models, tmp_path):
    """Of length 1, the mean of the tokens that are none of the filling."""
    cell = trained(tmp_path, models / "encoder", "embedding", questions(100), dtype="float32")
    texts = ["lovely bright film superb", "awful", "warm " * 200]
    expected = [each.vector for each in load_adapted(cell.folder).predict(texts)]
    done = export(cell, "litert", tmp_path / "out", variant="float32")
    assert done.record.forced is None
    found = [each.vector for each in load_adapted(tmp_path / "out").predict(texts)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert file.opened(tmp_path / "out/model.tflite", 1).answers == {"sentence_embedding": (1, 64)}
    assert '"sentence_embedding" to output' in (tmp_path / "out/ANDROID.md").read_text()


@converter
def test_a_convolutional_net_learns_its_ranges_from_training_rows(tmp_path):
    make_vision_models(tmp_path)
    write_folders(tmp_path / "pictures", 80)
    domains = {"one": {"source": "pictures"}}
    cell = trained(tmp_path, tmp_path / "conv", "image-classification", [], domains=domains, dtype="float32")
    done = export(cell, "litert", tmp_path / "out", force=True)
    judged = {each.form: each for each in done.record.judged}
    assert list(judged) == ["int8-static", "int8-dynamic", "float32"]
    assert not judged["float32"].refused
    assert {"QUANTIZE", "DEQUANTIZE"} <= judged["int8-static"].operators.keys()
    assert "BATCH_NORM" not in str(judged["float32"].operators)
    page = (tmp_path / "out/ANDROID.md").read_text()
    assert "FloatArray(32) { x ->" in page
    assert "floatArrayOf(0.25f, 0.25f, 0.25f)" in page


@converter
@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "model", "said"),
    [
        ("image-multi-label", "vit", "above 0 holds"),
        ("image-regression", "vit", "one number"),
        ("audio-multi-label", "whisper", "above 0 holds"),
        ("audio-regression", "wave", "one number"),
    ],
)
def test_several_classes_and_numbers_of_pictures_and_sounds(tmp_path, task, model, said):
    if task.startswith("image"):
        make_vision_models(tmp_path)
        write_folders(tmp_path / "files", 80)
    else:
        make_hearing_models(tmp_path)
        write_sounds(tmp_path / "files", 80)
    paths = sorted(path for path in (tmp_path / "files").rglob("*.*"))
    kinds = sorted({path.parent.name for path in paths})
    several = registry.task(task).label_kind == "classes"
    lines = [",".join(["file", *(kinds if several else ["score"])])]
    for path in paths:
        number = kinds.index(path.parent.name)
        values = [int(each == number) for each in range(len(kinds))] if several else [1.5 * number]
        lines.append(",".join(map(str, [path.relative_to(tmp_path), *values])))
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    cell = trained(tmp_path, tmp_path / model, task, [], domains={"one": {"source": "rows.csv"}}, dtype="float32")
    done = export(cell, "litert", tmp_path / "out", variant="float32")
    assert done.record.judged[0].agreement == 1.0
    asked = [command("predict", folder, *paths[::20], "--json") for folder in (cell.folder, tmp_path / "out")]
    one, two = (json.loads(each.out) for each in asked)
    assert [each["label"] for each in one] == [each["label"] for each in two]
    assert [each["number"] or 0 for each in one] == pytest.approx([each["number"] or 0 for each in two], abs=1e-3)
    page = (tmp_path / "out/ANDROID.md").read_text()
    assert said in page
    assert ("val LABELS" in page) == several
