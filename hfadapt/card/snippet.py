"""The loading snippet of a card: plain transformers and peft on the adapter's folder, run when the card is made."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.card.facts import Facts, Records, public_name, redact
from hfadapt.core import registry, resources
from hfadapt.core.errors import RunError
from hfadapt.models.facts import load_config
from hfadapt.recipe.sources import SAMPLE, found_model
from hfadapt.run_folder import Cell

if TYPE_CHECKING:
    from hfadapt.schemas import RowSchema

FILE = "<the card's snippet>"
WRITTEN = 24
"""Tokens that the snippet of a language model writes."""
LOADED = "\n).eval()\n"
"""The end of what loads a base, in every template."""
UNPACKED = """for module in model.modules():
    module.support_avx512bf16_for_cpu = False  # bitsandbytes has no kernel for layers of these sizes there
"""
LOOKED_AT = 200
"""Test rows among which the example is chosen."""


def snippet_text(facts: Facts) -> str:
    """The marked code, from the task's template."""
    records = facts.records
    lock = records.file("lock.yaml")
    whole = registry.adapter(lock["adapter"]["method"]).whole_model
    schema = registry.schema(records.value("data.json#/form"))
    template = resources.templates(registry.task(lock["task"]).folder).get_template("snippet.py.j2")
    code = template.render(
        fact=facts,
        peft=not whole,
        sample=str(lock["model"]).startswith(SAMPLE) and not lock["base"] and not whole,
        base=_base(facts),
        settings=records.file("train.json").get("settings") or {},
        other_head=records.file("train.json").get("base_head") is not None,
        long_rows=_long_rows(records),
        quant=_quant(records),
        quant_class=registry.quant(lock["quant"]).config_class,
        schema=schema,
        example=example_row(records),
        file=example_file(schema),
        **(_of_files(schema, records) if schema.media else {}),
    )
    return code.replace(LOADED, LOADED + UNPACKED, 1) if records.file("train.json").get("odd_sizes") else code


def example_file(schema: RowSchema) -> str:
    """What the snippet calls the file that it opens; "" for rows of text."""
    return f"example{registry.modality(schema.modality).suffixes[0]}" if schema.media else ""


def _of_files(schema: RowSchema, records: Records) -> dict[str, Any]:
    """What a snippet has to know of the base where it opens a file."""
    lock = records.file("lock.yaml")
    config = load_config(lock["base"]["folder"] if lock["base"] else found_model(lock["model"], records.folder))
    return {"arguments": registry.modality(schema.modality).arguments(config, lock["data"]["max_length"])}


def _base(facts: Facts) -> str:
    """The expression that names the base, with a word on where else it is to be had."""
    records = facts.records
    if (made := records.file("lock.yaml")["base"]) is not None:
        return facts.cited(f"{json.dumps(made['folder'])}  # what the stage {made['made_by']} made of the base")
    model, hub_id = str(records.value("lock.yaml#/model")), records.value("train.json#/model_hub_id")
    if model.startswith(SAMPLE):
        also = f"  # the weights it was trained on; on the Hub: {hub_id}" if hub_id else ""
        return facts.cited(f"resolve_model({json.dumps(model)}).path{also}")
    if hub_id:
        revision = records.value("train.json#/model_revision")
        return facts.cited(json.dumps(hub_id) + (f"  # revision {revision}" if revision else ""))
    return facts.cited(json.dumps(public_name(model)) + "  # the folder of the base")


def _long_rows(records: Records) -> bool:
    """Whether some rows are as long as was learned from: a model may have no positions left to write in."""
    lengths, most = records.file("data.json").get("lengths") or {}, records.value("lock.yaml#/data/max_length")
    return most > 2 * WRITTEN and any(split["longest"] > most - WRITTEN for split in lengths.values())


def _quant(records: Records) -> str:
    """Arguments of the quantisation's config, or nothing; products in the dtype of the rest, as every device can."""
    import torch

    lock = records.file("lock.yaml")
    quant = registry.quant(lock["quant"])
    if not quant.quantised:
        return ""
    saved = records.file("adapter/adapter_config.json").get("modules_to_save")
    arguments = quant.arguments(getattr(torch, lock["dtype"]), sorted(set(saved)) if saved else None)
    return ",\n        ".join(
        f"{key}={json.dumps(value) if isinstance(value, (str, list)) else value}" for key, value in arguments.items()
    )


def example_row(records: Records) -> int:
    """The number of the test row in the snippet: short, free of personal data, and one the adapter gets right."""
    rows = records.file("data/test.parquet")[:LOOKED_AT]
    schema = registry.schema(records.value("data.json#/form"))
    predictions = records.file("predictions.parquet") if records.has("predictions.parquet") else [{}] * len(rows)

    def key(number: int) -> tuple[Any, ...]:
        row, said = rows[number], predictions[number]
        text = "" if schema.media else schema.shown(row)
        right = said.get("gold") == said.get("adapter")
        length = len(text)
        return (
            redact(text) != text,
            not right,
            not 20 <= length <= 160,
            -(said.get("confidence") or 0.0),
            length,
            number,
        )

    return min(range(len(rows)), key=key)


@contextlib.contextmanager
def _example(records: Records) -> Iterator[tuple[str, str]]:
    """The name of the file in the snippet and where it is for now; nothing for rows of text."""
    schema = registry.schema(records.value("data.json#/form"))
    if not schema.media:
        yield "", ""
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / example_file(schema)
        path.write_bytes(bytes(records.file("data/test.parquet")[example_row(records)][schema.media]))
        yield path.name, str(path)


def run_snippet(code: str, cell: Cell, records: Records) -> str:
    """Runs the code with the folders' full paths in place of their names, and returns what it printed.

    Raises:
        RunError: it fails, or says something else than the evaluation did.
    """
    import torch

    from hfadapt.hardware.peak_memory import release_memory

    lock = records.file("lock.yaml")
    run = code.replace(
        'adapter = "adapter" if os.path.isdir("adapter") else "."', f"adapter = {str(cell.adapter.resolve())!r}", 1
    )
    model = str(lock["model"])
    if lock["base"]:
        folder = lock["base"]["folder"]
        run = run.replace(f"base = {json.dumps(folder)}", f"base = {str((cell.folder / folder).resolve())!r}", 1)
    elif not model.startswith(SAMPLE) and not records.value("train.json#/model_hub_id"):
        from hfadapt.models.load import resolve_model

        path = resolve_model(found_model(model, cell.folder)).path
        run = run.replace(f"base = {json.dumps(public_name(model))}", f"base = {path!r}", 1)
    printed = io.StringIO()
    try:
        with _example(records) as (name, path), contextlib.redirect_stdout(printed), torch.random.fork_rng():
            run = run.replace(json.dumps(name), repr(path)) if name else run
            exec(compile(run, FILE, "exec"), {"__name__": "__main__"})
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno or 0 for frame in frames if frame.filename == FILE), 0)
        raise RunError(
            "the card's loading snippet fails",
            place=f"line {line}: {run.splitlines()[line - 1].strip() if line else ''}",
            got=f"{type(error).__name__}: {error}",
            fix="the adapter cannot be loaded as the card says; report it with lock.yaml",
        ) from error
    finally:
        release_memory()
    output = printed.getvalue().strip()
    expected = records.value(f"predictions.parquet#/{example_row(records)}").get("adapter")
    if not registry.task(lock["task"]).snippet_agrees(output, expected):
        raise RunError(
            "the card's loading snippet does not say what the evaluation did",
            place="How to load",
            got=repr(output),
            allowed=repr(expected),
            fix="train the cell again; if it happens again, report it with the recipe and lock.yaml",
        )
    return output
