"""Prepares a workload with hfadapt: its rows as ids and labels, the plan of the cell, and a stored adapter per seed.

    python prepare.py SETTINGS.json

Writes into the folder of the settings: rows.json (what every tool trains on), run/ (hfadapt's cell up to its plan),
init-SEED/ (a peft adapter, hfadapt's own start for that seed), and model/ for architectures with random weights.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any


def main(settings: dict[str, Any]) -> None:
    """Everything a run of any tool starts from."""
    import torch

    from hfadapt.core import registry
    from hfadapt.data import read_split
    from hfadapt.models.attach import attach_adapter
    from hfadapt.models.load import load_base, resolve_model
    from hfadapt.pipeline.run import run_recipe
    from hfadapt.recipe.reading import load_recipe
    from hfadapt.run_folder import Run

    folder = Path(settings["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    recipe = recipe_of(settings, folder)
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")  # JSON is YAML
    loaded = load_recipe(path)
    started = time.perf_counter()
    run_recipe(loaded, recipe_folder=folder, folder=folder / "run", until="plan", fresh=True)
    domain, target = next(iter(loaded.domains)), loaded.targets[0]
    cell = Run(folder / "run").cell(domain, target)
    if cell.state.error:
        raise SystemExit(cell.state.error)
    lock, task = cell.lock, registry.task(loaded.task)
    device = torch.device("cuda" if settings["cuda"] else "cpu")
    base = load_base(lock, cell.data.labels, device)
    options: dict[str, Any] = {"max_length": lock.data.max_length, "labels": cell.data.labels}
    prepared: dict[str, Any] = {
        split: [
            {"input_ids": list(example.inputs["input_ids"]), "labels": list(example.labels)}
            for example in task.encode(read_split(cell.folder, split), base.tokenizer, **options)
        ]
        for split in ("train", "validation", "test")
    }
    if len(prepared["train"]) != settings["rows"]:
        raise SystemExit(f"{settings['rows']} training rows were wanted, {len(prepared['train'])} are there")
    head = sum(p.numel() for name, p in base.model.named_parameters() if name.split(".")[0] in base.head_modules)
    prepared |= {
        "task": loaded.task,
        "domain": domain,
        "target": target,
        "labels": list(cell.data.labels),
        "model": loaded.model,
        "model_path": resolve_model(loaded.model).path,
        "no_dropout": [
            name for name, value in vars(base.model.config).items() if "drop" in name and isinstance(value, float)
        ],
        "pad_token_id": int(base.tokenizer.pad_token_id or 0),
        "batch_rows": settings["batch_rows"],
        "epochs": settings["epochs"],
        "learning_rate": settings["learning_rate"],
        "warmup_ratio": lock.train.warmup_ratio,
        "quant": lock.quant,
        "prepare_seconds": time.perf_counter() - started,
        "batches": {str(seed): batches(prepared["train"], settings, seed) for seed in settings["seeds"]},
        **sizes(base, head),
    }
    for seed in settings["seeds"]:
        seeded = lock.model_copy(update={"train": lock.train.model_copy(update={"seed": seed})})
        # Classification heads and A are drawn from the seed when the base is loaded and the adapter attached.
        fresh = load_base(seeded, cell.data.labels, device)
        attach_adapter(fresh, seeded).save_pretrained(folder / f"init-{seed}", save_embedding_layers=False)
    (folder / "rows.json").write_text(json.dumps(prepared), encoding="utf-8")


def recipe_of(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe of a comparison, with its model and rows where these are made here."""
    recipe = dict(settings["recipe"])
    if recipe["model"] == "RANDOM":
        recipe["model"] = str(random_model(settings["random_config"], folder / "model"))
    domain = next(iter(recipe["domains"]))
    if recipe["domains"][domain]["source"] == "LONG":
        rows = settings["rows"] + settings["validation"] + settings["test"]
        path = long_rows(recipe["model"], rows, recipe["data"]["max_length"], folder / "long.jsonl")
        recipe["domains"] = {domain: {"source": str(path)}}
        recipe["data"] = {**recipe["data"], "dedupe": {"near": False, "across_domains": False}}
    steps = settings["epochs"] * settings["rows"] // settings["batch_rows"]
    recipe |= {
        "name": "speed",
        "adapter": settings["lora"],
        "data": {
            **recipe.get("data", {}),
            "train_rows": settings["rows"],
            "validation": settings["validation"],
            "test": settings["test"],
        },
        "train": {
            **recipe.get("train", {}),
            "epochs": settings["epochs"],
            "learning_rate": settings["learning_rate"],
            "batch_rows": settings["batch_rows"],
            "evaluate_every_steps": max(1, round(steps / 5)),
            # No tool saves checkpoints on the way.
            "checkpoint_every_steps": steps + 1,
            "optimizer": "adamw",
            "schedule": "linear",
            "weight_decay": 0.0,
        },
    }
    return recipe


def batches(rows: list[dict[str, Any]], settings: dict[str, Any], seed: int) -> list[list[int]]:
    """Row numbers of every step, epoch after epoch, as hfadapt orders them."""
    from hfadapt.train.batches import epoch_batches

    lengths = [len(row["input_ids"]) for row in rows]
    return [
        batch
        for epoch in range(settings["epochs"])
        for batch in epoch_batches(lengths, settings["batch_rows"], seed, epoch)
    ]


def sizes(base: Any, fresh_head: int) -> dict[str, int]:
    """Weights that every token is multiplied with, and those that only labels are: the formula of MFU needs both."""
    import torch

    body = getattr(base.model, base.model.base_model_prefix)
    config = body.config
    linear = sum(
        module.in_features * module.out_features for module in body.modules() if isinstance(module, torch.nn.Linear)
    )
    output = base.model.get_output_embeddings()
    head = config.hidden_size * config.vocab_size if output is not None else fresh_head
    return {"linear_weights": linear, "head_weights": head}


def random_model(config: dict[str, Any], folder: Path) -> Path:
    """A model of this architecture with random weights (seed 0) and SmolLM2's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from hfadapt.models.load import resolve_model

    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        kind = config["model_type"]
        known = {name: value for name, value in config.items() if name != "model_type"}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **known), dtype=torch.bfloat16)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(resolve_model("sample:smollm2-135m").path).save_pretrained(folder)
    return folder


def long_rows(model: str, count: int, longest: int, path: Path) -> Path:
    """Texts of a quarter of `longest` to `longest` tokens: sentences of the sample's film reviews and news, one after
    the other (seed 0)."""
    from hfadapt.data import prepare, read_split
    from hfadapt.models.load import load_processor, resolve_model
    from hfadapt.recipe.reading import load_recipe

    source = path.parent / "sentences.yaml"
    domains = {name: {"source": f"sample:vader/{name}"} for name in ("movies", "news")}
    text = {"model": "sample:minilm-l6", "task": "text-classification", "domains": domains, "name": "sentences"}
    source.write_text(json.dumps(text), encoding="utf-8")
    prepared = prepare(load_recipe(source), recipe_folder=path.parent)
    sentences = [row["text"] for domain in prepared.values() for row in read_split(domain.folder, "train")]
    draw = random.Random(0)
    draw.shuffle(sentences)
    tokenizer = load_processor(resolve_model(model), "text")
    lengths = [len(ids) + 1 for ids in tokenizer(sentences)["input_ids"]]
    position = 0
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            wanted, parts, tokens = draw.randint(longest // 4, longest - 1), [], 0
            while tokens + lengths[position % len(sentences)] < wanted:
                tokens += lengths[position % len(sentences)]
                parts.append(sentences[position % len(sentences)])
                position += 1
            file.write(json.dumps({"text": " ".join(parts)}) + "\n")
    return path


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
