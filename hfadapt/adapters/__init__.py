"""The Adapter contract: what is trained on top of the frozen base. One file per method; all save as peft reads them.

LoRA: y = W x + (alpha / R) B A x with A (R, in) and B (out, R) (Hu et al. 2021, arXiv 2106.09685).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from hfadapt.recipe.schema import LockedAdapter

ANY_QUANT = frozenset({"none", "int8", "nf4", "fp4"})
ALL_LINEAR = ("all-linear",)
DEFAULT = "default"
PEFT_HEADS = ("classifier", "score")
PEFT_HEADED = frozenset({"SEQ_CLS", "TOKEN_CLS"})


@dataclass(frozen=True)
class Context:
    """What an adapter may need besides the model.

    Args:
        fresh_modules: Modules that the checkpoint did not hold; they are trained whatever the method.
        head_modules: The task's head.
        peft_task_type: Name in `peft.TaskType`.
        model_path: Folder of the unquantised base.
        layers: How many layers the model has, where they are in one list; else 0, and all are adapted.
        layers_name: What that list is called.
        layer_linears: Name endings of the linear layers in it.
        batches: Makes training batches, for methods that initialise from data.
    """

    fresh_modules: tuple[str, ...]
    head_modules: tuple[str, ...]
    peft_task_type: str
    model_path: str
    layers: int = 0
    layers_name: str = ""
    layer_linears: tuple[str, ...] = ()
    batches: Callable[[], Iterable[Mapping[str, torch.Tensor]]] | None = None


@dataclass(frozen=True)
class AdapterMethod:
    """A way to adapt. `LoraConfig` methods differ only in `options` and in the hook after the layers are made.

    Args:
        name: Name in recipes.
        quants: The base storages it works with.
        reason: Why others are refused, for the error message.
        has_rank: Whether `adapter.rank`, `alpha`, `dropout` and `modules` mean anything.
        options: Keyword arguments of `peft.LoraConfig`.
        changes_base: The init moves part of W into A and B; saved as a plain LoRA of twice the rank.
        initialise: Called with the peft model and the context after the layers are made.
    """

    name: str
    quants: frozenset[str] = ANY_QUANT
    reason: str = ""
    has_rank: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    changes_base: bool = False
    initialise: Callable[[PeftModel, Context], None] | None = None

    @property
    def shares_base(self) -> bool:
        """Whether several adapters of this method can be trained on one base at the same time."""
        return self.has_rank and not self.changes_base and self.initialise is None and "use_dora" not in self.options

    def attach(self, model: Any, settings: LockedAdapter, context: Context, name: str = DEFAULT) -> PeftModel:
        """Freezes the base and adds the trainable parts; a model that has adapters gets another one, of that name."""
        from peft import LoraConfig, PeftModel, get_peft_model

        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            **adapted_modules(settings, context),
            modules_to_save=whole_modules(context) or None,
            task_type=context.peft_task_type,
            base_model_name_or_path=context.model_path,
            **self.options,
        )
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
            return model
        adapted = get_peft_model(model, config, adapter_name=name)
        if self.initialise:
            self.initialise(adapted, context)
        return adapted


def whole_modules(context: Context) -> list[str]:
    """Modules of which every weight is trained: fresh ones, and those that peft takes for the head of a classifier.

    It goes by endings: `classifier` is `pre_classifier` too, which then cannot have low-rank layers (peft 0.21).
    """
    named = context.head_modules if context.peft_task_type in PEFT_HEADED else ()
    taken = (name for name in named if name.endswith(PEFT_HEADS) and name not in PEFT_HEADS)
    return list(dict.fromkeys((*context.fresh_modules, *taken)))


def adapted_modules(settings: LockedAdapter, context: Context) -> dict[str, Any]:
    """Which layers are adapted, as keyword arguments of `LoraConfig`: the word `all-linear`, or name endings."""
    everywhere = tuple(settings.modules) == ALL_LINEAR
    if settings.layers is None or settings.layers >= context.layers:
        return {"target_modules": "all-linear" if everywhere else list(settings.modules)}
    return {
        "target_modules": list(context.layer_linears if everywhere else settings.modules),
        "layers_to_transform": list(range(context.layers - settings.layers, context.layers)),
        "layers_pattern": context.layers_name,
    }
