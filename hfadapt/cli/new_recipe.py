"""`hfadapt new`: looks at a model and a file of data, and writes a recipe with comments on what can be changed."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from shlex import quote
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from hfadapt.card.licenses import hub_id, hub_ids
from hfadapt.cli.new_columns import (
    GUESSED,
    LONGEST_SHOWN,
    MOST_LABELS,
    Ask,
    Rows,
    by_length,
    columns_of,
    files_of,
    guessed_columns,
    label_columns,
    read_columns,
    values_of,
    with_files,
)
from hfadapt.cli.new_groups import with_groups
from hfadapt.cli.new_model import check_base, check_chat, generates, made_for
from hfadapt.cli.new_names import columns_in_names, with_classes
from hfadapt.cli.new_splits import given_splits, split_column
from hfadapt.cli.new_task import fit_of, labelled, modality_of
from hfadapt.cli.new_unlabelled import no_label
from hfadapt.core import registry, samples
from hfadapt.core.errors import DataError, RequestError, choice_problem
from hfadapt.core.show import show_count
from hfadapt.core.spec import write_text
from hfadapt.data.columns import Shape
from hfadapt.data.rows import Dropped
from hfadapt.data.sources import local_path, open_source
from hfadapt.data.unreadable import check_unreadable
from hfadapt.files import Read, folders, media
from hfadapt.files.nested import spread
from hfadapt.files.opening import PACKED, WESTERN, suffix, western
from hfadapt.files.places import Place
from hfadapt.recipe.domain import CLASSES, GROUPING, PATTERNS
from hfadapt.recipe.json_schema import schema_text
from hfadapt.recipe.reading import load_recipe
from hfadapt.recipe.rules import RUN_FILES
from hfadapt.recipe.schema import Columns, Source
from hfadapt.recipe.sources import expanded
from hfadapt.recipe.yaml_lines import inline
from hfadapt.records.stages import Finding
from hfadapt.schemas import LABEL_NAMES

SCHEMA = ".hfadapt/recipe.schema.json"
"""For editors, beside the recipe: a path from there works without a network, on other machines and after a move, and
says nothing of anybody's home as one to the cache would; in a hidden folder it is in nobody's way."""
_SET_APART = re.compile(r"_.+_")
"""So are things called that are beside the classes, as _background_noise_."""
PEEK_ROWS = 500
NOTHING: Mapping[str, str] = MappingProxyType({})
FILES_LOOKED_AT = 20
"""Of a folder, for the encoding of their texts."""


def write_recipe(
    model: str,
    data: str,
    output: Path | None = None,
    ask: Ask | None = None,
    license: str = "",
    columns: Iterable[str] = (),
    beside: Mapping[str, str] = NOTHING,
) -> Path:
    """Writes NAME.yaml for a model and a source of data, after looking at both, and the schema for editors beside it.

    Args:
        model: As in a recipe.
        data: As a `source` in a recipe.
        output: The file to write; by default named after the data, in the working directory.
        ask: Answers what the data leave open; without it the likeliest is taken.
        license: What the data may be used for, as a Hub identifier; '' where that is not known yet.
        columns: Which column holds what, such as `text=body,label=mood`; the others are recognised.
        beside: What the recipe is to say of the source: `encoding`, without which its texts are UTF-8 or what their
            bytes tell, and `split`.

    Returns:
        The file written; it has been loaded once, so it is valid.

    Raises:
        RequestError: the output exists already, the Hub has no such license, the data have no such columns, or the
            model has no known kind of head.
        DataError: the data cannot be read or recognised.
    """
    _check_license(license)
    check_base(model)
    found, noticed, beside = _peek(data, beside)
    rows = _with_files(data, found, model)
    said, in_names = columns_in_names(data, rows, read_columns(columns, rows, data), ask)
    rows = with_classes(rows, said)
    modality = modality_of(rows, model, data, said, noticed)
    task, shape, rows, laid_out, classes = fit_of(rows, modality, generates(model), data, ask, said)
    said = said.model_copy(update={"classes": classes})
    check_chat(model, shape)
    _check_classes(rows, shape, data)
    if given := given_splits(data, beside, shape, said, {*values_of(said.label or "", rows)}):
        noticed.append(f"{' and '.join(given)} rows are those that {data} gives.")
    elif said.split is None and (column := split_column(rows, shape)):
        said = said.model_copy(update={"split": column})
        in_names.append(
            f"{GUESSED}{column!r} says of each row for which split it is. Otherwise take it out of the recipe."
        )
    elif said.split is None:
        said, in_groups = with_groups(data, rows, shape, said, ask)
        in_names += in_groups
    none, of_none = no_label(shape, rows)
    noticed += of_none
    domain = _name(_without_endings(data.removeprefix("sample:")))
    path = output or Path(f"{domain}.yaml")
    if path.exists():
        raise RequestError("the file exists already", place=str(path), fix="give another name with --output")
    write_text(
        path,
        _text(
            path,
            model,
            task,
            {domain: {**_settings(data, path, shape, license, said, beside), **given, **none}},
            [
                *noticed,
                *in_names,
                *(() if ask or laid_out else _guessed(shape, rows, said)),
                *_seen(shape, rows, said),
            ],
        ),
    )
    try:
        load_recipe(path)
    except RequestError:
        path.unlink()
        raise
    write_text(path.parent / SCHEMA, schema_text())
    return path


def suiting_model(data: str, columns: Iterable[str] = (), beside: Mapping[str, str] = NOTHING) -> str | None:
    """A sample model for the data, rather one that learns labels or answers than plain text; None where none can learn.

    Raises:
        DataError: the data cannot be read.
    """
    rows = _with_files(data, _peek(data, beside)[0], "")
    plain = None
    said = read_columns(columns, rows, data)
    with suppress(DataError):
        said, _ = columns_in_names(data, rows, said, None)
    rows = with_classes(rows, said)
    models = [f"{samples.PREFIX}{name}" for name in samples.models()]
    if kinds := {*files_of(rows).values()}:
        # Of texts beside files there are many.
        models.sort(key=lambda model: kinds.isdisjoint(made_for(model)))
    for model in models:
        with suppress(RequestError, DataError):
            fit = fit_of(rows, modality_of(rows, model, data, said), generates(model), data, None, said)
            if registry.task(fit.task).writes or labelled(fit.shape):
                return model
            plain = plain or model
    return plain


def _with_files(data: str, rows: Rows, model: str) -> Rows:
    """The rows, with files that they name without an ending: of a folder, or for a model that reads nothing else."""
    path = local_path(data, Path())
    if path is None or not (path.is_dir() or (model and "text" not in made_for(model))):
        return rows
    return with_files(rows, folders.named_below(path))


def _without_endings(data: str) -> str:
    """What a file is called, without the endings of formats, compression and archives: `rows` of `rows.csv.gz`."""
    known = {*folders.suffixes(), *PACKED, *media.suffixes(), *media.ARCHIVES}
    name = PurePath(data)
    while name.suffix.lower() in known:
        name = name.with_suffix("")
    return name.name


def _name(text: str) -> str:
    """A name for a recipe or domain, made of what is in a file's name."""
    # Without its accents and dots a letter stays one.
    letters = "".join(each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", letters.replace("ß", "ss")).strip("-._")[:58].rstrip("-._") or "data"
    return f"{name}-rows" if name.lower() in RUN_FILES else name


def _check_license(license: str) -> None:
    """Raises RequestError for one that the Hub does not have: now, and not when all is trained."""
    named = hub_ids() - {"unknown"}
    if license and license not in named and hub_id(license) is None:
        problem = choice_problem("not a licence id of the Hub", license, named, "--license")
        raise RequestError(problem.what, problems=[problem])


def _check_classes(rows: Rows, shape: Shape, data: str) -> None:
    """Raises DataError for files of which too many have no class, as preparing the data would say."""
    schema, label = registry.schema(shape.form), shape.parts.get("label", "")
    if schema.media and schema.label_kind == "class":
        bare = [(number, row) for number, row in enumerate(rows) if row.get(label) in (None, "")]
        places = [(Place(data, number), schema.lacks(row, "label", label)) for number, row in bare]
        bad = [Dropped(place, lack.reason, detail=lack.detail) for place, lack in places]
        check_unreadable("", len(rows), bad)


def _peek(data: str, beside: Mapping[str, str]) -> tuple[list[Mapping[str, Any]], list[str], Mapping[str, str]]:
    """The first rows that can be read, what is said of how, and what the recipe says of the source: a guessed encoding
    too.

    Raises:
        DataError: too many cannot be read, as preparing the data would say.
    """
    guess, word = (None, "") if "encoding" in beside else _encoding(data)
    beside = {**beside, "encoding": guess} if guess else beside
    try:
        source = Source(source=data, **beside)
    except ValidationError:
        what, fix = "this is no encoding of texts", "write one such as windows-1252, windows-1251, gb18030 or utf-16"
        raise RequestError(what, place="--encoding", got=beside.get("encoding"), fix=fix) from None
    opened = open_source(source, Path())
    said = [told(each) for each in opened.noticed]
    if guess is not None:
        found = f"{GUESSED}encoding {guess}, as {data} is not UTF-8; it then has the word {word!r}."
        said = [f"{found} Otherwise add --encoding NAME, such as windows-1251."]
    seen: list[Read | Dropped] = []
    for item in opened.read():
        if isinstance(item, Finding):
            said.append(told(item))
        elif len(seen) < PEEK_ROWS:
            seen.append(item)
        else:
            break
    check_unreadable(opened.split, len(seen), [item for item in seen if isinstance(item, Dropped)])
    rows: list[Mapping[str, Any]] = [spread(item.values) for item in seen if isinstance(item, Read)]
    if not rows:
        raise DataError("there are no rows", place=data, fix="give a file that has some")
    return rows, said, beside


def _encoding(data: str) -> tuple[str | None, str]:
    """The encoding of files that are not UTF-8 where it can be told, and a word that shows whether that is right."""
    path = local_path(data, Path())
    files = folders.find(path).data if path is not None else ()
    found = ""
    for file in files[:FILES_LOOKED_AT]:
        if media.holds(file) is None and suffix(file) not in (".parquet", ".arrow"):
            with suppress(DataError, OSError):
                found = found or western(file) or ""
    return (WESTERN, found) if found else (None, "")


def _settings(
    data: str, path: Path, shape: Shape, license: str, columns: Columns, beside: Mapping[str, str]
) -> dict[str, Any]:
    """The fields of the domain; a local source as seen from the recipe."""
    local = expanded(data)
    source = os.path.relpath(local.resolve(), path.parent.resolve()) if local.exists() else data
    settings: dict[str, Any] = {"source": source, **beside}
    asked = columns.model_dump(exclude_none=True)
    grouping = {name: asked[name] for name in dict.fromkeys((CLASSES, *GROUPING, *PATTERNS)) if name in asked}
    parts = {part: column for part, column in shape.parts.items() if part != column or part in asked}
    if said := {**parts, **grouping}:
        settings["columns"] = said
    return {**settings, "license": license} if license else settings


def _text(path: Path, model: str, task: str, domains: Mapping[str, Mapping[str, Any]], seen: Iterable[str]) -> str:
    lines = [
        f"# yaml-language-server: $schema={SCHEMA}",
        *(f"# {' '.join(line.split())}" for line in seen),
        f"#   hfadapt check {quote(str(path))}     the data as training will see it",
        f"#   hfadapt plan {quote(str(path))}      every decision with its reason",
        f"#   hfadapt run {quote(str(path))}",
        f"name: {inline(_name(path.stem))}",
        f"model: {inline(_near(model, path.parent))}",
        f"task: {task}",
        "domains:",
        *(f"  {inline(domain)}: {inline(settings)}" for domain, settings in domains.items()),
        "targets: [this-machine]              # hfadapt list targets",
        "# quant: auto                        # none, int8, nf4, fp4",
        "# adapter: {method: lora, rank: 16}  # hfadapt list adapters",
        "# train: {epochs: 2, learning_rate: 5.0e-4}",
        "# data: {validation: 0.1, test: 0.1}",
    ]
    lines += [
        f"# To publish, say what the data may be used for: domains.{domain}.license, such as cc-by-4.0."
        for domain, settings in domains.items()
        if "license" not in settings
    ]
    return "\n".join(lines) + "\n"


def _near(model: str, folder: Path) -> str:
    """A relative path to a model as seen from the recipe; anything else unchanged."""
    path = Path(model)
    if model.startswith(("sample:", "~")) or path.is_absolute() or not path.exists():
        return model
    seen = os.path.relpath(path.resolve(), folder.resolve())
    return seen if seen.startswith("..") else f"./{seen}"


def _seen(shape: Shape, rows: Sequence[Mapping[str, Any]], said: Columns) -> Iterator[str]:
    """What was found in the rows, a line each."""
    yield f"Looked at {show_count(len(rows), 'row')} of form '{shape.form}'."
    # The name of a file stands beside it by itself.
    used = {*shape.parts.values(), said.group, said.split, *(said.classes or ())}
    used |= {"file"} if registry.schema(shape.form).media else set()
    if left := [name for name in dict.fromkeys(name for row in rows for name in row) if name not in used]:
        yield f"Not used: {', '.join(map(_printable, left[:8]))}{' …' if len(left) > 8 else ''}."
        if list(shape.parts) == ["text"]:
            # The column that stands first asks, as tables are written; numbers and dates are shorter than texts.
            texts = {shape.parts["text"], by_length(left, rows)[0]}
            prompt, completion = (f"{{{name}}}" for name in columns_of(rows) if name in texts)
            asked = _printable(inline({"prompt": prompt, "completion": completion}))
            yield f"To learn one column from another, in place of `columns`: template: {asked}"
    # Where entities stand differs from row to row.
    if (label := shape.parts.get("label")) and registry.schema(shape.form).label_kind != "tokens":
        clear = said.label is not None or label.lower() in LABEL_NAMES
        others = [] if clear else [each for each in label_columns(left, rows) if each != label]
        if others and registry.schema(shape.form).label_kind == "class":
            yield f"The label could also be {_printable(' or '.join(others[:3]))}: then change columns.label."
        filled = values_of(label, rows)
        counts = Counter({"(empty)": len(rows) - len(filled)} if len(filled) < len(rows) else {})
        counts.update(map(_printable, filled))
        shown = ", ".join(f"{value} {count}" for value, count in counts.most_common(8))
        yield f"Labels: {shown}{' …' if len(counts) > 8 else ''}."
        for each in filter(_SET_APART.fullmatch, counts):
            yield f"{GUESSED}{each!r} is a class as the others are. Otherwise move its folder out of the data."
        if len(counts) > MOST_LABELS:
            yield f"{len(counts)} different labels among them: is {_printable(label)} the right column?"


def _guessed(shape: Shape, rows: Rows, said: Columns) -> Iterator[str]:
    """What is said of columns of the data that nobody named, and that their own names do not tell."""
    there = columns_of(rows)
    parts = {part: column for part, column in shape.parts.items() if column in there}
    schema = registry.schema(shape.form)
    return guessed_columns(parts, schema.names, schema.label_kind, said)


def guesses(path: Path) -> list[str]:
    """What was guessed for a recipe that `write_recipe` wrote, each with how to say otherwise."""
    lines = (line.removeprefix("# ") for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line.startswith(GUESSED)]


def told(finding: Finding) -> str:
    """What was noticed of a source, with what helps where something does."""
    return finding.message if finding.fix.startswith("nothing") else f"{finding.message}; {finding.fix}"


def _printable(text: str) -> str:
    """A text that can stand in a comment."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}…"
