"""Every task and every storage that is found: complete, and named like its file."""

from __future__ import annotations

import pytest
import torch
from tiny import (
    LABELS,
    chats,
    labelled,
    likenesses,
    loss_sum,
    make_lock,
    pairs,
    preferences,
    preferred_chats,
    questions,
    tagged,
)
from tiny_images import png
from tiny_sounds import tone, wav

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.evaluate.metrics.rows import known_metrics
from hfadapt.modalities import IGNORED
from hfadapt.models.load import compute_dtype, load_base
from hfadapt.tasks import unique_parts
from hfadapt.train.batches import padded


def numbered(count, seed=0):
    """The tiny rows with a number for each class."""
    return [{**row, "label": 1.5 + (row["label"] == "good")} for row in labelled(count, seed=seed)]


def several(count, seed=0):
    """The tiny rows with their class in a list; some have none."""
    return [{**row, "label": [row["label"]] * (n % 4 > 0)} for n, row in enumerate(labelled(count, seed=seed))]


FILES = {"image": png, "audio": lambda number: wav(tone(("low", "high")[number % 2], number))}
LABEL_OF = {
    "class": lambda number: LABELS[number % 2],
    "classes": lambda number: [LABELS[number % 2]] * (number % 4 > 0),
    "number": lambda number: 1.5 + number % 2,
}


def from_files(schema, count):
    """Rows of files, as they are prepared."""
    rows = []
    for number in range(count):
        values = {schema.media: FILES[schema.media](number), "label": LABEL_OF[schema.label_kind](number)}
        rows.append({**schema.make(values, str), "source": "s", "row": number})
    return rows


ROWS = {
    "scored": numbered,
    "several": several,
    "labelled": labelled,
    "completion": pairs,
    "messages": chats,
    "tokens": tagged,
    "pairs": questions,
    "preferences": preferences,
    "preference-chats": lambda count: [
        registry.schema("preference-chats").make(row, str) for row in preferred_chats(count)
    ],
    "spans": tagged,  # which are read as words and tags
    "scored-pairs": likenesses,
}
TASKS = [(task, form) for task in registry.names("tasks") for form in sorted(registry.task(task).schemas)]
STORES = registry.names("quants")


def rows_of(form, count):
    schema = registry.schema(form)
    if schema.media:
        return from_files(schema, count)
    return [{"text": row["text"]} for row in labelled(count)] if form == "text" else ROWS[form](count)


@pytest.fixture
def senses(vision, hearing):
    """The tiny models of files by modality."""
    return {"image": vision / "dino", "audio": hearing / "wave"}


def model_of(task, models, senses):
    if registry.task(task).modality in senses:
        return senses[registry.task(task).modality]
    return models / {"text-generation": "lm", "fill-mask": "mlm"}.get(registry.task(task).pipeline_tag, "encoder")


@pytest.mark.parametrize("name", registry.names("tasks"))
def test_a_task_says_what_it_is(name):
    import peft
    import transformers

    task = registry.task(name)
    assert task.name == name
    assert hasattr(transformers, task.auto_class)
    assert task.peft_task_type is None or task.peft_task_type in peft.TaskType.__members__
    assert task.baseline in ("base", "linear probe")
    assert task.metrics
    assert set(task.metrics) <= set(known_metrics())
    assert task.schemas


@pytest.mark.parametrize(("name", "form"), TASKS)
def test_a_task_encodes_learns_and_scores(models, senses, name, form):
    task = registry.task(name)
    base = load_base(make_lock(model_of(name, models, senses), name), LABELS, torch.device("cpu"))
    rows, pad = rows_of(form, 6), base.tokenizer.pad_token_id
    examples = task.encode(rows, base.tokenizer, max_length=96, labels=LABELS)
    assert task.encode(rows, base.tokenizer, max_length=96, labels=LABELS) == examples
    assert [example.row for example in examples] == list(range(6))
    assert all(0 < part.size <= 96 for example in examples for part in example.parts)
    assert all(any(label != IGNORED for label in example.labels) for example in examples)
    if task.joint:
        parts, places = unique_parts(examples)
        outputs = task.label_logits(base.model, task.collate(parts, pad))
        losses = task.joint_losses(outputs, examples, places)
        with torch.inference_mode():
            scores = task.score(base.model, examples, lambda e: padded(task, e, pad, torch.device("cpu"), 4))
        assert len(losses) == len(scores.losses) == scores.tokens.sum() == sum(e.label_count for e in examples)
        assert torch.isfinite(losses).all()
        assert losses.requires_grad or not any(p.requires_grad for p in base.model.parameters())
        return
    loss, count = loss_sum(task, base.model, task.collate(examples, pad))
    one_by_one = [loss_sum(task, base.model, task.collate([example], pad)) for example in examples]
    assert count == sum(number for _, number in one_by_one) > 0
    assert float(loss) == pytest.approx(sum(float(value) for value, _ in one_by_one), rel=1e-5)
    with torch.inference_mode():
        scores = task.score(base.model, examples, lambda e: padded(task, e, pad, torch.device("cpu"), 4))
    assert scores.losses.sum() == pytest.approx(float(loss), rel=1e-4)
    assert scores.tokens.sum() == count


@pytest.mark.parametrize("quant", STORES)
@pytest.mark.parametrize("name", registry.names("tasks"))
def test_every_layer_that_was_to_be_quantised_is(models, senses, name, quant):
    base = load_base(make_lock(model_of(name, models, senses), name, quant=quant), LABELS, torch.device("cpu"))
    kind = registry.quant(quant)
    body = base.model.base_model
    linear = [module for module in body.modules() if isinstance(module, torch.nn.Linear)]
    assert linear
    assert {type(module).__name__ for module in linear} == {kind.module_class}
    assert base.quantised_modules == (len(linear) if kind.bits else 0)
    heads = [module for head in base.head_modules for module in getattr(base.model, head).modules()]
    heads = [module for module in heads if isinstance(module, torch.nn.Linear)]
    assert bool(heads) == (registry.task(name).reads == "logits")
    assert all(type(module) is torch.nn.Linear for module in heads)
    if kind.bits:
        stored = sum(module.weight.numel() * module.weight.element_size() for module in linear)
        exact = sum(module.in_features * module.out_features for module in linear)
        assert stored == exact * kind.bits / 8
    with torch.no_grad():
        inputs = registry.modality_of(name).traced(base.model.config, 1, 16)
        output = base.model(
            **{key: value.to(base.model.dtype) if value.is_floating_point() else value for key, value in inputs.items()}
        )
    assert torch.isfinite(getattr(output, registry.task(name).reads)).all()
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_a_layer_that_stayed_as_it_was_is_an_error(models, monkeypatch):
    from hfadapt.quants import Quant

    plain = Quant.config

    def config(self, compute_dtype, skip):
        return plain(self, compute_dtype, [*skip, "down_proj"])

    monkeypatch.setattr(Quant, "config", config)
    with pytest.raises(RunError, match="2 of 14 linear layers were not quantised") as caught:
        load_base(make_lock(models / "lm", quant="nf4"), (), torch.device("cpu"))
    assert "down_proj" in str(caught.value)


@pytest.mark.parametrize("quant", ["nf4", "fp4"])
def test_four_bit_products_are_not_in_the_slow_default(models, quant):
    base = load_base(make_lock(models / "lm", quant=quant), (), torch.device("cpu"))
    dtypes = {module.compute_dtype for module in base.model.modules() if type(module).__name__ == "Linear4bit"}
    assert dtypes == {compute_dtype(torch.float32, torch.device("cpu"))}
