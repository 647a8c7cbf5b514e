"""Draws of further kinds: what `hfadapt new` looks at, pictures with the tables, lists and archives that name them,
bases, GGUF files, and configurations of other tools. What each holds is as in `fuzz.inputs`."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from .inputs import NAMES, TASKS, WORDS, _damaged, _exchanged, _recipe, _sound, _value, rows

PICTURES = ("image-classification", "image-multi-label", "image-regression")
OTHERS = Path(__file__).parents[1] / "converters" / "examples"


def guesses(draw: random.Random, folder: Path) -> list[str]:
    """Rows as in `rows`, sheets of a workbook, or several files, for `hfadapt new`."""
    how = draw.choice(("rows", "rows", "sheets", "folder"))
    if how == "sheets":
        (folder / "rows.xlsx").write_bytes(_workbook(draw))
    elif how == "folder":
        for name in ("train", draw.choice(("test", "validation", "labels", "more"))):
            rows(draw, folder)
            for path in [*folder.glob("rows*"), *folder.glob("recipe.yaml")]:
                target = folder / "data" / f"{name}{path.name.removeprefix('rows')}"
                target.parent.mkdir(exist_ok=True)
                path.unlink() if path.suffix == ".yaml" else path.rename(target)
    else:
        rows(draw, folder)
        (folder / "recipe.yaml").unlink()
    what = "data" if how == "folder" else next(folder.glob("rows*")).name
    task = ["--task", draw.choice(TASKS)] if draw.random() < 0.3 else []
    return ["new", what, "--model", f"../models/{draw.choice(('encoder', 'lm'))}", *task]


def pictures(draw: random.Random, folder: Path) -> list[str]:
    """Pictures in folders of classes, in an archive, or named by a table or a list; some are damaged or missing."""
    files: dict[str, bytes] = {}
    kinds = draw.choice((("cat", "dog"), ("cat", "dog", draw.choice(WORDS).replace("\0", "").replace("/", "") or "x")))
    for number in range(draw.choice((40, 40, 4))):
        kind = kinds[number % len(kinds)].encode("utf-8", "replace").decode()[:40]
        name = (
            f"{kind}/{number}.png" if draw.random() < 0.9 else f"{kind}_{number}.{draw.choice(('jpg', 'txt', 'gif'))}"
        )
        files[name] = _damaged(draw, _picture(draw, number), often=0.1)
    way, place = draw.choice(("folders", "table", "list", "archive")), folder / "data"
    named = [{"file_name": name, "label": draw.choice(kinds)} for name in files]
    for _ in range(draw.choice((0, 0, 1, 5))):
        row = draw.choice(named)
        row[draw.choice(list(row))] = draw.choice((_value(draw), "../../recipe.yaml", "/dev/zero", "data", "..", "~"))
    if way == "archive":
        place = folder / draw.choice(("data.zip", "data.tar", "data.tar.gz", "data.tgz"))
        place.write_bytes(_damaged(draw, _archive(draw, place.name, files), often=0.3))
    else:
        for name, content in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
    if way == "list":
        for split in ("train", "test"):
            lines = (f"{row['file_name']} {row['label']}" for row in named[split == "test" :: 2])
            text = "\n".join(lines) if draw.random() < 0.5 else "\n".join(str(row["file_name"]) for row in named)
            (place / f"{split}_list.txt").write_bytes(_damaged(draw, text.encode("utf-8", "replace")))
    elif way == "table":
        more = draw.choice(("", "split", "fold", "x", "score"))
        table = [{**row, more: draw.choice(("train", "test", 1, 0.5, _value(draw)))} for row in named]
        lines = "\n".join(json.dumps(row) for row in table)
        (place / draw.choice(("metadata.jsonl", "labels.jsonl"))).write_bytes(_damaged(draw, lines.encode()))
    if draw.random() < 0.5:
        return ["new", place.name, "--model", "../vision/dino"]
    _recipe(folder, draw.choice(PICTURES), {"source": place.name}, {"model": "../vision/dino"})
    return ["check", "recipe.yaml"]


def bases(draw: random.Random, folder: Path) -> list[str]:
    """A base of which one file was changed, cut off or taken away, or that says it is of several parts."""
    name = draw.choice(("encoder", "lm", "lm"))
    model = shutil.copytree(folder / "../models" / name, folder / "model")
    _table(folder)
    if draw.random() < 0.3:
        part = {"idx": 0, "name": "0", "path": draw.choice(("", "..", "1_X", "/")), "type": draw.choice(MODULES)}
        parts = [{**part, "idx": number, "type": draw.choice(MODULES), "path": f"{number}_X"} for number in range(3)]
        (model / "modules.json").write_text(json.dumps(_exchanged(draw, parts)), encoding="utf-8")
        for number in range(3):
            (model / f"{number}_X").mkdir()
            config = {"in_features": 64, "out_features": draw.choice((64, -1, 10**12)), "bias": True}
            config |= {"activation_function": draw.choice(("torch.nn.modules.activation.Tanh", "os.system", 3))}
            config |= {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": draw.choice((True, "x", False))}
            (model / f"{number}_X/config.json").write_text(json.dumps(_exchanged(draw, config)), encoding="utf-8")
    path = draw.choice(sorted(each for each in model.rglob("*") if each.is_file()))
    content, how = path.read_bytes(), draw.choice(("value", "value", "value", "cut", "bytes", "gone", "empty"))
    if how == "value" and path.suffix == ".json":
        path.write_text(json.dumps(_exchanged(draw, json.loads(content))), encoding="utf-8")
    elif how == "gone":
        path.unlink()
    else:
        at = draw.randrange(min(len(content), 4096) + 1)
        path.write_bytes({"cut": content[:at], "empty": b""}.get(how, _damaged(draw, content, often=1.0)))
    _recipe(folder, draw.choice((TASKS[0], "causal-lm", "embedding")), {"source": "rows.jsonl"}, {"model": "./model"})
    return [draw.choice(("plan", "check")), "recipe.yaml"]


MODULES = (
    *("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling", "os.system", "", 3),
    *("sentence_transformers.models.Dense", "sentence_transformers.models.Normalize", "x.Dense"),
)


def single_files(draw: random.Random, folder: Path) -> list[str]:
    """A GGUF file with bytes exchanged, put in or taken out, most of them before the tensors."""
    content = bytearray((folder / "../models/lm.gguf").read_bytes())
    for _ in range(draw.choice((1, 1, 4))):
        at = draw.choice((draw.randrange(64), draw.randrange(4096), draw.randrange(len(content))))
        how = draw.choice(("byte", "number", "cut"))
        if how == "cut" and draw.random() < 0.3:
            del content[at:]
        elif how == "number":
            content[at : at + 8] = draw.choice((2**63, 2**31, 2**20, 0, 1)).to_bytes(8, "little")
        else:
            content[at : at + 1] = draw.randbytes(1)
    (folder / "model.gguf").write_bytes(content)
    _table(folder)
    _recipe(folder, draw.choice((TASKS[0], "causal-lm")), {"source": "rows.jsonl"}, {"model": "./model.gguf"})
    return [draw.choice(("plan", "check")), "recipe.yaml"]


def conversions(draw: random.Random, folder: Path) -> list[str]:
    """A configuration of another tool with values exchanged or bytes damaged."""
    import yaml

    path = draw.choice(sorted(each for each in OTHERS.rglob("*.y*ml")))
    content = path.read_bytes()
    if draw.random() < 0.7:
        fields = yaml.safe_load(content)
        for _ in range(draw.choice((1, 3))):
            fields = _exchanged(draw, fields)
        content = yaml.safe_dump(json.loads(json.dumps(fields, default=str)), allow_unicode=True).encode(
            "utf-8", "replace"
        )
    (folder / f"config{path.suffix}").write_bytes(_damaged(draw, content))
    return ["convert", f"config{path.suffix}"]


KINDS: dict[str, Callable[[random.Random, Path], list[str]]] = {
    each.__name__: each for each in (guesses, pictures, bases, single_files, conversions)
}


# --- parts -----------------------------------------------------------------------------------------------------------


def _table(folder: Path) -> None:
    lines = (json.dumps(dict(zip(("text", "label"), _sound(random.Random(n), n), strict=True))) for n in range(60))
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")


def _picture(draw: random.Random, number: int) -> bytes:
    from PIL import Image

    file, size = io.BytesIO(), (draw.choice((32, 40, 1)), draw.choice((32, 8)))
    Image.frombytes("L", size, random.Random(number).randbytes(size[0] * size[1])).save(file, "png")
    return file.getvalue()


def _archive(draw: random.Random, name: str, files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    names = {each: draw.choice((each,) * 20 + (f"../{each}", f"/{each}", f"a\\{each}", "")) for each in files}
    if name.endswith(".zip"):
        with zipfile.ZipFile(file, "w") as packed:
            for each, content in files.items():
                packed.writestr(names[each] or "x.png", content)
    else:
        with tarfile.open(fileobj=file, mode="w" if name.endswith(".tar") else "w:gz") as packed:
            for each, content in files.items():
                info = tarfile.TarInfo(names[each])
                info.size, info.type = len(content), draw.choice((tarfile.REGTYPE,) * 9 + (tarfile.SYMTYPE,))
                info.linkname = "/etc/passwd"
                packed.addfile(info, io.BytesIO(content))
    return file.getvalue()


def _workbook(draw: random.Random) -> bytes:
    import openpyxl
    from openpyxl.utils.exceptions import IllegalCharacterError

    book, file = openpyxl.Workbook(), io.BytesIO()
    for number in range(draw.choice((1, 1, 3))):
        sheet = book.active if number == 0 else book.create_sheet(draw.choice(("train", "test", "more")))
        if draw.random() < 0.2:
            sheet.append([draw.choice(("A title", "", 3))])
        sheet.append(["text", "label"] if draw.random() < 0.8 else draw.sample(NAMES, 2))
        for each in range(draw.choice((60, 60, 2))):
            sheet.append([*_sound(draw, each)])
        for _ in range(draw.choice((0, 1, 9))):
            place, value = (draw.randint(1, 70), draw.randint(1, 4)), _value(draw)
            try:
                sheet.cell(*place).value = value if isinstance(value, (str, int, float)) else "=1+A1"
            except (IllegalCharacterError, ValueError):
                continue
        if draw.random() < 0.2:
            sheet.merge_cells(draw.choice(("A1:C1", "B3:B9", "A5:B6")))
        sheet.sheet_state = draw.choice(("visible", "visible", "hidden")) if number else "visible"
    try:
        book.save(file)
    except Exception:
        # Values that no workbook holds, such as an infinite number.
        return b"PK\x03\x04"
    return _damaged(draw, file.getvalue(), often=0.3)
