"""The clean folder that is published: only files of known names, copied, looked through, and named with their hashes.

Nothing is taken because it happens to lie there, and nothing is followed out of the cell.
"""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load, metadata_save

from hfadapt.core import registry
from hfadapt.core.errors import Problem, RequestError, RunError
from hfadapt.core.hashing import file_sha256
from hfadapt.core.spec import write_text
from hfadapt.models.adapter_files import MANIFEST, PICTURE, SIDECARS, SUMS, is_model_file
from hfadapt.publish.leaks import leaks
from hfadapt.records.published import PublishedFile
from hfadapt.records.stages import CardRecord, EvaluationRecord
from hfadapt.run_folder import Cell


@dataclass(frozen=True)
class Staged:
    """A folder ready to be published.

    Args:
        folder: Holds the files and nothing else.
        files: Every file by its path in the repository.
    """

    folder: Path
    files: tuple[PublishedFile, ...]

    @property
    def sums(self) -> str:
        """The manifest in the form that `sha256sum --check` reads."""
        return "".join(f"{file.sha256}  {file.name}\n" for file in self.files)


def blocks(cell: Cell, license: str | None = None) -> Iterator[Problem]:
    """Every reason not to publish a cell.

    Args:
        license: What the user said the licence is, where the records cannot say.
    """
    place, state = str(cell.folder), cell.state
    if state.status != "done":
        yield Problem(
            "the cell is not finished", place, got=f"{state.status}{': ' + state.error if state.error else ''}"[:200],
            allowed="done", fix="hfadapt run RECIPE",
        )  # fmt: skip
        return
    for gate in cell.evaluation.gates_failed:
        yield Problem("a gate failed", place, got=gate, fix="train better, or change evaluate.gates in the recipe")
    if not (cell.folder / "README.md").exists() or not (cell.folder / "card.json").exists():
        yield Problem("there is no card", place, fix=f"hfadapt card build {place}")
        return
    if (cell.folder / "README.md").is_symlink() or (cell.folder / "card.json").is_symlink():
        yield Problem("the card is a link, not a file", place, fix=f"hfadapt card build {place}")
        return
    from hfadapt.card.check import check_card

    yield from check_card(cell.folder, license)
    yield from _drift_problems(cell)


def _drift_problems(cell: Cell) -> Iterator[Problem]:
    """What is published is the adapter for the base as it was trained, or the whole model where all of it was."""
    record, lock = cell.drift, cell.lock
    stored, whole = registry.quant(lock.quant).storage(lock.dtype), registry.adapter(lock.adapter.method).whole_model
    known = {variant.name: variant for variant in record.variants} if record else {}
    for name, why in record.refused.items() if record else ():
        variant = known.get(name)
        if variant is None or (variant.merged == whole and variant.storage == stored):
            yield Problem(
                "the results drift too far in the form that would be published",
                str(cell.folder / "drift.json"),
                got=f"{name}: {why}",
                fix="train with the quant and dtype that are served, or change evaluate.drift_limits in the recipe",
            )


def stage(cell: Cell, folder: Path, prefix: str = "", license: str | None = None, pictures: bool = False) -> Staged:
    """Copies what is published of a cell into `folder`/`prefix`.

    Args:
        folder: Exists and is empty, or holds other cells under other prefixes.
        prefix: Folder inside the repository, without slashes.
        license: Replaces the card's licence.
        pictures: With the test rows that the card shows, where rows are files.

    Raises:
        RunError: a file must not be published; every file is named with its rule, never with what stands in it.
    """
    from hfadapt.models.manifest import check_folder, put_to

    sources = _sources(cell, pictures)
    if links := [path for path in sources if path.is_symlink()]:
        raise RunError("links are not published", problems=[_refused(path, "a link, not a file") for path in links])
    manifest = check_folder(cell.adapter)
    target = folder / prefix if prefix else folder
    target.mkdir(parents=True, exist_ok=True)
    for path in sources:
        if path.parent == cell.folder or is_model_file(path.name, manifest.format, manifest.whole):
            shutil.copyfile(path, target / path.name, follow_symlinks=False)
    manifest.model_copy(update=put_to(cell)).write(target / MANIFEST)
    if not pictures:
        rewrite_without_pictures(target / "README.md")
    without_places(target / "lock.yaml")
    as_the_card_says(target / "evaluation.json")
    if license is not None:
        _set_license(target, license)
    return sealed(folder, prefix)


def sealed(folder: Path, prefix: str = "") -> Staged:
    """Looks through a staged folder and names its files with their hashes.

    Raises:
        RunError: a file must not be published.
    """
    paths = sorted(path for path in (folder / prefix).rglob("*") if not path.is_dir())
    problems = [
        Problem(
            f"{rule} found",
            f"{path.relative_to(folder).as_posix()}:{line}",
            fix="take it out where it comes from, then: hfadapt card build CELL",
        )
        for path in paths
        for rule, line in leaks(path)
    ]
    if problems:
        raise RunError("files hold what must not be published", problems=problems)
    return Staged(folder, tuple(_described(path, folder) for path in paths))


def _described(path: Path, folder: Path) -> PublishedFile:
    return PublishedFile(name=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=file_sha256(path))


def git_oid(path: Path) -> str:
    """The name that git gives to a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _sources(cell: Cell, pictures: bool) -> list[Path]:
    """Files that may be published: the adapter's, and the sidecars and pictures from the cell itself."""
    if cell.adapter.is_symlink() or not cell.adapter.is_dir():
        raise RunError("the cell has no adapter of its own", place=str(cell.adapter), fix="hfadapt run RECIPE")
    sidecars = [cell.folder / name for name in SIDECARS]
    inside = [path for path in sorted(cell.adapter.iterdir()) if path.name not in SIDECARS]
    if pictures:
        sidecars += [path for path in sorted(cell.folder.iterdir()) if PICTURE.fullmatch(path.name)]
    return [*inside, *(path for path in sidecars if path.exists() or path.is_symlink())]


def _refused(path: Path, rule: str) -> Problem:
    return Problem(rule, str(path), fix="replace it by the file itself, or remove it")


def rewrite_without_pictures(readme: Path) -> None:
    """Leaves the pictures of test rows out of a copy of a card."""
    from hfadapt.card.build import without_pictures

    text = readme.read_text(encoding="utf-8")
    if (found := without_pictures(text)) != text:
        write_text(readme, found)


def without_places(path: Path) -> None:
    """Takes the folders of this machine out of lock.yaml: of an absolute path only the last part stays."""
    lock = yaml.safe_load(path.read_text(encoding="utf-8"))
    public = _public(lock)
    if public != lock:
        write_text(path, yaml.safe_dump(public, sort_keys=True, allow_unicode=True))


def as_the_card_says(path: Path) -> None:
    """Takes what people wrote, and places, out of evaluation.json: as in the card, quotes are short and redacted."""
    from hfadapt.card.facts import public_name, redact, shorten

    record = EvaluationRecord.read(path)
    quoted = tuple(
        one.model_copy(update={name: shorten(redact(getattr(one, name))) for name in ("gold", "adapter", "base")})
        for one in record.failures
    )
    as_public = {"source": public_name, "group": lambda name: shorten(redact(name))}
    named = tuple(
        one.model_copy(update={"name": as_public[one.by](one.name)}) if one.by in as_public else one
        for one in record.slices
    )
    if (quoted, named) != (record.failures, record.slices):
        record.model_copy(update={"failures": quoted, "slices": named}).write(path)


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_public(item) for item in value]
    if isinstance(value, str) and re.match(r"/|~|\.\.|[A-Za-z]:[\\/]", value) and "\n" not in value:
        return value.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return value


# --- licence ---------------------------------------------------------------------------------------------------------


def check_license(license: str) -> None:
    """Raises RequestError for a licence that the Hub does not know."""
    from hfadapt.card.licenses import hub_ids
    from hfadapt.core.errors import choice_problem

    named = sorted(hub_ids() - {"unknown"})
    if license not in named:
        problem = choice_problem("not a licence id of the Hub", license, named, "--license")
        raise RequestError(problem.what, problems=[problem])


def _set_license(folder: Path, license: str) -> None:
    """Writes the licence that the user named into the staged copies of the card."""
    readme = folder / "README.md"
    metadata = metadata_load(readme)
    if metadata is None:
        raise RunError("the card has no metadata", place=str(readme), fix="hfadapt card build CELL")
    changed = {key: value for key, value in metadata.items() if key not in ("license_name", "license_link")}
    changed["license"] = license
    metadata_save(readme, changed)
    record = CardRecord.read(folder / "card.json")
    record.model_copy(update={"metadata": changed}).write(folder / "card.json")


# --- one repository for several adapters -----------------------------------------------------------------------------


def write_index(folder: Path, title: str, prefixes: Sequence[str]) -> None:
    """README.md of a repository with an adapter in each folder: metadata that holds for all, and where they are."""
    cards = {prefix: CardRecord.read(folder / prefix / "card.json") for prefix in prefixes}
    every = [card.metadata for card in cards.values()]
    licenses = list(dict.fromkeys(str(metadata.get("license")) for metadata in every))
    shared: dict[str, Any] = {
        key: every[0][key]
        for key in ("library_name", "pipeline_tag", "base_model", "base_model_relation")
        if key in every[0] and all(metadata.get(key) == every[0][key] for metadata in every)
    }
    license = (
        {"license": licenses[0]} if len(licenses) == 1 else {"license": "other", "license_name": "see-each-folder"}
    )
    metadata = {**license, **shared, "tags": ["hfadapt"]}
    lines = [f"| [{prefix}]({prefix}/README.md) | `{card.metadata.get('license')}` |" for prefix, card in cards.items()]
    body = [
        f"# {title}",
        "",
        "One adapter in each folder, all for the same base. Each folder has its own card.",
        "",
        "| folder | licence |",
        "| --- | --- |",
        *lines,
    ]
    write_text(folder / "README.md", "\n".join(body) + "\n")
    metadata_save(folder / "README.md", metadata)


# --- a folder instead of the Hub -------------------------------------------------------------------------------------


def check_free(folder: Path) -> None:
    """Raises RequestError where a folder cannot be written anew: something is in it, or it is the one we are in."""
    if folder.resolve() == Path.cwd():
        raise RequestError("this is the folder you are in", place=str(folder), fix="name a new one")
    if folder.exists() and not folder.is_dir():
        raise RequestError("this is a file, not a folder", place=str(folder), fix="name a new folder")
    if folder.exists() and any(folder.iterdir()):
        raise RequestError("the folder is not empty", place=str(folder), fix="remove it, or name another")


def _lives(pid: int) -> bool:
    """Whether a process of this machine still runs; where nobody can tell, it does."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its place when all went well; otherwise nothing of it is left.

    Raises:
        RequestError: the folder is not free.
    """
    check_free(folder)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    begun = f".{folder.name}.tmp-{platform.node()}-"
    for left in folder.parent.glob(f"{glob.escape(begun)}*"):
        # A process that was killed could not take back what it had written, which is as large as a model.
        if (number := left.name.removeprefix(begun)).isdecimal() and not _lives(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    ready = folder.with_name(f"{begun}{os.getpid()}")
    try:
        try:
            ready.mkdir()
        except OSError as error:
            error.filename = str(folder.parent)
            raise
        yield ready
        if folder.exists():
            folder.rmdir()
        ready.rename(folder)
    finally:
        shutil.rmtree(ready, ignore_errors=True)


def write_out(staged: Staged, folder: Path) -> None:
    """Puts the staged files and SHA256SUMS into a new folder. Raises RequestError when it exists and is not empty."""
    with new_folder(folder) as ready:
        shutil.copytree(staged.folder, ready, dirs_exist_ok=True)
        write_text(ready / SUMS, staged.sums)
