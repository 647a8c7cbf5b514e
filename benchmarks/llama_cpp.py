"""A GGUF file in llama.cpp against the adapter that it was made of, as transformers runs it.

    hfadapt train recipes/sentiment-llm.yaml train.max_steps=40 data.test=640
    python benchmarks/llama_cpp.py runs/sentiment-llm/tweets/this-machine

Compared are the choices among labels, answers that are written greedily, and the perplexity of the test rows'
completions and of the general text of `hfadapt evaluate`; figures go to llama_cpp.json. A choice is decided where the
adapter leads by more than 0.1. llama.cpp is asked as the gate of exports asks it: nothing is kept between tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfadapt.core import registry
from hfadapt.core.progress import Silent
from hfadapt.evaluate.context import EvaluationContext, open_context
from hfadapt.evaluate.general_text import paragraphs
from hfadapt.export.gate import DECISIVE
from hfadapt.formats import _llama_cpp
from hfadapt.hardware.versions import versions
from hfadapt.modalities import Example
from hfadapt.modalities.text import token_ids
from hfadapt.models.merge import open_merged
from hfadapt.run_folder import Cell
from hfadapt.train.batches import padded

RESULTS = Path(__file__).with_name("llama_cpp.json")
TOKENS = 96
"""Of a paragraph of general text, at most."""
NEW_TOKENS = 4
"""Of a greedy answer: a label and what may come after it."""


def main() -> None:
    """Asks both, and writes what they differ in."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("cell", type=Path)
    asked.add_argument("--form", default="merged-q8_0")
    asked.add_argument("--rows", type=int, default=640)
    asked.add_argument("--written-rows", type=int, default=200, help="rows whose answers are also written greedily")
    asked.add_argument("--paragraphs", type=int, default=8, help="of general text")
    given = asked.parse_args()
    cell, device = Cell(given.cell), torch.device("cpu")
    context = open_context(cell, device, Silent(), baseline=False)
    examples = context.test[: given.rows]
    texts = context.task.encode(
        [{"text": text} for text in paragraphs()[: given.paragraphs]], context.base.tokenizer, max_length=TOKENS
    )
    print(f"asking transformers about {len(examples)} rows", flush=True)
    own = _asked(context, context.model, examples, texts)
    own["written"] = [_continued(context, each) for each in examples[: given.written_rows]]
    context.model = context.base.model = None
    whole = open_merged(cell.lock, (), cell.adapter, "float32", device, dequantised=True).model
    merged = _asked(context, whole, examples, texts)
    del whole
    with tempfile.TemporaryDirectory() as folder:
        kind = registry.format("gguf")
        (form,) = [each for each in kind.forms(cell.lock) if each.name == given.form]
        kind.write(cell, form, Path(folder), device)
        size = (Path(folder) / "model.gguf").stat().st_size
        started, model = time.monotonic(), kind.reopen(cell, Path(folder), device)
        print(f"asking {kind.runtime}", flush=True)
        other = _asked(context, model, examples, ())
        # Rare words are beyond the likeliest tokens, whose probabilities are asked for elsewhere.
        _llama_cpp.NAMED = len(context.base.tokenizer)
        other |= _general(context, model, texts)
        other["written"] = [model.written(_prompt(each), NEW_TOKENS) for each in examples[: given.written_rows]]
    found = _compared(own, merged, other) | {
        "form": given.form,
        "bytes": size,
        "runtime": kind.runtime,
        "seconds_in_llama_cpp": round(time.monotonic() - started),
        "model": cell.manifest.model,
        "adapter_trained_in": cell.lock.quant,
        "versions": versions("cpu").model_dump(),
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


def _asked(
    context: EvaluationContext, model: Any, examples: Sequence[Example], texts: Sequence[Example]
) -> dict[str, Any]:
    """What a model says: chances of the choices (N, C), losses and tokens of completions and paragraphs (N,)."""
    choices = tuple(context.choices.values())
    with torch.inference_mode():
        scores = context.task.score(model, examples, lambda rows: _batches(context, rows), choices)
    found = {
        "chances": scores.probabilities,
        "right": float(np.mean(scores.gold == scores.predictions)),
        "completions": (scores.losses, scores.tokens),
    }
    return found | (_general(context, model, texts) if texts else {})


def _general(context: EvaluationContext, model: Any, texts: Sequence[Example]) -> dict[str, Any]:
    """Losses and tokens of the paragraphs (N,)."""
    with torch.inference_mode():
        found = context.task.score(model, texts, lambda rows: _batches(context, rows))
    return {"general": (found.losses, found.tokens)}


def _batches(context: EvaluationContext, rows: Sequence[Example]) -> Any:
    return padded(context.task, rows, context.base.pad_token_id, torch.device("cpu"), 8)


def _prompt(example: Example) -> list[int]:
    """Token ids up to the completion."""
    ids = token_ids(example)
    return list(ids[: next(place for place, label in enumerate(example.labels) if label >= 0)])


def _continued(context: EvaluationContext, example: Example) -> str:
    """What the adapter writes greedily."""
    prompt = torch.tensor([_prompt(example)])
    with torch.inference_mode():
        found = context.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=context.base.pad_token_id,
        )
    text: str = context.base.tokenizer.decode(found[0, prompt.shape[1] :], skip_special_tokens=True)
    return text


def _compared(own: dict[str, Any], merged: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    leads = np.sort(own["chances"], axis=1)
    decisive = leads[:, -1] - leads[:, -2] > DECISIVE
    alike = own["chances"].argmax(1) == other["chances"].argmax(1)
    written = [one == two for one, two in zip(own["written"], other["written"], strict=True)]
    first = [one.split()[:1] == two.split()[:1] for one, two in zip(own["written"], other["written"], strict=True)]
    sure = [bool(each) for each in decisive[: len(written)]]

    def perplexities(name: str) -> dict[str, float]:
        trained, whole, here = (
            math.exp(float(losses.sum() / tokens.sum())) for losses, tokens in (own[name], merged[name], other[name])
        )
        return {
            "adapter_as_trained": round(trained, 4),
            "merged_float32": round(whole, 4),
            "llama_cpp": round(here, 4),
            "change_from_trained": round(here / trained - 1, 5),
            "change_from_merged_float32": round(here / whole - 1, 5),
            "tokens": int(own[name][1].sum()),
        }

    return {
        "rows": len(alike),
        "decisive_rows": int(decisive.sum()),
        "choices_alike_of_decisive": round(float(alike[decisive].mean()), 4),
        "choices_alike_of_all": round(float(alike.mean()), 4),
        "accuracy": {"transformers": round(own["right"], 4), "llama_cpp": round(other["right"], 4)},
        "written_rows": len(written),
        "written_label_alike_of_decisive": round(float(np.mean([a for a, s in zip(first, sure, strict=True) if s])), 4),
        "written_alike_of_decisive": round(float(np.mean([a for a, s in zip(written, sure, strict=True) if s])), 4),
        "written_alike_of_all": round(float(np.mean(written)), 4),
        "perplexity_of_completions": perplexities("completions"),
        "perplexity_of_general_text": perplexities("general"),
    }


if __name__ == "__main__":
    main()
