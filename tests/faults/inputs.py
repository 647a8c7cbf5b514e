"""Faults of what is read: values, rows, bases, adapters, templates."""

from __future__ import annotations

import json
import pickle
import shutil

from machine import Ended
from place import NO_CHECKS, TRAIN, Outcome, Place, judged
from tiny import chats, labelled, pairs, recipe_fields, write_recipe, write_rows

NOT_FINITE = """
from hfadapt.train.loop import Loop
real = Loop._gradients
def poisoned(self, batches):
    sums = real(self, batches)
    return {key: value * float("nan") if batches[0][1].step == 5 else value for key, value in sums.items()}
Loop._gradients = poisoned
"""
CUT_OFF = """
from hfadapt.train.passes import Passes
real = Passes.loss
def nothing(self, *given):
    total, parts = real(self, *given)
    return total * 0, parts
Passes.loss = nothing
"""
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def not_finite(place: Place) -> Outcome:
    place.project()
    done = place.run("train", "tiny.yaml", first=NOT_FINITE)
    state = json.loads((place.cell.folder / "cell.json").read_text())
    rows = "of data/train.parquet" in done.err and "rows " in done.err
    again = place.run("train", "tiny.yaml")
    kept = {"step-000004": state["status"] == "failed", "the rows of the step, by number": rows}
    kept["every bit of the next run"] = place.as_uninterrupted
    return judged(done, code=1, says="the loss of step 5 is not finite", kept=kept, also=[again])


def no_gradient(place: Place) -> Outcome:
    place.project()
    done = place.run("train", "tiny.yaml", first=CUT_OFF)
    kept = {"no adapter that has learned nothing": not place.cell.adapter.exists()}
    return judged(done, code=1, says="got a zero gradient in step 1", kept=kept)


def bad_rows(place: Place) -> Outcome:
    place.project()
    lines = [json.dumps(row).encode() for row in labelled(72)]
    spoilt = [
        b"{not json",
        b'{"text": "\xff\xfe", "label": "good"}',
        b'{"label": "good"}',
        b'{"text": "", "label": "bad"}',
    ]
    huge = json.dumps({"text": "a" * (17 << 20), "label": "good"}).encode()
    (place.folder / "one.jsonl").write_bytes(b"\n".join([*lines[:30], *spoilt, huge, *lines[30:]]) + b"\n")
    done = place.run("prepare", "tiny.yaml")
    dropped = sum(place.cell.data.dropped.values())
    kept = {"all sound rows": sum(place.cell.data.splits.values()) == 72, "each bad row by number": dropped == 5}
    told = place.run("check", "tiny.yaml")
    return judged(told, code=0, says="dropped", kept=kept, also=[done])


def nothing_to_learn(place: Place) -> Outcome:
    rows = [{"prompt": "the room and the film " * 40 + str(n), "completion": f" good {n}"} for n in range(72)]
    place.project("lm", "causal-lm", rows, data={"validation": 8, "test": 8, "max_length": 16})
    done = place.run("train", "tiny.yaml")
    kept = {"nothing was trained": not place.cell.adapter.exists()}
    return judged(done, code=1, says="the text is cut off in 56 of 56 rows", kept=kept)


def overlap(place: Place) -> Outcome:
    place.project()
    for name, rows in (("train", labelled(60)), ("test", labelled(20)), ("validation", labelled(30, 9)[10:])):
        write_rows(place.folder / f"{name}.jsonl", rows)
    splits = {"source": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}
    fields = recipe_fields(place.models / "encoder", domains={"one": splits}, train=TRAIN, data={})
    write_recipe(place.folder / "tiny.yaml", fields)
    done = place.run("check", "tiny.yaml", "--json")
    (record,) = json.loads(done.out)
    kept = {"all test rows": record["splits"]["test"] == 20, "40 of 60 training rows": record["splits"]["train"] == 40}
    shown = place.run("check", "tiny.yaml")
    return judged(shown, code=0, says="duplicate", kept=kept, also=[done])


# --- bases and adapters ----------------------------------------------------------------------------------------------


def another_base(place: Place) -> Outcome:
    place.copy(place.shared.trained)
    for path in (place.folder / "runs").rglob("lock.yaml"):
        path.write_text(path.read_text().replace(str(place.models / "encoder"), str(place.models / "mlm")))
    done = place.run("predict", place.cell.folder, "a lovely film")
    return judged(
        done,
        code=1,
        says="the adapter was trained on another base",
        kept={"no answer of another model": "good" not in done.out},
    )


def colliding_names(place: Place) -> Outcome:
    place.project()
    names = ("layer", "query")
    for seed, name in enumerate(names):
        write_rows(place.folder / f"{name}.jsonl", labelled(72, seed))
    domains = {name: {"source": f"{name}.jsonl"} for name in names}
    fields = recipe_fields(place.models / "encoder", domains=domains, train=TRAIN, evaluate=NO_CHECKS)
    write_recipe(place.folder / "tiny.yaml", fields)
    done = place.run("evaluate", "tiny.yaml")
    from safetensors import safe_open

    tensors = []
    for name in names:
        path = place.folder / f"runs/tiny/{name}/this-machine/adapter/adapter_model.safetensors"
        with safe_open(path, "pt") as file:
            tensors.append(len(file.keys()))
    predicted = place.run("predict", "runs/tiny", "a lovely film", "--domain", "query")
    kept = {"every tensor of both": tensors[0] == tensors[1] == 28}
    return judged(done, code=0, says="co-training layer, query on one base", kept=kept, also=[predicted])


class _Writes:
    """Writes a file when it is opened as a pickle."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def hostile_adapter(place: Place) -> Outcome:
    place.copy(place.shared.trained)
    mark = place.folder / "code-was-run"
    (place.cell.adapter / "adapter_model.bin").write_bytes(pickle.dumps(_Writes(str(mark))))
    done = place.run("predict", place.cell.folder, "a lovely film")
    config = place.cell.adapter / "adapter_config.json"
    (place.cell.adapter / "adapter_model.bin").unlink()
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_mapping": {"parent_library": "os"}}))
    imported = place.run("predict", place.cell.folder, "a lovely film")
    kept = {"no code was run": not mark.exists(), "no foreign import": imported.code != 0}
    return judged(done, code=1, says="adapter_model.bin", kept=kept)


def endless_template(place: Place) -> Outcome:
    place.project("lm", "causal-lm", chats(72))
    shutil.copytree(place.models / "lm", place.folder / "hostile")
    outcomes: list[Ended] = []
    for text in (LOOPS, "{{ 'a' * 10 ** 10 }}"):
        (place.folder / "hostile/chat_template.jinja").write_text(text)
        outcomes.append(place.run("train", "tiny.yaml", "model=hostile"))
    endless, huge = outcomes
    kept = {
        "time: it ends by itself": endless.seconds < 90,
        "memory": huge.code == 1 and "takes more than 1 GiB" in huge.err,
    }
    return judged(endless, code=1, says="the chat template takes more than 5 s for one chat", kept=kept)


def unsupported(place: Place) -> Outcome:
    place.project("lm", "causal-lm", pairs(72), quant="int8", adapter={"method": "dora"})
    done = place.run("train", "tiny.yaml")
    kept = {"nothing was loaded or written": not (place.folder / "runs/tiny/one").exists()}
    return judged(done, code=2, says="dora", kept=kept)
