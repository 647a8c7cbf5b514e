"""Export: an adapter leaves its run in a format, in a form that was measured and is not refused, and is opened again.

The folder appears whole or not at all. What drift.json refuses, or what was not measured, is written only by force.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.core.samples import PREFIX
from hfadapt.core.show import Block, Heading, Shown, Table, Text, show_bytes
from hfadapt.export import servers
from hfadapt.export.forms import Request, write_form
from hfadapt.export.papers import is_whole, judged_note, judged_table, write_papers
from hfadapt.formats import Format, require_packages
from hfadapt.models.adapter_files import EXPORT, files_in
from hfadapt.publish.staging import check_free, new_folder, sealed
from hfadapt.recipe.sources import expanded
from hfadapt.records.published import ExportRecord
from hfadapt.records.stages import CardRecord, EvaluationRecord
from hfadapt.run_folder import Cell


@dataclass(frozen=True)
class Exported(Shown):
    """A folder that was written; shows itself as its files and what was found when it was opened.

    Args:
        base: The base's folder on this machine, which the exported files do not tell; None where they say enough.
        argument: What stands for what it is asked, in a command.
        commands: What serves it and asks it there.
    """

    folder: Path
    record: ExportRecord
    base: str | None = None
    argument: str = '"text"'
    commands: tuple[str, ...] = ()

    def blocks(self) -> list[Block]:
        """Files with size and hash, and how the folder scored."""
        record = self.record
        rows = [[file.name, f"{file.bytes:,}", file.sha256] for file in record.files]
        shown: list[Block] = [
            Heading(f"{record.domain} on {record.target} as {record.variant or record.format}", 1),
            Table(["file", "bytes", "sha256"], rows, frozenset({"bytes"})),
            Text(f"written to {self.folder}, {show_bytes(sum(file.bytes for file in record.files))}"),
            Text(
                f"opened again without hfadapt: a label's loss differs by {record.difference:.2g} nats on "
                f"{record.rows} test rows"
                + (f", at most {record.tolerance:g} is allowed" if record.tolerance is not None else "")
                + (
                    f"; from the adapter as it was evaluated by {record.evaluated_difference:.2g} nats"
                    if record.evaluated_difference is not None
                    else ""
                )
            ),
        ]
        if record.judged:
            headings, table = judged_table(record)
            shown[1:1] = [Table(headings, table), Text(judged_note(record))]
            shown += [
                Text(f"refused: {each.form}: {'; '.join(each.refused)}") for each in record.judged if each.refused
            ]
            shown += [Text(f"does not run: {name}: {why}") for name, why in record.failed.items()]
        base = f" --base {shlex.quote(self.base)}" if self.base else ""
        shown.append(Text(f"next: hfadapt predict {shlex.quote(str(self.folder))} {self.argument}{base}", code=True))
        shown += [Text(each, code=True) for each in self.commands]
        if record.forced:
            shown.append(Text(f"FORCED: {record.forced}"))
        return shown


def export(
    cell: Cell,
    format: str,
    to: Path,
    *,
    variant: str | None = None,
    force: bool = False,
    server: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Writes a cell's adapter into a new folder.

    Args:
        format: Name of a format.
        to: Must not exist yet, or be empty.
        variant: A form of drift.json, where the format has several; by default the first that is not refused.
        force: Write it even if the form is refused or was not measured; the record and the README say so.
        server: A server by name, whose rules are checked before, and whose command is shown.

    Raises:
        RequestError: no such format or variant, or the folder is not empty; nothing was written.
        RunError: the form is refused, or the folder did not score as it should when it was opened; nothing is left.
    """
    from hfadapt.models.load import default_device
    from hfadapt.models.manifest import check_folder

    kind: Format = registry.format(format)
    require_packages(kind)
    if not (cell.folder / "train.json").exists():
        raise RequestError("the cell is not trained yet", place=str(cell.folder), fix="hfadapt run RECIPE")
    _check_place(to, cell)
    check_folder(cell.adapter)
    for paper in (EvaluationRecord, CardRecord):
        # Read once here, where a file that is not whole has its own name.
        cell.maybe(paper)
    if why := kind.refusal(cell):
        raise RequestError(f"this model cannot be exported as {format}", place=str(cell.folder), got=why)
    if server is not None:
        servers.check_server(server, cell, kind)
    asked = Request(cell, kind, variant, force, default_device(), say)
    with new_folder(to) as ready:
        form, record = write_form(asked, ready)
        write_papers(cell, kind, form, ready, record)
        record = record.model_copy(update={"files": sealed(ready).files})
        record.write(ready / EXPORT)
        for _, path in files_in(ready):
            # safetensors writes files that only their owner may read.
            path.chmod(0o644)
        check_folder(ready)
    argument = registry.modality_of(cell.lock.task).argument
    commands = servers.server(server).command(cell, kind, to) if server is not None else kind.commands(cell, to)
    return Exported(to, record, _base_folder(cell, kind), argument, tuple(commands))


def _base_folder(cell: Cell, kind: Format) -> str | None:
    """The base's folder or file as the recipe names it, where an export needs it."""
    from hfadapt.models.base import BaseRef

    model = BaseRef.of(cell.lock).location
    local = not model.startswith(PREFIX) and expanded(model).exists()
    return model if kind.needs_base and not is_whole(cell) and local else None


def _check_place(to: Path, cell: Cell) -> None:
    check_free(to)
    if cell.adapter.resolve() in (to.resolve(), *to.resolve().parents):
        raise RequestError("the folder is inside the adapter's", place=str(to), fix="name another")
