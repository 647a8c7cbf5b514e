"""Evidence as tables: what a terminal, report.md and a notebook show of merge drift and leaks."""

from __future__ import annotations

from collections.abc import Sequence

from hfadapt.core.show import Block, Heading, Table, Text
from hfadapt.records.evidence import DriftRecord, SecurityRecord


def drift_blocks(records: Sequence[DriftRecord]) -> list[Block]:
    """For each adapter, how far each way to serve it is from the adapter as it was trained, and what is refused."""
    forms = list(dict.fromkeys(variant.name for record in records for variant in record.variants))
    if not forms:
        return []
    several = len({record.target for record in records}) > 1
    rows = []
    for record in records:
        found = {
            variant.name: f"{variant.apart:.2g} ({variant.delta:+.3f})"
            + (" REFUSED" if variant.name in record.refused else "")
            for variant in record.variants
        }
        name = f"{record.domain} on {record.target}" if several else record.domain
        rows.append([name, *(found.get(form, "") for form in forms)])
    metric = next(variant.metric for record in records for variant in record.variants)
    said = f"{records[0].measure} (change of {metric})"
    return [
        Heading("Merging, and bases in other precision"),
        Text(said),
        Table(["domain", *forms], rows, frozenset(forms)),
    ]


def leak_rows(record: SecurityRecord, nouns: str = "texts") -> list[str]:
    """Membership inference, canaries, verbatim reproduction and personal data of one cell, as cells of a table."""
    member, canaries, verbatim, personal = (
        record.membership, record.canaries, record.verbatim, record.personal_data,
    )  # fmt: skip
    found = []
    if member is None or not member.attacks:
        found.append("not measured")
    else:
        worst = max(member.attacks, key=lambda attack: attack.auc.value)
        says = "LEAKS" if member.leaks else "no leak"
        found.append(
            f"{worst.auc.value:.3f}{_range(worst.auc.low, worst.auc.high)}, {nouns} alone "
            f"{member.blind.auc.value:.3f}: {says}"
        )
    found.append(
        "none planted"
        if canaries is None
        else f"{sum(group.found for group in canaries.groups if group.repeats)} of {canaries.planted} found"
    )
    repeated = ""
    if verbatim is not None:
        repeated = f"{verbatim.rate.value:.1%} of {verbatim.prompts}, base {verbatim.base_rate.value:.1%}"
    found.append(repeated)
    found.append(
        ""
        if personal is None
        else f"{sum(personal.found.values())} in {personal.generations} texts, {personal.repeated} from training rows"
    )
    return found


LEAKS = ("membership inference (AUC)", "canaries", "repeated word for word", "personal data")


def leak_table(records: Sequence[SecurityRecord], nouns: str = "texts") -> Table | None:
    """What the adapters give away of their training rows; columns that say nothing are left out."""
    if not records:
        return None
    several = len({record.target for record in records}) > 1
    rows = [
        [f"{record.domain} on {record.target}" if several else record.domain, *leak_rows(record, nouns)]
        for record in records
    ]
    columns = ["domain", *LEAKS]
    kept = [n for n in range(len(columns)) if any(row[n] not in ("", "none planted") for row in rows)]
    return Table([columns[n] for n in kept], [[row[n] for n in kept] for row in rows])


def leak_blocks(records: Sequence[SecurityRecord], nouns: str = "texts") -> list[Block]:
    """The table under its heading."""
    table = leak_table(records, nouns)
    return [Heading("What the adapters give away"), table] if table else []


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
