"""The Adapter contract: what is trained on top of the frozen base. One file per method; all save as peft reads them.

LoRA: y = W x + (alpha / R) B A x with A (R, in) and B (out, R) (Hu et al. 2021, arXiv 2106.09685).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.quants import Access, Quant
from hfadapt.recipe.names import ANY_LAYER, matches

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from hfadapt.recipe.schema import LockedAdapter

ALL_LINEAR = ("all-linear",)
DEFAULT = "default"
PEFT_HEADS = ("classifier", "score")
PEFT_HEADED = frozenset({"SEQ_CLS", "TOKEN_CLS"})


@dataclass(frozen=True)
class Context:
    """What an adapter may need besides the model.

    Args:
        fresh_modules: Modules that the checkpoint does not hold as they are; they are trained whatever the method.
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
    peft_task_type: str | None
    model_path: str
    layers: int = 0
    layers_name: str = ""
    layer_linears: tuple[str, ...] = ()
    batches: Callable[[], Iterable[Mapping[str, torch.Tensor]]] | None = None


class Trains(Enum):
    """What a method trains, beside modules that the checkpoint did not hold; the backward pass ends there."""

    HEAD = "the task's head: nothing goes back through the layers"
    LAYERS = "weights of its own beside the linear layers"
    MODEL = "every weight of the base, in float32; what is saved is a whole model, which needs no base"


@dataclass(frozen=True)
class Saved:
    """What adapter_config.json and the tensors of a saved adapter may hold; anything else is refused when it is opened.

    Args:
        peft_type: Name in `peft.PeftType`.
        settings: Fields of peft's config, beside those of every adapter, that may differ from its defaults.
        tensors: Pattern of the names of its layers' tensors, where these are not A and B.
    """

    peft_type: str = "LORA"
    settings: frozenset[str] = frozenset(
        {
            *("r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "rank_pattern", "alpha_pattern"),
            *("init_lora_weights", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
        }
    )
    tensors: str | None = None


@dataclass(frozen=True)
class AdapterMethod:
    """A way to adapt. `LoraConfig` methods differ only in `options` and in the hook after the layers are made.

    Args:
        name: Name in recipes.
        trains: What it trains.
        low_rank: Its layers are peft's LoRA, so `adapter.rank`, `alpha` and `dropout` mean something.
        additive: Its layers add a product of their input to W x and do nothing else, so hfadapt's own layers can stand
            for them, and rows of one batch can go through different adapters.
        needs: What it needs of the base's weights.
        reason: Why bases that do not give it are refused, for the error message.
        options: Keyword arguments of `peft.LoraConfig`.
        convolves: Whether it can be used on convolutional nets.
        changes_base: The init moves part of W into A and B; saved as a plain LoRA of twice the rank.
        initialise: Called with the peft model and the context after the layers are made.
        traced_as: A method whose training step holds the same tensors, so that one trace does for both.
        saved: What may be in the files of an adapter.
    """

    name: str
    trains: Trains = Trains.LAYERS
    low_rank: bool = True
    additive: bool = True
    needs: frozenset[Access] = frozenset()
    reason: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    convolves: bool = False
    changes_base: bool = False
    initialise: Callable[[PeftModel, Context], None] | None = None
    traced_as: str | None = None
    saved: Saved = Saved()

    @property
    def whole_model(self) -> bool:
        """Whether the base's own weights are trained and saved."""
        return self.trains is Trains.MODEL

    @property
    def only_head(self) -> bool:
        """Whether all layers stay as they are."""
        return self.trains is Trains.HEAD

    @property
    def adapts_layers(self) -> bool:
        """Whether linear layers get weights beside their own, so `adapter.modules` and `layers` mean something."""
        return self.trains is Trains.LAYERS

    @property
    def fast(self) -> bool:
        """Whether hfadapt's own LoRA layers can stand for peft's."""
        return self.low_rank and self.additive

    @property
    def shares_base(self) -> bool:
        """Whether several adapters of this method can be trained on one base at the same time."""
        return self.fast and not self.changes_base and self.initialise is None

    @property
    def continues(self) -> bool:
        """Whether training can begin with the weights of an adapter of this method that was trained otherwise."""
        return self.low_rank and not self.changes_base and self.initialise is None

    @property
    def mixes(self) -> bool:
        """Whether rows of one batch can go through different finished adapters."""
        return self.additive and not self.whole_model

    @property
    def relation(self) -> str:
        """The Hub's word for how the result stands to its base."""
        return "finetune" if self.whole_model else "adapter"

    def works_on(self, quant: Quant) -> bool:
        """Whether the base may be stored so."""
        return self.needs <= quant.gives

    @property
    def quants(self) -> frozenset[str]:
        """Names of the storages that it works on."""
        return frozenset(name for name in registry.names("quants") if self.works_on(registry.quant(name)))

    def layer_parameters(self, in_features: int, out_features: int, rank: int) -> int:
        """Trained parameters beside one linear layer: A (R, in) and B (out, R)."""
        return rank * (in_features + out_features)

    def peft_config(self, settings: LockedAdapter, **common: Any) -> Any:
        """The peft config of its layers.

        Args:
            settings: Rank, alpha and dropout.
            common: What every peft config has: target_modules, modules_to_save, task_type ...
        """
        from peft import LoraConfig

        return LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, **common, **self.options
        )

    def attach(self, model: Any, settings: LockedAdapter, context: Context, name: str = DEFAULT) -> PeftModel:
        """Freezes the base and adds the trainable parts; a model that has adapters gets another one, of that name."""
        from peft import PeftModel, get_peft_model

        config = self.peft_config(
            settings,
            **adapted_modules(settings, context, model),
            modules_to_save=whole_modules(context) or None,
            task_type=context.peft_task_type,
            base_model_name_or_path=context.model_path,
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
    taken = (name for name in context.head_modules if _taken_by_peft(name, context.peft_task_type))
    return list(dict.fromkeys((*context.fresh_modules, *(name for name in taken if name not in PEFT_HEADS))))


def brought(names: Sequence[str], fresh: Sequence[str], peft_task_type: str | None) -> list[bool]:
    """Whether an adapter holds a copy of each of these modules of a head; the others stay as the base has them.

    Args:
        fresh: Modules that the checkpoint does not hold as they are.
    """
    return [name in fresh or _taken_by_peft(name, peft_task_type) for name in names]


def _taken_by_peft(name: str, peft_task_type: str | None) -> bool:
    return peft_task_type in PEFT_HEADED and name.endswith(PEFT_HEADS)


def adapted_modules(settings: LockedAdapter, context: Context, model: Any) -> dict[str, Any]:
    """Which layers are adapted, as keyword arguments of `LoraConfig`: the word `all-linear`, name endings, or paths
    where endings hold the number of a layer."""
    names, last = tuple(settings.modules), range(0)
    everywhere = names == ALL_LINEAR
    if settings.layers is not None and settings.layers < context.layers:
        last = range(context.layers - settings.layers, context.layers)
    if any(ANY_LAYER in name for name in names):
        paths = targets(names, model)
        among = {f"{context.layers_name}.{number}" for number in last}
        return {"target_modules": [path for path in paths if not last or any(f".{each}." in path for each in among)]}
    if not last:
        return {"target_modules": "all-linear" if everywhere else list(names)}
    return {
        "target_modules": list(context.layer_linears if everywhere else names),
        "layers_to_transform": list(last),
        "layers_pattern": context.layers_name,
    }


def targets(names: Sequence[str], model: Any) -> list[str]:
    """For peft: paths of a model's modules, where endings hold the number of a layer, else the endings."""
    if not any(ANY_LAYER in name for name in names):
        return list(names)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return [path for path, _ in base.named_modules() if any(matches(path, name) for name in names)]
