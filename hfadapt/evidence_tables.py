"""Evidence as tables: what a terminal, report.md and a notebook show of transfer, merge drift and leaks."""

from __future__ import annotations

from collections.abc import Sequence

from hfadapt.evidence import DriftRecord, SecurityRecord, TransferRecord
from hfadapt.show import Block, Heading, Table, Text


def transfer_blocks(record: TransferRecord | None) -> list[Block]:
    """For each target a square: every adapter on every domain, with the difference from that domain's baseline."""
    shown: list[Block] = []
    for one in record.targets if record else ():
        if not one.cells:
            continue
        data = list(dict.fromkeys(cell.data for cell in one.cells))
        cells = {
            (cell.adapter, cell.data): f"{cell.value:.3f}" + ("" if cell.delta is None else f" ({cell.delta:+.3f})")
            for cell in one.cells
        }
        rows = [
            [adapter, *(cells.get((adapter, name), "") for name in data)]
            for adapter in dict.fromkeys(cell.adapter for cell in one.cells)
        ]
        where = f" on {one.target}" if record and len(record.targets) > 1 else ""
        shown.append(Heading(f"Every adapter on every domain{where}"))
        shown.append(Text(f"{one.metric} (difference from the baseline of that domain)"))
        shown.append(Table(["adapter", *data], rows, frozenset(data)))
        shown.extend(Text(f"left out, {pair}: {why}") for pair, why in one.skipped.items())
    return shown


def drift_blocks(records: Sequence[DriftRecord]) -> list[Block]:
    """One line for each way to serve an adapter: how far it is from the adapter as it was trained."""
    if not records:
        return []
    several = len({record.target for record in records}) > 1
    rows = []
    for record in records:
        for variant in record.variants:
            rows.append(
                [
                    f"{record.domain} on {record.target}" if several else record.domain,
                    variant.name,
                    f"{variant.kl_nats:.2g}",
                    f"{variant.delta:+.3f}" + bounds(variant.low, variant.high),
                    "REFUSED" if variant.name in record.refused else "within the limits",
                ]
            )
    if not rows:
        return []
    columns = ["domain", "served as", "divergence, nats a label", f"change of {records[0].variants[0].metric}", ""]
    return [
        Heading("Merging and other storages"),
        Table(columns, rows, frozenset(columns[2:4])),
    ]


def bounds(low: float | None, high: float | None) -> str:
    """An interval after a difference, or nothing."""
    return "" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]"


def leak_rows(record: SecurityRecord) -> list[str]:
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
            f"{worst.auc.value:.3f}{_range(worst.auc.low, worst.auc.high)}, texts alone "
            f"{member.blind.auc.value:.3f}: {says}"
        )
    found.append(
        "none planted"
        if canaries is None
        else f"{sum(group.found for group in canaries.groups)} of {canaries.planted} found"
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


def leak_table(records: Sequence[SecurityRecord]) -> Table | None:
    """What the adapters give away of their training rows; columns that say nothing are left out."""
    if not records:
        return None
    several = len({record.target for record in records}) > 1
    rows = [
        [f"{record.domain} on {record.target}" if several else record.domain, *leak_rows(record)] for record in records
    ]
    columns = ["domain", *LEAKS]
    kept = [n for n in range(len(columns)) if any(row[n] not in ("", "none planted") for row in rows)]
    return Table([columns[n] for n in kept], [[row[n] for n in kept] for row in rows])


def leak_blocks(records: Sequence[SecurityRecord]) -> list[Block]:
    """The table under its heading."""
    table = leak_table(records)
    return [Heading("What the adapters give away"), table] if table else []


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
