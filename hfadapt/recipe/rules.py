"""Which settings of a recipe exclude each other; every entry says why and what to do instead.

Every check reads the values leniently and stays silent about what it does not understand, so that it also works on a
recipe with other faults.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError

from hfadapt.core import registry
from hfadapt.core.errors import nearest
from hfadapt.recipe.names import AUTO, TEXT_METRICS, gate_names, is_metric_path, metric_names
from hfadapt.recipe.schema import CLASSES, GROUPING, PATTERNS, Columns, Lock
from hfadapt.recipe.words import dig, dotted, show
from hfadapt.recipe.yaml_lines import Keys, Tree

PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
# As Jinja writes it; JSON in a template has more than a name between its braces.
_DOUBLE = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_METRIC = re.compile(r"[a-z][a-z0-9_]*")


def check_settings(tree: Tree) -> None:
    """Reports settings that cannot be together, whatever the files hold."""
    check_names(tree)
    for rule in RULES:
        for at in rule.finds(tree):
            tree.report(at, rule.what, got=_together(tree, at, rule.beside), allowed=rule.allowed, fix=rule.fix)
    check_method(tree)
    check_task(tree)
    check_metrics(tree)
    check_task_settings(tree)
    check_template_texts(tree)


# --- names -----------------------------------------------------------------------------------------------------------


RUN_FILES = ("report.json", "report.md", "report.html", "transfer.json", "error.log", "trackers")
"""Beside the domains' folders."""


def check_names(tree: Tree) -> None:
    """Names that become folders or classes must differ."""
    seen: dict[str, str] = {}
    for name in _section(tree, "domains"):
        other = seen.setdefault(name.lower(), name)
        if other != name:
            tree.report(
                ("domains", name),
                "two domains differ only in capital letters, so their folders can collide",
                got=f"{other} and {name}",
                allowed="names that differ in lower case too",
                fix=f"rename one, such as {name}-2",
            )
        if name.lower() in RUN_FILES:
            tree.report(
                ("domains", name),
                "a run has a file of this name where the domain's folder would be",
                got=name,
                allowed=f"any name but {', '.join(RUN_FILES)}",
                fix=f"rename it, such as {PurePath(name).stem}-texts",
            )
    lists: list[Keys] = [("targets",), *(("domains", name, "labels") for name in _section(tree, "domains"))]
    for keys in lists:
        values = dig(tree, keys)
        if not isinstance(values, list):
            continue
        for index, value in enumerate(values):
            if isinstance(value, str) and value in values[:index]:
                tree.report(
                    (*keys, index),
                    f"{value!r} is named twice in `{dotted(keys)}`",
                    got=show(values),
                    allowed="every name once",
                    fix="delete one of them",
                )


# --- settings that exclude each other --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """One impossible combination.

    Args:
        finds: Yields the paths at which it occurs.
        what: The reason why it cannot be.
        allowed: What could be there.
        fix: The next thing to do.
        beside: Paths to show along with the one found.
    """

    finds: Callable[[Tree], Iterator[Keys]]
    what: str
    allowed: str
    fix: str
    beside: tuple[Keys, ...] = ()


def _together(tree: Tree, at: Keys, beside: tuple[Keys, ...]) -> str:
    return ", ".join(f"{dotted(keys)}: {show(dig(tree, keys))}" for keys in dict.fromkeys((at, *beside)))


def _batch(tree: Tree) -> Iterator[Keys]:
    whole, part = _number(tree, "train", "batch_rows"), _number(tree, "train", "micro_batch_rows")
    if whole is not None and part is not None and part > whole:
        yield ("train", "micro_batch_rows")


def _characters(tree: Tree) -> Iterator[Keys]:
    low, high = (_number(tree, "data", "clean", name) for name in ("min_characters", "max_characters"))
    if low is not None and high is not None and low > high:
        yield ("data", "clean", "min_characters")


def _shares(tree: Tree) -> Iterator[Keys]:
    given = {name: _number(tree, "data", name) for name in ("validation", "test")}
    shares = [0.1 if value is None else value for value in given.values()]
    if all(0 < share < 1 for share in shares) and sum(shares) >= 1:
        yield ("data", max(given, key=lambda name: given[name] or 0.0))


def _broken_counts(tree: Tree) -> Iterator[Keys]:
    for name in ("validation", "test"):
        value = _number(tree, "data", name)
        if value is not None and value > 1 and value != int(value):
            yield ("data", name)


def _beside_sources(tree: Tree) -> Iterator[Keys]:
    for name, domain in each_domain(tree):
        if domain.get("sources") not in (None, AUTO):
            for key in ("columns", "config", "split", "revision", "encoding", "rows"):
                if domain.get(key) not in (None, AUTO) and domain[key] != {}:
                    yield ("domains", name, key)


def _majority_of_a_stream(tree: Tree) -> Iterator[Keys]:
    if dig(tree, ("data", "streaming")) is True and dig(tree, ("data", "conflicts")) == "majority":
        yield ("data", "conflicts")


def _weights_of_a_stream(tree: Tree) -> Iterator[Keys]:
    if dig(tree, ("data", "streaming")) is True:
        for name, domain in each_domain(tree):
            sources = domain.get("sources")
            for index, each in enumerate(sources if isinstance(sources, list) else ()):
                if isinstance(each, Mapping) and each.get("weight", 1.0) != 1.0:
                    yield ("domains", name, "sources", index, "weight")


def _splits_of_a_stream(tree: Tree) -> Iterator[Keys]:
    if dig(tree, ("data", "streaming")) is True:
        yield from ((*at, "split") for at, columns in _columns(tree) if columns.get("split"))


RULES = (
    Rule(
        _batch,
        "the rows of one step are more than the rows of the whole batch",
        "micro_batch_rows ≤ batch_rows",
        "lower train.micro_batch_rows, or leave it out: the plan then chooses",
        (("train", "batch_rows"),),
    ),
    Rule(
        _characters,
        "no row can be that short and that long at once",
        "min_characters ≤ max_characters",
        "swap or correct the two",
        (("data", "clean", "max_characters"),),
    ),
    Rule(
        _shares,
        "validation and test together leave no rows to train on",
        "shares that add up to less than 1, or numbers of rows",
        "lower them, such as validation: 0.1 and test: 0.1",
        (("data", "validation"), ("data", "test")),
    ),
    Rule(
        _broken_counts,
        "a number of rows must be whole",
        "a share > 0 and < 1, or a whole number of rows ≥ 1",
        "write a share such as 0.1, or a number of rows such as 500",
    ),
    Rule(
        _beside_sources,
        "this describes one source, and the domain names several",
        "sources: [{source: ..., columns: {...}}, ...]",
        "put it on each entry of `sources`",
    ),
    Rule(
        _majority_of_a_stream,
        "a stream cannot count the labels of a text before it was read to its end",
        "drop (the first label stays), keep",
        "set data.conflicts: drop, or data.streaming: false",
        (("data", "streaming"),),
    ),
    Rule(
        _weights_of_a_stream,
        "a stream cannot thin a source by its weight before it was read to its end",
        "no weight",
        "take `rows` of the source instead, or set data.streaming: false",
        (("data", "streaming"),),
    ),
    Rule(
        _splits_of_a_stream,
        "a stream cannot know which splits a column has before it was read to its end",
        "splits in files of their own",
        "set data.streaming: false, or name the files in validation and test",
        (("data", "streaming"),),
    ),
)


def check_method(tree: Tree) -> None:
    """The adapter method must work on the base's storage, and have the settings that are given."""
    name, quant = dig(tree, ("adapter", "method")), dig(tree, ("quant",))
    if not isinstance(name, str) or name not in registry.names("adapters"):
        return
    method = registry.adapter(name)
    if quant in registry.names("quants") and not method.works_on(registry.quant(quant)):
        fitting = sorted(method.quants, key=lambda each: (registry.quant(each).quantised, each))
        tree.report(
            ("adapter", "method"),
            f"{name} does not work on a base stored as {quant}",
            got=f"adapter.method: {name} with quant: {quant}" + (f"; {method.reason}" if method.reason else ""),
            allowed=f"{name} with quant {' or '.join(fitting)}",
            fix=f"set quant: {fitting[0]}, or adapter.method: lora",
        )
    strange: tuple[str, ...] = () if method.low_rank else ("rank", "alpha", "dropout")
    strange += () if method.adapts_layers else ("modules", "layers")
    given = [key for key in strange if dig(tree, ("adapter", key)) not in (None, AUTO)]
    if given and not is_lock(tree):  # a lock answers every field, these too
        for key in given:
            tree.report(
                ("adapter", key),
                f"the method {name} takes no {key}",
                got=_together(tree, ("adapter", key), (("adapter", "method"),)),
                allowed="method alone",
                fix=f"delete `{key}`, or use a low-rank method such as lora",
            )


def check_task(tree: Tree) -> None:
    """Templates, labels and columns must be of a kind that the task learns from."""
    task = dig(tree, ("task",))
    if not isinstance(task, str) or task not in registry.names("tasks"):
        return
    schemas = [registry.schema(name) for name in sorted(registry.task(task).schemas)]
    writes = any(schema.writes for schema in schemas)
    parts = {part for schema in schemas for part in (*schema.parts, *schema.optional)}
    fits = [name for name in registry.names("tasks") if name != task]

    def refuse(at: Keys, what: str, fix: str) -> None:
        learns = ", ".join(" + ".join(schema.parts) for schema in schemas)
        allowed = f"{task} learns from {learns}; other tasks: {', '.join(fits) or 'none'}"
        tree.report(at, what, got=f"{dotted(at)} with task: {task}", allowed=allowed, fix=fix)

    def others(part: str) -> str:
        """The tasks that learn from such a column."""
        able = [name for name in fits if any(part in registry.schema(s).parts for s in registry.task(name).schemas)]
        return f", or use task: {able[0]}" if able else ""

    for at, _ in _templates(tree):
        if not writes:
            refuse(at, f"{task} writes no text, so a template has no use", f"delete the template{others('completion')}")
    for name, domain in each_domain(tree):
        if domain.get("labels") and not writes and all(schema.label_kind in ("none", "number") for schema in schemas):
            refuse(("domains", name, "labels"), f"{task} learns no labels", "delete `labels`")
    for at, columns in _columns(tree):
        templated = writes and template_of(tree, str(at[1])) is not None
        for part in Columns.model_fields:
            if not columns.get(part) or part in (*parts, *GROUPING, *PATTERNS) or (templated and part != CLASSES):
                continue
            if part == CLASSES:
                if templated or not any(schema.label_kind in ("class", "classes") for schema in schemas):
                    refuse((*at, part), f"{task} learns no classes from columns of 0 and 1", f"delete `{part}`")
                continue
            if writes:
                fix = "add a template, such as prompt: '{text}' and completion: ' {label}'"
                refuse((*at, part), f"{task} learns a {part} only through a template", fix)
            else:
                named = " and ".join(schemas[0].parts)
                refuse((*at, part), f"{task} does not learn from {part}", f"name the columns of {named}{others(part)}")


def check_metrics(tree: Tree) -> None:
    """Metrics must be known, or be paths; a gate needs a metric that is computed."""
    listed = dig(tree, ("evaluate", "metrics"))
    names = [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else None
    known = metric_names()
    for index, name in enumerate(names or ()):
        if name not in known and not is_metric_path(name):
            close = nearest(name, known)
            tree.report(
                ("evaluate", "metrics", index),
                "there is no metric of that name",
                got=show(name),
                allowed=", ".join(known) + ", or the path of a module of evaluate, such as ./my_metric.py",
                fix=f"did you mean {close!r}?" if close else "hfadapt list metrics",
            )
    for name in _section(tree, "evaluate", "gates"):
        at: Keys = ("evaluate", "gates", name)
        if not _METRIC.fullmatch(name):
            better = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
            tree.report(
                at,
                "a gate is named by its metric",
                got=show(name),
                allowed="a metric such as accuracy, macro_f1 or perplexity",
                fix=f"write `{better}`" if better else "name a metric",
            )
        elif not _measured(name, known if names is None else names) and not dig(tree, ("evaluate", "harness")):
            allowed = (*(known if names is None else names), *gate_names())
            close = nearest(name, allowed)
            tree.report(
                at,
                "the gate's metric is not among evaluate.metrics",
                got=name,
                allowed=", ".join(allowed),
                fix=f"did you mean {close!r}?" if close else f"add {name} to evaluate.metrics",
            )
    for gate in gate_names():
        if gate in _section(tree, "evaluate", "gates") and dig(tree, ("evaluate", gate)) is False:
            tree.report(
                ("evaluate", "gates", gate),
                f"the gate needs what `evaluate.{gate}: false` switches off",
                got=f"evaluate.{gate}: false",
                allowed="true",
                fix=f"delete the gate, or `evaluate.{gate}: false`",
            )


def _measured(gate: str, names: Sequence[str]) -> bool:
    """Whether the metrics, of which a path gives one or several values under its name, can hold the gate's."""
    stems = [PurePath(name).stem for name in names if is_metric_path(name)]
    return gate in (*names, *gate_names()) or any(gate == stem or gate.startswith(f"{stem}_") for stem in stems)


_NEEDS = {
    "evaluate.harness": ("writes", "{task} has no language model to check"),
    "evaluate.gates.general_text": ("writes", "{task} has no language model to check"),
    "evaluate.general_text": ("writes", "{task} has no language model to check"),
    "evaluate.generate_rows": ("writes", "{task} generates no texts"),
    "data.packing": ("packs", "{task} does not pack rows into one sequence"),
}
"""Settings that only some tasks use: the attribute of the task that says so, and what is the matter with others."""


def check_task_settings(tree: Tree) -> None:
    """Settings that the task does not use would do nothing."""
    task = dig(tree, ("task",))
    if not isinstance(task, str) or task not in registry.names("tasks") or is_lock(tree):
        return  # a lock answers every field

    def refuse(at: Keys, what: str, able: str) -> None:
        fitting = ", ".join(name for name in registry.names("tasks") if getattr(registry.task(name), able))
        got = f"{dotted(at)}: {show(dig(tree, at))} with task: {task}"
        tree.report(at, what.format(task=task), got=got, allowed=f"task: {fitting}", fix=f"delete `{dotted(at)}`")

    own = registry.task(task)
    for place, (able, what) in _NEEDS.items():
        value = dig(tree, at := tuple(place.split(".")))
        # A gate may be 0, which is a limit too.
        if value not in (None, AUTO) and (value or "gates" in at) and not getattr(own, able):
            refuse(at, what, able)
    listed = dig(tree, ("evaluate", "metrics"))
    for index, name in enumerate(listed if isinstance(listed, list) else ()):
        if name in TEXT_METRICS and not own.writes:
            refuse(("evaluate", "metrics", index), "{task} generates no texts, which this metric compares", "writes")


def check_template_texts(tree: Tree) -> None:
    """Braces must close, and what the model learns to write must come from a column."""
    for at, template in _templates(tree):
        written = list(texts(at, template))
        for keys, text, _ in written:
            fault = brace_fault(text)
            if fault:
                example = "{text}"
                tree.report(
                    keys,
                    f"the template's braces are wrong: {fault}",
                    got=show(text),
                    allowed="{column} for the value of a column",
                    fix=f"write a column's name between two braces, such as {example}",
                )
        answers = [(keys, text) for keys, text, answer in written if answer]
        if answers and not any("{" in text for _, text in answers):
            tree.report(
                answers[-1][0],
                "every row would have the same completion",
                got=show(answers[-1][1]),
                allowed="text with the {column} to learn",
                fix="put the column into it, such as ' {label}'",
            )


def brace_fault(text: str) -> str | None:
    """What is wrong with a template's braces, or None; braces around other braces are plain text."""
    if double := _DOUBLE.search(text):
        return f"{double[0]} puts braces around each value: write {{{double[1]}}}"
    depth = 0
    for index, char in enumerate(text):
        if char == "{":
            depth += 1
            if text[index + 1 : index + 2] == "}":
                return "{} names no column"
        elif char == "}":
            depth -= 1
            if depth < 0:
                return "a } without a {"
    return "a { is not closed" if depth else None


# --- lenient reading -------------------------------------------------------------------------------------------------


def _number(tree: Tree, *keys: str) -> float | None:
    """A finite number; whatever else stands there is reported as a value that its field does not take."""
    value = dig(tree, keys)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf else None


def _section(tree: Tree, *keys: str) -> dict[str, Any]:
    value = dig(tree, keys)
    return value if isinstance(value, dict) else {}


def each_domain(tree: Tree) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Domains that have settings, by name."""
    for name, domain in _section(tree, "domains").items():
        if isinstance(domain, Mapping):
            yield name, domain


def _columns(tree: Tree) -> Iterator[tuple[Keys, Mapping[str, Any]]]:
    """The columns of each domain and of each of its sources."""
    for name, domain in each_domain(tree):
        several = domain.get("sources")
        entries = [(("domains", name), domain)]
        if isinstance(several, list):
            entries += [(("domains", name, "sources", i), each) for i, each in enumerate(several)]  # type: ignore[misc]
        for keys, entry in entries:
            if isinstance(entry, Mapping) and isinstance(entry.get("columns"), Mapping):
                yield (*keys, "columns"), entry["columns"]


def _templates(tree: Tree) -> Iterator[tuple[Keys, Mapping[str, Any]]]:
    paths: list[Keys] = [("template",), *(("domains", name, "template") for name, _ in each_domain(tree))]
    for keys in paths:
        template = dig(tree, keys)
        if isinstance(template, Mapping):
            yield keys, template


def template_of(tree: Tree, domain: str) -> tuple[Keys, Mapping[str, Any]] | None:
    """The template of a domain with its path: its own, else the recipe's."""
    own: Keys = ("domains", domain, "template")
    found = dict(_templates(tree))
    return next(((keys, found[keys]) for keys in (own, ("template",)) if keys in found), None)


def texts(keys: Keys, template: Mapping[str, Any]) -> Iterator[tuple[Keys, str, bool]]:
    """Path, text, and whether the model learns to write it."""
    for name in ("prompt", "completion"):
        if isinstance(template.get(name), str):
            yield (*keys, name), template[name], name == "completion"
    turns = template.get("messages")
    for index, turn in enumerate(turns if isinstance(turns, list) else ()):
        if isinstance(turn, Mapping) and isinstance(turn.get("content"), str):
            yield (*keys, "messages", index, "content"), turn["content"], turn.get("role") == "assistant"


def is_lock(tree: Tree) -> bool:
    """Whether every `auto` is answered."""
    try:
        Lock.model_validate(tree.values)
    except ValidationError:
        return False
    return True
