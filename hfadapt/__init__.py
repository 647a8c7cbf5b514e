"""hfadapt: one pretrained model, the right adapter for every data domain and hardware target.

    from hfadapt import load_adapted, load_recipe, make_plan, run

    recipe = load_recipe("recipes/sentiment.yaml", ["train.epochs=1"], domains=["tweets"])
    make_plan(recipe)                     # shows itself in a notebook
    result = run(recipe)                  # plan, data, training, evaluation, card
    load_adapted(result.folder).predict("What a day!")

Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Adapted": "hfadapt.serve.adapted",
    "Cell": "hfadapt.run_folder",
    "DataReport": "hfadapt.data",
    "HfadaptError": "hfadapt.core.errors",
    "Lock": "hfadapt.recipe.schema",
    "Plan": "hfadapt.records.plan",
    "Recipe": "hfadapt.recipe.schema",
    "RecipeError": "hfadapt.core.errors",
    "Report": "hfadapt.records.report",
    "Run": "hfadapt.report.run_view",
    "Target": "hfadapt.hardware.catalogue",
    "build_card": "hfadapt.card.build",
    "check_card": "hfadapt.card.check",
    "check_recipe": "hfadapt.pipeline.run",
    "examine": "hfadapt.cli.doctor",
    "load_adapted": "hfadapt.serve.adapted",
    "load_bank": "hfadapt.serve.bank",
    "load_recipe": "hfadapt.recipe.reading",
    "make_plan": "hfadapt.plan.make",
    "resolve_model": "hfadapt.models.load",
    "save_recipe": "hfadapt.recipe.reading",
    "target": "hfadapt.hardware.catalogue",
    "this_machine": "hfadapt.hardware.catalogue",
}

__all__ = ["__version__", "run", *_HOME]

if TYPE_CHECKING:
    from hfadapt.card.build import build_card as build_card
    from hfadapt.card.check import check_card as check_card
    from hfadapt.cli.doctor import examine as examine
    from hfadapt.core.errors import HfadaptError as HfadaptError
    from hfadapt.core.errors import RecipeError as RecipeError
    from hfadapt.data import DataReport as DataReport
    from hfadapt.hardware.catalogue import Target as Target
    from hfadapt.hardware.catalogue import target as target
    from hfadapt.hardware.catalogue import this_machine as this_machine
    from hfadapt.models.load import resolve_model as resolve_model
    from hfadapt.pipeline.run import check_recipe as check_recipe
    from hfadapt.pipeline.run import run_recipe as run
    from hfadapt.plan.make import make_plan as make_plan
    from hfadapt.recipe.reading import load_recipe as load_recipe
    from hfadapt.recipe.reading import save_recipe as save_recipe
    from hfadapt.recipe.schema import Lock as Lock
    from hfadapt.recipe.schema import Recipe as Recipe
    from hfadapt.records.plan import Plan as Plan
    from hfadapt.records.report import Report as Report
    from hfadapt.report.run_view import Run as Run
    from hfadapt.run_folder import Cell as Cell
    from hfadapt.serve.adapted import Adapted as Adapted
    from hfadapt.serve.adapted import load_adapted as load_adapted
    from hfadapt.serve.bank import load_bank as load_bank


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name == "run":
        return importlib.import_module("hfadapt.pipeline.run").run_recipe
    raise AttributeError(f"module 'hfadapt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
