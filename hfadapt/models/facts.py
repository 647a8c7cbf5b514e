"""ModelFacts: what a model's config alone says about its size and shape; no weights are read.

The model is built on the meta device, where tensors have shapes but no memory, so 8 B parameters take half a second.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from hfadapt.core import gguf, registry, samples
from hfadapt.core.errors import RequestError, fault_of_machine
from hfadapt.core.known import known
from hfadapt.core.progress import quiet_libraries
from hfadapt.core.spec import Spec
from hfadapt.models.folders import idle_parameters, model_folder, require_base, require_plain
from hfadapt.models.heads import BaseHead
from hfadapt.recipe.sources import expanded, is_missing

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig


MOST_TRACED = 16
"""Layers that tracing a step may take; where the kinds of layers repeat later, they are treated as alike."""


SEES = re.compile(r"vision|visual|audio")
"""Paths of the parts that see or hear, in models that write too."""
GATES = ("Squeeze", "SELayer")
"""Parts of the names of what weighs channels."""


class LinearShape(Spec):
    """Linear layers of one name ending and shape: `count` weights of (out_features, in_features), at `paths`."""

    name: str
    in_features: int
    out_features: int
    count: int
    bias: bool
    paths: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Weights of all of them, without biases."""
        return self.in_features * self.out_features * self.count


class ModelFacts(Spec):
    """Sizes of one model for one task. `linears` are the layers that quantisation replaces and LoRA adapts.

    `head_parameters` make the task's output; with `tied`, the output weight is the embedding and is counted there.
    `vocab_size` is 0 for models without tokens, `max_positions` None where the config states no limit; with
    `position_table` each position has an embedding, and there are no more. `stored_dtype`
    None where it does not say in which dtype the files are. `pattern` says how layers of different kinds follow each
    other: so many at the start, then a group of so many again and again. `recomputes` is whether the architecture knows
    activation checkpointing, `predicts_tokens` whether its outputs are those of a vocabulary, `experts` whether it has
    weights with one matrix for each expert, `stacks` how many lists of layers it has: an encoder and a decoder are two.
    With `pointwise` the `linears` are 1x1 convolutions, which no storage quantises; `idle_parameters` are then those of
    gates that are always open, which an export leaves out.
    `head` is the checkpoint's own. `other_modules` are paths of modules beside `linears` that peft can adapt where they
    are named: embeddings, convolutions, the head's layers.
    """

    model: str
    task: str
    config: dict[str, Any]
    model_type: str
    architecture: str
    parameters: int
    embedding_parameters: int
    head_parameters: int
    tied: bool
    linears: tuple[LinearShape, ...]
    buffer_bytes: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int | None
    position_table: bool = False
    labels: int
    stored_dtype: str | None = None
    quantised: bool = False
    generates: bool = False
    predicts_tokens: bool = False
    pattern: tuple[int, int] = (0, 1)
    recomputes: bool = True
    experts: bool = False
    stacks: int = 1
    pointwise: bool = False
    idle_parameters: int = 0
    head: BaseHead = BaseHead()
    other_modules: tuple[str, ...] = ()

    @property
    def linear_parameters(self) -> int:
        """Weights that quantisation replaces."""
        return sum(linear.parameters for linear in self.linears)

    @property
    def largest_linear(self) -> int:
        """Parameters of the largest replaced weight."""
        return max((linear.in_features * linear.out_features for linear in self.linears), default=0)


def model_facts(model: str, task: str, labels: int = 2) -> ModelFacts:
    """The facts of `model` with the head of `task`.

    Args:
        model: Local folder, GGUF file, Hub id or id@revision (only config.json is fetched), or `sample:NAME`.
        task: Name of a task.
        labels: Classes of a classification head.

    Raises:
        RequestError: the config cannot be read, or the architecture does not fit the task.
    """
    return _model_facts(model, task, labels, _state(model))


def _state(model: str) -> tuple[Any, ...]:
    """Where a local model lies, and when its config was last changed."""
    path = expanded(model)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        return ()
    found = path.stat()
    return path.resolve(), found.st_mtime_ns, found.st_size


@cache
def _model_facts(model: str, task: str, labels: int, state: tuple[Any, ...]) -> ModelFacts:
    @quiet_libraries()
    def find() -> ModelFacts:
        config = load_config(model)
        head = BaseHead.of(config)
        kind = registry.task(task)
        options = kind.model_options([f"label {i}" for i in range(labels)])
        for key, value in options.items():
            setattr(config, key, value)
        built = build(config, kind.auto_class_of(config.model_type), model)
        return describe(built, model, task, labels, config).model_copy(update={"head": head})

    key = ["facts", config_of(model), task, labels, registry.made_by("tasks", task)]
    facts = known(ModelFacts, key, find)
    folder = model_folder(model) if facts.pointwise else None
    idle = idle_parameters(folder) if folder is not None else 0
    return facts.model_copy(update={"model": model, "idle_parameters": idle})


def config_of(model: str) -> Any:
    """What a model's config says, as its files have it where that is enough: reading it takes no library.

    Raises:
        RequestError: as `load_config`, where that is needed; a folder holds no base.
    """
    if model.startswith(samples.PREFIX):
        return samples.model_config(model.removeprefix(samples.PREFIX))
    path = expanded(model)
    if path.is_dir():
        require_base(path, model)
        return (path / "config.json").read_text(encoding="utf-8")
    return load_config(model).to_dict()


@quiet_libraries()
def load_config(model: str) -> PretrainedConfig:
    """The config of a model, without its weights.

    Raises:
        RequestError: it cannot be found or read.
    """
    from transformers import AutoConfig

    if model.startswith(samples.PREFIX):
        fields = samples.model_config(model.removeprefix(samples.PREFIX))
        return AutoConfig.for_model(**fields)
    path = expanded(model)
    if is_missing(model):
        got, fix = f"nothing at {path.resolve()}", "check the path"
        allowed = "a folder with config.json, a GGUF file or a Hub id"
        raise RequestError("the model does not exist", place=model, got=got, allowed=allowed, fix=fix)
    if path.is_dir():
        require_base(path, model)
    try:
        if path.suffix == ".gguf":
            return gguf.read_config(path)
        name, _, revision = (str(path), "", "") if path.exists() else model.partition("@")
        config = AutoConfig.from_pretrained(name, revision=revision or None, trust_remote_code=False)
    except Exception as error:
        # Configs check their own fields with errors of every kind.
        if path.exists() and (fault := fault_of_machine(error)):
            raise fault from None
        lines = str(error).strip().splitlines()
        fix = "check the name; without a network use a local folder or a sample"
        if path.is_dir():
            fix = "check the fields of config.json"
        elif path.suffix == ".gguf":
            fix = "fetch the file again, or name the model as its authors publish it, as a folder or a Hub id"
        elif path.is_file():
            fix = "name a model; a file of rows is the source of a domain, and for `hfadapt new` --data"
        raise RequestError(
            "the model's config could not be read",
            place=model,
            got=" ".join(line.strip() for line in lines)[:300] if lines else type(error).__name__,
            allowed="a folder with config.json, a GGUF file, a Hub id, or "
            + ", ".join(f"{samples.PREFIX}{name}" for name in samples.models()),
            fix=fix,
        ) from None
    require_plain(config.to_dict(), model)
    return config


def build(config: PretrainedConfig, auto_class: str, model: str) -> nn.Module:
    """The model on the meta device.

    Raises:
        RequestError: transformers has no model of that architecture for this task, or only one that cannot write.
    """
    import torch
    import transformers

    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built = getattr(transformers, auto_class).from_config(config)
    except Exception as error:
        # A model's own code refuses what it cannot build with errors of every kind.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RequestError(
            "this model cannot do this task",
            place=model,
            got=f"{config.model_type}: {lines[0][:200]}",
            allowed=f"an architecture that transformers.{auto_class} knows",
            fix="choose another task or another model",
        ) from None
    built.tie_weights()
    if auto_class == "AutoModelForCausalLM" and reads_both_ways(built.config):
        raise RequestError(
            "this model reads text in both directions and cannot write one token after the other",
            place=model,
            got=f"{config.model_type}, an encoder",
            allowed="a decoder, such as llama, qwen3 or gpt2",
            fix="task: text-classification, or another model",
        )
    return built


def reads_both_ways(config: PretrainedConfig) -> bool:
    """Encoders that transformers gives an output layer for text, but no mask, unless they are told to be decoders."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if config.model_type == "xlm":
        return not config.causal
    known = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES or config.model_type == "bert-generation"
    return known and getattr(config, "is_decoder", None) is False


def describe(model: Any, name: str, task: str, labels: int, config: PretrainedConfig) -> ModelFacts:
    """Counts the parameters of a built model by what becomes of them."""
    parameters = {id(p): p.numel() for p in model.parameters()}
    inputs = None
    with suppress(NotImplementedError):
        inputs = model.get_input_embeddings()
    embedding = sum(m.weight.numel() for m in model.modules() if type(m).__name__ == "Embedding")
    outputs = model.get_output_embeddings()
    tied = bool(outputs is not None and inputs is not None and outputs.weight is getattr(inputs, "weight", None))
    head_parameters = sum(p.numel() for name in head_names(model) for p in getattr(model, name).parameters())
    head_parameters -= outputs.weight.numel() if tied else 0
    text = config.get_text_config()
    heads_count = int(first(text, "num_attention_heads", "n_head", "encoder_attention_heads", default=1))
    hidden = int(first(text, "hidden_size", "n_embd", "d_model", "dim", default=0))
    stacks = list(layer_stacks(model).values())
    return ModelFacts(
        model=name,
        task=task,
        config=config.to_dict(),
        model_type=config.model_type,
        architecture=type(model).__name__,
        parameters=sum(parameters.values()),
        embedding_parameters=embedding,
        head_parameters=max(0, head_parameters),
        tied=tied,
        linears=linear_shapes(model),
        other_modules=other_modules(model),
        buffer_bytes=sum(b.numel() * b.element_size() for b in model.buffers()),
        hidden_size=hidden,
        layers=layer_count(text, stacks),
        heads=heads_count,
        kv_heads=int(first(text, "num_key_value_heads", default=heads_count)),
        head_dim=int(first(text, "head_dim", default=hidden // max(1, heads_count))),
        intermediate_size=int(first(text, "intermediate_size", "n_inner", "ffn_dim", "hidden_dim", default=4 * hidden)),
        vocab_size=int(first(text, "vocab_size", default=0)),
        max_positions=(most := position_limit(model, config))[0],
        position_table=most[1],
        labels=labels,
        stored_dtype=stored_dtype(config),
        quantised=bool(getattr(config, "quantization_config", None)),
        generates=outputs is not None and bool(model.can_generate()),
        predicts_tokens=outputs is not None,
        pattern=layer_pattern(stacks),
        recomputes=bool(getattr(model, "supports_gradient_checkpointing", False)),
        experts=any(p.dim() == 3 and "expert" in name for name, p in model.named_parameters()),
        stacks=len(stacks),
        pointwise=any(module.weight.dim() == 4 for module in adapted_modules(model).values()),
    )


def layer_count(config: Any, stacks: Sequence[nn.ModuleList]) -> int:
    """How many layers a model has: as its config says, but of a convolutional net as many as there are blocks."""
    stated = int(getattr(config, "num_hidden_layers", 0) or 0)
    blocks = max(map(len, stacks), default=1)
    return stated if stated and first(config, "vocab_size", "num_attention_heads", default=0) else blocks


def position_limit(model: Any, config: PretrainedConfig) -> tuple[int | None, bool]:
    """How many tokens a model reads at most, and whether that is so because each position has an embedding.

    Models in the manner of RoBERTa count positions from the one after padding's on, and read two tokens less than they
    have embeddings.
    """
    from torch import nn

    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    text = config.get_text_config()
    stated = first(text, *names, default=None)
    stated = int(stated) if stated and int(stated) > 0 else None
    # Of a model that writes and sees, what sees has places in a picture.
    writes = text is not config and model.get_output_embeddings() is not None
    for path, module in model.named_modules():
        last = path.rpartition(".")[2]
        if writes and SEES.search(path):
            continue
        if isinstance(module, nn.Embedding) and ("pos" in last or last == "wpe") and "relative" not in last:
            rows = module.num_embeddings
            if module.padding_idx is not None:
                return rows - module.padding_idx - 1, True
            return min(rows, stated or rows), True
    return stated, False


def stored_dtype(config: PretrainedConfig) -> str | None:
    """The dtype of the checkpoint's files as the config states it."""
    return str(config.dtype).removeprefix("torch.") if getattr(config, "dtype", None) is not None else None


def first(config: Any, *names: str, default: Any) -> Any:
    """The first of these config fields that is set; where layers have one each, the largest."""
    return next((value for name in names if (value := _largest(config, name)) is not None), default)


def _largest(config: Any, name: str) -> Any:
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # transformers does not say for the whole what differs between layers.
        value = [getattr(layer, name) for layer in config.per_layer_config]
    return max(value) if isinstance(value, (list, tuple)) and value else value


def layer_stacks(model: nn.Module, least: int = 2) -> dict[str, nn.ModuleList]:
    """The outermost lists of at least two blocks that hold weights, by path: the layers of a model."""
    from torch import nn

    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < least or any(name.startswith(f"{n}.") for n in found):
            continue
        if all(any(True for _ in block.parameters()) for block in module):
            found[name] = module
    return found


def layer_pattern(stacks: Sequence[nn.ModuleList]) -> tuple[int, int]:
    """(L, P): after the first L layers their kinds repeat with period P, as in models that mix attention with
    state-space layers, or start dense before mixtures of experts. (0, 1) when all are alike, (all, 0) when nothing
    repeats in a short stack."""
    kinds_of = [[_layer_kind(block) for block in stack] for stack in stacks]
    longest = max((len(stack) for stack in kinds_of), default=2)

    def repeats(lead: int, period: int) -> bool:
        return all(a == b for stack in kinds_of for a, b in zip(stack[lead:], stack[lead + period :], strict=False))

    for size in range(1, longest):
        for period in range(1, size + 1):
            if size + period <= min(longest, MOST_TRACED) and repeats(size - period, period):
                return size - period, period
    return (longest, 0) if longest <= MOST_TRACED else (0, 1)


def _layer_kind(block: nn.Module) -> tuple[Any, ...]:
    return type(block), tuple((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())


def body_name(model: Any) -> str:
    """The module that is the same whatever the task: the one that transformers names, or, as in a Whisper that
    classifies, the first one with layers. A model without a head is itself the body, whose name is that of none."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    prefix = str(getattr(model, "base_model_prefix", ""))
    known = (names if isinstance(names, tuple) else (names,) for names in MODEL_MAPPING_NAMES.values())
    if prefix in dict(model.named_children()) or any(type(model).__name__ in names for names in known):
        return prefix
    # A student can have a single layer.
    return next((path.split(".")[0] for path in layer_stacks(model) or layer_stacks(model, 1)), prefix)


def freeze_front(model: Any) -> None:
    """Tells a model that hears samples that its convolutions are not trained: in training it asks for the gradient of
    its input by itself, and so keeps all that they make of it."""
    if hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()


def head_names(model: Any) -> tuple[str, ...]:
    """The modules beside the body, which make the task's output; quantisation leaves them as they are."""
    body, children = body_name(model), dict(model.named_children())
    if body not in children:
        return ()
    # XLM-R and CamemBERT make their heads first. What comes before a body that transformers does not name is input.
    first = 0 if body == getattr(model, "base_model_prefix", "") else list(children).index(body)
    return tuple(name for name in list(children)[first:] if name != body and [*children[name].parameters()])


def other_modules(model: nn.Module) -> tuple[str, ...]:
    """Paths of embeddings, convolutions and linear layers of the head."""
    from torch import nn

    heads = head_names(model)
    kinds = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds) or (isinstance(module, nn.Linear) and name.split(".")[0] in heads)
    )


def adapted_modules(model: nn.Module) -> dict[str, Any]:
    """Linear layers outside the head by path, GPT-2's Conv1D among them; of a net that has none its 1x1 convolutions,
    which are a linear layer for every pixel, but not those that weigh channels (squeeze and excitation): a gate that is
    wide open gives no gradient."""
    from torch import nn

    heads = head_names(model)
    body = {name: module for name, module in model.named_modules() if name.split(".")[0] not in heads}
    linear = {name: module for name, module in body.items() if is_linear(module)}
    gates = [name for name, module in body.items() if any(part in type(module).__name__ for part in GATES)]
    return linear or {
        name: module
        for name, module in body.items()
        if isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.groups == 1
        and not any(name.startswith(f"{gate}.") for gate in gates)
    }


def is_linear(module: nn.Module) -> bool:
    """Whether a module is W x + b and no more: some routers of experts answer with other things, and torch's own
    attention reads the weight of its last layer without calling it."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, Conv1D)
    plain = isinstance(module, kinds) and type(module).forward in {kind.forward for kind in kinds}
    return plain and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


def more_than_linear(model: nn.Module) -> list[str]:
    """Paths of layers that are of the class of linear ones, and are not (`is_linear`)."""
    from torch import nn

    modules = model.named_modules()
    return [name for name, module in modules if isinstance(module, nn.Linear) and not is_linear(module)]


def linear_shapes(model: nn.Module) -> tuple[LinearShape, ...]:
    """The layers that an adapter is put on (`adapted_modules`), grouped by name ending and shape."""
    groups: dict[tuple[str, int, int, bool], list[str]] = {}
    seen = set()
    for name, module in adapted_modules(model).items():
        if id(module.weight) in seen:
            continue
        seen.add(id(module.weight))
        one, other = (int(size) for size in module.weight.shape[:2])
        # GPT-2's Conv1D has its weight the other way round.
        shape = (one, other) if hasattr(module, "nf") else (other, one)
        groups.setdefault((name.split(".")[-1], *shape, module.bias is not None), []).append(name)
    return tuple(
        LinearShape(name=name, in_features=i, out_features=o, count=len(paths), bias=bias, paths=tuple(paths))
        for (name, i, o, bias), paths in groups.items()
    )
