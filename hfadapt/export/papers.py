"""What stands beside the files of an export: manifest, lock, evaluation, drift, card and README."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import metadata_save

from hfadapt.core import registry
from hfadapt.core.hashing import file_sha256
from hfadapt.core.show import show_bytes
from hfadapt.core.spec import write_text
from hfadapt.models.adapter_files import EXPORT, MANIFEST, SIDECARS, files_in, is_model_file, tensor_shapes
from hfadapt.models.manifest import put_to
from hfadapt.publish.staging import as_the_card_says, rewrite_without_pictures, without_places
from hfadapt.quants import PLAIN
from hfadapt.records.published import ExportRecord
from hfadapt.records.stages import CardRecord, Manifest
from hfadapt.run_folder import Cell

if TYPE_CHECKING:
    from hfadapt.formats import Form, Format


def write_papers(cell: Cell, kind: Format, form: Form | None, folder: Path, record: ExportRecord) -> None:
    """Manifest, lock, evaluation, drift, card and README."""
    whole, card_first = is_whole(cell), kind.needs_base and not kind.own_readme
    hashes = {name: file_sha256(path) for name, path in files_in(folder) if is_model_file(name, kind.name, whole)}
    _manifest(cell, kind, form, folder, hashes).write(folder / MANIFEST)
    for name in (*SIDECARS, "drift.json"):
        path = cell.folder / name
        if path.is_file() and not path.is_symlink() and (card_first or name not in ("README.md", "card.json")):
            shutil.copyfile(path, folder / name)
    if (folder / "README.md").exists():
        rewrite_without_pictures(folder / "README.md")
    without_places(folder / "lock.yaml")
    if (folder / "evaluation.json").exists():
        as_the_card_says(folder / "evaluation.json")
    card = cell.folder / "README.md"
    if card_first and card.is_file():
        return
    if card.is_file():
        shutil.copyfile(card, folder / "CARD.md")
        rewrite_without_pictures(folder / "CARD.md")
    write_text(folder / "README.md", "\n".join(_readme(cell, kind, folder, record)) + "\n")
    metadata_save(folder / "README.md", _metadata(cell, kind))


def _manifest(cell: Cell, kind: Format, form: Form | None, folder: Path, hashes: dict[str, str]) -> Manifest:
    changes: dict[str, Any] = {
        "format": kind.name,
        "files": hashes,
        "tensors": sum(len(tensor_shapes(path)) for path in folder.glob("*.safetensors")),
        **put_to(cell),
    }
    if form is not None and not kind.needs_base:
        changes |= {"quant": PLAIN, "dtype": form.storage}
    return cell.manifest.model_copy(update=changes)


def _readme(cell: Cell, kind: Format, folder: Path, record: ExportRecord) -> Iterator[str]:
    manifest = cell.manifest
    yield f"# {cell.lock.name}: {cell.domain}, {record.variant or record.format}"
    yield ""
    base = f"`{manifest.model}`" + (f" at revision `{manifest.model_revision}`" if manifest.model_revision else "")
    if kind.needs_base and is_whole(cell):
        yield f"All weights of {base}, trained and stored in {manifest.dtype}."
    elif kind.needs_base:
        yield f"An adapter for {base}, trained with method {manifest.method}."
    else:
        own = "dequantised" not in (record.variant or "")
        how = "in its own weights" if own else "with the weights of its quantised form"
        yield f"{base}, {how}, with an adapter ({manifest.method}) merged into it; stored in {record.storage}."
    if (folder / "CARD.md").is_file():
        yield "[CARD.md](CARD.md) is the adapter's card: data, training, evaluation, limits and licences."
    yield ""
    yield f"```python\n{kind.usage(cell)}\n```"
    if (printed := kind.tried(cell, folder)) is not None:
        yield f"These lines were run as they stand, without hfadapt, and printed:\n\n```\n{printed}\n```"
    if notes := kind.notes(cell):
        yield f"\n{notes}"
    yield ""
    if record.spreads is not None:
        yield (
            f"Its answers differ from those of the adapter as it was trained by {record.spreads:.3g} of their spread "
            "(root mean square, in standard deviations, [drift.json](drift.json))."
        )
    if record.kl_nats is not None:
        where = EXPORT if record.judged else "drift.json"
        yield (
            f"Its answers differ from those of the adapter as it was trained by {record.kl_nats:.3g} nats per label "
            f"(Kullback-Leibler divergence, [{where}]({where}))."
        )
    if record.judged:
        yield from _judgement(record)
    if record.forced:
        yield f"**Exported by force: {record.forced}.**"
    allowed = f"; at most {record.tolerance:g} is allowed" if record.tolerance is not None else ""
    yield (
        f"Opened again without hfadapt, a label's loss differs by {record.difference:.2g} nats on "
        f"{record.rows} test rows{allowed} ([{EXPORT}]({EXPORT}), which also holds the hash of every file)."
    )


def _judgement(record: ExportRecord) -> Iterator[str]:
    """The forms that were tried, as a table, and where."""
    headings, rows = judged_table(record)
    yield f"Every form was run by {record.runtime} and compared with the adapter as it was trained:\n"
    yield f"| {' | '.join(headings)} |\n|{' --- |' * len(headings)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield f"\n{judged_note(record)}\n"


def judged_table(record: ExportRecord) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table of the forms that were tried."""
    there = any(each.there for each in record.judged)
    alike = ["points lost", "KL, nats", "decided alike", "all alike"]
    headings = ["form", "size", *alike, "one row here", *[f"{record.target}, ×2"] * there, "verdict"]
    rows = []
    for each in record.judged:
        decided = "none" if each.decisive_agreement is None else f"{each.decisive_agreement:.1%} of {each.decisive:,}"
        rows.append(
            [
                each.form,
                show_bytes(each.bytes),
                f"{each.points:.2f} [{each.points_low:+.2f}, {each.points_high:+.2f}]",
                f"{each.kl_nats:.2g} (most {each.most_kl_nats:.2g})",
                decided,
                f"{each.agreement:.1%}",
                f"{each.latency_ms:.1f} ms",
                *["not known" if each.there_seconds is None else f"{each.there_seconds * 1e3:.1f} ms"] * there,
                "refused" if each.refused else "passes" if each.there in ("", "fits") else f"passes, {each.there}",
            ]
        )
    rows += [[name, *[""] * (len(headings) - 2), "does not run"] for name in record.failed]
    return headings, rows


def judged_note(record: ExportRecord) -> str:
    """What the table's figures are measured on."""
    first = record.judged[0]
    features = ", ".join(record.features) or "none that are known"
    there = f"; ×2: estimated for {record.target}, right within a factor of two, not run there" if first.there else ""
    return (
        f"{first.metric} on {first.rows} test rows with its paired interval; alike: {first.alike}, decided: a lead of "
        f"more than 0.1; instruction sets of this machine: {features}{there}"
    )


def _metadata(cell: Cell, kind: Format) -> dict[str, Any]:
    """The card's metadata, with what differs for a model of its own."""
    path = cell.folder / "card.json"
    found: dict[str, Any] = {"base_model": cell.manifest.model}
    if path.exists():
        found = dict(CardRecord.read(path).metadata)
    if not kind.needs_base:
        # The measured results in it are those of the adapter.
        found.pop("model-index", None)
        found |= {
            "library_name": kind.library or registry.task(cell.lock.task).library,
            "base_model_relation": "finetune",
        }
        found["tags"] = [tag for tag in found.get("tags", ()) if tag != cell.manifest.method and ":" not in str(tag)]
        if "sample:" in str(found.get("base_model")):
            del found["base_model"]
    return found


def is_whole(cell: Cell) -> bool:
    """Whether the method trained the base itself."""
    return registry.adapter(cell.lock.adapter.method).whole_model
