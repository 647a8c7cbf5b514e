"""Which column of own data holds what, for `hfadapt new`: as somebody says it, by its name, else by its values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from hfadapt.core import registry
from hfadapt.core.errors import DataError, Problem, RequestError, choice_problem
from hfadapt.data import verdicts
from hfadapt.data.flags import LABEL, find_flags
from hfadapt.data.labels import some
from hfadapt.data.unreadable import UNREADABLE_LIMIT
from hfadapt.data.values import shown_fault
from hfadapt.files import Blob, media
from hfadapt.files.named import Named
from hfadapt.recipe.domain import CLASSES, PATTERNS
from hfadapt.recipe.schema import Columns
from hfadapt.schemas import LABEL_NAMES, NOTHING, LabelKind, read_number
from hfadapt.tasks import Task

Rows = Sequence[Mapping[str, Any]]
Ask = Callable[[str, Sequence[str], str], str]
"""What is asked, what can be answered, and the default → the answer."""
NO_COLUMN = "(none)"
MOST_LABELS = 50
LONGEST_SHOWN = 200
SPELT = 0.8
"""The share of letters, spaces and usual stops from which a column holds words."""
ANSWERS = {
    *("answer", "completion", "headline", "highlights", "label", "output", "query", "reply", "response", "sql"),
    *("summary", "target", "title", "tldr", "translation"),
}
"""Names of columns that are made of the text beside them; of two others, the first asks, as tables are written."""
PAIRED = ("prompt", "completion", "anchor", "positive")
"""Parts of two texts, one of which belongs to the other."""
LOOKED_AT = 50
"""Values of a column by which it is told to hold files."""
UNSAID = Columns()
GUESSED = "Guessed: "
"""So a line of a recipe's comments begins that `hfadapt new` prints, too; it ends in how to say otherwise."""
_NEXT = re.compile(r",(?=\s*[a-z_]+\s*=)")


def read_columns(said: Iterable[str], rows: Rows, place: str) -> Columns:
    """Columns as the command line says them: `text=body,label=mood`, in one option or several.

    Args:
        rows: Of the data, which have to have these columns.
        place: The data, for messages.

    Raises:
        RequestError: one of them is not PART=COLUMN, no row has such a part, or the data have no such column; names
            the columns that were found, and the parts.
    """
    found: dict[str, str] = {}
    there, parts = columns_of(rows), [*Columns.model_fields]
    problems: list[Problem] = []
    # What follows a comma is another column only where it has a name and a sign: columns may have commas in theirs.
    for each in (pair for text in said for pair in _NEXT.split(text)):
        part, sign, column = (text.strip() for text in each.partition("="))
        problem: Problem | None = None
        if not sign or not column:
            problem = Problem("a column is given as PART=COLUMN", "--columns", each)
        elif part not in parts:
            problem = choice_problem("no row has such a part", part, parts, "--columns")
            if column in parts and part in there:
                problem = replace(problem, fix=f"did you mean {column}={part}?")
        elif part not in PATTERNS and (missing := [name for name in _named(part, column, there) if name not in there]):
            problem = choice_problem(f"there is no column for {part}", missing[0], there, f"--columns, {place}")
        elif found.get(part, column) != column:
            problem = Problem(f"two columns are given for {part}", "--columns", f"{found[part]} and {column}")
            problem = replace(problem, fix="name one of them; to join both, give the recipe a template")
        found[part] = column
        if problem is not None:
            both = f"columns: {some(there, 20)}; parts: {', '.join(parts)}"
            problems.append(replace(problem, allowed=both, fix=problem.fix or "write PART=COLUMN, such as text=body"))
    if problems:
        raise RequestError(problems[0].what, problems=problems)
    try:
        classes = {CLASSES: _named(CLASSES, found[CLASSES], there)} if CLASSES in found else {}
        return Columns(**{**found, **classes})
    except ValidationError as error:
        got = ", ".join(f"{part}={column}" for part, column in found.items())
        what = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise RequestError(what, place="--columns", got=got, fix="hfadapt explain domains.NAME.columns") from None


def _named(part: str, column: str, there: Collection[str]) -> list[str]:
    """The columns that are named for a part: several for classes, with commas between them."""
    return [column] if part != CLASSES or column in there else [name.strip() for name in column.split(",")]


def columns_of(rows: Rows) -> list[str]:
    """The columns that any of the rows has, in their order."""
    return list(dict.fromkeys(name for row in rows for name in row))


def files_of(rows: Rows) -> dict[str, str]:
    """Columns that hold files or their names, with the modality of each."""
    found = {}
    # Beside a file itself that column has its name; in a table it is a column as any.
    beside = {"file"} if any(isinstance(value, Blob) for row in rows for value in row.values()) else set()
    for column in columns_of(rows):
        values = [row[column] for row in rows if row.get(column) is not None][:LOOKED_AT]
        kinds = [media.kind_of(value) for value in values]
        if column not in beside and kinds and all(kinds):
            found[column] = str(kinds[0])
    return found


def with_files(rows: Rows, named: Named) -> Rows:
    """The rows; where no column holds files or names with an ending, files in the place of what else names some."""
    if files_of(rows) or not (columns := named.columns(rows)):
        return rows
    found = ({column: (str(row.get(column)), named(str(row.get(column)))) for column in columns} for row in rows)
    return [
        {**row, **{column: Blob(said, path=path) if path else None for column, (said, path) in own.items()}}
        for row, own in zip(rows, found, strict=True)
    ]


def ways(
    rows: Rows, tasks: Sequence[Task], place: str, ask: Ask | None, said: Columns
) -> Iterator[tuple[Rows, Columns]]:
    """The rows by what is said and the names of their columns, else with a column of 0 and 1 for each class, else by
    their values."""
    if (asked_of := _asked(rows)) is not None and not said.parts:
        yield rows, said.model_copy(update={"prompt": asked_of})
    if said.classes is None:
        yield rows, said
    flagged, classes = rows, said.classes
    for task in tasks:
        with suppress(DataError):
            flags = find_flags(rows, task.schemas, said, (), place)
            if flags is not None:
                read = [flags.read(row) for row in rows if not flags.odd(row)[0]]
                # One class, where each row has one, before several.
                if flagged is rows:
                    flagged, classes = read, None if flags.column else flags.names
                yield read, said if flags.column else said.model_copy(update={"classes": flags.names})
    columns = columns_of(rows)
    if not said.parts:
        yield from ((rows, Columns(**parts)) for parts in _by_words(rows, tasks))
    if (of_files := _guess_files(flagged, tasks[0].modality if tasks else "")) is not None:
        found = {**of_files.model_dump(exclude_none=True), **said.model_dump(exclude_none=True)}
        if classes and found.get("label") == LABEL:
            found = {**found, "label": None, "classes": classes}
        yield flagged, Columns(**found)
    if not said.parts:
        texts: Sequence[str] = [] if verdicts.pair(columns) else text_columns(columns, rows)
        guess = _guess(columns, rows)
        if ask is not None:
            guess, texts = _confirmed(guess, texts, columns, ask)
        if len(texts) == 2 and guess.label is None:
            asked, answer = sorted(texts, key=lambda column: column.lower() in ANSWERS)
            yield rows, Columns(**{"prompt": asked, "completion": answer})
            # What is searched with is shorter than what it finds.
            longer, query = by_length(texts, rows)
            yield rows, Columns(**{"anchor": query, "positive": longer})
        yield rows, guess
    elif said.parts.keys() <= {"text", "label"}:
        free = [name for name in columns if name not in said.parts.values()]
        guess = _guess(free, [{name: row.get(name) for name in free} for row in rows]) if free else UNSAID
        both = {name: getattr(said, name) or getattr(guess, name) for name in ("text", "label")}
        yield rows, said.model_copy(update=both)


def guessed_columns(
    parts: Mapping[str, str], names: Mapping[str, Sequence[str]], kind: LabelKind, said: Columns
) -> Iterator[str]:
    """What is said of columns that were taken by their values alone.

    Args:
        parts: The columns taken, by part.
        names: Names by which the parts are recognised.
        kind: What the rows are labelled with.
        said: What the command line says.
    """
    kinds = {name: each for name in registry.names("modalities") if (each := registry.modality(name)).suffixes}
    by_label = {"classes": "whose values are lists", "number": "the only one of numbers with decimals"}
    by_values = {
        "text": "whose values are the longest",
        "label": by_label.get(kind, "whose few values come again and again"),
        **dict.fromkeys(PAIRED, "one of two with texts"),
        **({"prompt": "the only other one with texts"} if verdicts.pair([*parts.values()]) else {}),
        **{name: f"whose values are names of {each.nouns}" for name, each in kinds.items()},
    }
    taken = {
        part: column
        for part, column in parts.items()
        if part in by_values and part not in said.parts and column.lower().rpartition(".")[2] not in names[part]
    }
    if taken:
        paired = {part: column for part, column in taken.items() if part in PAIRED}
        words = {part: [each for each in _words(column) if each in names[part]] for part, column in paired.items()}
        why = {**by_values, **{part: f"by the word {found[0]!r}" for part, found in words.items() if found}}
        what = ", and ".join(f"{part} is the column {column!r}, {why[part]}" for part, column in taken.items())
        option = ",".join(f"{part}=COLUMN" for part in taken)
        yield f"{GUESSED}{what}. Otherwise add --columns {option}."


def _words(text: str) -> list[str]:
    """Words, as those of a column's name: `Frage / Question` or `Answer (long)`."""
    return re.findall(r"[^\W\d_]+", text.lower())


def _by_words(rows: Rows, tasks: Sequence[Task]) -> Iterator[dict[str, str]]:
    """Two texts that belong together, where each has a word in the name of its column that no other column has.

    What asks has several words, so that the number or kind of a question is none.
    """
    columns = columns_of(rows)
    schemas = dict.fromkeys(form for task in tasks for form in sorted(task.schemas))
    for schema in map(registry.schema, schemas):
        needed = [part for part in schema.parts if part in PAIRED and part not in schema.optional]
        if len(needed) != 2 or len(needed) != len(schema.parts):
            continue
        named = [[each for each in columns if {*_words(each)} & {*schema.names[part]}] for part in needed]
        if [len(found) for found in named] != [1, 1] or named[0] == named[1]:
            continue
        [asked], [answer] = named
        said = values_of(asked, rows), values_of(answer, rows)
        several = sum(len(_words(value)) for value in said[0]) >= 2 * len(said[0]) > 0
        if several and all(shown_fault(values, repeats=True) is None for values in said):
            yield {needed[0]: asked, needed[1]: answer}


def _asked(rows: Rows) -> str | None:
    """The only column of texts beside a better and a worse answer, where none is called as what is asked is."""
    columns = columns_of(rows)
    both = verdicts.pair(columns)
    known = {name for schema in registry.schemas() for name in schema.names.get("prompt", ())}
    if both is None or any(column.lower() in known for column in columns):
        return None
    texts = [column for column in text_columns(columns, rows) if column not in both]
    return texts[0] if len(texts) == 1 else None


def _confirmed(guess: Columns, texts: Sequence[str], columns: Sequence[str], ask: Ask) -> tuple[Columns, Sequence[str]]:
    """What somebody says who knows the columns, with the guess as the default; and the text, with what answers it."""
    if len(columns) < 2:
        return guess, texts
    text = ask("column of the text", columns, guess.text or columns[0])
    others = [*(column for column in columns if column != text), NO_COLUMN]
    label = ask("column of the label", others, guess.label if guess.label in others else NO_COLUMN)
    if label != NO_COLUMN:
        return Columns(text=text, label=label), []
    rest = [column for column in texts if column != text]
    answer = ask("column of what answers the text, or belongs to it", others, rest[0] if len(rest) == 1 else NO_COLUMN)
    return Columns(text=text), [] if answer == NO_COLUMN else [text, answer]


def _guess(columns: Sequence[str], rows: Rows) -> Columns:
    """The column of the longest texts, and the likeliest of labels: of classes, of lists of them, of numbers."""
    if not columns:
        return UNSAID
    text = by_length(columns, rows)[0]
    # Better and worse answers are no classes, however few there are.
    others = [name for name in columns if name not in (text, *(verdicts.pair(columns) or ()))]
    # Numbers without decimals are rather years, counts, or the numbers of rows.
    numbers = [name for name in others if _measures(values_of(name, rows))]
    found = [*label_columns(others, rows), *_listed(others, rows), *(numbers if len(numbers) == 1 else [])]
    return Columns(text=text, label=next(iter(found), None))


def _listed(columns: Sequence[str], rows: Rows) -> list[str]:
    """Columns with lists of names, few of them in one row alone."""
    found = []
    for column in columns:
        lists = [row[column] for row in rows if row.get(column)]
        named = Counter(name for each in lists if isinstance(each, list) for name in each if isinstance(name, str))
        if named and all(isinstance(each, list) for each in lists) and len(named) < named.total() / 2:
            found.append(column)
    return found


def text_columns(columns: Sequence[str], rows: Rows) -> list[str]:
    """Columns of texts that differ from row to row: of several words, or of any where there is nothing else."""
    found = []
    for column in columns:
        values = [value for row in rows if isinstance(value := row.get(column), str) and value.strip()]
        joined = "".join(values)
        # Not dates, numbers, addresses or names of files.
        spelt = sum(letter.isalpha() or letter in " \n,.'" for letter in joined) > SPELT * len(joined)
        words = sum(max(len(value.split()), sum(not letter.isascii() for letter in value) // 2) for value in values)
        if spelt and len({*values}) > len(rows) / 2 and (words >= 2 * len(values) or len(columns) == 2):
            found.append(column)
    return found


def _guess_files(rows: Rows, modality: str) -> Columns | None:
    """The column of the names of files, and the likeliest of their classes; None where nothing is to be guessed."""
    files = files_of(rows)
    column = next((name for name, kind in files.items() if kind == modality), None)
    others = [name for name in columns_of(rows) if name not in files]
    if column is None or not others:
        return None
    # Of pictures there are few; so there are two of each class on average. What alone is beside them is their class,
    # but for measures, which no task learns of them.
    alone = others if len(others) == 1 and not _measures(values_of(others[0], rows)) else []
    names = {name for schema in registry.schemas() if schema.media == modality for name in schema.names["label"]}
    likely = label_columns(others, rows, least=2, names=names)
    labels = [name for name in likely if not _measures(values_of(name, rows))] or alone
    return Columns(**{modality: column, "label": next(iter(labels), None)})


def _measures(values: Sequence[str]) -> bool:
    """Whether all that say something are numbers, and some have decimals."""
    with suppress(ValueError):
        return any(not read_number(value).is_integer() for value in values if value.lower() not in NOTHING)
    return False


def by_length(columns: Sequence[str], rows: Rows) -> list[str]:
    """The columns, that of the longest values first."""
    values = {column: values_of(column, rows) for column in columns}
    return sorted(columns, key=lambda column: -sum(map(len, values[column])) / max(1, len(values[column])))


def values_of(column: str, rows: Rows) -> list[str]:
    """What the cells of a column say that are not empty."""
    return [said for row in rows if row.get(column) is not None and (said := str(row[column]).strip())]


def label_columns(
    columns: Sequence[str], rows: Rows, least: int = 5, names: Collection[str] = LABEL_NAMES
) -> list[str]:
    """Columns whose few values come again and again, the likeliest first: by name, without gaps, of the fewest.

    Args:
        least: Rows of each value, on average.
        names: What labels are called.
    """
    found: dict[str, tuple[bool, bool, int]] = {}
    for column in columns:
        values = values_of(column, rows)
        different = len(set(values))
        if 2 <= different <= min(MOST_LABELS, len(values) // least):
            gaps = len(values) < (1 - UNREADABLE_LIMIT) * len(rows)
            found[column] = column.lower() not in names, gaps, different
    return sorted(found, key=lambda column: found[column])
