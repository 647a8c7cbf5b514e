"""Real models of some 100,000 parameters, small data sets, and short ways to train and run with them."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

_frozen_modules = 0
LABELS = ("bad", "good")
GOOD = ("lovely", "bright", "superb", "warm", "fresh", "charming", "brilliant", "delightful")
BAD = ("awful", "dull", "broken", "cold", "stale", "boring", "dreadful", "painful")
_PLAIN = (
    "the a this that room film phone meal car story hotel song table light morning city garden picture water "
    "friend paper window music bread house river cloud stone street school doctor market train coffee"
)
PLAIN = _PLAIN.split()
INSTRUCTIONS = "the music and the river"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


# --- data ------------------------------------------------------------------------------------------------------------


def labelled(count: int, seed: int = 0, words: int = 8) -> list[dict[str, str]]:
    """Rows whose words say the label, alternating, no two alike."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label = LABELS[number % 2]
        signs = GOOD if label == "good" else BAD
        text = draw.choices(PLAIN, k=draw.randint(words // 2, words)) + draw.choices(signs, k=2)
        draw.shuffle(text)
        rows.append({"text": " ".join(text), "label": label})
    return rows


def tagged(count: int, seed: int = 0) -> list[dict[str, list[str]]]:
    """The same words with a tag each: `good` for signs of it, `bad` for all others."""
    texts = [row["text"].split() for row in labelled(count, seed)]
    return [{"tokens": words, "tags": [LABELS[word in GOOD] for word in words]} for words in texts]


def entities(count: int, seed: int = 0) -> list[dict[str, list[str]]]:
    """Words with spans in IOB2: one or two signs in a row are a GOOD or a BAD one."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        words, tags = [], []
        for _ in range(draw.randint(2, 4)):
            kind, signs = draw.choice([("GOOD", GOOD), ("BAD", BAD)])
            span = draw.choices(signs, k=draw.randint(1, 2))
            others = draw.choices(PLAIN, k=draw.randint(1, 3))
            words += [*span, *others]
            tags += [f"{'I' if at else 'B'}-{kind}" for at in range(len(span))] + ["O"] * len(others)
        rows.append({"tokens": words, "tags": tags})
    return rows


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Prompts and completions; the completion is one of two words."""
    return [{"prompt": f"{row['text']} :", "completion": f" {row['label']}"} for row in labelled(count, seed)]


def questions(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Texts, each with another that has some of its words and belongs to it."""
    draw, rows = random.Random(seed), []
    for row in labelled(count, seed):
        words = row["text"].split()
        rows.append({"anchor": row["text"], "positive": " ".join([*draw.sample(words, 4), *draw.choices(PLAIN, k=2)])})
    return rows


def likenesses(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of texts with the share of words of the first that are in the second."""
    draw, rows = random.Random(seed), []
    for row in labelled(count, seed):
        words = row["text"].split()
        kept = draw.randint(0, len(words))
        other = [*words[:kept], *draw.choices(PLAIN, k=len(words) - kept)]
        rows.append({"anchor": row["text"], "positive": " ".join(other), "label": 5.0 * kept / len(words)})
    return rows


def preferences(count: int, seed: int = 0) -> list[dict[str, str]]:
    """A prompt, a better answer of good words and a worse one of bad ones, of different lengths."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        better, worse = (" ".join(draw.choices(signs, k=draw.randint(2, 6))) for signs in (GOOD, BAD))
        prompt = " ".join(draw.choices(PLAIN, k=draw.randint(3, 9)))
        rows.append({"prompt": f"{prompt} :", "chosen": f" {better}", "rejected": f" {worse}"})
    return rows


def preferred_chats(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The same as chats, with the prompt in both."""

    def chat(row: Mapping[str, str], side: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side].strip()}]

    return [{side: chat(row, side) for side in ("chosen", "rejected")} for row in preferences(count, seed)]


def uneven(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Prompts and completions with between 1 and 40 words to learn."""
    draw = random.Random(seed)
    sizes = [1, 2, 40, 3]
    return [
        {
            "prompt": " ".join(draw.choices(PLAIN, k=draw.randint(2, 9))),
            "completion": " " + " ".join(draw.choices(PLAIN, k=sizes[number % 4])),
        }
        for number in range(count)
    ]


def chats(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Conversations of two questions and two answers."""
    draw = random.Random(seed)

    def turn(role: str) -> dict[str, str]:
        return {"role": role, "content": " ".join(draw.choices(PLAIN, k=draw.randint(2, 7)))}

    return [{"messages": [turn("user"), turn("assistant"), turn("user"), turn("assistant")]} for _ in range(count)]


def run_of_chats(folder: Path, models: Path, verb: str = "run") -> Path:
    """The run of a recipe with one domain, `one`, whose chats begin with instructions."""
    rows = [{"messages": [{"role": "system", "content": INSTRUCTIONS}, *row["messages"]]} for row in chats(60)]
    write_rows(folder / "one.jsonl", rows)
    domains = {"one": {"source": "one.jsonl", "license": "mit"}}
    fields = recipe_fields(models / "lm", "causal-lm", domains, name="chats", evaluate={**NO_CHECKS, "resamples": 100})
    fields["train"] |= {"max_steps": 6, "learning_rate": 2e-2}
    done = command(verb, write_recipe(folder / "chats.yaml", fields), folder=folder)
    assert done.code == 0, done.out + done.err
    return folder / "runs" / "chats"


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- models ----------------------------------------------------------------------------------------------------------


def loss_sum(task, model, batch):
    """The loss summed over all labels of a batch, and their number."""
    losses, _ = task.losses(model, batch)
    return losses.sum(), len(losses)


def make_tokenizer(mask: bool = False) -> Any:
    """A byte-level BPE with a chat template; the usual words are single tokens, anything else is spelt."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = " ".join([*PLAIN, *GOOD, *BAD, *LABELS])
    tokenizer.train_from_iterator([f" {text}"] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    fast.add_special_tokens({"bos_token": AddedToken("<|bos|>", special=True)})
    if mask:
        fast.add_special_tokens({"mask_token": AddedToken("<|user|>", special=True)})
        return fast
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_models(folder: Path) -> None:
    """`lm`, `lm-untied`, `encoder` and, with its output layer, `mlm`: two layers of hidden size 64, safetensors and
    tokenizer."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertModel, LlamaConfig, LlamaForCausalLM

    tokenizer, masking = make_tokenizer(), make_tokenizer(mask=True)
    sizes: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 256,
        "pad_token_id": tokenizer.pad_token_id,
    }
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    made = {
        "lm": lambda: LlamaForCausalLM(LlamaConfig(**sizes, **ends, num_key_value_heads=2, tie_word_embeddings=True)),
        "lm-untied": lambda: LlamaForCausalLM(LlamaConfig(**sizes, **ends, tie_word_embeddings=False)),
        "encoder": lambda: BertModel(BertConfig(**sizes)),
        "mlm": lambda: BertForMaskedLM(BertConfig(**sizes)),
    }
    for name, make in made.items():
        torch.manual_seed(5)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    # Wider than the usual start, so that what a layer does is not lost in rounding.
                    parameter.mul_(4)
        model.save_pretrained(folder / name)
        (masking if name == "mlm" else tokenizer).save_pretrained(folder / name)


# --- recipes, locks, training ----------------------------------------------------------------------------------------


NO_CHECKS = {"security": False, "drift": False}
"""Of `evaluate`: no leak checks and no merging, most of its time, for tests of other things."""


def recipe_fields(
    model: Path | str, task: str = "text-classification", domains: Mapping[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """A recipe for the tiny models with small splits and few steps; `a__b=c` sets `a: {b: c}`."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "model": str(model),
        "task": task,
        "domains": dict(domains or {"one": {"source": "one.jsonl"}}),
        "data": {"validation": 16, "test": 24},
        "train": {"batch_rows": 8, "max_steps": 4},
        "evaluate": {"resamples": 200},
    }
    for name, value in more.items():
        section, _, key = name.partition("__")
        if key:
            fields.setdefault(section, {})[key] = value
        else:
            fields[name] = value
    return fields


def write_recipe(path: Path, fields: Mapping[str, Any]) -> Path:
    import yaml

    path.write_text(yaml.safe_dump(dict(fields)), encoding="utf-8")
    return path


def make_lock(model: Path | str, task: str = "causal-lm", **more: Any) -> Any:
    """A lock without `auto`, as the planner would write it."""
    from hfadapt.recipe.schema import Lock

    fields = recipe_fields(model, task)
    fields |= {"quant": "none", "dtype": "float32"}
    fields["adapter"] = {"method": "lora", "rank": 4, "alpha": 8.0, "dropout": 0.0, "modules": ["all-linear"]}
    fields["data"] |= {"max_length": 64, "packing": True}
    fields["train"] |= {
        "epochs": 1.0,
        "learning_rate": 3e-3,
        "schedule": "linear",
        "warmup_ratio": 0.1,
        "micro_batch_rows": 8,
        "weight_decay": 0.01,
        "evaluate_every_steps": 1000,
        "checkpoint_every_steps": 1000,
        "optimizer": "adamw",
        "checkpointing": False,
    }
    fields["evaluate"] |= {"metrics": ["loss"], "batch_rows": 16}
    for name, value in more.items():
        section, _, key = name.partition("__")
        if key:
            fields[section][key] = value
        else:
            fields[name] = value
    return Lock.model_validate(fields)


@dataclass
class Trained:
    """A loop after its run."""

    base: Any
    model: Any
    loop: Any
    state: Any
    start: Any = None

    @property
    def job(self) -> Any:
        """The one adapter that is trained."""
        return self.loop.jobs[0]

    @property
    def weights(self) -> dict[str, Any]:
        return {name: tensor.detach().clone() for name, tensor in self.job.parameters.items()}

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.lines if "loss" in line]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """metrics.jsonl without the times, which no two runs share."""
        text = (self.job.folder / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def make_loop(
    lock: Any,
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]] = (),
    labels: Sequence[str] = LABELS,
    **options: Any,
) -> Trained:
    """A loop over `rows`, ready to run, with base and adapter loaded afresh."""
    import torch
    from accelerate import Accelerator

    from hfadapt.core import registry
    from hfadapt.models.attach import attach_adapter, low_rank_start, trainable
    from hfadapt.models.load import load_base
    from hfadapt.train.batches import padded
    from hfadapt.train.job import Job
    from hfadapt.train.loop import Loop

    task = registry.task(lock.task)
    base = load_base(lock, labels, torch.device("cpu"))

    def encode(what: Sequence[Mapping[str, Any]]) -> Any:
        return task.encode(what, base.tokenizer, max_length=lock.data.max_length, labels=labels)

    def batches() -> Any:
        return (batch for _, batch in padded(task, encode(rows), base.tokenizer.pad_token_id, torch.device("cpu"), 8))

    model = attach_adapter(base, lock, batches)
    folder.mkdir(parents=True, exist_ok=True)
    products = options.pop("products", None)
    plain = encode(rows)
    job = Job(
        settings=lock.train,
        train=plain,
        validation=encode(validation),
        folder=folder,
        identity=options.pop("identity", "same"),
        parameters=trainable(model),
        augmented=epochs(lock, rows, plain, encode),
    )
    loop = Loop.of([lock], base, model, [job], Accelerator(cpu=True), products, **options)
    changes = registry.adapter(lock.adapter.method).changes_base
    return Trained(base, model, loop, None, low_rank_start(model) if changes else None)


def epochs(
    lock: Any, rows: Sequence[Mapping[str, Any]], plain: Any, encode: Callable[[Any], Any]
) -> Callable[[int], Any] | None:
    """The encoded rows of an epoch, where the lock asks for augmentation."""
    from hfadapt.data import augment
    from hfadapt.data.columns import form_of

    if not lock.data.augment.on:
        return None
    named = [{**row, "source": "rows", "row": number} for number, row in enumerate(rows)]
    data = lock.data
    form = form_of(rows[0])
    return lambda epoch: augment.examples(named, plain, form, data.augment, (data.seed, epoch), encode)


def train(*arguments: Any, **options: Any) -> Trained:
    """`make_loop`, and its run."""
    trained = make_loop(*arguments, **options)
    trained.loop.run()
    trained.state = trained.job.state
    return trained


def stop_after(step: int) -> Callable[[], bool]:
    """A `stop` for the loop that says so after that many steps."""
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == step

    return stop


def same_weights(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two adapters are equal in every bit."""
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- the command line ------------------------------------------------------------------------------------------------


@dataclass
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str


def freeze_libraries() -> None:
    """Libraries hold millions of objects that never die. Every collection would look at all of them again, and hfadapt
    collects whenever it lets a model go. Most are first imported within a test. What is left is little, so that Python
    would go through it all the time."""
    global _frozen_modules
    if len(sys.modules) > _frozen_modules + 20:
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 50)
        _frozen_modules = len(sys.modules)


class After:
    """True from the n-th time on that it is asked: an interruption after so many steps."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 0


def command(*words: Any, folder: Path | None = None) -> Done:
    """`hfadapt WORDS…` in this process, in `folder`."""
    from hfadapt.cli.app import main

    freeze_libraries()
    out, err, code = io.StringIO(), io.StringIO(), 0
    before = Path.cwd()
    os.chdir(folder or before)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "argv", ["hfadapt", *map(str, words)]),
        ):
            try:
                main()
            except SystemExit as ended:
                code = int(ended.code or 0)
    finally:
        os.chdir(before)
    return Done(code, out.getvalue(), err.getvalue())


def start(*words: Any, folder: Path, launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
    """`python -m hfadapt WORDS…` as a process of its own, or under a launcher."""
    first = [sys.executable, "-m", *(launcher or ()), "hfadapt"] if not launcher else [sys.executable, "-m", *launcher]
    return subprocess.Popen(
        [*first, *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 1800) -> Done:
    """Waits for a process; ends one that hangs."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    return Done(process.returncode, out, err)
