"""Brings every source to one row schema (`schemas/`).

Columns are taken from the recipe, else recognised by the names that schemas know. A template turns columns into a
prompt and completion or into chat turns.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import DataError, choice_problem
from hfadapt.data import verdicts
from hfadapt.data.labels import Labels, some
from hfadapt.data.rows import Dropped, Row, as_row
from hfadapt.data.unfit_columns import remedy
from hfadapt.files.places import Place, name_rows
from hfadapt.recipe.schema import Columns
from hfadapt.recipe.template import Template
from hfadapt.schemas import LABEL_NAMES, RowSchema, Unusable, plain, storable

_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
# A completion is a class rather than free text when few of them are used again and again.
CLASS_LIMIT, ROWS_PER_CLASS = 20, 10


@dataclass(frozen=True)
class Shape:
    """How one source's columns are read: the name of its schema, which column plays which part, and which say the group
    and the split of a row."""

    form: str
    parts: dict[str, str]
    group: str | None = None
    pattern: str | None = None
    split: str | None = None

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read."""
        return tuple(dict.fromkeys(self.parts.values()))

    def group_of(self, values: Mapping[str, Any]) -> str:
        """What the row has in common with others that must stay with it; "" where nothing is."""
        value = values.get(self.group) if self.group else None
        if value is None or self.pattern is None:
            return "" if value is None else str(value)
        match = re.search(self.pattern, str(value))
        return (match[1] or "") if match else ""


def recognise(columns: Sequence[str], asked: Columns, forms: Collection[str], place: str, templated: bool) -> Shape:
    """Decides how the columns of a source are read.

    Args:
        columns: The columns the source has.
        asked: What the recipe says about them.
        forms: What the task learns from.
        place: The source, for messages.
        templated: Whether a template will make the final form.

    Raises:
        DataError: an asked column is missing, or nothing fits; names the columns there are.
    """
    problems = [
        choice_problem(f"there is no column for {part}", name, columns, place)
        for part, name in {**asked.parts, "group": asked.group, "split": asked.split}.items()
        if name is not None and name not in columns
    ]
    if problems:
        raise DataError(problems[0].what, problems=problems)
    plain = {column.lower(): column for column in reversed(list(columns))}
    try:
        return _recognise(columns, asked, forms, place, templated, plain)
    except DataError:
        if (fields := _fields(columns)).keys() <= plain.keys():
            raise
        with suppress(DataError):
            return _recognise(columns, asked, forms, place, templated, {**fields, **plain})
        raise


def _fields(columns: Sequence[str]) -> dict[str, str]:
    """Fields of objects by their own names and those of their objects, where these tell them apart: `body`, and where
    there is no other in it also `review`, is `review.body`."""
    found: dict[str, list[str]] = {}
    for column in columns:
        above, _, own = column.rpartition(".")
        for name in (own, above) if above else ():
            found.setdefault(name.lower(), []).append(column)
    return {name: each[0] for name, each in found.items() if len(each) == 1}


def _recognise(
    columns: Sequence[str],
    asked: Columns,
    forms: Collection[str],
    place: str,
    templated: bool,
    lower: Mapping[str, str],
) -> Shape:
    """As `recognise`; `lower` has the columns by the names in small letters by which they are known."""
    said = asked.parts
    parts = dict(said)
    # Where a task learns from rows of one kind of label, another schema with the same parts is out of the question.
    known = [each for each in registry.schemas() if each.name in forms or not _rival(each, forms)]
    # Another schema may know one of these columns by another name.
    for part, names in _names(sorted(known, key=lambda each: each.name not in forms)).items():
        free = [lower[name] for name in names if name in lower and lower[name] not in parts.values()]
        if part not in parts and free and _wanted(part, said, known):
            parts[part] = free[0]
    grouped = {"group": asked.group, "pattern": asked.group_pattern, "split": asked.split}
    if templated:
        return Shape(PLAIN, {**parts, **{column: column for column in columns if column not in parts}}, **grouped)
    found = [each for each in known if all(part in parts for part in each.parts)]
    both = verdicts.pair(columns)
    fitting = [each for each in found if each.name in forms or any(each.name in _adopted(form) for form in forms)]
    # Labels that the task would not learn are not passed over in silence, unless the recipe names the text.
    bare = next((each for each in fitting[:1] if found[0].label_kind != "none" and each is not found[0]), None)
    # Of a pair it may say that both do not belong together.
    matters = bare is not None and (len(forms) > 1 or (len(bare.parts) > 1 and bare.label_kind == "none"))
    ignores = bare is not None and matters and not set(bare.parts) & set(said)
    whole = both is not None and fitting and {*both} <= {parts[part] for part in fitting[0].parts}
    if fitting and not ignores and (said or both is None or whole or fitting[0].label_kind != "none"):
        chosen = fitting[0]
        used = {part: parts[part] for part in (*chosen.parts, *chosen.optional) if part in parts}
        return Shape(chosen.name, {**_about(used, chosen, lower), **used}, **grouped)
    wanted = [each for each in known if each.name in forms]
    fix = remedy(columns, parts, wanted, found[0] if found else None, bare)
    read_as = f", read as {found[0].name}" if found else ""
    if both:
        read_as, fix = verdicts.PAIRS, verdicts.advice(both)
        if fitting:
            fix += "; or name the columns that are meant"
    raise DataError(
        "the columns do not fit the task",
        place=place,
        got=f"columns {some(columns, 20)}{read_as}",
        allowed=" or ".join(" + ".join(each.parts) for each in wanted),
        fix=fix,
    )


def label_column(columns: Sequence[str], asked: Columns) -> str | None:
    """The column that the recipe or its name says to be the label."""
    lower = {column.lower(): column for column in reversed(list(columns))}
    named = [lower[name] for schema in registry.schemas() for name in schema.names.get("label", ()) if name in lower]
    return asked.label or next(iter(named), None)


PLAIN = "text"
"""The schema of rows of which a template will make others."""


def _rival(schema: RowSchema, forms: Collection[str]) -> bool:
    """Whether one that the task learns from has the same parts."""
    return any(set(registry.schema(form).parts) == set(schema.parts) for form in forms)


def _adopted(form: str) -> Collection[str]:
    return registry.schema(form).adopts


def _names(schemas: Iterable[RowSchema]) -> dict[str, tuple[str, ...]]:
    """Column names of each part; the first schema that knows a part names it."""
    found: dict[str, tuple[str, ...]] = {}
    for schema in schemas:
        for part, names in schema.names.items():
            found.setdefault(part, names)
    return found


_INPUT = "instruction_input"
_INSTRUCTED = {"instruction": ("input", "context"), "question": ("context",)}
"""What a prompt of that name is about, in a column beside it: in Alpaca, in Dolly, and of questions about a text."""


def _about(parts: Mapping[str, str], schema: RowSchema, lower: Mapping[str, str]) -> dict[str, str]:
    """The further input of a prompt whose name asks for one, where nothing else is read from its column."""
    names = _INSTRUCTED.get(parts.get("prompt", "").lower(), ()) if _INPUT in schema.optional else ()
    free = [lower[name] for name in names if name in lower and lower[name] not in parts.values()]
    return {_INPUT: free[0]} if free else {}


def _wanted(part: str, said: Mapping[str, str], known: Sequence[RowSchema]) -> bool:
    """What the recipe says decides the schema; only the rest of that schema is looked for."""
    if not said or set(said) == {"label"}:
        return True
    return any(
        part in (*schema.parts, *schema.optional)
        for schema in known
        if next(iter(said)) in (*schema.parts, *schema.optional)
    )


@dataclass
class Formatter:
    """Turns raw rows of one source into canonical rows; one per source.

    Args:
        name: The source, as rows name it.
        shape: How its columns are read.
        template: Makes prompt and completion or messages out of the columns.
        labels: The domain's class names.
        label_names: The label column's own class names.
        columns: All columns of the source, for messages.
    """

    name: str
    shape: Shape
    template: Template | None
    labels: Labels
    label_names: Sequence[str]
    columns: Sequence[str]

    def __post_init__(self) -> None:
        if self.template is None:
            return
        names = {**{column: column for column in self.columns}, **_by_part(self.shape, self.columns)}
        prompt, answer = _template_texts(self.template)
        self._places = names
        self._shown = list(dict.fromkeys(_PLACEHOLDER.findall(prompt)))
        self._answer = list(dict.fromkeys(_PLACEHOLDER.findall(answer)))
        missing = [each for each in dict.fromkeys([*self._shown, *self._answer]) if each not in names]
        if missing:
            problems = [
                choice_problem(f"the template's {{{each}}} is no column of the source", each, names, self.name)
                for each in missing
            ]
            raise DataError(problems[0].what, problems=problems)
        if not self._answer:
            raise DataError(
                "every row would have the same completion",
                place=self.name,
                got="a template whose completion names no column",
                allowed="{" + "}, {".join(self.columns) + "}",
                fix="put the column to learn into the completion, such as ' {label}'",
            )
        shown_twice = [each for each in self._answer if names[each] in {names[other] for other in self._shown}]
        if shown_twice:
            raise DataError(
                "the template shows the answer in the prompt",
                place=self.name,
                got=f"{{{shown_twice[0]}}} in the prompt and in the completion of all rows",
                fix="take it out of the prompt; or leave the template out if the column holds chats, which are learned "
                "as the model's chat template writes them",
            )
        used = {names[each] for each in (*self._shown, *self._answer)}
        self.shape = replace(self.shape, form=self.template.makes, parts={c: c for c in self.columns if c in used})
        self._label_column = _label_column(self._answer, names)

    @property
    def whole(self) -> frozenset[str]:
        """Columns that are learned as they are, outer white space included."""
        if self.template is not None:
            return frozenset()
        parts = self.shape.parts
        return frozenset(parts[part] for part in registry.schema(self.shape.form).verbatim if part in parts)

    def row(self, where: Place, values: Mapping[str, Any]) -> Row | Dropped:
        """One canonical row; its split is not set yet."""
        parts = self.shape.parts
        schema = registry.schema(self.shape.form)
        label = self._label_column if self.template is not None else parts.get("label")
        if label is not None and self.labels.says_none(values.get(label), self.label_names):
            return Dropped(where, "no-label", detail=f" has {str(values.get(label) or '')[:40]!r} as its {label}")
        needed = ((part, column) for part, column in parts.items() if part not in schema.optional)
        if lacking := next((each for each in needed if values.get(each[1]) is None), None):
            lack = schema.lacks(values, *lacking)
            return Dropped(where, lack.reason, detail=lack.detail)
        tags = schema.label_kind == "tokens"
        try:
            if self.template is not None:
                return self._templated(where, values)
            given: Mapping[str, Any] = {part: values.get(column) for part, column in parts.items()}
            if (other := schema.reread(given)) is not None:
                schema, given = registry.schema(other[0]), other[1]
            columns = schema.make(
                given,
                lambda value: self.labels.name(value, self.label_names, tags=tags),
            )
            asked = schema.asked_apart(given)
        except Unusable as fault:
            detail = fault.detail or f" has no {parts.get('label', 'label')}"
            return Dropped(where, fault.reason, detail=detail)
        # Text that holds JSON is read here, after the halves of characters were taken out of the cells.
        row = as_row({**storable(columns), **where.columns}, schema.name)
        row.asked = tuple(map(storable, asked))
        return row

    def _templated(self, where: Place, values: Mapping[str, Any]) -> Row | Dropped:
        assert self.template is not None
        used = {key: values[self._places[key]] for key in (*self._shown, *self._answer)}
        filled = {
            key: plain(value)
            for key, value in used.items()
            if value is not None and self._places[key] != self._label_column
        }
        label = None
        if self._label_column is not None:
            label = self.labels.name(values[self._label_column], self.label_names)
            if label is None:
                return Dropped(where, "missing-field", detail=f" has no {self._label_column}")
            filled.update({key: label for key in used if self._places[key] == self._label_column})
        texts = [filled[key] for key in self._shown if self._places[key] != self._label_column]
        shown = "\n".join(texts)
        answer = "\n".join(filled[key] for key in self._answer)
        if not answer.strip():
            return Dropped(where, "empty-completion", detail=f" has nothing in {', '.join(self._answer)}")
        if self.template.messages is not None:
            turns = [{"role": turn.role, "content": _fill(turn.content, filled)} for turn in self.template.messages]
            columns: dict[str, Any] = {"messages": turns}
        else:
            columns = {
                "prompt": _fill(self.template.prompt or "", filled),
                "completion": _fill(self.template.completion or "", filled),
            }
        form = self.template.makes
        text = f"{shown}\n{answer}"
        if label is not None:
            columns, text = {**columns, "label": label}, shown
        return Row(
            where.source,
            where.row,
            columns,
            text,
            label,
            shown,
            form=form,
            line=where.line,
            in_file=where.in_file,
            asked=tuple(texts) if len(texts) > 1 else (),
        )


def _by_part(shape: Shape, columns: Sequence[str]) -> dict[str, str]:
    """`{label}` and `{text}` also work when the columns are called otherwise."""
    known = _names(registry.schemas())
    return {part: column for part, column in shape.parts.items() if part in known and part not in columns}


def _label_column(answer: Sequence[str], names: Mapping[str, str]) -> str | None:
    """The one column of the completion when it is a label."""
    if len(answer) != 1:
        return None
    column = names[answer[0]]
    is_label = answer[0] == "label" or names.get("label") == column or column.lower() in LABEL_NAMES
    return column if is_label else None


def _template_texts(template: Template) -> tuple[str, str]:
    if template.messages is None:
        return template.prompt or "", template.completion or ""
    shown = "\n".join(turn.content for turn in template.messages if turn.role != "assistant")
    return shown, "\n".join(turn.content for turn in template.messages if turn.role == "assistant")


def _fill(text: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)


def one_form(rows: Sequence[Row], domain: str) -> str:
    """Brings all rows of a domain to one schema, where one of theirs adopts the others; returns its name.

    Raises:
        DataError: the schemas cannot be brought together.
    """
    forms = {row.form for row in rows}
    for schema in map(registry.schema, sorted(forms)):
        if len(forms) > 1 and forms - {schema.name} <= set(schema.adopts):
            for row in rows:
                if row.form != schema.name:
                    row.columns, row.form = schema.adopts[row.form](row.columns), schema.name
            return schema.name
    if len(forms) > 1:
        examples = {form: next(row for row in rows if row.form == form) for form in sorted(forms)}
        raise DataError(
            "one domain mixes forms of rows that cannot be made the same",
            place=f"domains.{domain}",
            got="; ".join(f"{form}: {name_rows([row.where])}" for form, row in examples.items()),
            fix="set columns on each source so that all have the same form, or make them two domains",
        )
    return next(iter(forms)) if forms else PLAIN


def form_of(columns: Mapping[str, Any]) -> str:
    """The schema of canonical columns without a record that names it: that of the most of them."""
    fitting = [each for each in registry.schemas() if all(part in columns for part in each.columns)]
    return max(fitting, key=lambda each: len(each.columns)).name if fitting else PLAIN


def settle_labels(rows: Sequence[Row], form: str, labels: Labels, domain: str) -> tuple[str, ...]:
    """The label names of a domain in order; completions that are classes become labels.

    Raises:
        DataError: a label is outside the recipe's list; names the rows.
    """
    names = labels.names
    if registry.schema(form).parts[-1] == "completion" and all(row.label is None for row in rows):
        answers = Counter(str(row.columns["completion"]).strip() for row in rows)
        few = 1 < len(answers) <= CLASS_LIMIT and len(rows) >= ROWS_PER_CLASS * len(answers)
        if names is not None or few:
            spelled = Counter(str(row.columns["completion"]) for row in rows)
            # A class is written in one way: answers that differ in white space alone are the most frequent of them.
            usual = {text.strip(): text for text, _ in reversed(spelled.most_common())}
            for row in rows:
                row.label = str(row.columns["completion"]).strip()
                row.columns |= {"label": row.label, "completion": usual[row.label]}
                row.text = row.prompt
    found = {name for row in rows for name in row.classes}
    if not found:
        return ()
    if names is None:
        return tuple(sorted(found))
    outside = sorted(found - set(names))
    if outside:
        problems = []
        whole = labels.refusal(outside)
        for label in outside[:8]:
            problem = choice_problem("a label is not in the domain's labels", label, names, f"domains.{domain}.labels")
            where = name_rows(row.where for row in rows if label in row.classes)
            problems.append(
                type(problem)(
                    problem.what, problem.place, f"{label!r} in {where}", problem.allowed, whole or problem.fix
                )
            )
        raise DataError("labels outside the domain's labels", problems=problems)
    return tuple(names)


def strip_boilerplate(rows: Iterable[Row], form: str) -> None:
    """Takes words that every prompt begins or ends with out of what is compared.

    Two short inputs after the same long instruction are not alike.
    """
    rows = list(rows)
    if not registry.schema(form).writes or len(rows) < 3:
        return
    texts = [row.prompt.split() for row in rows]
    shortest = min(map(len, texts))
    head = 0
    while head < shortest and all(text[head] == texts[0][head] for text in texts):
        head += 1
    tail = 0
    while tail < shortest - head and all(text[-1 - tail] == texts[0][-1 - tail] for text in texts):
        tail += 1
    if not head and not tail:
        return
    for row, words in zip(rows, texts, strict=True):
        kept = " ".join(words[head : len(words) - tail])
        answer = row.text[len(row.prompt) :] if row.label is None and row.text.startswith(row.prompt) else ""
        row.text, row.prompt = kept + answer, kept
