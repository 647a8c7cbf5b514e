"""ONNX files as ONNX Runtime runs them: forms, any batch, labels and reading inside, and faults that are found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from cells import OTHER_TASKS, TEXTS, answers_in_float32, trained, trained_on_sounds
from tiny import command, labelled, questions
from tiny_images import write_folders
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfadapt import load_adapted
from hfadapt.core import registry
from hfadapt.export.bench import bench
from hfadapt.export.write import export
from hfadapt.formats import Runner
from hfadapt.formats import _onnx_cached as cached
from hfadapt.formats import _onnx_graph as graph
from hfadapt.formats._single_file import DYNAMIC, FLOAT, saturates
from hfadapt.formats.onnx import FILE
from hfadapt.hardware import catalogue
from hfadapt.models.facts import load_config
from hfadapt.models.generate import continuations

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


def test_what_no_cache_of_keys_and_values_holds_is_refused(models):
    config = load_config(str(models / "lm")).to_dict()
    assert ONNX.unfit("causal-lm", config) is None
    assert "sliding windows" in ONNX.unfit("causal-lm", {**config, "sliding_window": 64})
    mixed = {**config, "layer_types": ["full_attention", "linear_attention"]}
    assert "linear_attention" in ONNX.unfit("causal-lm", mixed)
    assert "cache of keys and values" in registry.format("transformers-js").unfit("causal-lm", config)
    assert ONNX.unfit("text-classification", config) is None


def test_a_graph_with_a_cache_writes_what_the_model_writes(models, tmp_path):
    """Prompts of several lengths in one batch, token by token, and whole rows filled up at the right."""
    model = AutoModelForCausalLM.from_pretrained(models / "lm", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "lm")
    model.save_pretrained(tmp_path)
    graph.save(cached.exported(model), tmp_path / FILE, {})
    opened = ONNX.opened(tmp_path)
    assert not isinstance(opened, Runner)
    prompts = [tokenizer(text)["input_ids"] for text in (*TEXTS, "good")]
    one, other = (continuations(each, tokenizer, prompts, 12, batch_rows=4) for each in (model, opened))
    assert one == other
    assert max(map(len, one)) > 1
    batch = tokenizer(TEXTS, padding=True, padding_side="right", return_tensors="pt")
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        differences = (model(**given).logits - opened(**given).logits)[given["attention_mask"].bool()]
    assert differences.abs().max() < 1e-4


@pytest.mark.slow
def test_language_models_are_written_with_a_cache(models, tmp_path):
    """Judged by the choices among labels; the folder answers and writes what the cell does."""
    template = {"prompt": "{text}\nLabel:", "completion": " {label}"}
    cell = trained(tmp_path, models / "lm", "causal-lm", labelled(100), dtype="float32", template=template)
    done = export(cell, "onnx", tmp_path / "out", force=True)
    judged = {each.form: each for each in done.record.judged}
    assert not judged[FLOAT.own].refused
    assert judged[FLOAT.own].kl_nats < 1e-6
    assert "printed:\n\n```\n" in (tmp_path / "out/README.md").read_text()
    export(cell, "onnx", tmp_path / "float", variant=FLOAT.own)
    one, other = (load_adapted(place).predict(TEXTS) for place in (cell.folder, tmp_path / "float"))
    assert [(each.label, each.generated) for each in one] == [(each.label, each.generated) for each in other]
    said = command("predict", tmp_path / "float", *TEXTS[:2], "--json")
    assert said.code == 0, said.err


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
    newer = machine.model_copy(update={"features": ("avx2", "avx_vnni")})
    monkeypatch.setattr(catalogue, "target", lambda name: machine if name == catalogue.THIS_MACHINE else newer)
    assert saturates("any"), "it is judged here"


# --- other nets and tasks --------------------------------------------------------------------------------------------


def test_a_convolutional_net_learns_its_ranges_from_training_rows(vision, tmp_path, monkeypatch):
    write_folders(tmp_path / "pictures", 80)
    domains = {"one": {"source": "pictures"}}
    cell = trained(tmp_path, vision / "conv", "image-classification", [], domains=domains, dtype="float32")
    quantise = graph.quantise

    def kept(proto, path, *rest, **options):
        quantise(proto, path, *rest, **options)
        shutil.copyfile(path, tmp_path / "static.onnx")

    monkeypatch.setattr(graph, "quantise", kept)
    made, exported = [], graph.exported
    monkeypatch.setattr(graph, "exported", lambda *given, **more: made.append(exported(*given, **more)) or made[-1])
    done = export(cell, "onnx", tmp_path / "out", force=True)
    assert len(made) == 1, "both forms are of one graph"
    names = {each.form: each for each in done.record.judged}
    assert list(names) == ["int8-static", "float32"]
    assert not names["float32"].refused
    assert {"QuantizeLinear", "DequantizeLinear"} <= names["int8-static"].operators.keys()
    import onnx

    kinds = {each.data_type for each in onnx.load(tmp_path / "static.onnx").graph.initializer if len(each.dims) == 4}
    assert kinds == {onnx.TensorProto.INT8}, "every convolution is rounded"


@pytest.mark.slow
@pytest.mark.parametrize("task", OTHER_TASKS)
def test_other_tasks_answer_as_they_did(models, tmp_path, task):
    answers_in_float32(tmp_path, models, task, "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whisper", "wave"])
def test_sounds(tmp_path, name):
    """What the processor made of them goes in, and how it does that is told in the file."""
    cell, paths = trained_on_sounds(tmp_path, name)
    done = export(cell, "onnx", tmp_path / "out", force=True)
    assert [each.form for each in done.record.judged] == ["int8-dynamic", "float32"]
    assert not any(each.refused for each in done.record.judged)
    assert done.record.judged[1].kl_nats < 1e-9
    said = command("predict", tmp_path / "out", *paths, "--json")
    assert [each["label"] for each in json.loads(said.out)] == [path.parent.name for path in paths]
    told = graph.about(tmp_path / "out/model.onnx")
    assert json.loads(told["hfadapt.preprocessing"])["sampling_rate"] == 16_000
    clip = {"padding": "max_length", "truncation": True, "max_length": 7680}
    assert json.loads(told.get("hfadapt.arguments", "{}")) == (clip if name == "wave" else {})
    assert "soundfile.read(example)" in (tmp_path / "out/README.md").read_text()
    assert bench(tmp_path / "out", threads=(1,), rows=(2,), seconds=0.01).cases[0].rows_per_second > 0


@pytest.fixture(scope="module")
def sentences(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentences")
    return trained(folder, models / "encoder", "embedding", questions(100), dtype="float32")


@pytest.mark.slow
def test_vectors_are_those_of_sentence_transformers(sentences, tmp_path):
    """Mean and length are in the graph; transformers.js finds the hidden states, which it pools itself."""
    from sentence_transformers import SentenceTransformer

    export(sentences, "merged", tmp_path / "merged")
    expected = SentenceTransformer(str(tmp_path / "merged")).encode(TEXTS)
    export(sentences, "onnx", tmp_path / "onnx", variant="float32")
    adapted = load_adapted(tmp_path / "onnx")
    found = np.array([each.vector for each in adapted.predict(TEXTS)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    given = adapted.tokenizer(TEXTS, padding=True, truncation=True, max_length=adapted.max_length, return_tensors="pt")
    vectors = adapted.model(**given).sentence_embedding.numpy()
    assert vectors.shape == expected.shape
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)
    readme = (tmp_path / "onnx/README.md").read_text()
    assert 'session.run(["sentence_embedding"]' in readme
    export(sentences, "transformers-js", tmp_path / "js", variant="float32")
    both = load_adapted(tmp_path / "js").model(**given)
    assert both.last_hidden_state.shape == (len(TEXTS), given["input_ids"].shape[1], expected.shape[1])
    np.testing.assert_allclose(both.sentence_embedding.numpy(), expected, rtol=0, atol=1e-5)
    page = (tmp_path / "js/README.md").read_text()
    assert 'pipeline("feature-extraction"' in page
    assert '{ pooling: "mean", normalize: true }' in page


def test_the_layout_of_transformers_js(classifier, tmp_path):
    done = export(classifier, "transformers-js", tmp_path / "out")
    assert done.record.variant == "int8-dynamic"
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    assert {"onnx/model.onnx", "onnx/model_quantized.onnx", "config.json", "tokenizer.json"} <= names
    assert [each.label for each in load_adapted(tmp_path / "out").predict(TEXTS[:2])] == ["good", "bad"]
    rounded, plain = done.record.judged
    size = {path.name: path.stat().st_size for path in (tmp_path / "out").rglob("*.onnx")}
    config = (tmp_path / "out/config.json").stat().st_size
    assert (rounded.bytes, plain.bytes) == (size["model_quantized.onnx"] + config, size["model.onnx"] + config)
    quantised = graph.operators(tmp_path / "out/onnx/model_quantized.onnx")
    assert "MatMulInteger" in quantised
    assert "MatMulInteger" not in graph.operators(tmp_path / "out/onnx/model.onnx")
    readme = (tmp_path / "out/README.md").read_text()
    assert "library_name: transformers.js" in readme
    assert "not run when this was written" in readme
