"""Which targets have a budget, and where it stands."""

from __future__ import annotations

from hfadapt.hardware import catalogue
from hfadapt.recipe.yaml_lines import Tree


def settle_targets(tree: Tree) -> None:
    """Puts the budgets that stand beside the names in `targets` where the recipe has them: under `budgets`."""
    listed = tree.values.get("targets")
    if not isinstance(listed, list):
        return
    known = catalogue.names()
    for number, entry in enumerate(listed):
        if not isinstance(entry, dict):
            continue
        name = next(iter(entry), None)
        if len(entry) != 1 or name not in known:
            continue  # The recipe's own check says what a target is.
        listed[number] = name
        budgets = tree.values.setdefault("budgets", {})
        if isinstance(budgets, dict):
            budgets[name] = entry[name]
            tree.move(("targets", number, name), ("budgets", name))


def check_budgets(tree: Tree) -> None:
    """A target that trains has no budget: its adapter stays where it was trained, so the budget would do nothing."""
    for name in tree.values.get("budgets") or {}:
        if name in catalogue.names() and not catalogue.only_serves(name):
            tree.report(
                ("budgets", name),
                "only targets that do not train have a budget",
                got=name,
                allowed=", ".join(filter(catalogue.only_serves, catalogue.names())),
                fix=f"delete it: targets: [{name}]",
            )
        elif name in catalogue.names() and name not in tree.values.get("targets", ()):
            fix = f"targets: [{name}], or delete its budget"
            tree.report(("budgets", name), "the recipe has no such target", got=name, fix=fix)
