"""Export: an adapter leaves its run in a format, in a form that was measured and is not refused, and is opened again.

The folder appears whole or not at all. What drift.json refuses, or what was not measured, is written only by force.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import metadata_save

from hfadapt.core import registry
from hfadapt.core.errors import Problem, RequestError, RunError
from hfadapt.core.hashing import file_sha256
from hfadapt.core.samples import PREFIX
from hfadapt.core.show import Block, Heading, Shown, Table, Text, show_bytes
from hfadapt.core.spec import write_text
from hfadapt.models.adapter_files import EXPORT, MANIFEST, SIDECARS, files_in, is_model_file, tensor_shapes
from hfadapt.publish.staging import (
    as_the_card_says,
    check_free,
    new_folder,
    rewrite_without_pictures,
    sealed,
    without_places,
)
from hfadapt.quants import PLAIN
from hfadapt.recipe.sources import expanded
from hfadapt.records.evidence import DriftRecord, Variant
from hfadapt.records.published import ExportRecord
from hfadapt.records.stages import CardRecord, EvaluationRecord, Manifest
from hfadapt.run_folder import PREDICTIONS, Cell, read_rows

if TYPE_CHECKING:
    import torch

    from hfadapt.adapters import AdapterMethod
    from hfadapt.formats import Form, Format
    from hfadapt.tasks import Scores

ROWS = 64
"""Test rows on which the folder is compared."""
BATCH_ROWS = 16


@dataclass(frozen=True)
class Exported(Shown):
    """A folder that was written; shows itself as its files and what was found when it was opened.

    Args:
        base: The base's folder on this machine, which the exported files do not tell; None where they say enough.
        argument: What stands for what it is asked, in a command.
    """

    folder: Path
    record: ExportRecord
    base: str | None = None
    argument: str = '"text"'

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
                f"{record.rows} test rows, at most {record.tolerance:g} is allowed"
                + (
                    f"; from the adapter as it was evaluated by {record.evaluated_difference:.2g} nats"
                    if record.evaluated_difference is not None
                    else ""
                )
            ),
        ]
        base = f" --base {shlex.quote(self.base)}" if self.base else ""
        shown.append(Text(f"next: hfadapt predict {shlex.quote(str(self.folder))} {self.argument}{base}", code=True))
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
    say: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Writes a cell's adapter into a new folder.

    Args:
        format: Name of a format.
        to: Must not exist yet, or be empty.
        variant: A form of drift.json, where the format has several; by default the first that is not refused.
        force: Write it even if the form is refused or was not measured; the record and the README say so.

    Raises:
        RequestError: no such format or variant, or the folder is not empty; nothing was written.
        RunError: the form is refused, or the folder did not score as it should when it was opened; nothing is left.
    """
    from hfadapt.hardware.peak_memory import release_memory
    from hfadapt.models.load import default_device
    from hfadapt.models.manifest import check_folder

    kind: Format = registry.format(format)
    if not (cell.folder / "train.json").exists():
        raise RequestError("the cell is not trained yet", place=str(cell.folder), fix="hfadapt run RECIPE")
    _check_place(to, cell)
    check_folder(cell.adapter)
    for paper in (EvaluationRecord, CardRecord):
        # Read once here, where a file that is not whole has its own name.
        cell.maybe(paper)
    if why := kind.refusal(cell):
        raise RequestError(f"this model cannot be exported as {format}", place=str(cell.folder), got=why)
    drift = cell.drift
    form, forced = choose(kind.forms(cell.lock), drift, variant, force, cell)
    device = default_device()
    with new_folder(to) as ready:
        say(f"writing {form.name if form else format}")
        model = kind.write(cell, form, ready, device)
        written = _scores(cell, model, device)
        del model
        release_memory()
        say("opening it again without hfadapt")
        found = _scores(cell, kind.reopen(cell, ready, device), device)
        release_memory()
        record = _record(cell, kind, form, drift, forced, written, found)
        _write_papers(cell, kind, form, ready, record)
        record = record.model_copy(update={"files": sealed(ready).files})
        record.write(ready / EXPORT)
        for _, path in files_in(ready):
            # safetensors writes files that only their owner may read.
            path.chmod(0o644)
        check_folder(ready)
    argument = registry.modality(registry.task(cell.lock.task).modality).argument
    return Exported(to, record, _base_folder(cell, kind), argument)


def _base_folder(cell: Cell, kind: Format) -> str | None:
    """The base's folder or file as the recipe names it, where an export needs it."""
    from hfadapt.models.base import BaseRef

    model = BaseRef.of(cell.lock).location
    local = not model.startswith(PREFIX) and expanded(model).exists()
    return model if kind.needs_base and not _trained(cell).whole_model and local else None


def _trained(cell: Cell) -> AdapterMethod:
    return registry.adapter(cell.lock.adapter.method)


def _check_place(to: Path, cell: Cell) -> None:
    check_free(to)
    if cell.adapter.resolve() in (to.resolve(), *to.resolve().parents):
        raise RequestError("the folder is inside the adapter's", place=str(to), fix="name another")


# --- which form ------------------------------------------------------------------------------------------------------


def choose(
    forms: Sequence[Form], drift: DriftRecord | None, variant: str | None, force: bool, cell: Cell
) -> tuple[Form | None, str | None]:
    """The form to write, and what was forced, if anything.

    Raises:
        RequestError: there is no such variant.
        RunError: every form that may be meant is refused or was not measured.
    """
    if variant is not None and variant not in [form.name for form in forms]:
        raise RequestError(
            "the format has no such variant",
            place="--variant",
            got=repr(variant),
            allowed=", ".join(form.name for form in forms) or "none: it is what was trained",
        )
    meant = [form for form in forms if variant in (None, form.name)]
    if not meant:
        return None, None
    reasons = {form.name: _reason(form.name, drift) for form in meant}
    allowed = next((form for form in meant if reasons[form.name] is None), None)
    if allowed:
        return allowed, None
    if force:
        return meant[0], f"{meant[0].name} {reasons[meant[0].name]}"
    raise RunError(
        "no form of this export may be shipped",
        problems=[
            Problem(
                f"{name} {why}",
                str(cell.folder / "drift.json"),
                fix="measure it: hfadapt evaluate RECIPE evaluate.drift=true; or --force"
                if drift is None or name not in [each.name for each in drift.variants]
                else "ship the adapter itself (--format adapter), set evaluate.drift_limits in the recipe, or --force",
            )
            for name, why in reasons.items()
        ],
    )


def _reason(name: str, drift: DriftRecord | None) -> str | None:
    """Why a form may not be shipped, or None."""
    if drift is None or _measured(name, drift) is None:
        skipped = drift.skipped.get(name) if drift else None
        return f"was not measured{f': {skipped}' if skipped else ''}"
    why = drift.refused.get(name)
    return f"is refused: {why}" if why else None


def _measured(name: str, drift: DriftRecord | None) -> Variant | None:
    return next((each for each in drift.variants if each.name == name), None) if drift else None


# --- opened again ----------------------------------------------------------------------------------------------------


def _scores(cell: Cell, model: Any, device: torch.device) -> Scores:
    """Losses of the first test rows."""
    import torch

    from hfadapt.data import read_split
    from hfadapt.models.base import BaseRef
    from hfadapt.models.load import load_processor, pad_token_id, source_of
    from hfadapt.train.batches import padded

    lock, task = cell.lock, registry.task(cell.lock.task)
    tokenizer = load_processor(source_of(BaseRef.of(lock)), task.modality, lock.data.max_length)
    rows = read_split(cell.folder, "test")[:ROWS]
    examples = task.encode(rows, tokenizer, max_length=lock.data.max_length, labels=cell.data.labels)
    pad = pad_token_id(tokenizer)
    with torch.inference_mode():
        scores: Scores = task.score(model, examples, lambda each: padded(task, each, pad, device, BATCH_ROWS))
    return scores


def _record(
    cell: Cell,
    kind: Format,
    form: Form | None,
    drift: DriftRecord | None,
    forced: str | None,
    written: Scores,
    found: Scores,
) -> ExportRecord:
    """What was found; raises RunError where it is not what was written."""
    from hfadapt.hardware.versions import versions

    difference, allowed = _difference(found, written.losses), kind.tolerance(cell, form)
    if not difference <= allowed:
        raise RunError(
            "the exported model does not score as the one that was written",
            place=kind.name,
            got=f"mean difference of a label's loss: {difference:.3g} nats",
            allowed=f"at most {allowed:g}",
            fix="export again; if it happens again, report it with lock.yaml",
        )
    variant = _measured(form.name, drift) if form else None
    return ExportRecord(
        domain=cell.domain,
        target=cell.target,
        format=kind.name,
        variant=form.name if form else None,
        storage=form.storage if form else cell.lock.dtype,
        forced=forced,
        kl_nats=variant.kl_nats if variant else None,
        delta=variant.delta if variant else None,
        rows=len(found.losses),
        difference=difference,
        tolerance=allowed,
        evaluated_difference=_from_evaluation(cell, found),
        files=(),
        versions=versions("cpu"),
    )


def _difference(found: Scores, losses: Any) -> float:
    """Mean over the rows of the difference of their losses, per label."""
    import numpy as np

    return float(np.mean(np.abs(found.losses - np.asarray(losses)) / np.maximum(found.tokens, 1)))


def _from_evaluation(cell: Cell, found: Scores) -> float | None:
    """The difference from predictions.parquet, where the cell was evaluated."""
    path = cell.folder / PREDICTIONS
    if not path.exists():
        return None
    losses = [row["adapter_loss"] for row in read_rows(path, ["adapter_loss"])]
    return _difference(found, losses[: len(found.losses)])


# --- sidecars -------------------------------------------------------------------------------------------------------


def _write_papers(cell: Cell, kind: Format, form: Form | None, folder: Path, record: ExportRecord) -> None:
    """Manifest, lock, evaluation, drift, card and README."""
    whole = _trained(cell).whole_model
    hashes = {name: file_sha256(path) for name, path in files_in(folder) if is_model_file(name, kind.name, whole)}
    _manifest(cell, kind, form, folder, hashes).write(folder / MANIFEST)
    for name in (*SIDECARS, "drift.json"):
        path = cell.folder / name
        if path.is_file() and not path.is_symlink() and (kind.needs_base or name not in ("README.md", "card.json")):
            shutil.copyfile(path, folder / name)
    if (folder / "README.md").exists():
        rewrite_without_pictures(folder / "README.md")
    without_places(folder / "lock.yaml")
    if (folder / "evaluation.json").exists():
        as_the_card_says(folder / "evaluation.json")
    card = cell.folder / "README.md"
    if kind.needs_base and card.is_file():
        return
    if card.is_file():
        shutil.copyfile(card, folder / "CARD.md")
        rewrite_without_pictures(folder / "CARD.md")
    write_text(folder / "README.md", "\n".join(_readme(cell, kind, record)) + "\n")
    metadata_save(folder / "README.md", _metadata(cell, kind))


def _manifest(cell: Cell, kind: Format, form: Form | None, folder: Path, hashes: dict[str, str]) -> Manifest:
    lock, data = cell.lock, cell.data
    template = lock.template_of(lock.domain)
    changes: dict[str, Any] = {
        "format": kind.name,
        "files": hashes,
        "tensors": sum(len(tensor_shapes(path)) for path in folder.glob("*.safetensors")),
        "form": data.form,
        "prompt": template.prompt if template else None,
        "completions": registry.task(lock.task).answer_texts(data.form, data.completions, cell.read_split),
    }
    if form is not None:
        changes |= {"quant": PLAIN, "dtype": form.storage}
    return cell.manifest.model_copy(update=changes)


def _readme(cell: Cell, kind: Format, record: ExportRecord) -> Iterator[str]:
    manifest = cell.manifest
    yield f"# {cell.lock.name}: {cell.domain}, {record.variant or record.format}"
    yield ""
    base = f"`{manifest.model}`" + (f" at revision `{manifest.model_revision}`" if manifest.model_revision else "")
    if kind.needs_base and _trained(cell).whole_model:
        yield f"All weights of {base}, trained and stored in {manifest.dtype}."
    elif kind.needs_base:
        yield f"An adapter for {base}, trained with method {manifest.method}."
    else:
        own = "dequantised" not in (record.variant or "")
        how = "in its own weights" if own else "with the weights of its quantised form"
        yield f"{base}, {how}, with an adapter ({manifest.method}) merged into it; stored in {record.storage}."
    if (cell.folder / "README.md").is_file() and not kind.needs_base:
        yield "[CARD.md](CARD.md) is the adapter's card: data, training, evaluation, limits and licences."
    yield ""
    yield f"```python\n{kind.usage(cell)}\n```"
    yield ""
    if record.kl_nats is not None:
        yield (
            f"Its answers differ from those of the adapter as it was trained by {record.kl_nats:.3g} nats per label "
            f"(Kullback-Leibler divergence, [drift.json](drift.json))."
        )
    if record.forced:
        yield f"**Exported by force: {record.forced}.**"
    yield (
        f"Opened again without hfadapt, a label's loss differs by {record.difference:.2g} nats on "
        f"{record.rows} test rows; at most {record.tolerance:g} is allowed ([{EXPORT}]({EXPORT}), which also holds "
        "the hash of every file)."
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
        found |= {"library_name": registry.task(cell.lock.task).library, "base_model_relation": "finetune"}
        found["tags"] = [tag for tag in found.get("tags", ()) if tag != cell.manifest.method and ":" not in str(tag)]
        if "sample:" in str(found.get("base_model")):
            del found["base_model"]
    return found
