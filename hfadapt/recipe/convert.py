"""`hfadapt convert`: a configuration of another fine-tuning tool becomes a recipe, and what became of each field."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hfadapt.converters import Converter, Lacking, Needless, Refused, Said, Taken
from hfadapt.core import registry
from hfadapt.core.errors import RequestError, nearest
from hfadapt.core.show import Block, Heading, Shown, Table, Text
from hfadapt.core.spec import Spec, write_text
from hfadapt.recipe.reading import load_recipe
from hfadapt.recipe.schema import Recipe
from hfadapt.recipe.yaml_lines import dump, inline

UNSAID = "What the file does not say is settled by the plan, not by the other tool's defaults."
LONGEST = 70


class Line(Spec):
    """One field of the file.

    Attributes:
        field: Its name; inside a data set such as `datasets[0].path`.
        value: What it says.
        place: Where that went; "" where it did not.
        set: The value there.
        why: Why it went nowhere, where more can be said.
    """

    field: str
    value: Any
    place: str = ""
    set: Any = None
    why: str = ""

    @property
    def text(self) -> str:
        """`field = value`, cut where it is long."""
        return f"{self.field} = {_short(self.value)}"


class Converted(Shown, Spec):
    """A recipe that was written, and what became of each field of the file: every one is in one of the three lists."""

    recipe: str
    tool: str
    taken: tuple[Line, ...] = ()
    needless: tuple[Line, ...] = ()
    lacking: tuple[Line, ...] = ()

    def blocks(self) -> list[Block]:
        """Three tables, and what to type next."""
        tables: list[Block] = []
        if self.taken:
            # A whole domain is best read in the recipe.
            said = [
                line.place if isinstance(line.set, dict) else f"{line.place}: {_short(line.set)}" for line in self.taken
            ]
            rows = [[line.text, text] for line, text in zip(self.taken, said, strict=True)]
            tables.append(Table(["taken", "in the recipe"], rows))
        for title, lines in (("no need for it here", self.needless), ("no counterpart", self.lacking)):
            if lines:
                tables.append(Table([title, "why"], [[line.text, line.why] for line in lines]))
        return [
            Heading(f"{self.recipe}, from a file of {self.tool}"),
            *tables,
            Text(UNSAID),
            Text(f"next: hfadapt check {self.recipe}, hfadapt plan {self.recipe}"),
        ]


def convert(file: Path, output: Path | None = None, tool: str | None = None) -> Converted:
    """Writes a recipe from a YAML or JSON file of another tool.

    Args:
        file: The other tool's configuration.
        output: The recipe, a new file; by default the file's name with `-recipe.yaml`, in the working directory.
        tool: Whose file it is; by default the one that knows most of its fields.

    Raises:
        RequestError: the file cannot be read, no tool knows it, it asks for what no recipe can ask for, or the output
            exists already.
        RecipeError: what came out is no valid recipe, for instance as a file of data is not there.
    """
    values = _read(file)
    converter = _tool(values, tool, file)
    output = output or Path(f"{file.stem}-recipe.yaml")
    if output.exists():
        raise RequestError("the file exists already", place=str(output), fix="give another name with --out")
    said = Said(values, file.resolve().parent, output.resolve().parent)
    try:
        converter.convert(said)
    except Refused as refused:
        raise RequestError(
            f"a recipe has nothing that stands for this in a file of {converter.title}",
            place=str(file),
            got=str(refused),
            allowed="one model, one or more data sets, and fine-tuning on answers, texts, or pairs by DPO",
            fix="change that field, or write a recipe with hfadapt new",
        ) from None
    done = _converted(said, converter, output)
    write_text(output, _text(said, done, file))
    try:
        load_recipe(output)
    except RequestError:
        output.unlink()
        raise
    return done


def _read(file: Path) -> dict[str, Any]:
    """The file's fields; JSON is YAML too."""
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise RequestError("the file cannot be read", place=str(file), got=reason, fix="check the file") from None
    if not isinstance(found, dict) or not found:
        raise RequestError("the file has no fields", place=str(file), allowed="YAML or JSON with `key: value`")
    return {str(key): value for key, value in found.items()}


def _tool(values: Mapping[str, Any], name: str | None, file: Path) -> Converter:
    """The tool of that name, or the one that knows most of the fields."""
    names = registry.names("converters")
    if name is not None:
        if name not in names:
            close = nearest(name.lower().replace("_", "-"), names)
            fix = f"did you mean {close!r}?" if close else f"one of: {', '.join(names)}"
            raise RequestError("there is no tool of that name", got=name, allowed=", ".join(names), fix=fix)
        return registry.converter(name)
    counts = {each: registry.converter(each).known(values) for each in names}
    best = max(counts.values())
    first, *more = [each for each, count in counts.items() if count == best]
    if not best or more:
        raise RequestError(
            "it cannot be told whose file this is",
            place=str(file),
            got=", ".join([*values][:8]),
            allowed=", ".join(names),
            fix=f"say it: --from {first}",
        )
    return registry.converter(first)


def _converted(said: Said, converter: Converter, output: Path) -> Converted:
    lines: dict[type, list[Line]] = {Taken: [], Needless: [], Lacking: []}
    for key, value in said.values.items():
        end = said.ends.get(key)
        if isinstance(end, Taken):
            lines[Taken].append(Line(field=key, value=value, place=end.place, set=end.value))
        elif end is not None:
            lines[type(end)].append(Line(field=key, value=value, why=end.why))
    return Converted(
        recipe=str(output),
        tool=converter.title,
        taken=tuple(lines[Taken]),
        needless=tuple(lines[Needless]),
        lacking=tuple(lines[Lacking]),
    )


def _text(said: Said, done: Converted, file: Path) -> str:
    """The recipe, with what was left behind above it."""
    left = [f"#   {line.text}" + (f"  ({line.why})" if line.why else "") for line in done.lacking]
    head = [f"# From {' '.join(file.name.split())}, a file of {done.tool}. {UNSAID}"]
    head += ["# No counterpart:", *left] if left else []
    settings = {key: said.settings[key] for key in Recipe.model_fields if key in said.settings}
    return "\n".join([*head, dump(settings)])


def _short(value: Any) -> str:
    text = " ".join(inline(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
