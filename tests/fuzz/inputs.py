"""Wrong, odd and damaged inputs, drawn by a seed: rows and files, chats, recipes, and the records of a finished run.

A draw is a folder in which a command is run; whatever it holds, the command must end with an exit code of its own, and
with words instead of a traceback. The same seed gives the same folder, so that what was found can be looked at again:

    python -m fuzz.inputs chats 4711 FOLDER      (from tests/)
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

WORDS = (
    *(
        "good",
        "the film",
        "résumé",
        "東京",
        "nan",
        "NaN",
        "null",
        "",
        " ",
        "a" * 3000,
        "1",
        "01",
        "-1",
        "True",
        "<end>",
    ),
    *("{x}", "\u2028", "\ufeff", "\x00", "\ud800", "e\u0301", "<|end|>", "| a | b |", '"', "\\", "1e309", "½", "³"),
)
VALUES = (
    *(None, True, False, 0, 1, -1, 1.0, 0.5, -100, 10**30, 1e308, float("nan"), float("inf"), [], {}, [[]], [None]),
    *(["good"], ["good", "bad"], {"a": 1}, {"text": "good"}, [{"type": "text", "text": "hi"}], "good", "bad", ""),
)
NAMES = (
    *("text", "label", "labels", "prompt", "completion", "messages", "tokens", "tags", "score", "id", " label", ""),
    "Text",
)
KEYS = ("role", "content", "from", "value", "weight", "tool_calls", "name", "reasoning_content", "train", "loss")
WAYS = {
    **{"lines": ".jsonl", "array": ".json", "columns": ".json", "by id": ".json", "csv": ".csv", "tsv": ".tsv"},
    **{"parquet": ".parquet", "gzip": ".jsonl.gz"},
}
ROLES = ("user", "assistant", "system", "developer", "tool", "function", "human", "gpt", "", "USER", "ipython", None, 3)
TASKS = ("text-classification", "causal-lm", "token-classification", "text-regression", "multi-label-classification")
ENDINGS = (
    ".jsonl",
    ".json",
    ".csv",
    ".tsv",
    ".txt",
    ".parquet",
    ".jsonl.gz",
    ".csv.gz",
    ".conllu",
    ".xlsx",
    ".zip",
    "",
)
TEMPLATES = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}",
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}",
    "{% for m in messages %}{{ m.content.split('</think>')[-1] }}\n{% endfor %}",
    "{{ messages[0]['content'] + messages[1]['content'] }}", "{% for", "{{ undefined.thing }}", "same for all", "",
)  # fmt: skip


def rows(draw: random.Random, folder: Path) -> list[str]:
    """A file of rows, some with odd values, perhaps with damaged bytes or under another ending, for some task."""
    names = ["text", "label"] if draw.random() < 0.75 else draw.sample(NAMES, draw.randint(1, 3))
    table = [dict(zip(names, _sound(draw, number), strict=False)) for number in range(draw.choice((90, 90, 90, 3, 0)))]
    for _ in range(draw.choice((0, 1, 1, 3, 20))):
        row = {name: _value(draw) for name in draw.sample(names, draw.randint(0, len(names)))}
        table.insert(draw.randint(0, len(table)), row)
    way = draw.choice(list(WAYS))
    ending = WAYS[way] if draw.random() < 0.7 else draw.choice(ENDINGS)
    path = folder / f"rows{ending}"
    path.write_bytes(_damaged(draw, _file(draw, way, table, names)))
    fields: dict[str, Any] = {"source": path.name}
    if draw.random() < 0.15:
        fields["columns"] = {draw.choice(("text", "label", "prompt")): draw.choice(names)}
    if draw.random() < 0.1:
        fields["labels"] = draw.sample(WORDS, 2)
    more: dict[str, Any] = {"data": {"streaming": True}} if draw.random() < 0.2 else {}
    _recipe(folder, draw.choice((*TASKS[:1] * 5, *TASKS)), fields, more)
    return ["check", "recipe.yaml"]


def chats(draw: random.Random, folder: Path) -> list[str]:
    """Conversations, some with odd turns, under a sound or an odd template."""
    lines, often = [], draw.choice((0.02, 0.1, 0.5))
    name, tools = draw.choice(("messages",) * 6 + ("conversations", "chat")), draw.random() < 0.2
    for number in range(draw.choice((90, 90, 90, 5))):
        turns: list[Any] = [_turn(role, number) for role in ("user", "assistant") * draw.randint(1, 2)]
        if draw.random() < often:
            turns.insert(draw.randint(0, len(turns)), _odd_turn(draw))
        if draw.random() < often / 2:
            turns.pop(draw.randrange(len(turns)))
        row: dict[str, Any] = {name: turns}
        if draw.random() < often / 3:
            row = {name: draw.choice((json.dumps(turns), _value(draw), {"turns": turns}, turns[:1]))}
        if tools:
            row["tools"] = draw.choice((_value(draw), "[]", [{"type": "function", "function": {"name": "f"}}]))
        lines.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    model = folder / "model"
    if draw.random() < 0.4:
        shutil.copytree(folder / "../models/lm", model)
        (model / "chat_template.jinja").write_text(draw.choice(TEMPLATES), encoding="utf-8")
    _recipe(folder, "causal-lm", {"source": "rows.jsonl"}, {"model": "./model"} if model.exists() else {})
    return ["check", "recipe.yaml"]


def recipes(draw: random.Random, folder: Path) -> list[str]:
    """A sound recipe with some fields exchanged, moved or taken out, or with damaged text."""
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps(dict(zip(("text", "label"), _sound(draw, n), strict=True))) + "\n" for n in range(60))
    )
    _recipe(folder, TASKS[0], {"source": "rows.jsonl"}, {})
    path = folder / "recipe.yaml"
    fields = yaml.safe_load(path.read_text())
    for _ in range(draw.choice((0, 1, 1, 1, 3))):
        place: Any = fields
        while isinstance(place, dict) and place:
            key = draw.choice(list(place))
            if not isinstance(place[key], dict) or draw.random() < 0.4:
                break
            place = place[key]
        change = draw.choice(("set", "set", "delete", "add"))
        if not isinstance(place, dict) or not place:
            continue
        if change == "delete":
            del place[key]
        else:
            place[key if change == "set" else draw.choice(FIELDS)] = draw.choice((_value(draw), draw.choice(FIELDS)))
    text = yaml.safe_dump(
        fields, allow_unicode=draw.random() < 0.5, default_flow_style=draw.choice((None, True, False))
    )
    path.write_bytes(_damaged(draw, text.encode("utf-8", "surrogatepass"), often=0.15))
    return [draw.choice(("plan", "check")), "recipe.yaml"]


FIELDS = (
    *("name", "model", "task", "domains", "targets", "quant", "dtype", "template", "data", "train", "adapter"),
    *("evaluate", "epochs", "rank", "method", "source", "columns", "labels", "max_length", "learning_rate"),
    *("canaries", "gates", "x"),
)
COMMANDS = (
    ("show", "run", "run"), ("report", "run"), ("predict", "run/one/this-machine", "a film"), ("plan", "recipe.yaml"),
    ("card", "check", "run/one/this-machine"), ("card", "build", "run/one/this-machine"),
    ("export", "run/one/this-machine", "--format", "merged", "--to", "out"), ("run", "recipe.yaml", "--runs", "."),
    ("publish", "run/one/this-machine", "--to", "published"), ("evaluate", "recipe.yaml", "--runs", "."),
)  # fmt: skip


def records(draw: random.Random, folder: Path) -> list[str]:
    """A finished run of which one file was cut off, changed, taken away or replaced, and a command that reads it."""
    shutil.copytree(folder / "../finished", folder, dirs_exist_ok=True)
    files = sorted(path for path in (folder / "run").rglob("*") if path.is_file())
    path = draw.choice(files)
    content = path.read_bytes()
    how = draw.choice(("cut", "cut", "bytes", "gone", "folder", "value", "value", "empty"))
    if how == "gone" or how == "folder":
        path.unlink()
        if how == "folder":
            path.mkdir()
    elif how == "value" and path.suffix == ".json":
        path.write_text(json.dumps(_exchanged(draw, json.loads(content))), encoding="utf-8")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "bytes":
        path.write_bytes(_damaged(draw, content, often=1.0))
    else:
        path.write_bytes(content[: draw.randrange(len(content) + 1)])
    return list(draw.choice(COMMANDS))


KINDS: dict[str, Callable[[random.Random, Path], list[str]]] = {
    each.__name__: each for each in (rows, chats, recipes, records)
}


# --- parts -----------------------------------------------------------------------------------------------------------


def _sound(draw: random.Random, number: int) -> tuple[str, str]:
    word = ("good", "bad")[number % 2]
    return f"{word} {' '.join(_spelt(number))}", word


def _spelt(number: int) -> list[str]:
    """Words that stand in no other row."""
    return [
        f"{'bcdfghjklm'[int(digit)]}{'aeiou'[number % 5]}{place}" for place, digit in enumerate(f"{number * 7919:07d}")
    ]


def _value(draw: random.Random) -> Any:
    return draw.choice(VALUES) if draw.random() < 0.5 else " ".join(draw.choices(WORDS, k=draw.choice((1, 1, 3))))


def _turn(role: str, number: int) -> dict[str, Any]:
    return {"role": role, "content": f"{role} says {' '.join(_spelt(number))}"}


def _odd_turn(draw: random.Random) -> Any:
    if draw.random() < 0.1:
        return _value(draw)
    turn = {
        "role": draw.choice(ROLES),
        "content": draw.choice((_value(draw), [{"type": "image_url", "image_url": "x"}])),
    }
    call = {"type": "function", "function": {"name": "f", "arguments": draw.choice(("{}", {}, "{", None))}}
    for key in draw.sample(KEYS, draw.choice((0, 1, 2))):
        turn[key] = draw.choice((_value(draw), [call])) if key not in turn or draw.random() < 0.3 else turn[key]
    return turn


def _file(draw: random.Random, way: str, table: Sequence[dict[str, Any]], names: Sequence[str]) -> bytes:
    """A table in one of many ways to write it; the ending need not say which."""
    if way in ("csv", "tsv"):
        separator = "\t" if way == "tsv" else draw.choice((",", ",", ";"))
        quote = draw.choice(('"', '"', "'", ""))
        lines = [separator.join(f"{quote}{row.get(name, '')}{quote}" for name in names) for row in table]
        text = "\n".join([separator.join(names), *lines])
        return text.encode(draw.choice(("utf-8", "utf-8", "utf-16", "utf-8-sig")), "replace")
    if way == "parquet":
        import io

        import pandas

        file = io.BytesIO()
        try:
            pandas.DataFrame([{name: row.get(name) for name in names} for row in table]).to_parquet(file)
        except Exception:
            # Values of many types are no column of Parquet.
            return b"PAR1"
        return file.getvalue()
    if way == "array":
        text = json.dumps(list(table))
    elif way == "columns":
        text = json.dumps({name: [row.get(name) for row in table] for name in names})
    elif way == "by id":
        text = json.dumps({str(number): row for number, row in enumerate(table)})
    else:
        text = "\n".join(json.dumps(row) for row in table)
    content = text.encode()
    return gzip.compress(content) if way == "gzip" else content


def _damaged(draw: random.Random, content: bytes, often: float = 0.2) -> bytes:
    """Perhaps with bytes exchanged, put in, or cut off."""
    if draw.random() >= often or not content:
        return content
    how, at = draw.choice(("cut", "byte", "quote", "twice", "junk")), draw.randrange(len(content))
    if how == "cut":
        return content[:at]
    if how == "twice":
        return content + content[at:]
    put = b'"' if how == "quote" else draw.randbytes(1 if how == "byte" else 30)
    return content[:at] + put + content[at + (how == "byte") :]


def _exchanged(draw: random.Random, value: Any) -> Any:
    """JSON with one value, somewhere inside, exchanged for another."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        return {**value, key: _exchanged(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        return [*value[:at], _exchanged(draw, value[at]), *value[at + 1 :]]
    return _value(draw)


def _recipe(folder: Path, task: str, domain: dict[str, Any], more: dict[str, Any]) -> None:
    model = "../models/lm" if task == "causal-lm" else "../models/encoder"
    fields: dict[str, Any] = {"name": "run", "model": model, "task": task, "domains": {"one": domain}}
    fields["data"] = {"validation": 8, "test": 8, **more.pop("data", {})}
    fields |= {"train": {"batch_rows": 4, "max_steps": 2}, **more}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")


if __name__ == "__main__":
    kind, seed, place = sys.argv[1:]
    Path(place).mkdir(parents=True)
    print("hfadapt", *KINDS[kind](random.Random(int(seed)), Path(place)))
