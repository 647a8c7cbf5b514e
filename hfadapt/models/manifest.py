"""What an adapter belongs to: written beside it, and compared with a base before the adapter is put on it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import Problem, RequestError, RunError
from hfadapt.hardware.versions import versions
from hfadapt.modalities.text import PROBE
from hfadapt.models.adapter_files import AGAIN, LORA_TENSOR, MANIFEST, folder_problems, irregular_files, tensor_shapes
from hfadapt.models.base import BaseRef
from hfadapt.models.load import Base, ModelSource, load_base
from hfadapt.recipe.schema import Lock
from hfadapt.recipe.sources import expanded, is_missing
from hfadapt.records.stages import Change, Manifest

if TYPE_CHECKING:
    import torch

    from hfadapt.run_folder import Cell

FILE = MANIFEST
SAMPLED_TENSORS = 8


def write_manifest(folder: Path, base: Base, lock: Lock, labels: Sequence[str], hashes: dict[str, str]) -> Manifest:
    """Writes hfadapt.json into the adapter's folder."""
    manifest = Manifest(
        task=lock.task,
        model=base_name(base),
        model_revision=base_revision(base),
        weights_sha256=weights_sha256(base.source),
        method=lock.adapter.method,
        rank=lock.adapter.rank,
        quant=lock.quant,
        dtype=lock.dtype,
        labels=tuple(labels),
        files=hashes,
        tensors=sum(len(tensor_shapes(path)) for path in folder.glob("*.safetensors")),
        max_length=lock.data.max_length,
        versions=versions(str(base.model.device)),
        base=_change(base),
        **base.identity,
    )
    manifest.write(folder / FILE)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest in an adapter's folder.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    if not (folder / FILE).is_file():
        raise RunError(
            f"there is no {FILE}: nothing says which base this adapter belongs to",
            place=str(folder),
            allowed="an adapter that hfadapt saved",
            fix="if you trust it and know its base, open it with peft itself: PeftModel.from_pretrained(base, folder)",
        )
    try:
        return Manifest.read(folder / FILE)
    except RunError as error:
        first = error.problems[0]
        raise RunError(
            first.what,
            place=first.place,
            got=" ".join((first.got or "").split())[:120] or None,
            allowed=first.allowed,
            fix=f"{AGAIN}; a newer version of hfadapt may know it",
        ) from None


def check_folder(folder: Path) -> Manifest:
    """Looks at an adapter's folder before any model is loaded; runs nothing of it.

    Returns:
        Its manifest.

    Raises:
        RunError: there is no manifest, or the files are not those that were saved; every fault is named.
    """
    # Nothing is opened before that: a pipe may never say anything, and a device may never end.
    problems = list(irregular_files(folder))
    manifest = None if problems else read_manifest(folder)
    if manifest is None or (problems := list(folder_problems(folder, manifest))):
        raise RunError("the adapter's folder is not as it was saved", problems=problems)
    return manifest


def load_base_of(
    adapters: Mapping[Path, Sequence[str]],
    lock: Lock,
    device: torch.device,
    *,
    max_memory: Mapping[Any, int] | None = None,
    manifest: Manifest | None = None,
    divided: bool = False,
) -> Base:
    """The base that saved adapters belong to; nothing of them is opened before they are found to be sound.

    Args:
        adapters: Their folders, each with the labels that it is to be used with.
        lock: Says which base, and in which storage.
        manifest: Of the only folder, where `check_folder` has just looked at it.
        max_memory, divided: As of `load_base`.

    Raises:
        RequestError: a base on this machine is not there any more.
        RunError: a folder is not as it was saved, or its adapter was trained on another base.
    """
    manifests = {folder: manifest or check_folder(folder) for folder in adapters}
    if lock.base is None and is_missing(lock.model):
        known = next(iter(manifests.values()))
        raise RequestError(
            "the base of this adapter is gone",
            place=lock.model,
            got="no such file or folder, nor one of that name beside the run",
            allowed=known.model
            + (f", sha256 of its weights {known.weights_sha256[:16]}…" if known.weights_sha256 else ""),
            fix="put it back, or say where it is: hfadapt predict CELL TEXT --base FOLDER",
        )
    base = load_base(BaseRef.of(lock), next(iter(adapters.values())), device, max_memory=max_memory, divided=divided)
    for folder, labels in adapters.items():
        check_manifest(manifests[folder], base, folder, labels)
    return base


def check_manifest(manifest: Manifest, base: Base, folder: Path, labels: Sequence[str] | None = None) -> None:
    """Compares a manifest with the files beside it and with a loaded base.

    Args:
        labels: The labels that the adapter is to be used with; by default those of the base's head, if it has any.

    Raises:
        RunError: something differs; every difference is named.
    """
    problems = [*folder_problems(folder, manifest), *_base_problems(manifest, base, folder)]
    if labels is None and manifest.labels and not registry.task(manifest.task).writes:
        labels = [name for _, name in sorted(base.model.config.id2label.items())]
    if labels is not None and tuple(labels) != manifest.labels:
        problems.append(
            Problem(
                "the adapter has another label set",
                str(folder),
                got=", ".join(labels) or "none",
                allowed=", ".join(manifest.labels) or "none",
                fix="use the data it was trained on, or train again",
            )
        )
    if problems:
        raise RunError("the adapter does not belong here", problems=problems)


def put_to(cell: Cell) -> dict[str, Any]:
    """The fields of a manifest that say how texts are put to a cell's adapter, for a folder that leaves its run."""
    lock, data = cell.lock, cell.data
    template = lock.template_of(lock.domain)
    return {
        "form": data.form,
        "prompt": template.prompt if template else None,
        "completions": registry.task(lock.task).answer_texts(data.form, data.completions, cell.read_split),
    }


def base_name(base: Base) -> str:
    """A base's name for others: of a folder on this machine only the last part."""
    asked = base.source.hub_id or base.source.asked
    return asked if base.source.hub_id or asked.startswith("sample:") else expanded(asked).resolve().name


def _change(base: Base) -> Change | None:
    """What a stage did to the base's weights, without the place where they lie."""
    made = base.source.made
    return Change(made_by=made.made_by, how=made.how, sha256=made.sha256) if made else None


def _named(name: str, revision: str | None, change: Change | None) -> str:
    changed = f", changed by the stage {change.made_by} ({change.how})" if change else ""
    return name + (f"@{revision}" if revision else "") + changed


def base_revision(base: Base) -> str | None:
    """The commit that was loaded, where the base came from the Hub."""
    commit: str | None = getattr(base.model.config, "_commit_hash", None)
    return commit or base.source.revision


def weights_sha256(source: ModelSource) -> str | None:
    """Hash of a few whole tensors of a base on disk, spread over the model; None for a base that a commit identifies.

    Two models of the same sizes and tokenizer differ in nothing else. Tensors are read, not file headers, so that
    another sharding gives the same hash.
    """
    from safetensors import safe_open

    folder = Path(source.path)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    where = {name: path for path in files for name, shape in tensor_shapes(path).items() if len(shape) == 2}
    names = sorted(where)
    if not names:
        return None
    digest = hashlib.sha256()
    for name in sorted({names[i * (len(names) - 1) // (SAMPLED_TENSORS - 1)] for i in range(SAMPLED_TENSORS)}):
        with safe_open(where[name], framework="pt") as file:
            rows = file.get_slice(name)[:8].contiguous()
        digest.update(f"{name} {rows.dtype} {list(rows.shape)}\n".encode())
        digest.update(rows.view(-1).float().numpy().tobytes())
    return digest.hexdigest()


def _base_problems(manifest: Manifest, base: Base, folder: Path) -> Iterator[Problem]:
    """One problem that names everything in which two bases differ."""
    found = base.identity
    weights = weights_sha256(base.source)
    known = weights is not None and manifest.weights_sha256 is not None
    change = _change(base)
    differs = {
        "name": not known and manifest.model != base_name(base),
        "revision": manifest.model_revision is not None and manifest.model_revision != base_revision(base),
        "architecture": manifest.config_sha256 != found["config_sha256"],
        f"layers or sizes{_layers(base, folder)}": manifest.shapes_sha256 != found["shapes_sha256"],
        "weights": (known and weights != manifest.weights_sha256)
        or (change and change.sha256) != (manifest.base and manifest.base.sha256),
        "tokenizer": manifest.tokenizer_sha256 != found["tokenizer_sha256"] or not _same_cuts(base, folder),
        "chat template": manifest.chat_template_sha256 != found["chat_template_sha256"],
    }
    if names := [name for name, different in differs.items() if different]:
        got = _named(base_name(base), base_revision(base), change)
        allowed = _named(manifest.model, manifest.model_revision, manifest.base)
        if not base.source.hub_id:
            # The name of a folder says little about what lies in it.
            got += f" in {base.source.path}"
        here, there = _hashes(weights, found), _hashes(manifest.weights_sha256, manifest.model_dump())
        if unlike := [name for name in here if here[name] and there[name] and here[name] != there[name]]:
            got, allowed = (
                f"{said}, sha256 of its {unlike[0]} {hashes[unlike[0]][:16]}…"
                for said, hashes in ((got, here), (allowed, there))
            )
        yield Problem(
            f"the adapter was trained on another base: not the same {', '.join(names)}",
            str(folder),
            got=got,
            allowed=allowed,
            fix="load the base that the adapter was trained on, or say where it is: hfadapt predict --base FOLDER",
        )


def _hashes(weights: str | None, identity: Mapping[str, Any]) -> dict[str, str]:
    """What tells two bases apart, the plainest first; empty where it is not known."""
    names = ("shapes", "config", "tokenizer", "chat_template")
    return {"weights": weights or "", **{name: identity[f"{name}_sha256"] or "" for name in names}}


def _layers(base: Base, folder: Path) -> str:
    """' (12 layers, the adapter has 6)' where the numbers differ."""
    own = getattr(base.model.config, "num_hidden_layers", None)
    path = folder / "adapter_model.safetensors"
    try:
        names = tensor_shapes(path) if path.is_file() else {}
    except ValueError:
        return ""
    numbers = [
        int(found[1]) for name in names if LORA_TENSOR.fullmatch(name) and (found := re.search(r"\.(\d+)\.", name))
    ]
    return f" ({own} layers, the adapter has {max(numbers) + 1})" if numbers and own != max(numbers) + 1 else ""


def _same_cuts(base: Base, folder: Path) -> bool:
    """Whether the tokenizer saved with the adapter cuts a difficult text as the base's does."""
    from tokenizers import Tokenizer

    backend = getattr(base.tokenizer, "backend_tokenizer", None)
    path = folder / "tokenizer.json"
    if backend is None or not path.is_file():
        return True
    try:
        saved = Tokenizer.from_file(str(path))
    except Exception:  # tokenizers raises nothing more precise
        return False
    own = Tokenizer.from_str(backend.to_str())
    for tokenizer in (saved, own):
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return bool(saved.encode(PROBE).ids == own.encode(PROBE).ids)
