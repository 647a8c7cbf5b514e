"""OpenVINO graphs as OpenVINO runs them: forms, any batch, labels and settings inside, faults that are found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cells import OTHER_TASKS, TEXTS, answers_in_float32, trained, trained_on_sounds
from tiny import command, labelled
from tiny_images import write_folders

from hfadapt import load_adapted
from hfadapt.core import registry
from hfadapt.export.write import export
from hfadapt.formats import _openvino_graph as graph
from hfadapt.formats import _single_file as single
from hfadapt.formats._single_file import FLOAT, STATIC
from hfadapt.formats.openvino import FILE, SMALL, WEIGHTS
from hfadapt.models.adapter_files import folder_problems
from hfadapt.models.merge import open_merged
from hfadapt.records.stages import Manifest

openvino = pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def classifier(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cls")
    return trained(folder, models / "encoder", "text-classification", labelled(100), dtype="float32")


@pytest.fixture(scope="module")
def both(classifier, tmp_path_factory):
    """What was taken of all forms, which are judged, and the one in float32."""
    place = tmp_path_factory.mktemp("openvino")
    with single.shared():
        made = export(classifier, "openvino", place / "out")
        export(classifier, "openvino", place / "float", variant="float32")
    return made, place / "float"


@pytest.fixture(scope="module")
def made(both):
    return both[0]


@pytest.fixture(scope="module")
def merged(classifier):
    return open_merged(
        classifier.lock, classifier.data.labels, classifier.adapter, "float32", torch.device("cpu")
    ).model


def test_every_form_passes_and_the_smallest_is_taken(classifier, made):
    forms = {each.form: each for each in made.record.judged}
    assert list(forms) == [SMALL.own, STATIC.own, FLOAT.own]
    assert not any(each.refused for each in forms.values())
    assert made.record.variant == SMALL.own
    assert made.record.runtime == f"openvino {openvino.__version__.split('-')[0]}"
    assert forms["float32"].kl_nats < 1e-9
    assert 0 < forms[SMALL.own].kl_nats < forms[STATIC.own].kl_nats < 0.02
    assert forms[SMALL.own].bytes < 0.5 * forms["float32"].bytes
    assert graph.RANGE in forms[STATIC.own].operators
    assert not {graph.RANGE, "Convert"} <= forms["float32"].operators.keys()
    expected = load_adapted(classifier.folder).predict(TEXTS)
    found = load_adapted(made.folder).predict(TEXTS)
    assert [each.label for each in found] == [each.label for each in expected]
    assert [e.probability for e in found] == pytest.approx([e.probability for e in expected], abs=0.06)


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 7), (3, 33), (5, 2)])
def test_batch_and_length_are_free(made, rows, length):
    model = load_adapted(made.folder).model
    ids = torch.randint(8, 200, (rows, length))
    mask = torch.ones_like(ids)
    mask[-1, length // 2 + 1 :] = 0
    together = model(input_ids=ids, attention_mask=mask).logits
    kept = int(mask[-1].sum())
    cut = model(input_ids=ids[-1:, :kept], attention_mask=mask[-1:, :kept]).logits
    assert together.shape == (rows, 2)
    assert torch.allclose(together[-1:], cut, atol=1e-4), "what is masked does not count"


def test_several_threads_may_ask(made):
    model = load_adapted(made.folder).model
    rows = [torch.randint(8, 200, (1, 5 + at)) for at in range(16)]

    def answer(ids):
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits

    expected = [answer(ids) for ids in rows]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answer, rows))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_labels_reading_and_settings_travel_in_the_file_and_no_folder_does(classifier, made):
    text = (made.folder / FILE).read_text()
    said = graph.about(graph.read(made.folder / FILE))
    assert json.loads(said["hfadapt.labels"]) == ["bad", "good"]
    assert said["hfadapt.max_length"] == str(classifier.lock.data.max_length)
    for place in (os.path.dirname(os.__file__), str(classifier.folder), os.getcwd()):
        assert place not in text
    plain = openvino.Core().compile_model(made.folder / FILE, "CPU")
    assert plain.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0


def test_it_computes_in_float32_where_the_processor_has_units_for_bfloat16(made, monkeypatch):
    """The file cannot say that: who opens it has to, hfadapt and the lines of the README."""
    core, settings = openvino.Core(), []

    class Core:
        def read_model(self, path):
            return core.read_model(path)

        def compile_model(self, model, device, given):
            settings.append(given)
            return core.compile_model(model, device, given)

    monkeypatch.setattr(openvino, "Core", Core)
    load_adapted(made.folder).predict(TEXTS)
    assert [each["INFERENCE_PRECISION_HINT"] for each in settings] == ["f32"]
    assert 'compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})' in (made.folder / "README.md").read_text()


def test_nothing_is_reported_to_anyone():
    code = (
        "import sys\nfrom hfadapt.formats._openvino_graph import library\nlibrary('openvino'), library('nncf')\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry.')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_lines_of_the_readme_run_without_hfadapt(made):
    readme = (made.folder / "README.md").read_text()
    code = readme.split("```python\n")[1].split("\n```")[0]
    for text, label in zip(TEXTS[:2], ("good", "bad"), strict=True):
        own = code.replace('example = "example"', f"example = {text!r}")
        blocked = "import sys\nsys.modules['hfadapt'] = sys.modules['torch'] = None\n" + own
        done = subprocess.run([sys.executable, "-I", "-c", blocked], cwd=made.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[0] == label


def test_the_command_predicts_with_the_exported_folder(made):
    said = command("predict", made.folder, *TEXTS[:2], "--json")
    assert said.code == 0, said.err
    assert [each["label"] for each in json.loads(said.out)] == ["good", "bad"]


def test_a_file_called_as_pickles_are_is_taken_where_the_format_says_so(made, tmp_path):
    shutil.copytree(made.folder, tmp_path / "out")
    manifest = Manifest.read(tmp_path / "out/hfadapt.json")
    assert WEIGHTS in manifest.files
    assert list(folder_problems(tmp_path / "out", manifest)) == []
    (tmp_path / "out/pytorch_model.bin").write_bytes(b"\x80\x02")
    assert "can run code" in str(next(folder_problems(tmp_path / "out", manifest)))
    (tmp_path / "out/pytorch_model.bin").unlink()
    other = manifest.model_copy(update={"format": "onnx"})
    assert "can run code" in str(next(folder_problems(tmp_path / "out", other)))


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def floats(both, tmp_path):
    shutil.copytree(both[1], tmp_path / "out")
    return tmp_path / "out"


def place_of(folder, wanted):
    """Where an array stands in the file of weights, and how it stands there: merging anew moves last bits."""
    held = [each.values for _, each in graph.weights(graph.read(folder / FILE)) if each.values.size == wanted.size]
    (one,) = [each.copy() for each in held if np.allclose(each.ravel(), wanted.ravel(), atol=1e-5)]
    return (folder / WEIGHTS).read_bytes().index(one.tobytes()), one


def test_other_weights_nan_and_another_head_are_found(classifier, merged, floats):
    kind = registry.format("openvino")
    own = {name: value.detach().numpy() for name, value in merged.state_dict().items()}
    assert list(kind.faults(classifier, floats, merged)) == []
    name = next(name for name, value in own.items() if name.endswith("intermediate.dense.weight"))
    kept = (floats / WEIGHTS).read_bytes()
    for wanted, change, said in (
        (own[name], lambda values: values[::-1], "are none of the model's"),
        (own[name], lambda values: values * np.nan, "hold NaN or Inf"),
        (own["classifier.bias"], lambda values: values[..., ::-1], "the bias classifier.bias is not in the file"),
    ):
        at, values = place_of(floats, wanted)
        data = np.ascontiguousarray(change(values)).tobytes()
        (floats / WEIGHTS).write_bytes(kept[:at] + data + kept[at + len(data) :])
        assert any(said in each for each in kind.faults(classifier, floats, merged)), said
        (floats / WEIGHTS).write_bytes(kept)


def test_another_order_of_labels_and_a_cut_file_are_found(classifier, merged, floats):
    kind = registry.format("openvino")
    text = (floats / FILE).read_text()
    assert "[&quot;bad&quot;, &quot;good&quot;]" in text
    swapped = text.replace("[&quot;bad&quot;, &quot;good&quot;]", "[&quot;good&quot;, &quot;bad&quot;]")
    (floats / FILE).write_text(swapped)
    assert any("its metadata says hfadapt.labels" in each for each in kind.faults(classifier, floats, merged))
    (floats / FILE).write_text(text[: len(text) // 2])
    with pytest.raises(Exception, match="OpenVINO cannot open the file"):
        kind.reopen(classifier, floats, torch.device("cpu"))


# --- other nets and tasks --------------------------------------------------------------------------------------------


def test_language_models_are_refused(models):
    from hfadapt.models.facts import load_config

    kind = registry.format("openvino")
    assert "cache of keys and values" in kind.unfit("causal-lm", load_config(str(models / "lm")).to_dict())


@pytest.mark.slow
def test_a_convolutional_net_learns_its_ranges_from_training_rows(vision, tmp_path):
    write_folders(tmp_path / "pictures", 80)
    domains = {"one": {"source": "pictures"}}
    cell = trained(tmp_path, vision / "conv", "image-classification", [], domains=domains, dtype="float32")
    done = export(cell, "openvino", tmp_path / "out", force=True)
    names = {each.form: each for each in done.record.judged}
    assert list(names) == [STATIC.own, FLOAT.own]
    assert not names[FLOAT.own].refused
    assert graph.RANGE in names[STATIC.own].operators
    paths = [str(path) for path in sorted((tmp_path / "pictures").rglob("*.png"))[::20]]
    expected, found = (load_adapted(folder).predict(paths) for folder in (cell.folder, tmp_path / "out"))
    assert [each.label for each in found] == [each.label for each in expected]


@pytest.mark.slow
@pytest.mark.parametrize("task", OTHER_TASKS)
def test_other_tasks_answer_as_they_did(models, tmp_path, task):
    answers_in_float32(tmp_path, models, task, "openvino")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whisper", "wave"])
def test_sounds(tmp_path, name):
    cell, paths = trained_on_sounds(tmp_path, name)
    done = export(cell, "openvino", tmp_path / "out", force=True)
    assert [each.form for each in done.record.judged] == [SMALL.own, STATIC.own, FLOAT.own]
    assert not done.record.judged[2].refused
    said = command("predict", tmp_path / "out", *paths, "--json")
    assert [each["label"] for each in json.loads(said.out)] == [path.parent.name for path in paths]
