"""What is asked in a file or on standard input, row by row, and the answers in the same order.

A row that cannot be asked has a fault in place of an answer, and the others go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, groupby, islice
from pathlib import Path
from typing import IO, Any

from hfadapt.core import registry
from hfadapt.core.errors import DataError, HfadaptError, Problem, RequestError
from hfadapt.core.spec import Spec
from hfadapt.data import layouts
from hfadapt.data.reading import HEAD_ROWS
from hfadapt.files import Blob, Read, Rows, Unread, folders, media, reading
from hfadapt.files.nested import spread
from hfadapt.files.opening import suffix
from hfadapt.files.places import Place
from hfadapt.recipe.schema import Columns
from hfadapt.schemas import Layout, Unusable
from hfadapt.serve.adapted import Adapted, about_both
from hfadapt.serve.rows import beside, file_of, parts_of, text_of
from hfadapt.tasks import Answer

AT_ONCE = 256
"""Rows that are read before they are answered."""


class Answered(Spec):
    """One row, and its answer or why it has none: `row` counts from 0, `line` of the file from 1."""

    row: int
    line: int | None = None
    answer: Answer | None = None
    fault: str | None = None

    def __str__(self) -> str:
        return str(self.answer) if self.answer else ""

    def as_json(self) -> dict[str, Any]:
        """The row, with the fields of the answer."""
        said = self.answer.model_dump() if self.answer else {"fault": self.fault}
        return {"row": self.row, "line": self.line, **said}


def file_rows(path: Path) -> Rows:
    """The rows of a file; of plain text a line each, of images or recordings each in a folder or archive.

    Raises:
        RequestError: there is no such file.
        DataError: it is of a kind that is not read, or broken.
    """
    if not path.exists():
        raise RequestError("there is no such file", place=str(path), fix="check the path")
    if path.is_dir() or media.holds(path):
        files = folders.chosen(path, None).data
        if not files or not media.holds(files[0]):
            fix = f"name the table {files[0]}, or a folder of files alone" if files else "check the path"
            raise RequestError("a folder of images or recordings is expected, or one file", place=str(path), fix=fix)
        return media.read(files)
    if suffix(path) not in folders.suffixes():
        raise folders.unreadable(path)
    return reading.rows(path)


def lines_of(stream: IO[bytes]) -> Rows:
    """The lines of a stream; one that is not UTF-8 is no row."""
    for number, line in enumerate(stream):
        try:
            yield Read(number, {"text": line.decode("utf-8").rstrip("\r\n")}, number + 1)
        except UnicodeDecodeError as error:
            fault = f" is not UTF-8: {error.reason} at byte {error.start}"
            yield Unread(number, "not-utf8", fault, number + 1)


def answered(
    adapted: Adapted, rows: Rows, max_new_tokens: int | None = None, *, source: str = "", folder: Path | None = None
) -> Iterator[Answered]:
    """An answer, or a fault, for each row in order, some rows at a time.

    Args:
        rows: By the recipe's columns, or with a column of texts; what is doubtful in a file has no row.
        source: What rows are called after.
        folder: Where names of files in the rows begin.

    Raises:
        RequestError: the first rows all lack what is asked about.
    """
    adapted, found = as_trained(adapted, (item for item in rows if isinstance(item, (Read, Unread))))
    # A row fills the recipe's template itself.
    asker = replace(adapted, prompt=None)
    task = registry.task(adapted.task)
    files = bool(registry.modality(task.modality).suffixes)
    named = None if folder is None else folders.named_below(folder)
    first = True
    while chunk := list(islice(found, AT_ONCE)):
        texts: dict[int, Any] = {}
        both: dict[int, tuple[str, str]] = {}
        faults: dict[int, str] = {}
        lacking: list[Read] = []
        for number, item in enumerate(chunk):
            if isinstance(item, Unread):
                faults[number] = item.detail or f": {item.reason}"
                continue
            try:
                value = (
                    Blob.of(file_of(adapted, item.values), folder, named) if files else text_of(adapted, item.values)
                )
                if (problem := task.fault(value)) is None:
                    if not files and (own := beside(adapted, item.values)) is not None:
                        both[number] = str(value), own
                    else:
                        texts[number] = value
                else:
                    faults[number] = f": {_told(problem)}"
            except Unusable as fault:
                faults[number] = fault.detail
                lacking += [item] if fault.reason == "missing-field" else []
        if first and len(lacking) == len(chunk) > 1:
            raise _no_column(adapted, lacking, source)
        first = False
        settings = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        said = _ask(asker, texts, faults, settings) | _ask_both(asker, both, faults)
        for number, item in enumerate(chunk):
            where = Place(source, item.row, item.line)
            why = f"{where}{faults[number]}" if number in faults else None
            yield Answered(row=item.row, line=item.line, answer=said.get(number), fault=why)


def as_trained(adapted: Adapted, rows: Iterator[Read | Unread]) -> tuple[Adapted, Iterator[Read | Unread]]:
    """An adapter, which knows the columns, and the rows that it is asked about: those of a file or, where it keeps them
    in another way than the task learns from, those that are made of them as for training."""
    if adapted.prompt is not None:
        return adapted, rows
    spreading = (
        item._replace(values=spread(item.values, adapted.columns.values())) if isinstance(item, Read) else item
        for item in rows
    )
    first = list(islice(spreading, HEAD_ROWS))
    head = [item.values for item in first if isinstance(item, Read)]
    there = {column for values in head for column in values}
    said = {part: name for part, name in adapted.columns.items() if name in there and part in Columns.model_fields}
    every = chain(first, spreading)
    try:
        found = layouts.find(head, registry.task(adapted.task).schemas, Columns(**said))
        if found is None:
            return adapted, every
        list(_reader(found[0])(item for item in first if isinstance(item, Read)))
    except DataError:
        # What cannot be learned from can be asked about.
        return adapted, every
    return replace(adapted, columns={**adapted.columns, **found[0].parts}), _made(every, found[0])


def _reader(layout: Layout) -> Callable[[Iterable[Read]], Iterator[Read | Unread]]:
    return layout.asked or layout.read


def _made(rows: Iterator[Read | Unread], layout: Layout) -> Iterator[Read | Unread]:
    """The rows that a layout makes; one that it refuses, for what would be learned from it, comes as it is."""
    others: deque[Unread] = deque()
    last: list[Read] = []

    def given() -> Iterator[Read]:
        for item in rows:
            if isinstance(item, Read):
                last[:] = [item]
                yield item
            else:
                others.append(item)

    for made in chain(_reader(layout)(given()), (None,)):
        while others:
            yield others.popleft()
        if made is not None:
            yield last[0] if isinstance(made, Unread) else made


def _ask(
    asker: Adapted, texts: Mapping[int, Any], faults: dict[int, str], settings: Mapping[str, int]
) -> dict[int, Answer]:
    """Answers by place; where one text is refused, each is asked alone and the refusal is its fault."""
    if not texts:
        return {}
    try:
        return dict(zip(texts, asker.predict(list(texts.values()), **settings), strict=True))
    except HfadaptError as error:
        if len(texts) == 1:
            faults[next(iter(texts))] = f": {_told(error.problems[0])}"
            return {}
    return {k: v for place, text in texts.items() for k, v in _ask(asker, {place: text}, faults, settings).items()}


def _ask_both(asker: Adapted, both: Mapping[int, tuple[str, str]], faults: dict[int, str]) -> dict[int, Answer]:
    """Answers by place about a query and what stands beside it; a refusal is the fault of all with this query."""
    said: dict[int, Answer] = {}
    for _, group in groupby(both, lambda at: both[at][0]):
        places = list(group)
        try:
            said |= zip(places, about_both([asker] * len(places), [both[at] for at in places]), strict=True)
        except HfadaptError as error:
            faults |= dict.fromkeys(places, f": {_told(error.problems[0])}")
    return said


def _told(problem: Problem) -> str:
    """A problem in one line."""
    return ", ".join(filter(None, [problem.what, problem.place, problem.got]))


def _no_column(adapted: Adapted, rows: Sequence[Read], source: str) -> RequestError:
    """The error for rows of which none has what is asked about."""
    wanted = [adapted.columns.get(name, name) for name in parts_of(adapted)]
    columns = dict.fromkeys(str(name) for row in rows for name in row.values)
    return RequestError(
        "no row has what is asked about",
        place=source,
        got=f"columns {', '.join(columns)}" if columns else "rows without columns",
        allowed=f"the column{'s' if len(wanted) > 1 else ''} {' and '.join(wanted)}, as in training",
        fix=f"rename the column to {wanted[0]}" if len(wanted) == 1 else "name the columns as in training",
    )
