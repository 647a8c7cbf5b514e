"""Every adapter method on every storage: it learns, is saved, and comes back the same, also in plain peft."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import LABELS, labelled, loss_sum, make_lock, make_loop, pairs, train

from hfadapt.core import registry
from hfadapt.core.errors import RequestError, RunError
from hfadapt.models.attach import open_adapter, round_as_saved, save_adapter, trainable
from hfadapt.models.load import compute_dtype, load_base

METHODS, STORES = registry.names("adapters"), registry.names("quants")
TASKS = {"causal-lm": ("lm", pairs), "text-classification": ("encoder", labelled)}
ALLOWED = [(method, quant) for method in METHODS for quant in STORES if quant in registry.adapter(method).quants]
CPU = torch.device("cpu")


def on_a_quant(method, quant, task, all_of):
    """A case; `slow` where its quant is one of `all_of` with LoRA and its method with another quant."""
    return pytest.param(method, quant, task, marks=pytest.mark.slow if quant in all_of and method != "lora" else ())


def losses(task, model, examples, pad):
    """Losses of the first rows, one at a time."""
    model.eval()
    with torch.inference_mode():
        return [float(loss_sum(task, model, task.collate([example], pad))[0]) for example in examples[:6]]


def plain_model(folder, lock, base_folder):
    """The adapter as a stranger loads it: transformers and peft, no hfadapt."""
    import transformers
    from peft import PeftModel

    task, quant = registry.task(lock.task), registry.quant(lock.quant)
    auto = getattr(transformers, task.auto_class)
    options = {"num_labels": 2} if lock.task == "text-classification" else {}
    dtype = getattr(torch, lock.dtype)
    if lock.adapter.method == "full":
        return auto.from_pretrained(folder, dtype=dtype).eval()
    config = json.loads((folder / "adapter_config.json").read_text())
    heads = (config["modules_to_save"] or []) + (["lm_head"] if lock.task == "causal-lm" else ["classifier"])
    base = auto.from_pretrained(
        base_folder, dtype=dtype, quantization_config=quant.config(compute_dtype(dtype, CPU), heads), **options
    )
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return PeftModel.from_pretrained(base, str(folder)).eval()


@pytest.mark.parametrize(
    ("method", "quant", "task"),
    [on_a_quant(method, quant, task, {"fp4", "int8"}) for method, quant in ALLOWED for task in TASKS],
)
def test_trains_saves_and_reopens(models, tmp_path, method, quant, task):
    name, rows = TASKS[task]
    lock = make_lock(models / name, task, quant=quant, adapter__method=method, train__max_steps=3)
    trained = train(lock, tmp_path, rows(24))
    assert len(set(trained.losses)) == 3
    kind, pad = registry.task(task), trained.base.tokenizer.pad_token_id
    expected = losses(kind, trained.model, trained.job.train, pad)
    save_adapter(trained.model, trained.base, lock, tmp_path / "adapter", trained.start)

    fresh = load_base(lock, LABELS, CPU)
    before = losses(kind, fresh.model, trained.job.train, pad)
    opened = open_adapter(fresh, tmp_path / "adapter", method, CPU)
    assert losses(kind, opened, trained.job.train, pad) == pytest.approx(expected, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(before, expected, strict=True)) > 1e-3, "training changed nothing"
    assert not trainable(opened)

    plain = plain_model(tmp_path / "adapter", lock, models / name)
    assert losses(kind, plain, trained.job.train, pad) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("trained_head", [False, True])
def test_a_head_whose_name_ends_like_another_is_trained_whole(tmp_path, trained_head):
    """DistilBERT's `pre_classifier`: peft 0.21 takes it for the `classifier`, and cannot put both kinds on it."""
    import transformers
    from tiny import make_tokenizer

    tokenizer = make_tokenizer()
    sizes = {"vocab_size": 512, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}
    config = transformers.DistilBertConfig(**sizes, pad_token_id=tokenizer.pad_token_id)
    kind = transformers.DistilBertForSequenceClassification if trained_head else transformers.DistilBertModel
    kind(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    lock = make_lock(tmp_path / "base", "text-classification", train__max_steps=3)
    trained = train(lock, tmp_path / "run", labelled(24))
    whole = {name.split(".")[2] for name in trained.weights if "lora_" not in name}
    assert whole == {"pre_classifier", "classifier"}
    task, pad = registry.task(lock.task), trained.base.tokenizer.pad_token_id
    expected = losses(task, trained.model, trained.job.train, pad)
    save_adapter(trained.model, trained.base, lock, tmp_path / "adapter", trained.start)
    opened = open_adapter(load_base(lock, LABELS, CPU), tmp_path / "adapter", "lora", CPU)
    assert losses(task, opened, trained.job.train, pad) == pytest.approx(expected, abs=1e-4)
    plain = plain_model(tmp_path / "adapter", lock, tmp_path / "base")
    assert losses(task, plain, trained.job.train, pad) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("method", "task"),
    [("lora", "causal-lm"), *((m, "text-classification") for m in METHODS if registry.adapter(m).low_rank)],
)
def test_the_last_layer_alone(models, tmp_path, method, task):
    """Only its weights are adapted; opened by hfadapt and by plain peft it gives what it gave."""
    name, rows = TASKS[task]
    quant = "none" if "none" in registry.adapter(method).quants else "nf4"
    lock = make_lock(models / name, task, quant=quant, adapter__method=method, adapter__layers=1, train__max_steps=3)
    trained = train(lock, tmp_path, rows(24))
    adapted = {parameter for parameter in trained.weights if "lora_" in parameter}
    assert adapted
    assert all(".1." in parameter for parameter in adapted), "of layers 0 and 1"
    kind, pad = registry.task(task), trained.base.tokenizer.pad_token_id
    expected = losses(kind, trained.model, trained.job.train, pad)
    save_adapter(trained.model, trained.base, lock, tmp_path / "adapter", trained.start)
    opened = open_adapter(load_base(lock, LABELS, CPU), tmp_path / "adapter", method, CPU)
    assert losses(kind, opened, trained.job.train, pad) == pytest.approx(expected, abs=1e-4)
    plain = plain_model(tmp_path / "adapter", lock, models / name)
    assert losses(kind, plain, trained.job.train, pad) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("method", "quant", "task"),
    [
        on_a_quant(method, quant, task, {"nf4"})
        for method, quant in ALLOWED
        if quant in ("none", "nf4")
        for task in TASKS
    ],
)
def test_works_on_a_base_in_bfloat16(models, tmp_path, method, quant, task):
    """Sixteen bits: reopened exactly; in plain peft the head is rounded, so that only nearly the same comes out."""
    name, rows = TASKS[task]
    lock = make_lock(models / name, task, quant=quant, dtype="bfloat16", adapter__method=method, train__max_steps=3)
    trained = train(lock, tmp_path, rows(16))
    kind, pad = registry.task(task), trained.base.tokenizer.pad_token_id
    round_as_saved(trained.model, lock)
    expected = losses(kind, trained.model, trained.job.train, pad)
    save_adapter(trained.model, trained.base, lock, tmp_path / "adapter", trained.start)
    opened = open_adapter(load_base(lock, LABELS, CPU), tmp_path / "adapter", method, CPU)
    changed = registry.adapter(method).changes_base
    found = losses(kind, opened, trained.job.train, pad)
    assert found == pytest.approx(expected, abs=0.05 if changed else 1e-4)
    plain = plain_model(tmp_path / "adapter", lock, models / name)
    assert losses(kind, plain, trained.job.train, pad) == pytest.approx(found, abs=0.05)


@pytest.mark.parametrize(("method", "quant"), [(m, q) for m in METHODS for q in STORES if (m, q) not in ALLOWED])
def test_other_combinations_are_refused_with_the_reason(models, method, quant):
    from tiny import recipe_fields

    from hfadapt.plan.make import make_plan
    from hfadapt.recipe.schema import Recipe

    recipe = Recipe.model_validate(recipe_fields(models / "lm", "causal-lm", quant=quant, adapter={"method": method}))
    with pytest.raises(RequestError) as caught:
        make_plan(recipe)
    message = str(caught.value)
    assert f"{method} does not work on a {quant} base: {registry.load('adapters', method).reason}" in message
    assert ", ".join(sorted(registry.adapter(method).quants)) in message


@pytest.mark.parametrize("method", METHODS)
def test_says_what_it_is(method):
    kind = registry.adapter(method)
    assert kind.name == method
    assert kind.quants
    assert kind.quants <= set(STORES)
    assert kind.reason or kind.quants == set(STORES), "a refusal needs a reason"


@pytest.mark.parametrize("method", [m for m in METHODS if registry.adapter(m).changes_base])
@pytest.mark.parametrize("task", TASKS)
def test_conversion_of_methods_that_change_the_base_is_exact(models, tmp_path, method, task):
    """Logits of the trained model and of a plain LoRA of twice the rank on the untouched base, within 1e-4."""
    name, rows = TASKS[task]
    lock = make_lock(models / name, task, adapter__method=method, train__max_steps=5, train__learning_rate=1e-2)
    trained = train(lock, tmp_path, rows(24))
    save_adapter(trained.model, trained.base, lock, tmp_path / "adapter", trained.start)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"] / config["r"]) == (2 * lock.adapter.rank, lock.adapter.alpha / 4)
    assert config["init_lora_weights"] is True
    batch = registry.task(task).collate(trained.job.train[:8], trained.base.tokenizer.pad_token_id)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    trained.model.eval()
    plain = plain_model(tmp_path / "adapter", lock, models / name)
    with torch.inference_mode():
        mask = batch["attention_mask"].bool() if task == "causal-lm" else slice(None)
        difference = (trained.model(**inputs).logits - plain(**inputs).logits)[mask].abs().max()
        with plain.disable_adapter():
            moved = (trained.model(**inputs).logits - plain(**inputs).logits)[mask].abs().max()
    assert difference <= 1e-4
    assert moved > 1e-2, "training changed nothing, so the comparison says nothing"


@pytest.mark.parametrize("quant", ["nf4", "fp4"])
@pytest.mark.parametrize("task", TASKS)
def test_loftq_brings_the_base_closer_to_the_unquantised_one(models, tmp_path, task, quant):
    name, rows = TASKS[task]

    def weights(**settings):
        lock = make_lock(models / name, task, adapter__rank=16, adapter__alpha=48.0, **settings)
        return lock, make_loop(lock, tmp_path, rows(8))

    _, exact = weights()
    _, started = weights(quant=quant, adapter__method="loftq")
    _, plain = weights(quant=quant)

    def effective(trained):
        from bitsandbytes.functional import dequantize_4bit
        from peft.tuners.lora import LoraLayer

        found = {}
        for place, layer in trained.model.named_modules():
            if isinstance(layer, LoraLayer):
                weight = layer.get_base_layer().weight
                stored = dequantize_4bit(weight.data, weight.quant_state) if hasattr(weight, "quant_state") else weight
                found[place] = stored.float() + layer.get_delta_weight("default").float()
        return found

    errors = [
        sum(float((effective(one)[place] - weight).norm()) for place, weight in effective(exact).items())
        for one in (started, plain)
    ]
    assert errors[0] < 0.75 * errors[1]


def test_eva_starts_from_the_directions_of_the_inputs(models, tmp_path):
    """A holds orthonormal directions, in which the inputs of the layer are larger than in random ones."""
    settings = {"adapter__modules": ("q_proj", "down_proj")}
    eva = make_loop(make_lock(models / "lm", adapter__method="eva", **settings), tmp_path, pairs(24))
    batch = registry.task("causal-lm").collate(eva.job.train, eva.base.tokenizer.pad_token_id)
    inputs = {}
    for name, layer in eva.base.model.named_modules():
        if name.endswith(("q_proj", "down_proj")):
            layer.register_forward_pre_hook(lambda module, given, name=name: inputs.update({name: given[0]}))
    with torch.no_grad():
        eva.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert len(inputs) == 4
    for name, x in inputs.items():
        layer = eva.base.model.get_submodule(name)
        a, rows = layer.lora_A["default"].weight.detach(), x[batch["attention_mask"].bool()].detach()
        assert torch.allclose(a @ a.t(), torch.eye(len(a)), atol=1e-4)
        best = torch.linalg.svd(rows, full_matrices=False)[2][: len(a)]
        assert (rows @ a.t()).norm() == pytest.approx(float((rows @ best.t()).norm()), rel=2e-2)
        assert not layer.lora_B["default"].weight.any()


def test_eva_copes_with_fewer_inputs_than_ranks(models, tmp_path):
    lock = make_lock(models / "encoder", "text-classification", adapter__method="eva", adapter__rank=32)
    assert len(train(lock, tmp_path, labelled(6)).losses) == 4


def test_only_the_head_is_trained_by_head(models, tmp_path):
    lock = make_lock(models / "encoder", "text-classification", adapter__method="head")
    trained = make_loop(lock, tmp_path, labelled(8))
    assert {name.split(".modules_to_save")[0] for name in trained.job.parameters} == {"base_model.model.classifier"}


@pytest.mark.parametrize("name", ["lm", "lm-untied"])
def test_head_of_a_language_model(models, tmp_path, name):
    """The embeddings stay as they are, also where the base shares them with the head."""
    lock = make_lock(models / name, adapter__method="head", train__max_steps=3)
    trained = make_loop(lock, tmp_path, pairs(24))
    embeddings = trained.base.model.get_input_embeddings().weight.detach().clone()
    trained.loop.run()
    assert torch.equal(trained.base.model.get_input_embeddings().weight, embeddings)
    kind, pad = registry.task("causal-lm"), trained.base.tokenizer.pad_token_id
    expected = losses(kind, trained.model, trained.job.train, pad)
    save_adapter(trained.model, trained.base, lock, tmp_path / "adapter")
    plain = plain_model(tmp_path / "adapter", lock, models / name)
    assert losses(kind, plain, trained.job.train, pad) == pytest.approx(expected, abs=1e-4)


def test_named_modules_only(models, tmp_path):
    lock = make_lock(models / "lm", adapter__modules=("q_proj", "v_proj"))
    names = make_loop(lock, tmp_path, pairs(8)).job.parameters
    assert {name.split(".")[-4] for name in names} == {"q_proj", "v_proj"}
    assert len(names) == 2 * 2 * 2


def test_an_adapter_with_nan_is_not_saved(models, tmp_path):
    lock = make_lock(models / "lm")
    trained = make_loop(lock, tmp_path, pairs(8))
    next(iter(trained.job.parameters.values())).data[0] = float("nan")
    with pytest.raises(RunError, match="NaN or Inf"):
        save_adapter(trained.model, trained.base, lock, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_of_another_base_does_not_open(models, tmp_path):
    from safetensors.torch import load_file, save_file

    lock = make_lock(models / "lm")
    trained = make_loop(lock, tmp_path, pairs(8))
    save_adapter(trained.model, trained.base, lock, tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    renamed = {name.replace("layers.1.", "layers.7."): tensor.clone() for name, tensor in tensors.items()}
    save_file(renamed | tensors, path, metadata={"format": "pt"})
    with pytest.raises(RunError, match="does not match the base"):
        open_adapter(load_base(lock, LABELS, CPU), tmp_path / "adapter", "lora", CPU)
