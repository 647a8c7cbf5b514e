"""What a recipe's `pretrain` cannot be beside."""

from __future__ import annotations

from collections.abc import Mapping

from hfadapt.core import registry
from hfadapt.recipe.rules import each_domain
from hfadapt.recipe.words import dig, dotted, show
from hfadapt.recipe.yaml_lines import Keys, Tree


def pretrain_places(tree: Tree) -> list[Keys]:
    """Where a recipe asks for an adaptation to texts."""
    places: list[Keys] = [("pretrain",), *(("domains", name, "pretrain") for name, _ in each_domain(tree))]
    return [at for at in places if isinstance(found := dig(tree, at), Mapping) and not found.get("skip")]


def check_pretrain(tree: Tree) -> None:
    """Two phases train the same layers: they have to be low-rank ones that begin as the base is."""
    asked = pretrain_places(tree)
    if dig(tree, ("evaluate", "without_pretrain")) is True and not asked:
        tree.report(
            ("evaluate", "without_pretrain"),
            "no domain is adapted to texts before the task, so there is nothing to compare",
            got="evaluate.without_pretrain: true",
            allowed="true beside `pretrain`",
            fix="add `pretrain: true`, or delete `evaluate.without_pretrain`",
        )
    name = dig(tree, ("adapter", "method"))
    if not asked or name not in registry.names("adapters") or registry.adapter(str(name)).continues:
        return
    able = [each for each in registry.names("adapters") if registry.adapter(each).continues]
    tree.report(
        ("adapter", "method"),
        f"{name} cannot go on from an adapter that was trained on texts",
        got=f"adapter.method: {name}, {dotted(asked[0])}: {show(dig(tree, asked[0]))}",
        allowed=f"adapter.method {' or '.join(able)}",
        fix=f"set adapter.method: {able[0]}, or delete `{dotted(asked[0])}`",
    )
