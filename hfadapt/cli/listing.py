"""`hfadapt list` and `hfadapt show`: everything that can be named in a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hfadapt.core import registry, samples
from hfadapt.core.errors import RequestError, choice_problem
from hfadapt.core.show import Block, Heading, Shown, Table, View, show_bytes
from hfadapt.hardware import catalogue


def _targets() -> Table:
    rows = []
    for name in catalogue.names():
        target = catalogue.target(name) if name != catalogue.THIS_MACHINE else catalogue.this_machine()
        rows.append([name, target.title, show_bytes(target.memory_bytes), "trains" if target.trains else "serves only"])
    return Table(["target", "what it is", "memory", "use"], rows, frozenset({"memory"}))


def _kind(kind: str) -> Table:
    rows = [[name, registry.about(kind, name).partition("\n")[0]] for name in registry.names(kind)]
    return Table([kind.rstrip("s"), "what it is"], rows)


def _samples() -> Table:
    rows = [[f"sample:{name}", "model", samples.model_entry(name).license] for name in samples.models()]
    rows += [[f"sample:{name}", "data", samples.dataset_entry(name).license] for name in samples.datasets()]
    return Table(["sample", "kind", "licence"], rows)


def _metrics() -> Table:
    from hfadapt.evaluate.metrics.rows import known_metrics

    metrics = known_metrics().items()
    rows = [[name, "higher" if each.higher_is_better else "lower", each.about] for name, each in metrics]
    return Table(["metric", "better is", "what it is"], rows)


LISTS: dict[str, Callable[[], Table]] = {
    "targets": _targets,
    "tasks": lambda: _kind("tasks"),
    "adapters": lambda: _kind("adapters"),
    "quants": lambda: _kind("quants"),
    "formats": lambda: _kind("formats"),
    "stages": lambda: _kind("stages"),
    "backends": lambda: _kind("backends"),
    "samples": _samples,
    "metrics": _metrics,
}


def listing(what: str = "") -> View:
    """One list, or all of them. Raises RequestError for an unknown one."""
    if what and what not in LISTS:
        problem = choice_problem("there is no such list", what, LISTS)
        raise RequestError(problem.what, problems=[problem])
    blocks: list[Block] = []
    for name, make in LISTS.items():
        if what in ("", name):
            blocks += [Heading(name), make()]
    return View(blocks)


def one(what: str, name: str) -> Shown:
    """One target, sample or run. Raises RequestError when there is no such thing."""
    if what == "target":
        return catalogue.target(name) if name != catalogue.THIS_MACHINE else catalogue.this_machine()
    if what == "sample":
        name = name.removeprefix(samples.PREFIX)
        entry = samples.model_entry(name) if name in samples.models() else samples.dataset_entry(name)
        facts = entry.model_dump(exclude={"config", "path", "files", "prepare", "name"}, exclude_none=True)
        rows = [[field, str(value)] for field, value in facts.items()]
        return View([Heading(f"sample:{name}"), Table(["field", "value"], rows)])
    if what == "run":
        from hfadapt.report.run_view import Run
        from hfadapt.run_folder import STATE

        folder = Path(name).resolve()
        # The folder of a cell, as `hfadapt run` names it, stands for its run.
        return Run(folder.parents[1] if (folder / STATE).exists() else Path(name))
    problem = choice_problem("there is no such thing to show", what, ("target", "sample", "run"))
    raise RequestError(problem.what, problems=[problem])
