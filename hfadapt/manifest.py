"""What an adapter belongs to: written beside it, and compared before it is put on a base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hfadapt.errors import Problem, RunError
from hfadapt.model import Base, file_sha256
from hfadapt.records import Manifest
from hfadapt.recipe import Lock
from hfadapt.versions import versions

FILE = "hfadapt.json"


def write_manifest(
    folder: Path, base: Base, lock: Lock, labels: Sequence[str], hashes: dict[str, str]
) -> Manifest:
    """Writes hfadapt.json into the adapter's folder."""
    from safetensors import safe_open

    tensors = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors += len(list(file.keys()))
    manifest = Manifest(
        task=lock.task,
        model=base.source.hub_id or lock.model,
        model_revision=base.source.revision,
        method=lock.adapter.method,
        rank=lock.adapter.rank,
        quant=lock.quant,
        dtype=lock.dtype,
        labels=tuple(labels),
        files=hashes,
        tensors=tensors,
        max_length=lock.data.max_length,
        versions=versions(str(base.model.device)),
        **base.identity,
    )
    manifest.write(folder / FILE)
    return manifest


def check_manifest(manifest: Manifest, base: Base, folder: Path) -> None:
    """Compares the manifest with a base and the files beside it.

    Raises:
        RunError: something differs; every difference is named.
    """
    problems = []
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.exists():
            problems.append(Problem(f"{name} is missing", str(folder), fix="copy the whole adapter folder"))
        elif file_sha256(path) != digest:
            problems.append(Problem(f"{name} has been changed", str(path), fix="copy the adapter folder again"))
    said = {
        "shapes_sha256": "the base has other layers or sizes",
        "tokenizer_sha256": "the base has another tokenizer",
        "chat_template_sha256": "the base has another chat template",
    }
    found = base.identity
    for key, what in said.items():
        if getattr(manifest, key) != found[key]:
            problems.append(
                Problem(
                    what,
                    str(folder),
                    got=base.source.asked,
                    allowed=f"{manifest.model}{'@' + manifest.model_revision if manifest.model_revision else ''}",
                    fix="load the base that the adapter was trained on",
                )
            )
    if problems:
        raise RunError("the adapter does not belong to this base", problems=problems)
