"""ExecuTorch programs: run, looked at, told of on Android. Making one takes long, so two small ones are part of the
tests (make_executorch_files.py renews them), and tests that make others are slow."""

from __future__ import annotations

import json
import os
import shutil
from importlib.metadata import version

import numpy as np
import pytest
import torch
from cells import OTHER_TASKS, TEXTS, answers_in_float32, trained, trained_on_sounds
from make_litert_files import HERE, LABELS, LENGTH, Tiny
from tiny import command, labelled
from tiny_images import make_vision_models, write_folders

from hfadapt import load_adapted
from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.export.write import export
from hfadapt.formats import executorch
from hfadapt.formats._executorch_android import android
from hfadapt.formats._single_file import DYNAMIC, FLOAT, STATIC
from hfadapt.models.facts import model_facts

pytest.importorskip("executorch")
from hfadapt.formats import _executorch_file as file
from hfadapt.formats import _executorch_look as look
from hfadapt.formats._weights import other_head

KIND, FILE = executorch.KIND, executorch.FILE
FILES = {"float": 1e-5, "int8": 0.05}
"""Their names, and how far answers may be from torch's."""


@pytest.fixture
def folder(tmp_path, request):
    """A folder as it is exported, but for its papers."""
    shutil.copy(HERE / f"tiny_{getattr(request, 'param', 'float')}.pte", tmp_path / FILE)
    config = {"model_type": "bert", "num_labels": 3, "id2label": {"0": "x", "1": "y", "2": "z"}, "pad_token_id": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("folder", FILES, indirect=True)
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, LENGTH), (5, 6)])
def test_rows_of_any_number_and_length_up_to_its_own(folder, rows, length, request):
    runner = KIND.reopen(None, folder, torch.device("cpu"))
    ids = torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[-1, 2:] = 0
    with torch.no_grad():
        expected = Tiny()(ids, mask)["logits"]
    found = runner(input_ids=ids, attention_mask=mask).logits
    assert found.shape == (rows, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=FILES[request.node.callspec.params["folder"]])


def test_a_longer_row_is_refused(folder):
    ids = torch.ones(1, LENGTH + 1, dtype=torch.int64)
    with pytest.raises(RunError, match="longer than the file takes"):
        KIND.reopen(None, folder, torch.device("cpu"))(input_ids=ids, attention_mask=ids)


def test_labels_are_those_in_the_file(folder):
    assert KIND.reopen(None, folder, torch.device("cpu")).config.id2label == dict(enumerate(LABELS))


def test_operators_and_words(folder):
    found = KIND.operators(folder)
    assert found["xnnpack::XNNFullyConnected"] == 2
    assert found["aten::embedding"] == 1
    words = KIND.head(folder / FILE).text
    assert '["bad", "good", "so-so"]' in words
    assert "aten::embedding" in words
    assert KIND.head(folder / "config.json") is None


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_file_that_is_cut_off_is_refused(folder, share):
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(RunError, match="ExecuTorch cannot open the file"):
        KIND.reopen(None, folder, torch.device("cpu"))


# --- faults ----------------------------------------------------------------------------------------------------------


def nan(weights):
    weights.flat[0] = np.nan
    return weights


def unmerged(weights):
    """As an adapter of rank 1 would leave it."""
    low = np.outer(np.sin(np.arange(len(weights))), np.cos(np.arange(weights.shape[1])))
    return weights + low * np.abs(weights).max() / 20


FAULTS = {
    "sound": (lambda weights: weights, ""),
    "NaN": (nan, "hold NaN or Inf"),
    "unmerged": (unmerged, "are none of the model's"),
    "clipped": (lambda weights: np.clip(weights, -40, 40), "steps of rounding away"),
    "denormal": (lambda weights: np.full_like(weights, 1e-40), "are denormal numbers"),
}
CASES = [("float", name) for name in FAULTS if name != "clipped"]
CASES += [("int8", name) for name in ("sound", "unmerged", "clipped")]


def stored(path, wanted):
    """The numbers that stand for a matrix in a file, as they stand there."""
    step = np.abs(wanted).max(1, keepdims=True) / 127
    for values in (wanted, np.round(wanted / step).astype(np.int8)):
        if (data := np.ascontiguousarray(values).tobytes()) in path.read_bytes():
            return values, data
    raise AssertionError("the matrix is not in the file")


@pytest.mark.parametrize("matrix", ["embeddings.weight", "inner.weight"])
@pytest.mark.parametrize(("folder", "fault"), CASES, indirect=["folder"])
def test_what_is_wrong_with_a_file_is_found(folder, fault, matrix):
    """In what ExecuTorch computes itself and in what XNNPACK does."""
    change, said = FAULTS[fault]
    path = folder / FILE
    values, data = stored(path, Tiny().state_dict()[matrix].numpy())
    changed = change(values.astype(np.float32))
    changed = (np.round(changed) if values.dtype == np.int8 else changed).astype(values.dtype)
    path.write_bytes(path.read_bytes().replace(data, changed.tobytes()))
    found = "; ".join(look.faults(path, Tiny(), [os.getcwd()]))
    assert said in found
    assert bool(found) is bool(said)


def test_a_folder_of_this_machine_is_found(folder):
    label, place = "so-so", "/home"
    content = (folder / FILE).read_bytes()
    assert label.encode() in content
    (folder / FILE).write_bytes(content.replace(label.encode(), place.encode()))
    assert list(look.faults(folder / FILE, Tiny(), [place])) == ["its metadata names folders of this machine"]


@pytest.mark.parametrize("folder", FILES, indirect=True)
def test_a_head_without_its_bias_is_found(folder):
    """It may cost less than the gate lets through."""
    path, model = folder / FILE, Tiny()
    assert list(other_head(look.weights(path), model)) == []
    with torch.no_grad():
        model.classifier.bias += 0.01
    assert list(other_head(look.weights(path), model)) == ["the bias classifier.bias is not in the file"]


# --- around it -------------------------------------------------------------------------------------------------------


def test_kotlin_has_the_names_and_sizes_of_the_file(folder):
    page = android(FILE, file.Opened(folder / FILE), ['"$a"', "b", "c"], registry.task("text-classification"))
    assert "input_ids: LongArray, attention_mask: LongArray" in page
    assert "Tensor.fromBlob(input_ids, longArrayOf(1, input_ids.size.toLong()))" in page
    assert "`logits` for one row: 3 numbers." in page
    assert 'listOf("\\"\\$a\\"", "b", "c")' in page
    assert f"one to {LENGTH}" in page
    assert "**not run**" in page


def test_binaries_of_another_torch_are_said(monkeypatch):
    monkeypatch.setattr(file.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError("undefined")))
    file.library.cache_clear()
    try:
        with pytest.raises(RunError, match="ExecuTorch cannot be loaded") as caught:
            KIND.make_ready()
    finally:
        file.library.cache_clear()
    # Of a package, not of the build that it holds: 2.13.0, where torch says 2.13.0+cu130.
    assert f"torch {version('torch')}" in str(caught.value)


def test_tables_keep_what_code_of_models_asks_them():
    """Whisper counts its positions by the table; others look up in a way of their own."""

    class Offset(torch.nn.Embedding):
        def forward(self, ids):
            return super().forward(ids + 2)

    model = torch.nn.ModuleDict({"plain": torch.nn.Embedding(9, 4), "offset": Offset(9, 4)})
    ids, plain = torch.arange(7), model["plain"]
    before = {name: each(ids) for name, each in model.items()}
    file.round_embeddings(model)
    assert (model["plain"].num_embeddings, model["plain"].embedding_dim) == (9, 4)
    assert model["plain"] is not plain
    assert torch.allclose(model["plain"](ids), before["plain"], atol=0.02)
    assert torch.equal(model["offset"](ids), before["offset"])


def test_language_models_are_refused():
    assert "cache of keys and values" in KIND.unfit("causal-lm", {})


@pytest.mark.parametrize(
    ("model", "task", "forms"),
    [
        ("sample:efficientnet-lite0", "image-classification", ["int8-static", "float32"]),
        ("sample:minilm-l6", "text-classification", ["int8-dynamic", "float32"]),
    ],
)
def test_what_the_plan_promises_is_what_is_written(model, task, forms):
    found = KIND.estimates(model_facts(model, task, 10))
    assert [each.form for each in found] == forms
    assert found[0].bytes < 0.3 * found[-1].bytes


# --- whole exports ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_texts(models, tmp_path):
    cell = trained(tmp_path, models / "encoder", "text-classification", labelled(100), dtype="float32")
    expected = load_adapted(cell.folder).predict(TEXTS)
    done = export(cell, "executorch", tmp_path / "out")
    judged = {each.form: each for each in done.record.judged}
    assert list(judged) == [DYNAMIC.own, FLOAT.own]
    assert not any(each.refused for each in judged.values())
    assert judged[FLOAT.own].kl_nats < 1e-9
    assert judged[DYNAMIC.own].bytes < 0.5 * judged[FLOAT.own].bytes
    assert "quantized_decomposed::embedding_byte" in judged[DYNAMIC.own].operators
    found = load_adapted(tmp_path / "out").predict(TEXTS)
    assert [each.label for each in found] == [each.label for each in expected]
    assert [each.probability for each in found] == pytest.approx([e.probability for e in expected], abs=0.06)
    readme = (tmp_path / "out/README.md").read_text()
    assert "printed:\n\n```\n" in readme
    assert "(ANDROID.md)" in readme
    said = command("predict", tmp_path / "out", *TEXTS[:2], "--json")
    assert [each["label"] for each in json.loads(said.out)] == ["good", "bad"]


@pytest.mark.slow
@pytest.mark.parametrize("task", OTHER_TASKS)
def test_other_tasks_answer_as_they_did(models, tmp_path, task):
    answers_in_float32(tmp_path, models, task, "executorch")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whisper", "wave"])
def test_sounds(tmp_path, name):
    cell, paths = trained_on_sounds(tmp_path, name)
    done = export(cell, "executorch", tmp_path / "out", force=True)
    assert not done.record.judged[-1].refused
    said = command("predict", tmp_path / "out", *paths, "--json")
    assert [each["label"] for each in json.loads(said.out)] == [path.parent.name for path in paths]
    assert "one channel at 16000 Hz" in (tmp_path / "out/ANDROID.md").read_text()


@pytest.mark.slow
def test_a_convolutional_net_learns_its_ranges_from_training_rows(tmp_path):
    make_vision_models(tmp_path)
    write_folders(tmp_path / "pictures", 80)
    domains = {"one": {"source": "pictures"}}
    cell = trained(tmp_path, tmp_path / "conv", "image-classification", [], domains=domains, dtype="float32")
    done = export(cell, "executorch", tmp_path / "out", force=True)
    judged = {each.form: each for each in done.record.judged}
    assert list(judged) == [STATIC.own, FLOAT.own]
    assert not judged[FLOAT.own].refused
    assert "xnnpack::XNNConvert" in judged[STATIC.own].operators
    page = (tmp_path / "out/ANDROID.md").read_text()
    assert "for (colour in pixel_values[0]) for (row in colour) numbers.put(row)" in page
    assert "FloatArray(32) { x ->" in page
