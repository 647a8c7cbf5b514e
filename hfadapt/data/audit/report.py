"""What `hfadapt check` shows: what came in, what was dropped and why, what training will see, and what is wrong."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hfadapt.core import registry
from hfadapt.core.commands import visible
from hfadapt.core.show import Block, Heading, Shown, Table, Text, as_html, as_text, show_number
from hfadapt.data.labels import some
from hfadapt.data.rows import SPLITS
from hfadapt.files.places import Place
from hfadapt.records.stages import DataRecord

_TRAINED, _HARD, _SOFT, _PLAIN = "\x1b[30;42m", "\x1b[31m", "\x1b[33m", "\x1b[0m"


@dataclass(frozen=True)
class Marked(Text):
    """A decoded row; `pieces` are its parts with whether they are trained, which the text shows between » and «."""

    pieces: tuple[tuple[str, bool], ...] = ()


class DataReport(Shown):
    """The prepared and audited domains of a recipe.

    Args:
        records: The data.json of each domain, with its audit when there is one.
        name: The recipe's name, for the title.
        looks: What is to be seen of the rows of each domain, where they are files.

    Example:
        >>> from hfadapt import check_recipe, load_recipe
        >>> report = check_recipe(load_recipe("sentiment.yaml"))
        >>> [record.domain for record in report.records]
        ['movies', 'tweets']
    """

    def __init__(
        self, records: Sequence[DataRecord], name: str = "", looks: Mapping[str, Sequence[Block]] | None = None
    ) -> None:
        self.records = tuple(records)
        self.name = name
        self.looks = looks or {}

    @property
    def hard(self) -> int:
        """How many findings stop the run."""
        return sum(
            1 for record in self.records if record.audit for each in record.audit.findings if each.level == "hard"
        )

    def blocks(self) -> list[Block]:
        """Row accounting of all domains, then each domain."""
        shown: list[Block] = [Heading(f"Data of {self.name}" if self.name else "Data", 1), *_accounting(self.records)]
        for record in self.records:
            shown.extend([*_domain(record), *self.looks.get(record.domain, ())])
        verdict = f"{self.hard} hard finding(s): training would go wrong" if self.hard else "nothing stops the run"
        return [*shown, Text(verdict)]

    def coloured(self) -> str:
        """The text view for a terminal, with colours."""
        parts = []
        for block in self.blocks():
            if isinstance(block, Marked):
                shown = ((visible(text), on) for text, on in block.pieces)
                parts.append("".join(f"{_TRAINED}{text}{_PLAIN}" if on else text for text, on in shown))
                continue
            lines = as_text([block]).split("\n")
            colours = {"hard": _HARD, "soft": _SOFT}
            for number, line in enumerate(lines):
                colour = colours.get(line.split("  ")[0].strip())
                lines[number] = f"{colour}{line}{_PLAIN}" if colour else line
            parts.append("\n".join(lines))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        parts = []
        for block in self.blocks():
            if isinstance(block, Marked):
                marks = (f"<mark>{html.escape(text)}</mark>" if on else html.escape(text) for text, on in block.pieces)
                parts.append(f"<pre>{''.join(marks)}</pre>")
            else:
                parts.append(as_html([block]))
        return "\n".join(parts)


def _accounting(records: Sequence[DataRecord]) -> list[Block]:
    reasons = list(dict.fromkeys(reason for record in records for reason in record.dropped))
    columns = ["domain", "rows in", "kept", *SPLITS, *reasons, "also in other domains"]
    rows = [
        [
            record.domain,
            show_number(record.rows_in),
            show_number(record.rows_kept),
            *(show_number(record.splits.get(split, 0)) for split in SPLITS),
            *(show_number(record.dropped.get(reason, 0)) for reason in reasons),
            show_number(int(record.steps.get("dedupe", {}).get("of_other_domains", 0))),
        ]
        for record in records
    ]
    return [Table(columns, rows, frozenset(columns[1:]))]


def _columns(record: DataRecord) -> str:
    """Which columns are read as what, and which are not."""
    read = [part if part == name else f"{name} as {part}" for part, name in record.columns.items()]
    unread = record.steps.get("columns", {}).get("unread", ())
    return f"columns read: {', '.join(read)}" + (f"; not read: {some(unread, 20)}" if unread else "")


def _domain(record: DataRecord) -> list[Block]:
    shown: list[Block] = [Heading(f"{record.domain}: {record.form}"), Text(_columns(record))]
    if record.label_counts:
        columns = ["label", *SPLITS]
        rows = [
            [label, *(show_number(record.label_counts.get(split, {}).get(label, 0)) for split in SPLITS)]
            for label in record.labels
        ]
        shown.append(Table(columns, rows, frozenset(SPLITS)))
    audit = record.audit
    if audit is None:
        return shown
    kind = registry.modality(registry.schema(record.form).modality)
    stops = {True: "yes", False: "NO", None: "does not apply"}[audit.learns_to_stop]
    share = f" ({audit.labelled_tokens / max(audit.tokens, 1):.1%} of the {kind.unit})"
    facts = [
        ["training rows", show_number(audit.rows)],
        [kind.unit, show_number(audit.tokens)],
        ["labels", f"{audit.labelled_tokens:,}{share if kind.tokens else ''}"],
        [kind.nouns, audit.brought] if audit.brought else [f"rows {kind.cut}", show_number(audit.truncated_rows)],
        ["rows without a label", show_number(audit.unlabelled_rows)],
        ["learns to stop", stops],
        [
            "longest rows",
            ", ".join(f"{Place.of(row.model_dump())}: {row.tokens:,} {kind.unit}" for row in audit.longest[:3]),
        ],
    ]
    shown.append(Table(["training will see", ""], facts))
    if audit.findings:
        rows = [[each.level, each.code, each.message, each.fix] for each in audit.findings]
        shown.append(Table(["level", "finding", "what", "fix"], rows))
    shown += [Text(f"dropped as {reason}, such as {example}") for reason, example in audit.dropped.items()]
    if audit.sample:
        plain = "".join(f"»{text}«" if on else text for text, on in audit.sample)
        shown += [Text("a row as the model sees it, the trained part marked:"), Marked(plain, True, audit.sample)]
    return shown
