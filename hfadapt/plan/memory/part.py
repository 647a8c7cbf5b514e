"""Which linear layers of a model take part in its loss: one run forward and backward with few layers, without memory.

A layer takes part when its `forward` is called and a gradient comes back to what it returned. A pooler whose output
nobody reads, attention to an encoder that is not there, and a layer of which only the weight is read do not.
"""

from __future__ import annotations

import json
from typing import Any

from hfadapt.adapters import targets
from hfadapt.core import registry
from hfadapt.core.known import remembered
from hfadapt.core.progress import quiet_libraries
from hfadapt.models.facts import ModelFacts, adapted_modules, more_than_linear

LENGTH = 16
"""Tokens of the two rows that are run."""
LayersRun = tuple[str, str, str, str, bool, int]


def taking_part(facts: ModelFacts) -> dict[str, bool | None] | None:
    """Path of each linear layer outside the head → whether it takes part, None of one that is more than W x + b; of a
    model with few layers.

    None where the model cannot be run without memory.
    """
    found = _taking_part(_key(facts), min(LENGTH, facts.max_positions or LENGTH))
    return None if found is None else dict(found)


def runs_without_memory(facts: ModelFacts, length: int) -> bool:
    """Whether the model takes rows of so many tokens, as far as the sizes of its tensors tell."""
    return _taking_part(_key(facts), length) is not None


def plain_names(facts: ModelFacts, names: tuple[str, ...]) -> frozenset[str] | None:
    """Those of the names that peft takes for linear layers and no more; None where it takes all linear layers so.

    Of models whose experts were modules once and are tensors now, it takes some names for these tensors.
    """
    return _plain_names(_key(facts), names)


def can_be_wrapped(facts: ModelFacts, names: tuple[str, ...]) -> bool:
    """Whether a model's code bears peft's layers in the place of those of these names: some nets read the sizes of
    their convolutions, which peft's do not say."""
    return _can_be_wrapped(_key(facts), names)


def _key(facts: ModelFacts) -> LayersRun:
    task = registry.task(facts.task)
    shaped = registry.modality(task.modality).shaped(facts.config, LENGTH)
    config = json.dumps({k: v for k, v in shaped.items() if k[0] != "_"}, sort_keys=True, default=str)
    auto_class = task.auto_class_of(facts.config["model_type"])
    return config, task.modality, auto_class, task.reads, facts.generates, max(2, sum(facts.pattern))


@remembered(tuple[tuple[str, bool | None], ...] | None)
@quiet_libraries()
def _taking_part(key: LayersRun, length: int) -> tuple[tuple[str, bool | None], ...] | None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from hfadapt.plan.memory.trace import Live, cut_model, make_fake, quiet

    config, modality, auto_class, reads, generates, layers = key
    model: Any = cut_model(config, auto_class, generates, layers).float().requires_grad_(True)
    reached: set[str] = set()

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            if output.requires_grad:
                output.register_hook(lambda grad: reached.add(name))

        return hook

    linears = adapted_modules(model)
    for name, module in linears.items():
        module.register_forward_hook(watch(name))
    try:
        with FakeTensorMode() as fakes, quiet():
            make_fake(model)
            with Live(model.train(), fakes):
                outputs = model(**registry.modality(modality).traced(model.config, 2, length))
                getattr(outputs, reads).float().sum().backward()
    except Exception:
        # Whatever a model's own code raises on fake tensors.
        return None
    more = dict.fromkeys(more_than_linear(model))
    return tuple({**{name: name in reached for name in linears}, **more}.items())


@remembered(frozenset[str] | None)
@quiet_libraries()
def _plain_names(key: LayersRun, names: tuple[str, ...]) -> frozenset[str] | None:
    from peft import LoraConfig

    from hfadapt.plan.memory.trace import cut_model

    try:
        from peft.utils.transformers_weight_conversion import (
            convert_peft_config_for_transformers,
            get_model_conversion_mapping,
        )
    except ImportError:  # before peft 0.19
        return None
    config, _, auto_class, _, generates, layers = key
    model: Any = cut_model(config, auto_class, generates, layers)

    def converted(modules: Any) -> Any:
        found = LoraConfig(target_modules=modules)
        convert_peft_config_for_transformers(found, model=model, conversions=get_model_conversion_mapping(model))
        return found

    if not converted("all-linear").target_parameters:
        return None
    # One by one: names that belong together are refused where some of them are missing.
    kept = []
    for name in names:
        try:
            if not converted([name]).target_parameters:
                kept.append(name)
        except ValueError:
            continue
    return frozenset(kept)


@remembered(bool)
@quiet_libraries()
def _can_be_wrapped(key: LayersRun, names: tuple[str, ...]) -> bool:
    import torch
    from peft import LoraConfig, get_peft_model

    from hfadapt.plan.memory.trace import cut_model

    config, modality, auto_class, _, generates, layers = key
    model: Any = cut_model(config, auto_class, generates, layers)
    try:
        with torch.device("meta"):
            wrapped = get_peft_model(model, LoraConfig(r=1, target_modules=targets(names, model)))
            wrapped(**registry.modality(modality).traced(model.config, 2, LENGTH))
    except AttributeError:
        return False
    except Exception:
        # A net that is cut, or that looks at values, fails in ways of its own.
        return True
    return True
