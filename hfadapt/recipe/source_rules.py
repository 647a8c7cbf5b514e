"""Whether the model, the files and the columns that a recipe names exist: offline, from names and heads of files."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from hfadapt.core import registry, samples
from hfadapt.core.errors import DataError, nearest
from hfadapt.files import folders, media, sheets
from hfadapt.files.reading import column_names
from hfadapt.recipe.names import is_metric_path, is_task_path
from hfadapt.recipe.pretrain_rules import pretrain_places
from hfadapt.recipe.rules import PLACEHOLDER, brace_fault, template_of, texts
from hfadapt.recipe.schema import PATTERNS
from hfadapt.recipe.sources import (
    HUB_ID,
    MODEL_ID,
    SAMPLE,
    expanded,
    is_glob,
    looks_local,
    resolve_source,
)
from hfadapt.recipe.words import dig, show
from hfadapt.recipe.yaml_lines import Keys, Tree

MODELS = "a Hub id such as owner/name or owner/name@revision, a folder with config.json, a .gguf file, or sample:NAME"
SOURCES = "a file, folder or glob, a Hub data set id such as owner/name, or sample:NAME"
PARTS = ("text", "label", "prompt", "completion", "messages")
SPLITS = ("train", "validation", "valid", "val", "dev", "test")


def check_sources(tree: Tree, recipe_folder: Path, domains: Collection[str] | None = None) -> None:
    """Reports a model, files or columns that do not exist.

    Args:
        tree: The recipe's values; problems go here.
        recipe_folder: Where relative paths begin.
        domains: Whose sources have to exist; by default those of all domains.
    """
    check_model(tree, recipe_folder)
    check_model(tree, recipe_folder, ("student", "base"))
    _Texts(tree, recipe_folder, ("student", "texts")).check()
    check_evaluation(tree, recipe_folder)
    every = dig(tree, ("domains",))
    for name in every if isinstance(every, Mapping) else ():
        if domains is None or name in domains:
            _Domain(tree, recipe_folder, name).check()
    for keys in pretrain_places(tree):
        if domains is None or keys[0] != "domains" or keys[1] in domains:
            for part in ("sources", "general"):
                _Texts(tree, recipe_folder, (*keys, part)).check()


def local_model(model: str, recipe_folder: Path) -> str:
    """A local model as the working directory sees it; anything else unchanged."""
    if model.startswith(samples.PREFIX):
        return model
    path = resolve_source(model, recipe_folder)
    if path is None or path.resolve() == expanded(model).resolve():
        return model
    return os.path.relpath(path)


def check_model(tree: Tree, recipe_folder: Path, keys: Keys = ("model",)) -> None:
    """A model must be a known sample, an existing folder or GGUF file, or look like a Hub id.

    Args:
        keys: Where it is named.
    """
    model = dig(tree, keys)
    if not isinstance(model, str):
        return
    found = None if model.startswith(samples.PREFIX) else resolve_source(model, recipe_folder)
    local = model.startswith((".", "/", "~")) or model.endswith(".gguf") or "\\" in model

    def refuse(what: str, fix: str) -> None:
        tree.report(keys, what, got=show(model), allowed=MODELS, fix=fix)

    if model.startswith(samples.PREFIX):
        name = model.removeprefix(samples.PREFIX)
        if name not in samples.models():
            _refuse_sample(tree, keys, name, samples.models(), "model")
    elif found is not None and found.is_dir():
        adapter = any((found / part / "adapter_config.json").is_file() for part in ("", "adapter"))
        # What else the folder holds is said where the model is looked at.
        if not (found / "config.json").is_file() and not adapter:
            inner = sorted(path.parent.name for path in found.glob("*/config.json"))
            fix = f"name {model.rstrip('/')}/{inner[-1]}" if inner else "name the folder that `save_pretrained` wrote"
            refuse("the model's folder holds no config.json", fix)
    elif found is not None:
        if found.suffix != ".gguf":
            refuse("a model file must be a .gguf file", "name the model's folder, or a .gguf file")
    elif "://" in model:
        short = re.sub(r"^.*?://[^/]+/", "", model).strip("/")
        refuse("a model is not given by its address", f"write `{keys[-1]}: {short}`")
    elif (recipe_folder / expanded(model)).is_symlink():
        refuse("this link leads to nothing", "make it again, or name the folder itself")
    elif local or model.count("/") > 1:
        refuse("there is no such model here", _near_path(model, recipe_folder) or "check the path")
    elif model in samples.models():
        refuse("a sample model needs its prefix", f"write `{keys[-1]}: {samples.PREFIX}{model}`")
    elif not MODEL_ID.fullmatch(model):
        refuse("not a valid model name", "write a Hub id as owner/name, without spaces")


def check_evaluation(tree: Tree, recipe_folder: Path) -> None:
    """Metrics and harness tasks that are paths must be there, and lm-evaluation-harness installed where it is used."""
    paths = {"metrics": is_metric_path, "harness": is_task_path}
    for section, is_path in paths.items():
        listed = dig(tree, ("evaluate", section))
        for index, name in enumerate(listed if isinstance(listed, list) else ()):
            if isinstance(name, str) and is_path(name) and resolve_source(name, recipe_folder) is None:
                tree.report(
                    ("evaluate", section, index),
                    "there is no such file",
                    got=show(name),
                    allowed="a file or folder beside the recipe or in the working directory",
                    fix=_near_path(name, recipe_folder) or "check the path",
                )
    task = dig(tree, ("task",))
    generates = task in registry.names("tasks") and registry.task(str(task)).writes
    if generates and dig(tree, ("evaluate", "harness")) and importlib.util.find_spec("lm_eval") is None:
        tree.report(
            ("evaluate", "harness"),
            "lm-evaluation-harness is not installed",
            got=show(dig(tree, ("evaluate", "harness"))),
            allowed="its tasks, once it is installed",
            fix="pip install 'hfadapt[harness]'",
        )


def _refuse_sample(tree: Tree, at: Keys, name: str, known: tuple[str, ...], kind: str) -> None:
    close = nearest(name, known)
    allowed = ", ".join(f"{SAMPLE}{each}" for each in known)
    fix = f"did you mean {SAMPLE + close!r}?" if close else "use one of the allowed samples"
    tree.report(at, f"there is no sample {kind} of that name", got=show(SAMPLE + name), allowed=allowed, fix=fix)


def _near_path(name: str, recipe_folder: Path) -> str | None:
    """A neighbour with a similar name, beside the recipe or in the working directory."""
    wanted = expanded(name)
    for start in (recipe_folder, Path.cwd()):
        folder = (start / wanted).parent
        try:
            names = [path.name for path in folder.iterdir()]
        except OSError:
            continue
        close = nearest(wanted.name, names)
        if close:
            return f"did you mean {str(Path(name).with_name(close))!r}?"
    return None


class _Domain:
    """The sources of one domain, its given splits included."""

    def __init__(self, tree: Tree, recipe_folder: Path, domain: str) -> None:
        self.tree, self.folder, self.name = tree, recipe_folder, domain
        value = dig(tree, ("domains", domain))
        self.keys: Keys = ("domains", domain)
        self.domain: Mapping[str, Any] = value if isinstance(value, Mapping) else {"source": value}
        self.places: dict[tuple[object, str], Keys] = {}

    def check(self) -> None:
        """Reports what is missing, empty, named twice, or without the columns that are asked for."""
        entries = list(self.entries())
        for keys, entry in entries:
            self.check_source(keys, entry)
            self.once(keys, entry)
        for split in ("validation", "test"):
            given = self.domain.get(split)
            if isinstance(given, str):
                self.check_given(split, given, entries)

    def entries(self) -> Iterator[tuple[Keys, Mapping[str, Any]]]:
        several = self.domain.get("sources")
        if isinstance(several, list):
            for index, each in enumerate(several):
                entry = each if isinstance(each, Mapping) else {"source": each}
                if isinstance(entry.get("source"), str):
                    yield (*self.keys, "sources", index), entry
        elif isinstance(self.domain.get("source"), str):
            yield self.keys, self.domain

    def check_source(self, keys: Keys, entry: Mapping[str, Any]) -> None:
        at: Keys = (*keys, "source")
        path = self.find(at, entry["source"])
        sample = entry["source"].startswith(SAMPLE)
        if path is None and entry.get("encoding"):
            fix = "delete `encoding`"
            self.refuse((*keys, "encoding"), "`encoding` is for files on this machine", entry["encoding"], "", fix)
        if path is None and not sample:
            return
        for key in ("config", "revision", *(("split",) if sample else ())):
            if entry.get(key):
                self.refuse((*keys, key), f"`{key}` is for data sets of the Hub", entry[key], "", f"delete `{key}`")
        if path is None:
            return
        if entry.get("split") and not folders.may_have_splits(path):
            allowed = "a folder of files called train…, validation… and test…, a JSON file of them, a workbook, the Hub"
            self.refuse((*keys, "split"), "a local file has no named splits", entry["split"], allowed, "delete `split`")
        known = sheets.names(path) if path.is_file() else {}
        if known and entry.get("split") and entry["split"] not in known:
            allowed, fix = ", ".join(known), f"name one of its sheets, such as split: {next(iter(known))}"
            self.refuse((*keys, "split"), "the workbook has no such sheet", entry["split"], allowed, fix)
            return
        files = folders.find(path).data
        if not files:
            self.refuse_file(at, folders.unreadable(path))
            return
        if unread := next(filter(None, map(sheets.missing, files)), None):
            self.refuse_file(at, unread)
            return
        # Of images and recordings each is a row, which is left out and named.
        tables = [file for file in files if file.suffix.lower() not in media.suffixes()]
        empty = next((file for file in tables if file.stat().st_size == 0), None)
        if empty is not None:
            self.refuse(at, "the file is empty", str(empty.name), "a file with rows", "check how it was made")
        filled = [file for file in files if file.is_file() and file.stat().st_size]
        if filled:
            trained = [file for file in filled if file.name.lower().startswith("train")]
            self.check_columns(
                keys, entry, column_names((trained or filled)[0], entry.get("encoding"), entry.get("split"))
            )

    def refuse_file(self, at: Keys, error: DataError) -> None:
        problem = error.problems[0]
        self.tree.report(at, problem.what, got=problem.got or problem.place, allowed=problem.allowed, fix=problem.fix)

    def find(self, at: Keys, source: str) -> Path | None:
        """The local path of a source, or None; reports one that can be nothing."""
        path = resolve_source(source, self.folder)
        if path is not None:
            return path
        if source.startswith(SAMPLE):
            name = source.removeprefix(SAMPLE)
            if name not in samples.datasets():
                _refuse_sample(self.tree, at, name, samples.datasets(), "data set")
        elif is_glob(source):
            self.refuse(at, "no file matches the pattern", source, SOURCES, "check the pattern")
        elif "://" in source:
            own = source.removeprefix("file://")
            fix = f"write {own}" if own != source else "download it, or use its Hub id"
            self.refuse(at, "a source is not given by its address", source, SOURCES, fix)
        elif (self.folder / expanded(source)).is_symlink():
            self.refuse(at, "this link leads to nothing", source, SOURCES, "make it again, or name the file itself")
        elif looks_local(source):
            starts = " or ".join(dict.fromkeys(str(each.resolve()) for each in (self.folder, Path())))
            fix = _near_path(source, self.folder) or f"check the path; it starts in {starts}"
            self.refuse(at, "there is no such file", source, SOURCES, fix)
        elif not HUB_ID.fullmatch(source):
            self.refuse(at, "not a valid source", source, SOURCES, "check the name")
        return None

    def check_columns(self, keys: Keys, entry: Mapping[str, Any], names: tuple[str, ...] | None) -> None:
        columns = entry.get("columns")
        asked = columns if isinstance(columns, Mapping) else {}
        if names is None:
            return
        for part, name in asked.items():
            if isinstance(name, str) and name not in names and part not in PATTERNS:
                self.refuse_column((*keys, "columns", part), f"there is no column for {part}", name, names)
        found = template_of(self.tree, self.name)
        for at, text, _ in texts(*found) if found else ():
            if brace_fault(text):
                continue
            for field in dict.fromkeys(PLACEHOLDER.findall(text)):
                if field not in names and field not in PARTS:
                    what = f"the template's {{{field}}} is no column of {entry['source']}"
                    self.refuse_column(at, what, field, names)

    def refuse_column(self, at: Keys, what: str, name: str, names: tuple[str, ...]) -> None:
        close = nearest(name, names)
        self.refuse(at, what, name, ", ".join(names), f"did you mean {close!r}?" if close else "use an existing column")

    def check_given(self, split: str, given: str, entries: list[tuple[Keys, Mapping[str, Any]]]) -> None:
        """A given split is the name of one of the source's own splits, or a source."""
        at: Keys = (*self.keys, split)
        if len(entries) == 1 and re.fullmatch(r"[A-Za-z_][\w.-]*(\[[^\]]*\])?", given):
            source = entries[0][1]["source"]
            own = resolve_source(source, self.folder)
            if resolve_source(given, self.folder) is None:
                if source.startswith(SAMPLE) or (own is not None and not folders.may_have_splits(own)):
                    if given in SPLITS:
                        fix = f"delete `{split}`: hfadapt makes the split by itself, or name a file"
                        self.refuse(at, "the source has no named splits", given, "a file or another source", fix)
                        return
                else:
                    self.once(at, {"source": source, "split": given})
                    return
        self.find(at, given)
        self.once(at, {"source": given})

    def once(self, at: Keys, entry: Mapping[str, Any]) -> None:
        """Rows that are trained on cannot measure what was learned."""
        source = entry["source"]
        path = resolve_source(source, self.folder)
        split = entry.get("split") or ("train" if path is None else folders.usual_split(path))
        identity = (path.resolve() if path is not None else source, str(split))
        first = self.places.setdefault(identity, at)
        if first == at:
            return
        role, other = (str(keys[-1]) if keys[-1] in ("validation", "test") else "training" for keys in (at, first))
        same = "named twice" if role == other else f"also the {other} data"
        self.refuse(
            at,
            f"the {role} data is {same}",
            source,
            "different data for training, validation and test",
            f"delete `{role}`: hfadapt makes the split by itself" if role != "training" else "delete one of them",
        )

    def refuse(self, at: Keys, what: str, got: object, allowed: str, fix: str) -> None:
        self.tree.report(at, what, got=show(got), allowed=allowed or None, fix=fix)


class _Texts(_Domain):
    """Sources of texts without labels."""

    def __init__(self, tree: Tree, recipe_folder: Path, keys: Keys) -> None:
        super().__init__(tree, recipe_folder, "")
        self.keys = keys

    def entries(self) -> Iterator[tuple[Keys, Mapping[str, Any]]]:
        """Each with its place."""
        listed = dig(self.tree, self.keys)
        for index, each in enumerate(listed if isinstance(listed, list) else ()):
            if isinstance(each, Mapping) and isinstance(each.get("source"), str):
                yield (*self.keys, index), each

    def check_columns(self, keys: Keys, entry: Mapping[str, Any], names: tuple[str, ...] | None) -> None:
        """The column of the text, where it is named."""
        name = entry.get("column")
        if names is not None and isinstance(name, str) and name not in names:
            self.refuse_column((*keys, "column"), "there is no column for text", name, names)
