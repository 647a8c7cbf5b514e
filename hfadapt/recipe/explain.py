"""What a field of a recipe does, what it takes, who answers its `auto`, what it costs, and how it is written.

All of it comes from the classes that read recipes, and from the files of what can be named in one.
"""

from __future__ import annotations

import inspect
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from hfadapt.core import registry
from hfadapt.core.errors import RequestError, nearest
from hfadapt.core.show import Block, Heading, Table, Text, View
from hfadapt.recipe.described import Described, described
from hfadapt.recipe.places import NAME, Field, fields
from hfadapt.recipe.words import annotation_of, base, choices, describe
from hfadapt.recipe.yaml_lines import inline

SHOWN = 8
"""Fields that are named where one of that name stands in several sections."""
LISTED_DEPTH = 3
SWITCH = ("true", "false")


def explain(name: str = "") -> View:
    """One field or section, a name such as `adapters.dora`, or, without a name, all sections.

    Args:
        name: A place such as `train.learning_rate` or `domains.mine.source`, the last word of one, or KIND.NAME.

    Raises:
        RequestError: there is nothing of that name.
    """
    if not name:
        return _overview()
    kind, _, value = name.partition(".")
    if kind in registry.KINDS:
        return _of_kind(kind, value)
    return _of_field(_find(name))


def about(field: Field) -> Described:
    """What is said of a field below it."""
    return described(field.info.description)


def words_of_fields() -> dict[str, tuple[list[str], str]]:
    """For each place the words that the field, or an entry of its list, knows, and what it does."""
    return {place: ([*_words(field)], about(field).what) for place, field in fields().items()}


def _words(field: Field) -> tuple[str, ...]:
    annotation, default = annotation_of(field.info), field.info.get_default()
    bare = base(annotation)
    entry = get_args(bare)[0] if get_origin(bare) is tuple else None
    switch = SWITCH if isinstance(default, bool) or bool in get_args(bare) else ()
    return (*switch, *choices(annotation), *(choices(entry) if entry is not None else ()))


def example(field: Field) -> str:
    """A value for a field, as YAML: the one that is given, else another one than the default; "" for a section."""
    if given := about(field).example:
        return given
    if field.section is not None:
        return ""
    default = field.info.get_default()
    other = next((word for word in _words(field) if word not in ("auto", inline(default))), None)
    if other is not None:
        return other
    return "" if default is None else inline(_plain(default))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _default(field: Field) -> str:
    if field.info.is_required():
        return "none: it must be given"
    default = field.info.get_default()
    if isinstance(default, BaseModel):
        return ""
    return "nothing" if default is None else inline(_plain(default))


# --- finding ---------------------------------------------------------------------------------------------------------


def _find(name: str) -> Field:
    """The field that a place or its last word names; any name of a domain or target stands for all."""
    known = fields()
    parts = name.replace("[]", "").split(".")
    # The name of a domain may itself have dots.
    for end in range(len(parts), 1, -1):
        if ".".join(named := [parts[0], NAME, *parts[end:]]) in known and ".".join(parts) not in known:
            parts = named
    if (found := known.get(".".join(parts))) is not None:
        return found
    ending = sorted((place for place in known if place.split(".")[-len(parts) :] == parts), key=_depth)
    if len(ending) == 1:
        return known[ending[0]]
    if ending:
        raise RequestError(
            "several sections have a field of that name",
            got=repr(name),
            allowed=", ".join(ending[:SHOWN]) + (" …" if len(ending) > SHOWN else ""),
            fix=f"hfadapt explain {ending[0]}",
        )
    close = nearest(name, known) or _nearest_last(parts[-1])
    raise RequestError(
        "the recipe has no such field",
        got=repr(name),
        allowed="a place such as train.learning_rate, or KIND.NAME such as adapters.lora",
        fix=f"did you mean {close!r}?" if close else "hfadapt explain, which lists the sections",
    )


def _nearest_last(word: str) -> str | None:
    """The place whose last word is nearest; of several the first of the least deep."""
    last: dict[str, str] = {}
    for place in sorted(fields(), key=_depth):
        last.setdefault(place.rpartition(".")[2], place)
    close = nearest(word, last)
    return last[close] if close else None


def _depth(place: str) -> int:
    return place.count(".")


# --- showing ---------------------------------------------------------------------------------------------------------


def _overview() -> View:
    known = [field for place, field in fields().items() if _depth(place) < LISTED_DEPTH]
    rows = [[field.place, about(field).what] for field in known if not _depth(field.place) or field.section]
    kinds = [[kind, ", ".join(registry.names(kind))] for kind in registry.KINDS]
    return View(
        [
            Table(["field or section", "what it does"], rows),
            Table(["kind", "names"], kinds),
            Text(
                "one of them: hfadapt explain train, hfadapt explain train.learning_rate, hfadapt explain adapters.lora"
            ),
        ]
    )


def _of_field(field: Field) -> View:
    said = about(field)
    facts = {
        "takes": describe(annotation_of(field.info)),
        "default": _default(field),
        "auto": said.auto,
        "costs": said.cost,
    }
    blocks: list[Block] = [Heading(field.place)]
    more = _doc(field.section) if field.section is not None else ""
    # The section's own words often begin as the field's.
    blocks += [
        Text(each) for each in (said.what, more) if each and not (each is said.what and more.startswith(each[:-1]))
    ]
    blocks.append(Table(["", ""], [[name, text] for name, text in facts.items() if text]))
    below = [each for each in fields().values() if each.place.rpartition(".")[0] in _prefixes(field)]
    if below:
        blocks.append(Table(["field", "default", "what it does"], [_line(each) for each in below]))
    if written := example(field):
        blocks.append(Text(f"in a recipe:          {_in_recipe(field.place, written)}"))
        if "." in field.place or not written.startswith("{"):
            blocks.append(Text(f"on the command line:  hfadapt run RECIPE {_quoted(f'{field.place}={written}')}"))
    return View(blocks)


def _prefixes(field: Field) -> tuple[str, ...]:
    return field.place, f"{field.place}.{NAME}"


def _line(field: Field) -> list[str]:
    return [field.place.rpartition(".")[2], _default(field), about(field).what]


def _doc(section: type[BaseModel]) -> str:
    return " ".join((inspect.getdoc(section) or "").split())


def _in_recipe(place: str, written: str) -> str:
    *sections, last = place.split(".")
    text = f"{last}: {written}"
    for section in reversed(sections):
        text = f"{section}: {{{text}}}"
    return text


def _quoted(text: str) -> str:
    return text if not set(text) & set(" {}[]'\"()\\") else "'" + text.replace("'", "'\\''") + "'"


def _of_kind(kind: str, name: str) -> View:
    """What a file says of a name, and the options of an objective. Raises RequestError for an unknown name."""
    if not name:
        rows = [[each, registry.about(kind, each).partition("\n")[0]] for each in registry.names(kind)]
        return View([Heading(kind), Table([kind, "what it is"], rows)])
    found = registry.load(kind, name)
    blocks: list[Block] = [Heading(f"{kind}.{name}")]
    blocks += [Text(" ".join(part.split())) for part in registry.about(kind, name).split("\n\n")]
    options = getattr(found, "Options", None)
    if options is not None and options.model_fields:
        blocks.append(Text(_doc(options)))
        rows = [
            [each, describe(annotation_of(info)), "" if info.is_required() else inline(_plain(info.get_default()))]
            for each, info in options.model_fields.items()
        ]
        blocks.append(Table(["option", "takes", "default"], rows))
    return View(blocks)
