"""Puts what pydantic found wrong with a recipe into words: one problem for each value, with what is allowed and a fix.

The words come from the recipe's own annotations, so a new field explains itself.
"""

from __future__ import annotations

import math
import operator
import re
import sys
import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, BaseModel, BeforeValidator, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from hfadapt.core.errors import nearest
from hfadapt.recipe.augment import Augment
from hfadapt.recipe.fast import Fast
from hfadapt.recipe.names import AUTO, NAME_PATTERN, OTHER_NAMES, OneOf, WithUnit
from hfadapt.recipe.other_tools import other_words
from hfadapt.recipe.pretrain import LockedPretrain, Pretrain, TextSource
from hfadapt.recipe.schema import Domain, LockedFast, Recipe, Source
from hfadapt.recipe.template import Template
from hfadapt.recipe.yaml_lines import Keys, Place, Tree, inline, plain

LIMIT_PROBLEMS = 50
NAME_WORDS = "a name of letters, digits, '.', '_' and '-', at most 64, beginning with a letter or digit"
PRETRAIN_WORDS = "true, false, sources, or settings such as {sources: [texts.txt], epochs: 3}"
FAST_WORDS = "true, false, or parts such as {norms: false}"
MODEL_WORDS: dict[type, str] = {
    Domain: "a source, or settings such as {source: data.csv}",
    Source: "a source, or settings such as {source: data.csv}",
    TextSource: "a source, or settings such as {source: texts.txt}",
    Pretrain: PRETRAIN_WORDS,
    LockedPretrain: PRETRAIN_WORDS,
    Augment: "auto, false, or shares such as {typos: 0.1}",
    Fast: FAST_WORDS,
    LockedFast: FAST_WORDS,
}
SWITCHED = (Augment, Fast, Pretrain)
"""Sections for which `true` or `false` may stand."""
EXAMPLES = {
    "model": "sample:minilm-l6",
    "task": "text-classification",
    "domains": "{mine: {source: data.csv}}",
    "source": "data.csv",
    "role": "user",
    "content": "'{text}'",
}
Model = TypeVar("Model", bound=BaseModel)


def validate(tree: Tree, model: type[Model]) -> Model | None:
    """The tree as a `model`, or None with every fault reported in the tree."""
    _report_booleans(tree, model)
    try:
        return model.model_validate(tree.values)
    except ValidationError as error:
        explain(tree, error, model)
        return None


def explain(tree: Tree, error: ValidationError, model: type[BaseModel]) -> None:
    """Reports each value that `model` refused, once."""
    by_path: dict[Keys, Any] = {}
    for each in error.errors(include_url=False):
        keys, annotation = locate(model, each["loc"], each["type"] == "extra_forbidden")
        key = (*keys, "[key]") if "[key]" in each["loc"] else keys
        by_path.setdefault(key, (keys, annotation, each))
    # A union reports its other members beside a fault inside the member that was meant.
    inner = {path[:end] for path in by_path for end in range(len(path))}
    paths = [path for path in by_path if path not in inner]
    for path in paths[:LIMIT_PROBLEMS]:
        keys, annotation, each = by_path[path]
        if path != keys:
            _report_name(tree, keys)
        elif each["type"] == "extra_forbidden":
            _report_unknown(tree, keys, model)
        elif each["type"] == "missing":
            key = keys[-1]
            fix = f"add `{key}: {EXAMPLES.get(str(key), '...')}`"
            tree.report(keys, f"`{dotted(keys)}` is missing", allowed=describe(annotation), fix=fix, final=True)
        elif each["type"] == "value_error" and _is_model(base(annotation)) and isinstance(dig(tree, keys), Mapping):
            _report_settings(tree, keys, base(annotation), str(each["ctx"]["error"]))
        else:
            report_value(tree, keys, model)
    if len(paths) > LIMIT_PROBLEMS:
        rest = f"and {len(paths) - LIMIT_PROBLEMS:,} more problems"
        tree.report(Place(sys.maxsize, tree.name), rest, fix="fix the ones above first")


def report_value(tree: Tree, keys: Keys, model: type[BaseModel]) -> None:
    """Reports that the value at `keys` is not what its field takes."""
    annotation = annotation_at(model, keys)
    value = dig(tree, keys)
    names = _one_of(annotation)
    if names and isinstance(value, str):
        what = f"there is no {names.what} of that name"
    elif value is None:
        what = f"`{dotted(keys)}` is empty"
    else:
        what = f"`{dotted(keys)}` cannot have this value"
    fix = _repair(annotation, value, keys) or _default(model, keys)
    tree.report(keys, what, got=show(value), allowed=describe(annotation), fix=fix, final=True)


# --- annotations -----------------------------------------------------------------------------------------------------


def split(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """The bare type and everything said about it."""
    if get_origin(annotation) is not Annotated:
        return annotation, ()
    bare, *notes = get_args(annotation)
    flat = [inner for note in notes for inner in (note.metadata if isinstance(note, FieldInfo) else [note])]
    return bare, tuple(flat)


def base(annotation: Any) -> Any:
    """The bare type; of an optional one, the type without None."""
    bare = split(annotation)[0]
    members = [member for member in _members(bare) if member is not type(None)]
    return split(members[0])[0] if len(members) == 1 else bare


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    bare = split(annotation)[0]
    return get_args(bare) if get_origin(bare) in (Union, types.UnionType) else (annotation,)


def _is_model(bare: Any, kind: type | tuple[type, ...] = BaseModel) -> bool:
    return isinstance(bare, type) and issubclass(bare, kind)


def annotation_of(info: FieldInfo) -> Any:
    """The annotation of a field, with all that is said about it."""
    return operator.getitem(Annotated, (info.annotation, *info.metadata)) if info.metadata else info.annotation


def child(annotation: Any, key: str | int) -> Any:
    """The annotation one key further down, or None when there is no such key."""
    for member in _members(annotation):
        bare = split(member)[0]
        if _is_model(bare):
            if key in bare.model_fields:
                return annotation_of(bare.model_fields[str(key)])
        elif get_origin(bare) is dict and isinstance(key, str):
            return get_args(bare)[1]
        elif get_origin(bare) is tuple and isinstance(key, int):
            return get_args(bare)[0]
    return None


def annotation_at(model: type[BaseModel], keys: Keys) -> Any:
    """The annotation of a path, or None for an unknown one."""
    annotation: Any = model
    for key in keys:
        annotation = child(annotation, key)
    return annotation


def locate(model: type[BaseModel], loc: tuple[str | int, ...], extra: bool) -> tuple[Keys, Any]:
    """pydantic's location as a path of the file: without the names of union members."""
    keys: list[str | int] = []
    annotation: Any = model
    for index, part in enumerate(loc):
        if part == "[key]":
            break
        inner = child(annotation, part)
        if inner is not None:
            keys.append(part)
            annotation = inner
        elif extra and index == len(loc) - 1:
            keys.append(part)
    return tuple(keys), annotation


# --- words -----------------------------------------------------------------------------------------------------------


def describe(annotation: Any) -> str:
    """What a field takes, such as 'a whole number ≥ 1, or auto'."""
    members = _members(annotation)
    if len(members) > 1:
        return ", or ".join(describe(member) for member in members)
    bare, notes = split(annotation)
    if unit := _with_unit(annotation):
        return unit.words
    for note in notes:
        if isinstance(note, AfterValidator) and isinstance(note.func, OneOf):
            return ", ".join(note.func.options())
        if getattr(note, "pattern", None) == NAME_PATTERN:
            return NAME_WORDS
    if bare is type(None):
        return "null"
    if get_origin(bare) is Literal:
        return ", ".join(map(str, get_args(bare)))
    if get_origin(bare) is tuple:
        return f"a list of {'one or more: ' if any(isinstance(note, MinLen) for note in notes) else ''}{_entry(bare)}"
    if get_origin(bare) is dict:
        return f"lines of `name: value`; the value is {describe(get_args(bare)[1])}"
    if _is_model(bare):
        return MODEL_WORDS.get(bare) or f"settings: {', '.join(bare.model_fields)}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return f"{words.get(bare, str(bare))}{_bounds(notes)}"


def _entry(bare: Any) -> str:
    entry = get_args(bare)[0]
    if _is_model(base(entry)):
        return f"entries: {describe(entry)}"
    return "texts" if split(entry)[0] is str and not split(entry)[1] else describe(entry)


def _bounds(notes: tuple[Any, ...]) -> str:
    signs: tuple[tuple[type, str, str], ...] = ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<"))
    limits = [
        f"{sign} {getattr(note, name):g}" for kind, name, sign in signs for note in notes if isinstance(note, kind)
    ]
    if len(limits) == 2 and limits[0][0] == "≥" and limits[1][0] == "≤":
        return f" from {limits[0][2:]} to {limits[1][2:]}"
    return f" {' and '.join(limits)}" if limits else ""


def dotted(keys: Keys) -> str:
    """`domains.tweets.sources[0]` for a path."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text[:80]


def show(value: Any) -> str:
    """A value briefly, as it is written in YAML where that differs from Python."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    if isinstance(value, (list, dict)):
        text = repr(value) if len(value) < 20 else f"{len(value):,} entries"
    else:
        text = repr(value[:200] if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def dig(tree: Tree, keys: Keys) -> Any:
    """The value at a path, or None."""
    value = tree.values
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            return None
    return value


# --- single faults ---------------------------------------------------------------------------------------------------


def _report_booleans(tree: Tree, model: type[BaseModel], keys: Keys = ()) -> None:
    """pydantic takes `true` for the number 1; nobody who writes it means that."""
    annotation, value = annotation_at(model, keys), dig(tree, keys)
    if annotation is None:
        return
    kinds = [split(member)[0] for member in _members(annotation)]
    if isinstance(value, bool) and not any(kind is bool or _is_model(kind, SWITCHED) for kind in kinds):
        report_value(tree, keys, model)
    inner = value if isinstance(value, Mapping) else range(len(value)) if isinstance(value, list) else ()
    for key in inner:
        _report_booleans(tree, model, (*keys, key))


def _report_name(tree: Tree, keys: Keys) -> None:
    """The key itself is not a name that folders can have."""
    name = str(keys[-1])
    better = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64]
    fix = f"call it {better!r}" if better else "give it another name"
    tree.report(keys, f"`{dotted(keys)}` is not a usable name", got=show(name), allowed=NAME_WORDS, fix=fix, final=True)


def _report_settings(tree: Tree, keys: Keys, model: type, what: str) -> None:
    """Single settings are right, but not together."""
    given = ", ".join(str(key) for key, value in dig(tree, keys).items() if value is not None)
    if model is Template:
        allowed, fix = "prompt and completion, or messages", "write `prompt: ...` and `completion: ...`"
        if "assistant" in what:
            allowed, fix = "system, user and assistant turns", "add {role: assistant, content: '{label}'}"
    else:
        allowed, fix = "source or sources", "write `source: data.csv`, or `sources: [first.csv, second.csv]`"
    tree.report(keys, what, got=given or "neither", allowed=allowed, fix=fix, final=True)


def _report_unknown(tree: Tree, keys: Keys, model: type[BaseModel]) -> None:
    """A key that its section does not have; it may belong elsewhere, or be another tool's word."""
    *parent, key = keys
    name = str(key)
    section = base(annotation_at(model, tuple(parent)))
    fields = tuple(section.model_fields)
    where = f"in `{dotted(tuple(parent))}`" if parent else "at the top level"
    tree.report(
        keys,
        f"unknown key `{name[:60]}` {where}",
        got=f"{name[:60]}: {show(dig(tree, keys))}",
        allowed=", ".join(fields),
        fix=_turned_round(tree, keys, fields)
        or _right_key(name, section, fields)
        or "delete it, or use one of the allowed keys",
        final=True,
    )


def _turned_round(tree: Tree, keys: Keys, fields: tuple[str, ...]) -> str | None:
    """Columns are named by the part that they play, and not the other way round."""
    value = dig(tree, keys)
    turned = keys[-2:-1] == ("columns",) and isinstance(value, str) and value in fields
    return f"the part stands first: write `{value}: {keys[-1]}`" if turned else None


def _right_key(name: str, section: type[BaseModel], fields: tuple[str, ...]) -> str | None:
    homes = [prefix for prefix, other in sections().items() if name in other.model_fields and other is not section]
    belongs = f"`{name}` belongs " + " or ".join(f"under `{home}`" if home else "at the top level" for home in homes)
    close = nearest(name[:60], fields)
    if close:
        return f"did you mean `{close}`?" + (f" Or: {belongs}" if homes else "")
    if homes:
        return belongs
    known = other_words().get(name.lower().replace("-", "_"))
    if known:
        return f"hfadapt calls it `{known}`" if "(" not in known else f"see {known}"
    elsewhere = {field: prefix for prefix, other in reversed(sections().items()) for field in other.model_fields}
    far = nearest(name[:60], elsewhere)
    return f"did you mean `{elsewhere[far]}.{far}`?".replace("`.", "`") if far else None


@cache
def sections() -> dict[str, type[BaseModel]]:
    """Every section of a recipe by its dotted place, outer ones first; each class once."""
    found: dict[str, type[BaseModel]] = {}
    waiting: list[tuple[str, Any]] = [("", Recipe)]
    for prefix, annotation in waiting:
        for member in _members(annotation):
            bare = split(member)[0]
            if get_origin(bare) is dict:
                waiting.append((f"{prefix}.NAME", get_args(bare)[1]))
            elif get_origin(bare) is tuple:
                waiting.append((prefix, get_args(bare)[0]))
            elif _is_model(bare) and bare not in found.values():
                found[prefix] = bare
                for name, info in bare.model_fields.items():
                    waiting.append((f"{prefix}.{name}" if prefix else name, annotation_of(info)))
    return found


def _one_of(annotation: Any) -> OneOf | None:
    return next((each for each in _functions(annotation) if isinstance(each, OneOf)), None)


def _with_unit(annotation: Any) -> WithUnit | None:
    return next((each for each in _functions(annotation) if isinstance(each, WithUnit)), None)


def _functions(annotation: Any) -> list[Any]:
    """What checks or reads a value, for all members of a union."""
    notes = [note for member in _members(annotation) for note in split(member)[1]]
    return [note.func for note in notes if isinstance(note, (AfterValidator, BeforeValidator))]


def choices(annotation: Any) -> tuple[str, ...]:
    """The words a field knows, of all members of a union."""
    names = _one_of(annotation)
    literals = [
        str(each) for m in _members(annotation) if get_origin(split(m)[0]) is Literal for each in get_args(split(m)[0])
    ]
    return (*(names.options() if names else ()), *literals)


def _repair(annotation: Any, value: Any, keys: Keys) -> str | None:
    """The first likely change of the value that its field would take."""
    if (known := OTHER_NAMES.get(str(value).lower().replace("_", "-"))) in choices(annotation):
        return f"write `{keys[-1]}: {known}`" if isinstance(keys[-1], str) else f"write `{known}` in its place"
    if isinstance(value, str):
        close = nearest(value[:60].strip(), choices(annotation))
        if close:
            return f"did you mean {close!r}?"
    if keys == ("domains",) and isinstance(value, (str, list)) and value:
        return f"write `domains: {{mine: {inline(value if isinstance(value, str) else {'sources': value})}}}`"
    if keys[-1] == "source" and isinstance(value, list):
        return f"write `sources: {inline(value)}`"
    if keys[-1] == "source" and isinstance(value, Mapping) and isinstance(value.get("train"), str):
        given = [f"`{name}: {value[name]}`" for name in ("validation", "test") if isinstance(value.get(name), str)]
        return " and ".join([f"write `source: {value['train']}`", *given])
    if _with_unit(annotation):
        return None  # a number without its unit would be taken for another one
    adapter, settings = TypeAdapter(annotation), _is_model(base(annotation))
    for candidate in _candidates(value):
        if settings and not isinstance(candidate, Mapping):
            continue  # a lone word would be taken for a source
        try:
            adapter.validate_python(candidate)
        except ValidationError:
            continue
        written = inline(candidate)
        shown = f"`{keys[-1]}: {written}`" if isinstance(keys[-1], str) else f"`{written}` in its place"
        return f"put it in quotes: {shown}" if written[0] in "'\"" else f"write {shown}"
    return None


def _candidates(value: Any) -> Iterator[Any]:
    if value is None:
        yield from (AUTO,)
    elif isinstance(value, bool):
        yield from (str(value).lower(), "none" if not value else AUTO, "off" if not value else AUTO)
    elif isinstance(value, (int, float)):
        if math.isfinite(value):
            yield from (str(value), [value])
    elif isinstance(value, str):
        number = plain(re.sub(r"[,_\s]", "", value).removesuffix("%"))
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            yield number / 100 if value.strip().endswith("%") else number
        yield [part.strip() for part in value.split(",")]
        yield {"method": value}
    elif isinstance(value, list):
        yield {"sources": value}
        if len(value) == 1:
            yield value[0]
    elif isinstance(value, Mapping) and len(value) == 1 and None in value.values():
        yield "{" + next(iter(value)) + "}"
    elif isinstance(value, Mapping) and value and [*value] == [str(number) for number in range(len(value))]:
        yield [*value.values()]


def _default(model: type[BaseModel], keys: Keys) -> str:
    """What happens when the key is left out."""
    members = _members(annotation_at(model, keys))
    if all(get_origin(split(member)[0]) is Literal or _one_of(member) for member in members):
        return "use one of the allowed names"
    if isinstance(keys[-1], int):
        return "correct the entry, or delete it"
    parent = base(annotation_at(model, keys[:-1]))
    info = parent.model_fields.get(keys[-1]) if _is_model(parent) else None
    if info is None or info.is_required():
        example = EXAMPLES.get(keys[-1])
        return f"write `{keys[-1]}: {example}`" if example else "correct the value"
    if info.default == AUTO:
        return f"correct it, or leave `{keys[-1]}` out: the plan then chooses"
    if info.default is None or isinstance(info.default, (BaseModel, dict, tuple)):
        return f"correct it, or leave `{keys[-1]}` out"
    return f"correct it, or leave `{keys[-1]}` out for the default {show(info.default)}"
