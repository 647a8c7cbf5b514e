"""One source in canonical rows, and what is known of a domain while its sources are read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import DataError, choice_problem
from hfadapt.data import clean, layouts, mistaken_columns, unread_columns, verdicts
from hfadapt.data import columns as format
from hfadapt.data.flags import LABEL, Flags, doubtful, find_flags
from hfadapt.data.labels import Labels, some
from hfadapt.data.rows import GROUP, SPLITS, Dropped, Ledger, Row
from hfadapt.data.sources import Opened, Reading
from hfadapt.data.unreadable import unreadable
from hfadapt.files import Blob, Read, Unusable, split_of
from hfadapt.files.nested import spread
from hfadapt.files.opening import NAME_IT
from hfadapt.files.places import Place, name_rows
from hfadapt.recipe.schema import Columns, Recipe
from hfadapt.records.stages import Finding

HEAD_ROWS, LATE_ROWS = 100, 10_000
"""Rows by which columns are known, and by which one that begins late must have come."""


@dataclass
class State:
    """One domain between two steps."""

    rows: list[Row]
    ledger: Ledger
    rows_in: dict[str, int]
    columns: dict[str, str]
    form: str = format.PLAIN
    labels: tuple[str, ...] = ()
    noticed: list[Finding] = field(default_factory=list)


def workers(recipe: Recipe) -> int:
    """Cores that this process may use, unless the recipe says how many."""
    if recipe.data.workers != "auto":
        return recipe.data.workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SourceReader:
    """Iterates over one source in canonical rows and dropped rows, repaired; keeps what is to be reported."""

    def __init__(self, recipe: Recipe, domain: str, source: Opened, forms: frozenset[str], labels: Labels) -> None:
        self.source = source
        self.rows_in = 0
        self.bad: list[Dropped] = []
        self.garbled: list[Place] = []
        self.alone = 0
        self.notes: Counter[str] = Counter()
        self.columns: tuple[str, ...] = ()
        self.unread: tuple[str, ...] = ()
        self.shape = format.Shape(format.PLAIN, {})
        self._recipe, self._domain, self._forms = recipe, domain, forms
        self._labels = labels
        self._flags: Flags | None = None
        self._laid_out: format.Shape | None = None
        self.of_files: list[Finding] = []
        self.left_out: list[Finding] = []
        self._noticed: list[Finding] = []
        # First rows and column of verdicts, where answers are learned.
        self._head: list[dict[str, Any]] = []
        self._verdict: str | None = None

    @property
    def noticed(self) -> list[Finding]:
        """What is to be said of the rows, once they are read. Raises DataError where no row has the group asked for."""
        marked = verdicts.findings(self.source.name, self._head, self.shape.used, self.bad)
        files = [*self._changed(), *self._without_group()]
        left = _left_out(self.source, self.rows_in, self.bad)
        return [*self.of_files, *self._noticed, *files, *left, *marked]

    def __iter__(self) -> Iterator[Row | Dropped]:
        limit = self.source.settings.rows
        formatter: format.Formatter | None = None
        mend = self._recipe.data.clean.unicode
        head: list[Read] = []

        def ready(read: Read) -> Row | Dropped:
            assert formatter is not None
            where = Place(self.source.name, read.row, read.line, read.in_file)
            whole = formatter.whole
            # NaN is how tables say that there is nothing.
            values = {column: None if value != value else value for column, value in read.values.items()}
            group = self.shape.group_of(values)
            if isinstance(known := self._with_class(where, values), Dropped):
                self.bad.append(known)
                return known
            values = self._flags.read(known) if self._flags else known
            if media := registry.schema(self.shape.form).media:
                values = {
                    **values,
                    self.shape.parts[media]: self._file(values.get(self.shape.parts[media]), read.folder),
                }
            repaired, garbled = clean.repair(values, self.shape.used, mend, whole)
            if garbled:
                self.garbled.append(where)
            if self._verdict is not None and verdicts.is_bad(values.get(self._verdict)):
                detail = f" has {values[self._verdict]} in {self._verdict}"
                item: Row | Dropped = Dropped(where, verdicts.BAD, detail=detail)
            else:
                item = formatter.row(where, repaired)
            if isinstance(item, Row):
                self.notes.update(filter(None, item.columns.pop("notes", "").split("; ")))
                item.split = self._split_of(values) or ""
                item.group = group
                self.alone += bool(self.shape.group) and not item.group
            else:
                self.bad.append(item)
            return item

        enough = HEAD_ROWS
        for item in self._rows():
            if limit is not None and self.rows_in >= limit:
                break
            if isinstance(item, Finding):
                self.of_files.append(item)
                continue
            self.rows_in += 1
            if isinstance(item, Dropped):
                self.bad.append(item)
                yield item
                continue
            if formatter is not None:
                yield ready(item)
            else:
                # The columns of JSON Lines are known only after some rows.
                head.append(item)
                if len(head) == enough:
                    formatter = self._formatter_or_none(head)
                    enough *= 10
                    yield from (ready(each) for each in head if formatter is not None)
        if formatter is None and head:
            formatter = self._formatter(head)
            yield from (ready(each) for each in head)

    def _rows(self) -> Reading:
        """The rows of the source, with a column for each field of an object; where they are kept in another way than
        the task learns from, those that are made of them."""
        asked = self.source.settings.columns
        named = asked.model_dump(exclude_none=True).values()
        items = (
            item._replace(values=spread(item.values, named)) if isinstance(item, Read) else item
            for item in self.source.read()
        )
        if self._recipe.template_of(self._domain) is not None:
            yield from items
            return
        first = list(islice(items, HEAD_ROWS))
        head = [item.values for item in first if isinstance(item, Read)]
        found = layouts.find(head, self._forms, asked)
        if found is None:
            yield from chain(first, items)
            return
        layout, self._laid_out = found
        self.of_files.append(layouts.read_so(layout, self.source.name))
        yield from layouts.laid_out(chain(first, items), layout, self.source.name)

    def _split_of(self, values: Mapping[str, Any]) -> str | None:
        """The split of a row that is given in one; "" of others, and None where its column says none."""
        if self.source.split or self.shape.split is None:
            return self.source.split
        found = split_of(values.get(self.shape.split))
        # What is to train on may be divided.
        return "" if found == SPLITS[0] else found

    def _with_class(self, where: Place, values: dict[str, Any]) -> dict[str, Any] | Dropped:
        """The values, with the class in the place of what the recipe's pattern finds it in; else why there is none, or
        no split, or what is said of a class beside 0 and 1."""
        asked = self.source.settings.columns
        whole = values.get(asked.label or "")
        if self._split_of(values) is None:
            said = f" has {values.get(self.shape.split or '')!r} in {self.shape.split}, which is no split"
            return Dropped(where, "no-split", detail=said)
        fault, cells = self._flags.odd(values) if self._flags else ("", [])
        if fault:
            none = all(map(self._labels.says_none, cells))
            return Dropped(where, "no-label" if none else "no-flag", detail=fault)
        if asked.label is None or asked.label_pattern is None or whole is None:
            return values
        if (found := asked.class_in(whole)) is not None:
            return {**values, asked.label: found}
        detail = f" has {asked.label} {str(whole)[:60]!r}, in which label_pattern finds nothing"
        return Dropped(where, "no-match", detail=detail)

    @property
    def parts(self) -> dict[str, str]:
        """The columns that are used, by part."""
        said = {GROUP: self.shape.group, "split": self.shape.split}
        return {**self.shape.parts, **{part: column for part, column in said.items() if column}}

    def _file(self, value: Any, folder: Path) -> Any:
        """A value that is a file: its content, or why there is none, which the schema says of the row."""
        try:
            return None if value is None else Blob.of(value, folder, self.source.named)
        except Unusable as fault:
            return fault

    def _changed(self) -> list[Finding]:
        media = registry.schema(self.shape.form).media
        return [
            Finding(
                code="files-changed" if media else "rows-changed",
                level="soft",
                message=f"{self.source.name}: {note} ({count:,} of {self.rows_in:,})",
            )
            for note, count in self.notes.most_common()
        ]

    def _without_group(self) -> list[Finding]:
        """What is to be said of rows without a group. Raises DataError where none has one."""
        rows = self.rows_in - len(self.bad)
        if not self.shape.group or not self.alone:
            return []
        what = f"{self.source.name}: {self.alone:,} of {rows:,} rows have no group in {self.shape.group}"
        found = f"{what}{' where group_pattern finds something' if self.shape.pattern else ''}"
        if self.alone >= rows:
            fix = "correct columns.group" + (" and columns.group_pattern" if self.shape.pattern else "")
            raise DataError(
                "no row has a group", place=f"domains.{self._domain}: {self.source.name}", got=found, fix=fix
            )
        return [Finding(code="rows-without-group", level="soft", message=found, fix="each of them is on its own")]

    def check_columns(self, rows: Sequence[Row]) -> None:
        """Refuses columns that were evidently mistaken. Raises DataError with the column and what it holds."""
        mistaken_columns.check_columns(
            rows,
            self.shape.parts,
            self.columns,
            f"domains.{self._domain}: {self.source.name}",
            named=mistaken_columns.named_parts(
                self.source.settings.columns, self._recipe.template_of(self._domain) is not None
            ),
            allow=self._recipe.data.allow,
        )

    def _formatter_or_none(self, head: Sequence[Read]) -> format.Formatter | None:
        """None where a column that is missed may still come: rows of JSON leave out what they have not."""
        try:
            return self._formatter(head)
        except DataError:
            if len(head) >= LATE_ROWS or not self.source.loose:
                raise
            return None

    def _of_another_kind(self, head: Sequence[Read], place: str) -> None:
        """Refuses images for a task of recordings: the names beside them would be taken for names of recordings."""
        have = next((name for each in head for name, value in each.values.items() if isinstance(value, Blob)), None)
        wanted = {registry.schema(form).media for form in self._forms}
        if have is None or "" in wanted or any(name in each.values for each in head for name in wanted):
            return
        own, other = registry.modality(have).nouns, registry.modality(min(wanted)).nouns
        tasks = [name for name in registry.names("tasks") if registry.task(name).modality == have]
        raise DataError(
            f"the files are {own}, and the task learns from {other}",
            place=place,
            got=f"{own}, such as {head[0].values.get('file', have)}",
            allowed=other,
            fix=f"set task: {tasks[0]} and a model for it, or name a source of {other}",
        )

    def _formatter(self, head: Sequence[Read]) -> format.Formatter:
        self.columns = tuple(dict.fromkeys(column for each in head for column in each.values))
        template = self._recipe.template_of(self._domain)
        place = f"domains.{self._domain}: {self.source.name}"
        if template is not None and template.makes not in self._forms:
            what = "the task cannot learn from what the template makes"
            problem = choice_problem(what, template.makes, self._forms, place)
            raise DataError(problem.what, problems=[replace(problem, fix="leave template out of the recipe")])
        asked = self.source.settings.columns
        self._of_another_kind(head, place)
        if template is None and self._laid_out is None:
            asked = self._find_flags([each.values for each in head], place)
        try:
            shape = self._laid_out or format.recognise(self.columns, asked, self._forms, place, template is not None)
        except DataError as error:
            told = layouts.unfit(error, [each.values for each in head])
            raise told if not self.source.split else self._unfit_split(told) from None
        if template is None and self._laid_out is None and self._forms == registry.task(self._recipe.task).schemas:
            self.of_files += layouts.passed_over([each.values for each in head], shape, self.source.name)
        classes = [shape.parts.get(part, "") for part in ("label", *registry.schema(shape.form).parts)]
        names = next((known for column in classes if (known := self.source.label_names.get(column))), ())
        numbers = [each.values.get(column) for each in head for column in classes]
        if names and self.source.names_of and any(str(number).strip().isdecimal() for number in numbers):
            self._labels.borrowed[self.source.name] = self.source.names_of
        formatter = format.Formatter(self.source.name, shape, template, self._labels, names, self.columns)
        self.shape = formatter.shape
        if registry.schema(self.shape.form).writes:
            self._head = [each.values for each in head]
            self._verdict = verdicts.verdict_column(self._head, self.shape.used)
        read = {*self.parts.values(), *(self._flags.names if self._flags else ())}
        self.unread = tuple(column for column in self.columns if column and column not in read)
        if registry.schema(shape.form).media:
            # Its name stands beside each file.
            self.unread = tuple(column for column in self.unread if column != "file")
        if template is None:
            values = [each.values for each in head]
            doubts = self._doubtful(values)
            self.left_out = [*unread_columns.noticed(values, shape, self.unread, self.source.name), *doubts]
            # Who names the columns means them.
            named = set(asked.model_dump(exclude_none=True)) - {"label"}
            self._noticed += self.left_out if not named else doubts if self._flags else []
        self._noticed += unread_columns.without_label(shape, self.unread, self.source.name)
        return formatter

    def _unfit_split(self, error: DataError) -> DataError:
        """An error of columns, where the rows were given to be measured on: they have none of what is learned."""
        [first, *others] = error.problems
        split = self.source.split
        fix = f"leave `{split}` out where it has none of them: hfadapt keeps rows of its own for it, and "
        fix += "`hfadapt predict CELL --file FILE` answers rows without labels"
        fix = f"{first.fix}; or {fix}" if first.fix else fix
        return DataError(error.what, problems=[replace(first, fix=fix), *others])

    def _find_flags(self, head: Sequence[Mapping[str, Any]], place: str) -> Columns:
        """Brings classes that have a column or a place each into one column; what is asked of the columns then."""
        asked = self.source.settings.columns
        names = self.source.label_names.get(format.label_column(self.columns, asked) or "", ())
        self._flags = find_flags(head, self._forms, asked, names, place)
        if self._flags is None:
            return asked
        self.columns = tuple(dict.fromkeys([*self.columns, self._flags.column or LABEL]))
        if asked.classes is not None:
            # Another column may be called so.
            return asked.model_copy(update={"label": LABEL, "classes": None})
        self._labels.flags[self.source.name] = self._flags.names
        return asked

    def _doubtful(self, head: Sequence[Mapping[str, Any]]) -> list[Finding]:
        """What is to be said of columns that may be classes, unless the recipe says which are."""
        asked = self.source.settings.columns
        learns = registry.schema(self.shape.form).label_kind in ("class", "classes")
        return [] if asked.classes or not learns else doubtful(head, self.unread, self._flags, self.source.name)


def keep_columns(reader: SourceReader, state: State) -> None:
    """Notes which columns of a source are read, and which are not."""
    state.columns.update(reader.parts)
    kept = state.ledger.steps.setdefault("columns", {"unread": []})
    kept["unread"] = sorted({*kept["unread"], *reader.unread} - set(state.columns.values()))


def _left_out(source: Opened, rows: int, bad: Sequence[Dropped]) -> list[Finding]:
    """What is to be said of the few rows of a source that cannot be read."""
    reasons = unreadable()
    unread = [each for each in bad if each.reason in reasons]
    if not unread:
        return []
    fix = "correct these rows if they are wanted"
    if any(each.reason == "not-utf8" for each in unread):
        fix = f"to have those that are not UTF-8, name the encoding that the file was saved in, {NAME_IT}"
    shown = some((each.said for each in unread), 3, "; ")
    what = f"{source.name}: {len(unread):,} of {rows:,} rows are left out: {shown}"
    return [Finding(code="rows-left-out", level="soft", message=what, fix=fix)]


_FIXES = {
    verdicts.BAD: "give rows with answers that are marked as good, or give the column that marks them another name",
    "not-text": "take out what is no text, or use another source: only text is learned",
    "wrong-messages": "store each chat as a list of turns with role (user, assistant, system, tool) and content",
    "no-assistant-turn": "give chats that an assistant answers",
    "nothing-trained": "give the turns that are to be learned weight: 1, or no weight",
    "several-texts": "write a row for each of these texts, with what belongs to it beside it",
    "empty-completion": "give rows with something to learn: answers, or text in the assistant's turns",
}
"""What helps where all rows were dropped for a reason."""


def no_rows(place: str, rows_in: int, dropped: Sequence[Dropped]) -> DataError:
    """The error for a source or domain with nothing left."""
    reasons = dict(Counter(each.reason for each in dropped).most_common())
    detail = next((each.said for each in dropped if each.detail), "")
    return DataError(
        "no rows are left" if rows_in else "there are no rows",
        place=place,
        got=f"{rows_in:,} rows, "
        + (", ".join(f"{count:,} {reason}" for reason, count in reasons.items()) or "none readable")
        + (f" ({name_rows(each.where for each in dropped)})" if dropped else "")
        + (f"; {detail}" if detail else ""),
        fix=_FIXES.get(next(iter(reasons), ""), "check the source and the columns")
        if rows_in
        else "check that this is the right file",
    )
