"""A method, a quant and a format of another package, which nothing in hfadapt knows, go the whole way."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint

import pytest
import torch
from tiny import LABELS, command, labelled, loss_sum, make_lock, recipe_fields, train, write_recipe, write_rows

from hfadapt import load_adapted
from hfadapt.adapters import AdapterMethod, Saved
from hfadapt.core import registry
from hfadapt.core.errors import RequestError, RunError
from hfadapt.core.hashing import file_sha256
from hfadapt.export.write import export
from hfadapt.formats.merged import Merged
from hfadapt.hardware import catalogue
from hfadapt.models.attach import attach_adapter, open_adapter, save_adapter, trainable
from hfadapt.models.facts import model_facts
from hfadapt.models.load import load_base
from hfadapt.models.manifest import check_folder, write_manifest
from hfadapt.models.merge import merged_dtype, open_merged
from hfadapt.plan.make import make_plan
from hfadapt.plan.memory.predict import Workload, is_traced, predict, trained_parameters
from hfadapt.plan.memory.terms import known_terms
from hfadapt.publish.staging import stage
from hfadapt.quants import Access, Quant
from hfadapt.quants._blocks import unpack
from hfadapt.recipe.reading import load_recipe
from hfadapt.recipe.schema import Recipe
from hfadapt.run_folder import Cell

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ia3(AdapterMethod):
    """Outputs of linear layers scaled by learned factors (Liu et al. 2022, arXiv 2205.05638): no LoRA at all."""

    def layer_parameters(self, in_features, out_features, rank):
        return out_features

    def peft_config(self, settings, **common):
        from peft import IA3Config

        return IA3Config(feedforward_modules=[], **common)


IA3 = Ia3(
    "ia3",
    low_rank=False,
    additive=False,
    saved=Saved("IA3", frozenset({"feedforward_modules"}), r".+\.ia3_l"),
)
DOUBLE = Quant(
    "nf4-double",
    4,
    "Linear4bit",
    {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    block=64,
    unpack=unpack,
)


class Flat(Merged):
    """One file of tensors under another name, which transformers does not open."""

    name = "flat"
    packages = ("safetensors",)

    def unfit(self, task, config):
        return None if config["model_type"] == "llama" else f"architecture {config['model_type']}"

    def refusal(self, cell):
        return None

    def holds(self, name, whole):
        return name in self.needed(whole)

    def needed(self, whole):
        return frozenset({"flat.safetensors", "config.json"})

    def write(self, cell, form, folder, device):
        model = super().write(cell, form, folder, device)
        (folder / "model.safetensors").rename(folder / "flat.safetensors")
        (folder / "generation_config.json").unlink(missing_ok=True)
        return model

    def reopen(self, cell, folder, device):
        return self._as_merged(folder, lambda plain: super(Flat, self).reopen(cell, plain, device))

    def open(self, folder, manifest, lock, device):
        return self._as_merged(folder, lambda plain: super(Flat, self).open(plain, manifest, lock, device))

    def _as_merged(self, folder, use):
        plain = folder.parent / f".{folder.name}-plain"
        shutil.copytree(folder, plain)
        (plain / "flat.safetensors").rename(plain / "model.safetensors")
        try:
            return use(plain)
        finally:
            shutil.rmtree(plain)


FLAT = Flat()
ADDED = {
    "hfadapt.adapters": ("ia3", "IA3"),
    "hfadapt.quants": ("nf4-double", "DOUBLE"),
    "hfadapt.formats": ("flat", "FLAT"),
}


@pytest.fixture(scope="module")
def package():
    """As if a package with these three was installed."""

    def entries(group):
        return [EntryPoint(ADDED[group][0], f"{__name__}:{ADDED[group][1]}", group)] if group in ADDED else []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", entries)
        registry.names.cache_clear()
        registry.load.cache_clear()
        yield
    registry.names.cache_clear()
    registry.load.cache_clear()


@pytest.fixture(scope="module")
def cell(package, models, tmp_path_factory):
    """Planned, trained, evaluated and carded by the command line, with the method and the quant of the package."""
    folder = tmp_path_factory.mktemp("package")
    write_rows(folder / "one.jsonl", labelled(100))
    fields = {
        "quant": "nf4-double",
        "dtype": "float32",
        "adapter": {"method": "ia3"},
        "template": {"prompt": "{text} :", "completion": " {label}"},
        "train": {"batch_rows": 8, "max_steps": 8, "learning_rate": 0.05},
        "evaluate": {"resamples": 200, "drift": True, "drift_limits": {"kl_nats": 100.0, "points": 100.0}},
    }
    write_recipe(folder / "tiny.yaml", recipe_fields(models / "lm", "causal-lm", **fields))
    done = command("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.out + done.err
    return Cell(folder / "runs/tiny/one/this-machine")


# --- plan ------------------------------------------------------------------------------------------------------------


def test_memory_is_predicted_from_what_the_method_says(package, models):
    facts = model_facts(str(models / "encoder"), "text-classification", 2)
    lock = make_lock(models / "encoder", "text-classification", adapter__method="ia3")
    model = attach_adapter(load_base(lock, LABELS, CPU), lock)
    work = Workload(method="ia3", quant="nf4-double")
    assert trained_parameters(facts, work) == sum(each.numel() for each in trainable(model).values())
    assert is_traced(facts, work)
    lora = {phase.phase: phase for phase in predict(facts, Workload(method="lora", quant="nf4"))}
    for phase in predict(facts, work):
        assert phase.parts["adapter"] < lora[phase.phase].parts["adapter"]
        assert phase.parts["weights"] == lora[phase.phase].parts["weights"]


def test_a_trace_of_another_version_of_the_package_is_not_read(package, models, cache_folder, monkeypatch):
    facts, work = model_facts(str(models / "encoder"), "text-classification", 2), Workload(method="ia3")
    for number, version in enumerate(("mine 1.0", "mine 1.0", "mine 1.1"), 1):
        monkeypatch.setattr(registry, "made_by", lambda kind, name, version=version: version)
        known_terms.cache_clear()
        assert is_traced(facts, work)
        assert len(list((cache_folder / "traces").iterdir())) == max(1, number - 1)


def test_a_quant_is_planned_where_it_says_it_can_be_held(package, models):
    fields = recipe_fields(models / "lm", "causal-lm", quant="nf4-double", targets=["t4", "cpu-8gb"])
    for one in make_plan(Recipe.model_validate(fields)).cells:
        assert one.value("quant") == "nf4-double"
    assert "nf4-double" not in catalogue.target("apple-m1-8gb").quants
    with pytest.raises(RequestError, match="no nf4-double on apple-m1-8gb"):
        make_plan(Recipe.model_validate({**fields, "targets": ["apple-m1-8gb"]}))


@pytest.mark.parametrize("automatic", [False, True])
def test_a_quant_is_tried_unasked_where_it_says_so(package, models, monkeypatch, automatic):
    from hfadapt import quants

    quant = replace(DOUBLE, automatic=automatic)
    monkeypatch.setattr(
        registry, "load", lambda kind, name, load=registry.load: quant if name == quant.name else load(kind, name)
    )
    assert (quant in quants.automatic()) is automatic
    (one,) = make_plan(Recipe.model_validate(recipe_fields(models / "lm", "causal-lm", targets=["t4"]))).cells
    (decision,) = [each for each in one.decisions if each.field == "quant"]
    assert ("nf4-double" in [each.value for each in decision.rejected]) is automatic


def test_a_method_is_refused_on_a_quant_that_does_not_give_what_it_needs(package, tmp_path, models):
    """This one does not say that its weights can be read; LoRA needs nothing of the kind."""
    assert registry.adapter("lora").works_on(DOUBLE)
    assert not registry.adapter("dora").works_on(DOUBLE)
    assert registry.adapter("dora").works_on(replace(DOUBLE, gives=frozenset({Access.READ})))
    fields = recipe_fields(models / "lm", "causal-lm", quant="nf4-double", adapter={"method": "dora"})
    with pytest.raises(RequestError, match="dora does not work on a base stored as nf4-double"):
        load_recipe(write_recipe(tmp_path / "tiny.yaml", fields))


def test_a_setting_that_the_method_does_not_have_is_refused(package, tmp_path, models):
    fields = recipe_fields(models / "lm", "causal-lm", adapter={"method": "ia3", "rank": 4, "modules": ["q_proj"]})
    with pytest.raises(RequestError) as caught:
        load_recipe(write_recipe(tmp_path / "tiny.yaml", fields))
    assert "the method ia3 takes no rank" in str(caught.value)
    assert "takes no modules" not in str(caught.value)


# --- attach, save, reopen, merge, manifest ---------------------------------------------------------------------------


def losses(task, model, examples, pad):
    model.eval()
    with torch.inference_mode():
        return [float(loss_sum(task, model, task.collate([example], pad))[0]) for example in examples]


@pytest.mark.parametrize(("method", "quant"), [("ia3", "none"), ("ia3", "nf4-double"), ("lora", "nf4-double")])
def test_trained_saved_reopened_and_merged(package, models, tmp_path, method, quant):
    lock = make_lock(models / "encoder", "text-classification", quant=quant, adapter__method=method, train__max_steps=6)
    trained = train(lock, tmp_path, labelled(24))
    task, pad, examples = registry.task(lock.task), trained.base.tokenizer.pad_token_id, trained.job.train
    expected, folder = losses(task, trained.model, examples, pad), tmp_path / "adapter"
    hashes = save_adapter(trained.model, trained.base, lock, folder, trained.start)
    manifest = write_manifest(folder, trained.base, lock, LABELS, hashes)
    assert (manifest.method, manifest.quant, manifest.whole) == (method, quant, False)
    assert check_folder(folder) == manifest
    opened = open_adapter(load_base(lock, LABELS, CPU), folder, method, CPU)
    assert losses(task, opened, examples, pad) == pytest.approx(expected, abs=1e-4)
    dequantised = registry.quant(quant).quantised
    merged = open_merged(lock, LABELS, folder, merged_dtype(lock), CPU, dequantised=dequantised)
    # A quantised base is unpacked to 16 bits, in which the merged weights are rounded.
    near = 0.05 if dequantised else 1e-4
    assert losses(task, merged.model, examples, pad) == pytest.approx(expected, abs=near)


def test_a_foreign_tensor_beside_those_of_the_method_is_found(package, models, tmp_path):
    from safetensors.torch import load_file, save_file

    lock = make_lock(models / "lm", adapter__method="ia3")
    base = load_base(lock, (), CPU)
    folder = tmp_path / "adapter"
    save_adapter(attach_adapter(base, lock), base, lock, folder)
    path = folder / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.other": torch.zeros(1)}, path, metadata={"format": "pt"})
    hashes = {each.name: file_sha256(each) for each in folder.iterdir()}
    write_manifest(folder, base, lock, (), hashes)
    with pytest.raises(RunError, match=r"a tensor that adapter_config\.json does not explain"):
        check_folder(folder)


def test_a_folder_of_a_package_that_is_not_installed_says_so(package, models, tmp_path):
    lock = make_lock(models / "lm", adapter__method="ia3")
    base = load_base(lock, (), CPU)
    hashes = save_adapter(attach_adapter(base, lock), base, lock, tmp_path / "adapter")
    manifest = write_manifest(tmp_path / "adapter", base, lock, (), hashes)
    for name, what in {"method": "the method of this adapter", "format": "the format of this adapter"}.items():
        manifest.model_copy(update={name: "unheard-of"}).write(tmp_path / "adapter/hfadapt.json")
        with pytest.raises(RunError, match=f"{what} is unknown"):
            check_folder(tmp_path / "adapter")


# --- the whole way ---------------------------------------------------------------------------------------------------


def test_the_card_says_what_it_is(cell):
    card = json.loads((cell.folder / "card.json").read_text())["metadata"]
    assert (card["library_name"], card["base_model_relation"]) == ("peft", "adapter")
    assert {"ia3", "nf4-double"} <= set(card["tags"])
    text = (cell.folder / "README.md").read_text()
    assert "bnb_4bit_use_double_quant=True" in text
    assert "The lines below were run" in text, "the loading snippet works"


def test_it_answers_and_drift_is_measured(cell):
    answers = load_adapted(cell.folder).predict(["lovely bright film", "dull broken film"])
    assert {answer.label for answer in answers} <= set(LABELS)
    assert "merged-nf4-double" in [variant.name for variant in cell.drift.variants]


@pytest.mark.parametrize("format", ["adapter", "merged", "flat"])
def test_it_is_exported_and_opened_again(cell, models, tmp_path, format):
    done = export(cell, format, tmp_path / "out")
    assert done.record.difference <= done.record.tolerance
    manifest = check_folder(tmp_path / "out")
    assert (manifest.format, manifest.whole) == (format, format != "adapter")
    base = None if manifest.whole else str(models / "lm")
    texts = ["lovely bright film", "dull broken film", "the paper window"]
    expected = [answer.label for answer in load_adapted(cell.folder).predict(texts)]
    assert [answer.label for answer in load_adapted(tmp_path / "out", base=base).predict(texts)] == expected
    (tmp_path / "out/model.gguf").write_bytes(b"GGUF")
    with pytest.raises(RunError, match="a file that the manifest does not know"):
        check_folder(tmp_path / "out")


def test_a_format_refuses_what_it_cannot_hold(package, models):
    from hfadapt.plan.device import unwritten

    encoder = model_facts(str(models / "encoder"), "text-classification", 2)
    assert unwritten("flat", encoder) == "architecture bert"
    assert unwritten("flat", model_facts(str(models / "lm"), "causal-lm", 2)) is None
    assert "flat" in str(unwritten("unheard-of", encoder))


def test_it_is_staged_for_the_hub(cell, tmp_path):
    names = {file.name for file in stage(cell, tmp_path).files}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "hfadapt.json"} <= names
