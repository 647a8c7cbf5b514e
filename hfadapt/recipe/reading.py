"""Recipe files: reading with every problem reported at once, overrides from the command line, and writing.

Reading goes file → tree of values with their lines (`yaml_lines`) → fields in words (`recipe_words`) → combinations
(`recipe_checks`) and existing files (`source_checks`). It is offline, and imports neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from yaml import YAMLError

from hfadapt.core.errors import RecipeError, nearest
from hfadapt.core.spec import write_text
from hfadapt.files.folders import TABLES
from hfadapt.hardware import catalogue
from hfadapt.recipe.augment_rules import check_augment
from hfadapt.recipe.budget_rules import check_budgets, settle_targets
from hfadapt.recipe.fast import fast_parts
from hfadapt.recipe.names import listed
from hfadapt.recipe.objective_rules import check_objective
from hfadapt.recipe.pretrain_rules import check_pretrain
from hfadapt.recipe.rules import check_settings
from hfadapt.recipe.schema import Recipe
from hfadapt.recipe.search_rules import check_search, check_tried
from hfadapt.recipe.source_rules import check_sources, local_model
from hfadapt.recipe.sources import folder_of, resolve_source
from hfadapt.recipe.words import dig, dotted, show, validate
from hfadapt.recipe.yaml_lines import LIMIT_BYTES, Keys, Place, Tree, dump, inline, read_into

__all__ = ["load_recipe", "resolve_source", "save_recipe"]

Asked = Recipe | str | Path | Mapping[str, Any]
"""A recipe, the path of its file, or what would stand in one."""
COMMAND_LINE = "command line"
IN_MEMORY = "recipe"
"""How a recipe that is no file is called."""
_AFTER_FILE = 1 << 40


def load_recipe(
    path: str | Path | Mapping[str, Any],
    overrides: str | Sequence[str] | Mapping[str, Any] = (),
    *,
    domains: str | Sequence[str] | None = None,
    targets: str | Sequence[str] | None = None,
) -> Recipe:
    """Reads a recipe and reports everything that is wrong with it at once.

    Args:
        path: The YAML file, or what would stand in one, as a dict. Relative sources and models are looked for beside
            the file, then in the working directory.
        overrides: Settings such as `train.epochs=3` or `domains.tweets.source=./x.csv`, where the value is YAML; or a
            dict such as `{"train.epochs": 3}`.
        domains: Only these domains are done (`Recipe.choose`); all when empty. With `data.dedupe.across_domains` the
            sources of the others have to be there all the same, as rows are compared with theirs.
        targets: These targets of the catalogue instead of the recipe's.

    Raises:
        RecipeError: the file cannot be read, or holds unknown keys, bad values, impossible combinations, or names of
            files, columns or samples that do not exist; `problems` has all of them, sorted by line.

    Example:
        >>> from hfadapt import load_recipe
        >>> recipe = load_recipe("sentiment.yaml", ["train.epochs=1"], domains=["tweets"])
        >>> recipe.train.epochs, recipe.cells()
        (1.0, [('tweets', 'this-machine')])
    """
    if isinstance(path, Mapping):
        tree, path = _told(path), Path(f"{IN_MEMORY}.yaml")
    else:
        path = Path(path)
        tree = _read(path)
    if "name" not in tree.values:
        tree.values["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:64] or "recipe"
    if isinstance(made := tree.values.get("base"), dict) and "made_by" in made:
        # A lock is a recipe too, but that is no setting: the stage that made its base makes it again.
        del tree.values["base"]
        tree.drop(("base",))
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={inline(_plain(value))}" for key, value in overrides.items()]
    for index, override in enumerate(listed(overrides)):
        _override(tree, override, Place(_AFTER_FILE + index, f"{COMMAND_LINE}: {override}"))
    settle_targets(tree)
    chosen = _choose(tree, listed(domains), listed(targets))
    check_tried(tree)
    recipe = validate(tree, Recipe)
    if recipe is not None:
        # Numbers in quotes and domains given as one word are now in the form that the checks compare.
        tree.values = recipe.model_dump(mode="json", exclude_unset=True)
    check_settings(tree)
    check_pretrain(tree)
    check_objective(tree)
    check_augment(tree)
    check_budgets(tree)
    check_search(tree)
    alone = recipe is not None and not recipe.data.dedupe.across_domains
    check_sources(tree, folder_of(path), chosen if chosen and alone else None)
    _raise_problems(tree)
    assert recipe is not None
    placed: dict[str, Any] = {"model": local_model(recipe.model, folder_of(path))}
    if recipe.student is not None and recipe.student.base is not None:
        base = local_model(recipe.student.base, folder_of(path))
        placed["student"] = recipe.student.model_copy(update={"base": base})
    found = recipe.model_copy(update=placed).choose(tuple(chosen))
    written = {dotted(keys): place.text for keys, place in tree.places.items() if keys}
    return found if tree.name == IN_MEMORY else found.read_from(folder_of(path), written)


def as_recipe(recipe: Asked) -> Recipe:
    """A recipe itself; else what `load_recipe` makes of a file's path, or of a dict."""
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def save_recipe(recipe: Recipe, path: str | Path, header: str = "", *, full: bool = False) -> Path:
    """Writes a recipe, or a lock, as YAML that reads back equal; atomically.

    Args:
        recipe: What to write.
        path: The file; its folder is made when missing.
        header: Comment above it, without `#`.
        full: Every setting, not only those that differ from their defaults.

    Example:
        >>> from hfadapt import load_recipe, save_recipe
        >>> path = save_recipe(load_recipe("sentiment.yaml", ["train.epochs=1"]), "other.yaml", "One epoch.")
        >>> path.read_text().splitlines()[0]
        '# One epoch.'
    """
    values = recipe.model_dump(mode="json", exclude_defaults=not full, exclude_none=True)
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    write_text(Path(path), comment + dump(values))
    return Path(path)


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> Tree:
    """The file as a tree whose values are a mapping; anything less is raised here, since no check could follow."""
    tree = Tree(str(path))
    if path.suffix.lower() in TABLES and path.is_file():
        fix = f"hfadapt new {quote(str(path))} writes a recipe for it"
        raise RecipeError("this is a file of rows, not a recipe", place=str(path), allowed="a YAML file", fix=fix)
    content = _content(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            "the recipe is not UTF-8 text",
            place=tree.line(line).text,
            got=f"byte 0x{content[error.start]:02x}",
            allowed="UTF-8",
            fix="save the file as UTF-8",
        ) from None
    tree.values = read_into(tree, text)
    if isinstance(tree.values, dict):
        return tree
    if not tree.found:
        example = "model: sample:minilm-l6, task: text-classification, domains: {mine: {source: data.csv}}"
        what = "the recipe is empty" if tree.values is None else "the recipe is not a list of `key: value` lines"
        tree.report((), what, got=show(tree.values), allowed="`key: value` lines", fix=f"start with {example}")
    _raise_problems(tree)
    raise AssertionError("a file without values has a problem")


def _told(values: Mapping[str, Any]) -> Tree:
    """What a dict holds as the tree of a file that has no name and no lines."""
    tree = Tree(IN_MEMORY)
    try:
        tree.values = read_into(tree, dump(_plain(values)))
    except YAMLError as error:
        fix = "use texts, numbers, lists and dicts; a table goes into a file, such as data.to_parquet('rows.parquet')"
        raise RecipeError("a value cannot stand in a recipe", place=IN_MEMORY, got=str(error)[:200], fix=fix) from None
    tree.places = {keys: place._replace(text=dotted(keys) or IN_MEMORY) for keys, place in tree.places.items()}
    tree.places.setdefault((), Place(1, IN_MEMORY))
    _raise_problems(tree)
    return tree


def _plain(value: Any) -> Any:
    """Without the types that Python has beyond those of YAML."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(LIMIT_BYTES + 1)
    except IsADirectoryError:
        fix = f"name the .yaml file in it; of a folder of data hfadapt new {quote(str(path))} makes one"
        raise RecipeError("the recipe is a folder", place=str(path), fix=fix) from None
    except FileNotFoundError:
        names = [each.name for each in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        close = nearest(path.name, names) or nearest(f"{path.name}.yaml", names)
        raise RecipeError(
            "there is no such recipe",
            place=str(path),
            allowed=", ".join(sorted(names)[:12]) or "a YAML file",
            fix=f"did you mean {str(path.with_name(close))!r}?" if close else "check the path",
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError("the recipe cannot be read", place=str(path), got=reason, fix="check the file") from None
    if len(content) > LIMIT_BYTES:
        raise RecipeError(
            "the file is too large for a recipe",
            place=str(path),
            got=f"more than {LIMIT_BYTES >> 20} MiB",
            allowed=f"at most {LIMIT_BYTES >> 20} MiB",
            fix="check that this is the recipe, not a data file",
        )
    return content


def _raise_problems(tree: Tree) -> None:
    problems = tree.problems()
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError(f"{tree.name} has {count}", problems=problems)


# --- the command line ------------------------------------------------------------------------------------------------


def _override(tree: Tree, override: str, place: Place) -> None:
    """Puts `train.epochs=3` into the tree, as if the file said it."""
    path, sign, text = override.partition("=")
    parts = path.strip().split(".")
    if not sign or not all(parts) or any(part != part.strip() for part in parts):
        _malformed(tree, place, "an override is KEY=VALUE", override)
        return
    if not text.strip():
        _malformed(tree, place, "the override gives no value", override)
        return
    keys = _keys(tree, parts)
    parent: Any = tree.values
    for depth, key in enumerate(keys[:-1]):
        inner = parent.get(key) if isinstance(parent, dict) else parent[key]
        if inner is None:
            inner = {}
        elif depth == 1 and keys[0] == "domains" and isinstance(inner, str):
            inner = {"source": inner}
        elif keys[: depth + 1] == ("train", "fast") and isinstance(inner, bool):
            inner = fast_parts(inner)
        if not _reaches(inner, keys[depth + 1]):
            fix = f"give `{dotted(keys[: depth + 1])}` as a whole"
            tree.report(place, f"`{dotted(keys[: depth + 1])}` has no settings below it", got=show(inner), fix=fix)
            return
        if dig(tree, keys[: depth + 1]) is None:
            tree.places[keys[: depth + 1]] = place
        parent[key] = inner
        parent = inner
    tree.drop(keys)
    tree.places[keys] = place
    before = len(tree.found)
    value = read_into(tree, text.strip(), keys, place)
    if len(tree.found) > before:
        tree.broken.add(keys)
    parent[keys[-1]] = value


def _malformed(tree: Tree, place: Place, what: str, override: str) -> None:
    fix = "write it such as train.epochs=3 or 'targets=[t4, l4]'"
    tree.report(place, what, got=show(override), allowed="KEY=VALUE with dots between sections", fix=fix)


def _keys(tree: Tree, parts: list[str]) -> Keys:
    """The path that is meant: names of domains may contain dots, and numbers are places in a list."""
    keys: list[str | int] = []
    while parts:
        known = dig(tree, tuple(keys))
        size = 1
        if keys == ["domains"] and isinstance(known, dict):
            size = next((end for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in known), 1)
        key = ".".join(parts[:size])
        keys.append(int(key) if isinstance(known, list) and key.isdecimal() else key)
        parts = parts[size:]
    return tuple(keys)


def _reaches(value: Any, key: str | int) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and isinstance(key, int) and key < len(value))


def _choose(tree: Tree, domains: Sequence[str], targets: Sequence[str]) -> frozenset[str]:
    """Narrows the matrix; the names of the chosen domains, none when all are."""
    listed = tree.values.get("domains")
    names = list(listed) if isinstance(listed, dict) else []
    for index, domain in enumerate(domains):
        if names and domain not in names:
            place = Place(2 * _AFTER_FILE + index, f"{COMMAND_LINE}: --domain {domain}")
            _unknown(tree, place, "there is no domain of that name in the recipe", domain, names)
    unique = list(dict.fromkeys(targets))
    known = catalogue.names()
    for index, target in enumerate(unique):
        if target not in known:
            place = Place(3 * _AFTER_FILE + index, f"{COMMAND_LINE}: --target {target}")
            _unknown(tree, place, "there is no target of that name", target, known)
    if unique and all(target in known for target in unique):
        tree.drop(("targets",))
        tree.values["targets"] = unique
    return frozenset(domains).intersection(names)


def _unknown(tree: Tree, place: Place, what: str, name: str, known: Sequence[str]) -> None:
    close = nearest(name, known)
    fix = f"did you mean {close!r}?" if close else f"use one of: {', '.join(known)}"
    tree.report(place, what, got=show(name), allowed=", ".join(known), fix=fix)
