"""Faults of supervision that other tools train on silently, planted one by one.

Each fault is planted in a recipe's data, or between the data and training (tokenizer, template, collator). `caught`
runs what a run does before its first step, and returns what was said; it is "" unless rows and a fix are named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hfadapt import data
from hfadapt.core import registry
from hfadapt.core.errors import DataError
from hfadapt.modalities import IGNORED
from hfadapt.modalities.text import text_example, token_ids
from hfadapt.recipe.schema import Recipe

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDLESS = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
_SUBJECTS = (
    "the keyboard",
    "this novel",
    "a train",
    "our garden",
    "the coffee",
    "her speech",
    "that bridge",
    "my bicycle",
)
_VERBS = ("arrived", "sounded", "looked", "felt", "worked", "became", "remained", "turned")
_GOOD = ("wonderful", "excellent", "delightful", "superb", "charming", "brilliant")
_BAD = ("dreadful", "broken", "awful", "boring", "terrible", "ugly")
_WHEN = ("on Monday", "last night", "after lunch", "in the rain", "before dawn", "all week", "by accident", "again")


def sentences(count: int) -> list[dict[str, Any]]:
    """Distinct labelled sentences."""
    lines = []
    for number in range(count):
        good = number % 2 == 0
        words = _GOOD if good else _BAD
        text = (
            f"{_SUBJECTS[number % 8]} {_VERBS[number // 8 % 8]} {words[number // 3 % 6]} {_WHEN[number // 5 % 8]} "
            f"near {_name(number)} while {_name(number * 7 + 3)} and {_name(number * 13 + 5)} were away"
        )
        lines.append({"text": text, "label": "good" if good else "bad"})
    return lines


def _name(number: int) -> str:
    parts = ("ba", "ko", "mi", "ru", "ta", "ne", "lo", "vi", "sa", "du")
    return "".join(parts[int(digit)] for digit in f"{number * 7919 % 100000:05d}").capitalize()


def pairs(count: int) -> list[dict[str, Any]]:
    """Questions with free answers."""
    return [
        {
            "prompt": f"Where is {_name(n)} and who is {_name(n + 1)}?",
            "completion": f"{_name(n * 3)} lives near {_name(n * 5)}.",
        }
        for n in range(1, count + 1)
    ]


def chats(count: int) -> list[dict[str, Any]]:
    """Conversations of two turns each way."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Where is {_name(n)} today?"},
                {"role": "assistant", "content": f"Near the lake of {_name(n * 3)}."},
                {"role": "user", "content": f"And what about {_name(n * 5)} then?"},
                {"role": "assistant", "content": f"Gone with {_name(n * 7)} to the hills."},
            ]
        }
        for n in range(1, count + 1)
    ]


def tokenizer(
    template: str | None = CHATML, ends: tuple[str, ...] = ("<|im_start|>", "<|im_end|>"), eos: str = "<|im_end|>"
) -> Any:
    """A small byte-level tokenizer made here, so that nothing is downloaded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "<pad>", *dict.fromkeys([*ends, eos])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([row["text"] for row in sentences(200)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token=eos, pad_token="<pad>")
    fast.chat_template = template
    return fast


class Changed:
    """A task whose examples or batches come out wrong, as a faulty template or collator makes them."""

    def __init__(self, example: Callable[[Any, Any, Any], Any] | None = None, collate: Any = None) -> None:
        self._task = registry.task("causal-lm")
        self._example = example
        self._collate = collate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def encode(self, rows: Any, tokenizer: Any, **settings: Any) -> list[Any]:
        """The real examples, changed."""
        made = self._task.encode(rows, tokenizer, **settings)
        if self._example is None:
            return made
        return [self._example(row, example, tokenizer) for row, example in zip(rows, made, strict=True)]

    def collate(self, examples: Any, pad_token_id: int) -> Any:
        """The real batch, changed."""
        batch = self._task.collate(examples, pad_token_id)
        return self._collate(batch, pad_token_id) if self._collate else batch


@dataclass
class Fault:
    """One fault.

    Args:
        name: What is wrong.
        rows: The rows of the source, or of several sources by file name.
        task: Name of the task.
        settings: More of the recipe.
        domain: More of the domain.
        made: Changes the tokenizer, the task or the files of the cell.
        says: A code or words that must be said.
    """

    name: str
    rows: Any
    says: str
    task: str = "text-classification"
    settings: dict[str, Any] = field(default_factory=dict)
    domain: dict[str, Any] = field(default_factory=dict)
    tokenizer: Callable[[], Any] = tokenizer
    changed: Changed | None = None
    cell: Callable[[Path], None] | None = None
    max_length: int = 256
    soft: bool = False


def caught(fault: Fault, folder: Path) -> str:
    """What was said about the fault before any training step; "" when it was missed or said without rows or fix."""
    files = fault.rows if isinstance(fault.rows, dict) else {"rows.jsonl": fault.rows}
    for name, rows in files.items():
        content = rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / name).write_bytes(content)
    domain = {"source": next(iter(files)), **fault.domain}
    recipe = Recipe(name="faulty", model="none", task=fault.task, domains={"d": domain}, **fault.settings)
    try:
        record = data.prepare(recipe, recipe_folder=folder, cache=folder / "cache")["d"].copy_into(folder / "cell")
        if fault.cell is not None:
            fault.cell(folder / "cell")
        task = fault.changed or registry.task(fault.task)
        result = data.audit(folder / "cell", task, fault.tokenizer(), max_length=fault.max_length, labels=record.labels)
        data.require_clean(result, "d")
    except DataError as error:
        return str(error) if fault.says in str(error) and _complete(str(error)) else ""
    if not fault.soft:
        return ""
    for each in result.findings:
        if each.code == fault.says and each.fix and re.search(r"(rows?|lines?) \d", each.message):
            return each.message
    return ""


def _complete(said: str) -> bool:
    return "fix:" in said and re.search(r"(rows?|lines?) \d|\d rows|no rows", said) is not None


def _write_split(
    split: str, change: Callable[[dict[str, list[dict[str, Any]]]], list[dict[str, Any]]]
) -> Callable[[Path], None]:
    """Rewrites one split of a cell."""

    def write(cell: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        splits = {name: data.read_split(cell, name) for name in ("train", "validation", "test")}
        path = cell / "data" / f"{split}.parquet"
        schema = parquet.read_schema(path)
        parquet.write_table(pyarrow.Table.from_pylist(change(splits), schema=schema), path)

    return write


def _relabel(labels: Callable[[Any, Any, Any], list[int]]) -> Changed:
    return Changed(lambda row, example, tok: replace(example, labels=tuple(labels(row, example, tok))))


def _only_last_turn(row: Any, example: Any, tok: Any) -> list[int]:
    labels = list(example.labels)
    gaps = [i for i in range(1, len(labels)) if labels[i] != IGNORED and labels[i - 1] == IGNORED]
    return [IGNORED if i < gaps[-1] else label for i, label in enumerate(labels)]


def _without_end(row: Any, example: Any, tok: Any) -> Any:
    keep = [i for i, token in enumerate(token_ids(example)) if token != tok.eos_token_id]
    ids = tuple(token_ids(example)[i] for i in keep)
    return text_example(ids, [example.labels[i] for i in keep], length=len(ids), row=example.row)


def _mask_pad(batch: Any, pad: int) -> Any:
    batch["labels"][batch["input_ids"] == pad] = IGNORED
    return batch


def _pad_is_end() -> Any:
    made = tokenizer()
    made.pad_token = made.eos_token
    return made


def _mojibake(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    bad = "caf\u00e9 na\u00efve".encode().decode("cp1252")
    return [{**row, "text": f"{row['text']} {bad}"} for row in rows]


ROWS = sentences(120)
LM = "causal-lm"
FAULTS: tuple[Fault, ...] = (
    Fault(
        "every label masked",
        pairs(80),
        "all-masked",
        LM,
        changed=_relabel(lambda row, e, tok: [IGNORED] * len(e.labels)),
    ),
    Fault(
        "end token masked",
        pairs(80),
        "eos-masked",
        LM,
        changed=_relabel(lambda row, e, tok: [IGNORED if i == tok.eos_token_id else i for i in e.labels]),
    ),
    Fault("end token absent", pairs(80), "eos-absent", LM, changed=Changed(_without_end)),
    Fault("template without end of turn", chats(80), "eos-absent", LM, tokenizer=lambda: tokenizer(ENDLESS)),
    Fault(
        "pad = end token hides the stop",
        pairs(80),
        "pad-hides-stop",
        LM,
        tokenizer=_pad_is_end,
        changed=Changed(collate=_mask_pad),
    ),
    Fault(
        "answer cut off by max length",
        [{**row, "completion": row["completion"] * 9} for row in pairs(80)],
        "answer-cut",
        LM,
        max_length=48,
    ),
    Fault("chat template missing", chats(80), "no chat template", LM, tokenizer=lambda: tokenizer(None)),
    Fault(
        "chat template of another model",
        chats(80),
        "other-chat-template",
        LM,
        tokenizer=lambda: tokenizer(CHATML, ends=(), eos="</s>"),
    ),
    Fault(
        "double begin token",
        pairs(80),
        "double-bos",
        LM,
        changed=Changed(
            lambda row, e, tok: text_example(
                (tok.bos_token_id, tok.bos_token_id, *token_ids(e)),
                (IGNORED, IGNORED, *e.labels),
                length=e.length + 2,
                row=e.row,
            )
        ),
    ),
    Fault(
        "response marker not found in some rows",
        chats(80),
        "no-response",
        LM,
        changed=_relabel(lambda row, e, tok: [IGNORED] * len(e.labels) if row["row"] % 3 == 0 else list(e.labels)),
    ),
    Fault("only the last turn trained", chats(80), "only-last-turn", LM, changed=_relabel(_only_last_turn)),
    Fault(
        "turns of the user trained",
        chats(80),
        "wrong-role",
        LM,
        changed=_relabel(lambda row, e, tok: list(token_ids(e))),
    ),
    Fault("prompt trained", pairs(80), "prompt-trained", LM, changed=_relabel(lambda row, e, tok: list(token_ids(e)))),
    Fault(
        "label outside the set",
        [*ROWS, {"text": "the lamp was somewhat middling near the door today", "label": "goood"}],
        "goood",
        domain={"labels": ["good", "bad"]},
    ),
    Fault("label written into the text", [{**r, "text": f"{r['text']} [{r['label']}]"} for r in ROWS], "label-in-text"),
    Fault(
        "label leaked as a code",
        [{**r, "text": f"{'x7' if r['label'] == 'good' else 'x9'} {r['text']}"} for r in ROWS],
        "telltale-word",
    ),
    Fault(
        "answer at the end of the prompt",
        [{**r, "prompt": f"{r['prompt']} {r['completion']}"} for r in pairs(80)],
        "answer-in-prompt",
        LM,
    ),
    Fault(
        "training rows in the test set",
        ROWS,
        "split-overlap",
        cell=_write_split("test", lambda splits: splits["train"][:10]),
    ),
    Fault(
        "nearly the same rows in the test set",
        ROWS,
        "near-overlap",
        cell=_write_split(
            "test",
            lambda splits: [{**row, "text": row["text"].replace("while", "whilst")} for row in splits["train"][:10]],
        ),
    ),
    Fault(
        "empty completions",
        pairs(80),
        "empty-completion",
        LM,
        cell=_write_split("train", lambda splits: [{**row, "completion": " "} for row in splits["train"]]),
    ),
    Fault("every completion empty in the source", [{**r, "completion": ""} for r in pairs(80)], "empty-completion", LM),
    Fault("one class only", [{**row, "label": "good"} for row in ROWS], "one class only"),
    Fault(
        "a word a row",
        [{"tokens": _name(n), "tags": "ab"[n % 2]} for n in range(200)],
        "lone-words",
        "token-classification",
        soft=True,
    ),
    Fault(
        "tags of pieces of words",
        [{"tokens": row["text"].split()[:3], "tags": [0, -100, n % 2]} for n, row in enumerate(ROWS)],
        "tags of -100",
        "token-classification",
    ),
    Fault("one number only", [{**row, "label": 1.5} for row in ROWS], "the number 1.5", "text-regression"),
    Fault(
        "numbers with their unit",
        [{**row, "label": f"{n}%"} for n, row in enumerate(ROWS)],
        "write plain numbers",
        "text-regression",
    ),
    Fault(
        "constant column as the text",
        [{**r, "source_name": "web"} for r in ROWS],
        "same value",
        domain={"columns": {"text": "source_name"}},
    ),
    Fault(
        "identifier as the text",
        [{**row, "id": f"doc-{n:05d}"} for n, row in enumerate(ROWS)],
        "identifiers",
        domain={"columns": {"text": "id"}},
    ),
    Fault(
        "identifier as the label",
        [{**row, "id": f"doc-{n:05d}"} for n, row in enumerate(ROWS)],
        "identifies rows",
        domain={"columns": {"label": "id"}},
    ),
    Fault("mojibake (repaired, but said)", _mojibake(ROWS), "mojibake-repaired", soft=True),
    Fault(
        "mojibake that is not repaired", _mojibake(ROWS), "mojibake", settings={"data": {"clean": {"unicode": False}}}
    ),
    Fault("completion identical in all rows", [{**r, "completion": "Yes."} for r in pairs(80)], "same-completion", LM),
    Fault("mixed formats", {"rows.jsonl": [*pairs(40), *ROWS[:40]]}, "formats are mixed", LM),
    Fault(
        "mixed formats across files",
        {"a.jsonl": pairs(40), "b.jsonl": [{"text": row["text"]} for row in ROWS]},
        "mixes forms",
        LM,
        domain={"source": None, "sources": ["a.jsonl", "b.jsonl"]},
    ),
    Fault("validation empty", ROWS, "validation-empty", cell=_write_split("validation", lambda splits: [])),
    Fault(
        "given validation set empty",
        {"rows.jsonl": ROWS, "held.jsonl": [{"text": "", "label": "good"}]},
        "held.jsonl",
        domain={"validation": "held.jsonl"},
    ),
    Fault(
        "lines that are not JSON", b"\n".join([b'{"text": "a b", "label": "x"}'] * 3 + [b"{oops"] * 2), "cannot be read"
    ),
    Fault("turns of an unknown role", [{"messages": [{"role": "narrator", "content": "Once."}]}] * 9, "narrator", LM),
)
