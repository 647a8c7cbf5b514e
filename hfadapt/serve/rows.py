"""A row of a table as an adapter is asked about it: by the recipe's columns and template, as in training."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.files import Blob
from hfadapt.files.nested import spread
from hfadapt.schemas import RowSchema, Unusable, plain

if TYPE_CHECKING:
    from hfadapt.serve.adapted import Adapted

_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


def rows_in(given: Any) -> list[Any]:
    """One value, several, or the rows of a table of pandas, polars, Arrow or datasets: to iterate over one may give its
    columns."""
    for method, *how in (("to_pylist",), ("to_dicts",), ("to_dict", "records")):
        if hasattr(given, "columns") and callable(rows := getattr(given, method, None)):
            return list(rows(*how))
    one = isinstance(given, (str, bytes, bytearray, Mapping)) or not isinstance(given, Iterable)
    return [given] if one else list(given)


def parts_of(adapted: Adapted) -> list[str]:
    """What is read of a row: the parts that the recipe's template names, else that by which the schema asks."""
    if adapted.prompt is None:
        return [_schema(adapted).asks]
    return list(dict.fromkeys(_PLACEHOLDER.findall(adapted.prompt)))


def file_of(adapted: Adapted, values: Mapping[str, Any]) -> Any:
    """The file that a row names or holds. Raises Unusable where it has none."""
    modality = registry.task(adapted.task).modality
    # Of a folder or archive a row is the file itself, whatever a recipe calls the column of names of its table.
    if isinstance(own := values.get(modality), Blob):
        return own
    held = _schema(adapted).held(values)
    return _value(adapted, values, modality, True) if held is None else held


def text_of(adapted: Adapted, values: Mapping[str, Any]) -> str:
    """What the model is shown of a row: the recipe's template filled, or the text that it has.

    Raises:
        Unusable: columns are missing, or hold what is no text.
    """
    names = parts_of(adapted)
    if adapted.prompt is not None:
        filled = {name: plain(_value(adapted, values, name, len(names) == 1)) for name in names}
        return _PLACEHOLDER.sub(lambda match: filled[match[1]], adapted.prompt)
    schema, [part] = _schema(adapted), names
    more = {name: values.get(adapted.columns[name]) for name in schema.optional if name in adapted.columns}
    return schema.question({**more, part: _value(adapted, values, part, True)})


def beside(adapted: Adapted, values: Mapping[str, Any]) -> str | None:
    """What a row has beside the text that is asked about, where the answer is about both: a query's document.

    Raises:
        Unusable: it is no text, or several.
    """
    task, schema = registry.task(adapted.task), _schema(adapted)
    texts = [part for part in schema.parts if part != "label"]
    if not task.compares or (task.alone and schema.label_kind == "none") or len(texts) < 2:
        return None
    values = spread(values, adapted.columns.values())
    lower = {column.lower(): column for column in reversed(list(values))}
    names = (adapted.columns.get(texts[1], ""), *(lower.get(name, "") for name in schema.names[texts[1]]))
    value = next((values[name] for name in names if values.get(name) is not None), None)
    if isinstance(value, list) and len(value) > 1:
        raise Unusable("several-texts", f" has {len(value)} texts as its {texts[1]}; give each a row of its own")
    return None if value is None else plain(value)


def _schema(adapted: Adapted) -> RowSchema:
    if adapted.form is not None:
        return registry.schema(adapted.form)
    return registry.schema(min(registry.task(adapted.task).schemas))


def _value(adapted: Adapted, values: Mapping[str, Any], part: str, alone: bool) -> Any:
    """The value for a part or a column: by the recipe's name or, where it is all that is asked for, the usual ones.

    Args:
        alone: Whether no other is asked for, so that any text will do.
    """
    values = spread(values, adapted.columns.values())
    lower = {column.lower(): column for column in reversed(list(values))}
    schemas = (_schema(adapted), *registry.schemas())
    usual = [name for each in (part, "text") for schema in schemas for name in schema.names.get(each, ())]
    names = [adapted.columns.get(part, ""), part, *(lower[name] for name in usual if name in lower and alone)]
    column = next((name for name in names if name in values), None)
    value = values[column] if column is not None else None
    if value is None or value != value:
        has = ", ".join(str(name) for name, each in values.items() if each is not None and each == each) or "nothing"
        raise Unusable("missing-field", f" has no {adapted.columns.get(part, part)}, only {has}")
    if isinstance(value, str) and not value.strip():
        raise Unusable("empty-text", f" has nothing in {column}")
    return value
