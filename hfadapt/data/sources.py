"""Finds what a recipe calls a source: a local file, folder or glob, a sample, or a data set of the Hub."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from hfadapt.core.errors import DataError, Problem, nearest
from hfadapt.core.progress import quiet_libraries
from hfadapt.data.labels import some
from hfadapt.data.rows import Dropped
from hfadapt.files import SPLIT_NAMES, Doubt, Read, Unread, arrays, folders, media, plain_text, reading, tables
from hfadapt.files.beside import not_read
from hfadapt.files.named import Named
from hfadapt.files.opening import PACKED, packing, suffix, unmarked
from hfadapt.files.places import Place
from hfadapt.recipe.schema import Domain, Source
from hfadapt.recipe.sources import expanded
from hfadapt.records.gaps import LEFT_OUT, SPLITS_LEFT_OUT
from hfadapt.records.stages import Finding

SAMPLE = "sample:"
DOUBTS_SHOWN = 2
PACKED_TIMES = 8
"""How many times its size a packed text has, about."""
Reading = Iterator[Read | Dropped | Finding]
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


@dataclass(frozen=True)
class Opened:
    """A source that was found.

    Args:
        name: As rows and dropped rows name it.
        read: Starts reading; yields rows, numbered through from 0, the row as dropped, or a finding.
        fingerprint: Changes when the content changes.
        label_names: Class names by column, for columns of class numbers.
        settings: The recipe's words about this source.
        split: The split it is given as, or "".
        about: Fields of its SourceRecord.
        names_of: The other source whose class names it was given, or "".
        noticed: What is to be said of it.
        loose: Whether rows may leave out columns, so that one may begin late.
        named: Finds files that its rows name, where these are not as seen from their table.
        splits: The splits that its file holds, by their keys.
    """

    name: str
    read: Callable[[], Reading]
    fingerprint: str
    settings: Source
    split: str = ""
    label_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    names_of: str = ""
    noticed: tuple[Finding, ...] = ()
    loose: bool = False
    named: Named | None = None
    splits: Mapping[str, str] = field(default_factory=dict)


def open_domain(domain: Domain, recipe_folder: Path, *, streaming: bool = False) -> list[Opened]:
    """All sources of a domain, its given validation and test splits included.

    Raises:
        DataError: a source cannot be found; all of them are named at once.
    """
    opened: list[Opened] = []
    problems: list[Problem] = []
    for source, split in _every(domain, recipe_folder):
        try:
            opened.append(open_source(source, recipe_folder, split=split, streaming=streaming))
        except DataError as error:
            problems.extend(error.problems)
    if problems:
        raise DataError("sources cannot be read", problems=problems)
    places: dict[str, Opened] = {}
    for each in opened:
        if each.name in places:
            raise DataError(
                "the same source is used twice in one domain",
                place=each.name,
                got=f"as {places[each.name].split or 'train'} and as {each.split or 'train'}",
                fix="name it once; hfadapt makes validation and test splits by itself",
            )
        places[each.name] = each
    return _named_alike([_with_unread(each, opened) for each in opened])


def _every(domain: Domain, recipe_folder: Path) -> Iterator[tuple[Source, str]]:
    """All sources of a domain, and the split that each is given as, or ""."""
    yield from ((source, "") for source in domain.all_sources())
    for split in ("validation", "test"):
        given = getattr(domain, split)
        if given is not None:
            yield _given_source(given, domain, recipe_folder), split


def bytes_here(domain: Domain, recipe_folder: Path) -> tuple[int, int] | None:
    """Bytes of all files of a domain, and about those that have to be read to count their rows, once they are unpacked;
    None where a source is not on this machine: of the Hub, a sample that was not fetched, or missing."""
    from hfadapt.core import samples

    whole = counted = 0
    for source, _ in _every(domain, recipe_folder):
        if source.source.startswith(SAMPLE):
            if not samples.is_here(name := source.source.removeprefix(SAMPLE)):
                return None
            files: Sequence[Path] = [samples.dataset(name).path]
        elif (path := local_path(source.source, recipe_folder)) is not None:
            files = folders.chosen(path, source.split).data
        else:
            return None
        sizes = {file: file.stat().st_size for file in files if file.exists()}
        whole += sum(sizes.values())
        read = {file: size for file, size in sizes.items() if file.suffix.lower() not in media.suffixes()}
        unpacked = {file: size * (PACKED_TIMES if packing(file) else 1) for file, size in read.items()}
        counted += sum(max(size, tables.bytes_of_rows(file)) for file, size in unpacked.items())
    return whole, counted


def _with_unread(source: Opened, opened: Sequence[Opened]) -> Opened:
    """The source; where nobody reads a split that its file holds, with a word about it."""
    same = [each.settings.split or "train" for each in opened if each.settings.source == source.settings.source]
    read = {SPLIT_NAMES.get(split, split) for split in same}
    left = {key: split for key, split in source.splits.items() if split not in read}
    if source.split or not left:
        return source
    what = f"{source.name}: it also has the split{'s' if len(left) > 1 else ''} {some(left)}, which nothing reads"
    fix = "; ".join(f"set {split}: {key} to use it" for key, split in left.items() if split in Domain.model_fields)
    found = Finding(code=SPLITS_LEFT_OUT, level="soft", message=what, fix=fix)
    return replace(source, noticed=(*source.noticed, found))


def _named_alike(opened: Sequence[Opened]) -> list[Opened]:
    """Sources without names for their numbers get those of the others, where these agree."""
    known: dict[str, dict[tuple[str, ...], str]] = {}
    for each in opened:
        for column, names in each.label_names.items():
            known.setdefault(column, {}).setdefault(names, each.name)
    shared = {column: next(iter(found.items())) for column, found in known.items() if len(found) == 1}
    return [
        each
        if each.label_names or not shared
        else replace(
            each,
            label_names={column: names for column, (names, _) in shared.items()},
            names_of=next(source for _, source in shared.values()),
        )
        for each in opened
    ]


def _given_source(given: str, domain: Domain, recipe_folder: Path) -> Source:
    """A given split is a source of its own, or the name of a split of the domain's only source."""
    sources = domain.all_sources()
    bare = re.fullmatch(r"[A-Za-z_][\w.-]*(\[[^\]]*\])?", given)
    if bare and local_path(given, recipe_folder) is None and len(sources) == 1:
        own = local_path(sources[0].source, recipe_folder)
        if folders.may_have_splits(own) if own is not None else not sources[0].source.startswith(SAMPLE):
            return sources[0].model_copy(update={"split": given, "rows": None})
    return sources[0].model_copy(
        update={"source": given, "split": None, "config": None, "revision": None, "rows": None, "weight": 1.0}
    )


def local_path(source: str, recipe_folder: Path) -> Path | None:
    """Where a source lies on this machine: beside the recipe first, then in the working directory; else None."""
    if source.startswith(SAMPLE):
        return None
    path = expanded(source)
    for base in (recipe_folder, Path.cwd()):
        candidate = base / path
        if candidate.exists():
            return candidate
        if any(mark in source for mark in "*?[") and glob.glob(str(candidate), recursive=True):
            return candidate
    return None


def open_source(source: Source, recipe_folder: Path, *, split: str = "", streaming: bool = False) -> Opened:
    """Finds one source.

    Raises:
        DataError: there is no such file, sample or data set.
    """
    name = source.source
    if name.startswith(SAMPLE):
        return _open_sample(source, split)
    path = local_path(name, recipe_folder)
    if path is not None:
        return _open_local(source, path, split)
    if _looks_local(name) or not _HUB_ID.match(name):
        raise _not_found(name, recipe_folder)
    return open_hub(source, split=split, streaming=streaming)


def _looks_local(name: str) -> bool:
    return (
        name.startswith((".", "/", "~"))
        or Path(name).suffix in (*folders.suffixes(), *PACKED)
        or any(m in name for m in "*?[")
    )


def _not_found(name: str, recipe_folder: Path) -> DataError:
    folder = (recipe_folder / name).parent
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    close = nearest(Path(name).name, names)
    return DataError(
        "there is no such file",
        place=name,
        got=f"looked in {recipe_folder} and {Path.cwd()}",
        allowed="a file, folder or glob; a Hub data set id such as imdb; sample:NAME",
        fix=f"did you mean {Path(name).parent / close}?" if close else "check the path",
    )


def _open_sample(source: Source, split: str) -> Opened:
    from hfadapt.core import samples

    sample = samples.dataset(source.source.removeprefix(SAMPLE))
    about: dict[str, Any] = {"sha256": sample.sha256, "license": sample.license, "citation": sample.citation}
    about.update(url=sample.url, language=sample.language, revision=f"{sample.package} {sample.version}")
    fingerprint = f"{sample.sha256}:{sample.name}:{reading.content_hash([sample.path])}"
    return Opened(
        source.source, lambda: numbered_rows(source.source, [sample.path]), fingerprint, source, split, {}, about
    )


def _open_local(source: Source, path: Path, split: str) -> Opened:
    found, name = folders.chosen(path, source.split), source.source
    files = list(found.data)
    if source.split:
        name = f"{name}:{source.split}"
    labels: dict[str, tuple[str, ...]] = {}
    for file in files:
        if suffix(file) in (".parquet", ".arrow"):
            labels.update(tables.label_names(file))
    noticed = []
    if found.left:
        what = f"{name}: left out as no data: {some(each.name for each in found.left)}"
        fix = "nothing; if they are data, name them as sources or by a pattern such as *.txt"
        noticed.append(Finding(code=LEFT_OUT, level="soft", message=what, fix=fix))
    if found.lists and found.others and not (source.split or split):
        what = f"{name}: what is {' and '.join(found.others)} is said by {some(each.name for each in found.lists)}"
        noticed.append(Finding(code="split-lists", level="soft", message=what, fix="nothing"))
    if found.foreign:
        names = media.names_of([*found.foreign, *files])
        doubt = not_read([names[each] for each in found.foreign], [names[each] for each in files])
        noticed.append(_as_finding(doubt, name))
    noticed += _encodings(name, files, source.encoding)
    sha256 = reading.content_hash([*files, *filter(None, map(plain_text.entities_of, files))])
    return Opened(
        name,
        lambda: numbered_rows(name, files, source.split, source.encoding),
        sha256,
        source,
        split,
        labels,
        {"sha256": sha256},
        noticed=tuple(noticed),
        splits=reading.split_names(path) if path.is_file() else {each: each for each in found.others},
        loose=any(suffix(file) in (".jsonl", ".ndjson", ".json") for file in files),
        named=folders.named_below(path if path.is_dir() else files[0]),
    )


def _encodings(name: str, files: Sequence[Path], told: str | None) -> list[Finding]:
    """As what texts are read that are not plainly UTF-8: what the recipe says, or the zeros between their letters."""
    if told:
        what = f"{name}: read as {told}, as the recipe says"
        return [Finding(code="encoding", level="soft", message=what, fix="nothing, where its letters are right")]
    found: dict[str, list[str]] = {}
    for file in files:
        if suffix(file) in (*folders.suffixes(),) and suffix(file) not in (".parquet", ".arrow", *arrays.ENDINGS):
            with suppress(DataError, OSError):
                if (encoding := unmarked(file)) is not None:
                    found.setdefault(encoding, []).append(file.name)
    return [
        Finding(
            code="encoding",
            level="soft",
            message=f"{name}: {some(names)} read as {encoding}, which the zeros between the letters tell",
            fix="nothing, where its letters are right",
        )
        for encoding, names in found.items()
    ]


def _as_finding(doubt: Doubt, place: str) -> Finding:
    return Finding(code=doubt.code, level="soft", message=f"{place}: {doubt.detail}", fix=doubt.fix)


def numbered_rows(name: str, files: Sequence[Path], split: str | None = None, encoding: str | None = None) -> Reading:
    """Rows of all files, numbered through from 0; of files that hold splits, those of one.

    Args:
        encoding: As which texts were saved, where the recipe says so.
    """
    if any(media.holds(path) for path in files[:1]):
        for row in media.read(files):
            if isinstance(row, Doubt):
                yield _as_finding(row, name)
            else:
                yield Dropped(Place(name, row.row), row.reason, detail=row.detail) if isinstance(row, Unread) else row
        return
    first, doubts = 0, Counter[str]()
    # A person does not see the file of a sample, so its lines mean nothing.
    seen = not name.startswith(SAMPLE)
    for path in files:
        count = 0
        in_file = path.name if len(files) > 1 or PurePath(name).name != path.name else ""
        for item in reading.rows(path, split, encoding):
            if isinstance(item, Doubt):
                doubts[item.code] += 1
                if doubts[item.code] <= DOUBTS_SHOWN:
                    yield _as_finding(item, f"{name}: {path.name}" if len(files) > 1 else name)
                continue
            place = Place(name, first + item.row, item.line, in_file) if seen else Place(name, first + item.row)
            if isinstance(item, Unread):
                yield Dropped(place, item.reason, detail=item.detail)
            else:
                yield Read(place.row, item.values, place.line, place.in_file, path.parent)
            count += 1
        first += count
    for code, count in doubts.items():
        if count > DOUBTS_SHOWN:
            more = f"{name}: the same is true of {count - DOUBTS_SHOWN:,} other files"
            yield Finding(code=code, level="soft", message=more, fix="as above")


def open_hub(source: Source, *, split: str = "", streaming: bool = False) -> Opened:
    """A data set of the Hub, or anything else that `datasets.load_dataset` takes.

    Raises:
        DataError: it cannot be reached, or there is no such config or split.
    """
    import datasets

    wanted = source.split or "train"
    try:
        with quiet_libraries():
            data = datasets.load_dataset(
                source.source, source.config, split=wanted, revision=source.revision, streaming=streaming
            )
    except Exception as error:  # the library raises many kinds, all of them about the request
        raise DataError(
            "the data set cannot be loaded from the Hub, and there is no local file of that name",
            place=source.source,
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            allowed="a Hub data set id with an existing config and split, a local path, or sample:NAME",
            fix="check the id, config and split, or the connection to the Hub",
        ) from None
    features = data.features or {}
    for column, feature in features.items():
        if isinstance(feature, (datasets.Image, datasets.Audio)):
            # As files: hfadapt opens them itself.
            data = data.cast_column(column, type(feature)(decode=False))
    elements = {column: getattr(feature, "feature", feature) for column, feature in features.items()}
    labels = {
        column: tuple(feature.names)
        for column, feature in elements.items()
        if isinstance(feature, datasets.ClassLabel) and feature.names
    }
    info = data.info
    about: dict[str, Any] = {"license": info.license or None, "citation": (info.citation or "").strip() or None}
    about.update(url=info.homepage or None, revision=source.revision or _hub_revision(source.source))
    fingerprint = getattr(data, "_fingerprint", None) or f"{source.source}@{about['revision']}"
    name = f"{source.source}:{source.split}" if source.split else source.source
    return Opened(
        name,
        lambda: (Read(i, dict(values)) for i, values in enumerate(data)),
        str(fingerprint),
        source,
        split,
        labels,
        about,
    )


def _hub_revision(dataset_id: str) -> str | None:
    """The commit that was read, or None when the Hub does not answer."""
    if Path(dataset_id).exists():
        return None
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(dataset_id, timeout=5).sha
    except Exception:  # offline, private, rate-limited: the revision stays unknown
        return None
