"""Rows that are not labelled: what stands in the column of the label where a row has none."""

from __future__ import annotations

from collections import Counter

from hfadapt.cli.new_columns import GUESSED, Rows, values_of
from hfadapt.core import registry
from hfadapt.core.show import show_count
from hfadapt.data.columns import Shape
from hfadapt.data.unreadable import UNREADABLE_LIMIT
from hfadapt.recipe.yaml_lines import inline
from hfadapt.schemas import NOTHING


def no_label(shape: Shape, rows: Rows) -> tuple[dict[str, list[str]], list[str]]:
    """What the domain is to say of rows without a label, and how that is told.

    An empty cell needs no word, as long as few are: many say that the table is labelled in part. A word is one that
    programs write, or one of signs alone where all other classes have letters or digits, as `???` has none.
    """
    label, schema = shape.parts.get("label"), registry.schema(shape.form)
    if label is None or schema.media or schema.label_kind not in ("class", "number"):
        return {}, []
    filled = values_of(label, rows)
    empty = len(rows) - len(filled)
    none = [""] if filled and empty > UNREADABLE_LIMIT * len(rows) else []
    names = dict.fromkeys(filled) if schema.label_kind == "class" else {}
    words = [name for name in names if name.lower() in NOTHING]
    signs = [name for name in names if not any(map(str.isalnum, name))]
    words += signs if len(signs) == 1 else []
    none += words if len(names) - len(words) > 1 else []
    if not none:
        return {}, []
    left = sum(count for value, count in {**Counter(filled), "": empty}.items() if value in none)
    said = f"{GUESSED}{show_count(left, 'row')} without a label (no_label: {inline(none)}) are left out."
    return {"no_label": none}, [f"{said} Otherwise take no_label out of the recipe."]
