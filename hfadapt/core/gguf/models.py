"""What llama.cpp calls the parts and settings of language models, by the architecture that transformers names.

Names, shifted norms and the order of rows are those of llama.cpp's converters (`conversion/` there); factors of rotary
positions are those of transformers. Each table holds in both directions. A setting that llama.cpp has fixed otherwise
is a reason not to write a file, never left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Config = Mapping[str, Any]
LARGE_GEMMA = (46, 62)
"""Layers of Gemma 2 and 3 27B, whose attention llama.cpp scales by hidden size and heads."""
GEMMA_3_LOCAL_THETA = 10_000.0
NORM_SUFFIX = "norm.weight"
FREQUENCIES = "rope_freqs.weight"
"""Tensor of the factors by which rotary frequencies are divided."""
LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Of all published models with positions of this kind. Files hold what comes out of it."""
SAME = 1e-4
COMMON = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
}
"""Settings of all architectures: name in the file, field of the configuration."""


def _fits(_: Config) -> str | None:
    return None


def _plain(_: Config) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp has one `model_type` of transformers.

    Attributes:
        name: llama.cpp's name.
        permuted: Whether the rows of q and k are ordered by rotary pairs.
        norm_shift: What transformers adds to the weights of norms when the model runs.
        activation: Of the feed-forward layers, as transformers names it; llama.cpp has it fixed.
        settings: As in `COMMON`, its own; left out of a file where the configuration has none.
        windowed: Whether llama.cpp attends within the window that the configuration names; else it attends to all.
        read_by_transformers: Whether the reader of transformers understands its files, without further settings.
        unfit: Why a configuration cannot be written, by its own fields.
        implied: Fields that files do not hold, from those that they do.
    """

    name: str
    permuted: bool = False
    norm_shift: float = 0.0
    activation: str = "silu"
    settings: Mapping[str, str] = field(default_factory=dict)
    windowed: bool = False
    read_by_transformers: bool = False
    unfit: Callable[[Config], str | None] = _fits
    implied: Callable[[Config], dict[str, Any]] = _plain


def _whole_attention(config: Config) -> str | None:
    windows = [kind for kind in config.get("layer_types") or () if kind != "full_attention"]
    return "attention within a window" if config.get("use_sliding_window") or windows else None


def _by_head(config: Config) -> float:
    """What attention is scaled by in llama.cpp's Gemma, squared."""
    large = config["num_hidden_layers"] in LARGE_GEMMA
    return float(config["hidden_size"] / config["num_attention_heads"] if large else config["head_dim"])


def _scaled_by_heads(config: Config) -> str | None:
    scalar, own = config["query_pre_attn_scalar"], _by_head(config)
    return None if math.isclose(scalar, own) else f"attention scaled by {scalar} where llama.cpp takes {own:g}"


def _gemma_2(config: Config) -> str | None:
    return _windows_every(config, 2) or _scaled_by_heads(config)


def _gemma_3(config: Config) -> str | None:
    local = (config["rope_parameters"].get("sliding_attention") or {}).get("rope_theta", GEMMA_3_LOCAL_THETA)
    if local != GEMMA_3_LOCAL_THETA:
        return f"local positions with a base of {local:g}, llama.cpp has {GEMMA_3_LOCAL_THETA:g}"
    if config.get("attn_logit_softcapping") or config.get("use_bidirectional_attention"):
        return "attention with capped scores or in both directions"
    return _windows_every(config, 6) or _scaled_by_heads(config)


def _gemma_implied(config: Config) -> dict[str, Any]:
    scalar = _by_head(config)
    return {"query_pre_attn_scalar": int(scalar) if scalar.is_integer() else scalar}


def _gemma_3_implied(config: Config) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": GEMMA_3_LOCAL_THETA}
    positions = {"full_attention": config["rope_parameters"], "sliding_attention": local}
    return {**_gemma_implied(config), "rope_parameters": positions}


def _windows_every(config: Config, pattern: int) -> str | None:
    usual = [
        "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention"
        for layer in range(config["num_hidden_layers"])
    ]
    same = list(config.get("layer_types") or usual) == usual
    return None if same else f"windows in other layers than all but every {pattern}."


def _smollm_3(config: Config) -> str | None:
    usual = [int((layer + 1) % 4 != 0) for layer in range(config["num_hidden_layers"])]
    if list(config.get("no_rope_layers") or usual) != usual:
        return "layers without positions that are not every fourth"
    return _whole_attention(config)


GELU = "gelu_pytorch_tanh"
SCALES = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
WINDOW = {"attention.sliding_window": "sliding_window"}
ARCHITECTURES = {
    "llama": Architecture("llama", permuted=True, read_by_transformers=True),
    "mistral": Architecture("llama", permuted=True, read_by_transformers=True),
    "qwen2": Architecture("qwen2", read_by_transformers=True, unfit=_whole_attention),
    "qwen3": Architecture("qwen3", unfit=_whole_attention),
    "smollm3": Architecture("smollm3", permuted=True, unfit=_smollm_3),
    "gemma": Architecture("gemma", norm_shift=1.0, activation=GELU),
    "gemma2": Architecture(
        "gemma2",
        norm_shift=1.0,
        activation=GELU,
        settings=CAPS | WINDOW,
        windowed=True,
        unfit=_gemma_2,
        implied=_gemma_implied,
    ),
    "gemma3_text": Architecture(
        "gemma3",
        norm_shift=1.0,
        activation=GELU,
        settings=CAPS | WINDOW,
        windowed=True,
        unfit=_gemma_3,
        implied=_gemma_3_implied,
    ),
    "phi3": Architecture("phi3", settings=WINDOW),
    "granite": Architecture("granite", permuted=True, settings=SCALES),
    "olmo2": Architecture("olmo2", unfit=_whole_attention),
}
"""By `model_type`. What is read of a name that two have is the first."""
STRETCHED = ("linear", "yarn")
"""Kinds of rotary positions that llama.cpp stretches by one factor, which has the same meaning in transformers."""
BY_FREQUENCY = "llama3"


WRITES = ".language_model."
"""What of a model that sees pictures writes; that alone is written."""


def of_text(config: Config) -> Config:
    """The configuration of what writes, of a model that sees pictures too."""
    own = config.get("text_config") or {}
    return own if own.get("model_type") in ARCHITECTURES else config


def unfit(config: Config) -> str | None:
    """Why llama.cpp cannot have a model of this configuration, or None."""
    config = of_text(config)
    known = ARCHITECTURES.get(config["model_type"])
    if known is None:
        return f"architecture {config['model_type']}; known are {', '.join(sorted(ARCHITECTURES))}"
    activation = config.get("hidden_activation") or config.get("hidden_act")
    if activation != known.activation:
        return f"{config['model_type']} with the activation {activation}, llama.cpp has {known.activation}"
    kind = _positions(config).get("rope_type", "default")
    if kind not in ("default", *STRETCHED, BY_FREQUENCY):
        return f"positions of type {kind}"
    return known.unfit(config)


def longest(config: Config) -> int | None:
    """Up to how many tokens of a row llama.cpp answers alike, where it leaves out a window; None where it does not."""
    config = of_text(config)
    return None if ARCHITECTURES[config["model_type"]].windowed else config.get("sliding_window")


def read_by_transformers(config: Config) -> bool:
    """Whether the reader of transformers makes the same model of a file; it leaves out what is not common."""
    config = of_text(config)
    plain = _positions(config).get("rope_type", "default") == "default"
    biases = config.get("attention_bias") or config.get("mlp_bias")
    return ARCHITECTURES[config["model_type"]].read_by_transformers and plain and not biases


# --- settings --------------------------------------------------------------------------------------------------------


def _positions(config: Config) -> Config:
    """What is said of rotary positions, of layers with attention to all where others differ."""
    found: Config = config.get("rope_parameters") or {}
    return found.get("full_attention") or found


def add_settings(writer: Any, config: Any) -> None:
    """Writes what llama.cpp has to know of a model beside its weights; `config` is that of what writes."""
    import torch

    known, fields = ARCHITECTURES[config.model_type], config.to_dict()
    positions, usual = _positions(fields), config.hidden_size // config.num_attention_heads
    head = getattr(config, "head_dim", None) or usual
    settings = {key: fields[name] for key, name in COMMON.items()}
    # Configurations have 12 where llama.cpp asks for 12.0.
    settings |= {
        key: float(fields[name]) if key in SCALES | CAPS else fields[name]
        for key, name in known.settings.items()
        if fields.get(name) is not None
    }
    if head != usual:
        settings |= {"attention.key_length": head, "attention.value_length": head}
    settings["rope.dimension_count"] = int(head * positions.get("partial_rotary_factor", 1.0))
    settings["rope.freq_base"] = float(positions.get("rope_theta", 10_000.0))
    kind = positions.get("rope_type", "default")
    if kind in STRETCHED:
        settings |= {"rope.scaling.type": kind, "rope.scaling.factor": float(positions["factor"])}
        if original := positions.get("original_max_position_embeddings"):
            settings["rope.scaling.original_context_length"] = original
    for key, value in settings.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{known.name}.{key}", value)
    if kind == BY_FREQUENCY:
        writer.add_tensor(FREQUENCIES, _by_frequency(config, head, torch.device("cpu")))


def _by_frequency(config: Any, head: int, device: Any) -> np.ndarray:
    """Factors (head / 2,) by which the frequencies of a configuration's positions are divided."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS[BY_FREQUENCY](config, device)
    positions = torch.arange(0, head, 2, dtype=torch.float32)
    plain = _positions(config.to_dict())["rope_theta"] ** -(positions / head)
    found: np.ndarray = (plain / scaled).numpy()
    return found


def fields_of(settings: Config, tensors: Iterable[str], factors: np.ndarray | None) -> dict[str, Any] | None:
    """Fields of the configuration of a file's model, with `model_type`; None where the architecture is not known here.

    Args:
        settings: The file's, with its names.
        tensors: Names of its tensors.
        factors: The tensor `FREQUENCIES`, where there is one.

    Raises:
        ValueError: it has settings whose meaning is not known.
    """
    import gguf

    arch, names = settings["general.architecture"], set(tensors)
    kind = next((kind for kind, known in ARCHITECTURES.items() if known.name == arch), None)
    if kind is None or settings.get(f"{arch}.expert_count"):
        return None
    known = ARCHITECTURES[kind]
    own = {key.removeprefix(f"{arch}."): settings[key] for key in settings if key.startswith(f"{arch}.")}
    fields: dict[str, Any] = {name: own[key] for key, name in (COMMON | dict(known.settings)).items() if key in own}
    if lists := sorted(name for name, value in fields.items() if isinstance(value, list)):
        raise ValueError(f"another {lists[0]} in every layer")
    if "vocab_size" not in fields:
        fields["vocab_size"] = len(settings["tokenizer.ggml.tokens"])
    fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
    head = own.get("attention.key_length") or fields["hidden_size"] // fields["num_attention_heads"]
    fields |= {"model_type": kind, "head_dim": head, "tie_word_embeddings": "output.weight" not in names}
    fields |= {"attention_bias": "blk.0.attn_q.bias" in names, "mlp_bias": "blk.0.ffn_gate.bias" in names}
    positions: dict[str, Any] = {"rope_type": "default", "rope_theta": own.get("rope.freq_base", 10_000.0)}
    if (rotary := own.get("rope.dimension_count", head)) != head:
        positions["partial_rotary_factor"] = rotary / head
    scaling = own.get("rope.scaling.type", gguf.RopeScalingType.NONE.value)
    if scaling in STRETCHED:
        positions |= {"rope_type": scaling, "factor": own["rope.scaling.factor"]}
        if original := own.get("rope.scaling.original_context_length"):
            positions["original_max_position_embeddings"] = original
    elif scaling != gguf.RopeScalingType.NONE.value or any("rope_factors" in name for name in names):
        raise ValueError(f"positions whose factors are of another kind, {scaling}")
    fields["rope_parameters"] = positions
    if factors is not None:
        fields["rope_parameters"] = positions | _frequencies_of(fields, factors)
    return {**fields, **known.implied(fields)}


def _frequencies_of(fields: Config, factors: np.ndarray) -> dict[str, Any]:
    """The positions of which factors come."""
    import numpy as np
    import torch
    from transformers import AutoConfig

    if np.allclose(factors, 1.0):
        return {}
    found: dict[str, Any] = {"rope_type": BY_FREQUENCY, "factor": float(np.max(factors)), **LLAMA_3}
    positions = {**fields["rope_parameters"], **found}
    config = AutoConfig.for_model(**{**fields, "rope_parameters": positions})
    if not np.allclose(_by_frequency(config, fields["head_dim"], torch.device("cpu")), factors, rtol=SAME):
        raise ValueError("factors of rotary frequencies that are not those of Llama 3")
    return found


# --- weights ---------------------------------------------------------------------------------------------------------


def tensor_names(config: Any) -> Callable[[str], str]:
    """From a weight's name in transformers to that in llama.cpp; raises ValueError where there is none."""
    import gguf

    config = config.get_text_config()
    arch = ARCHITECTURES[config.model_type].name
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)

    def name_of(key: str) -> str:
        found = names.get_name(key.replace(WRITES, "."), try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ValueError(f"no name in GGUF for {key}")
        return str(found)

    return name_of


def weights(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Names and float32 values of a model's weights as llama.cpp has them."""
    config, name_of = model.config.get_text_config(), tensor_names(model.config)
    shift, state = ARCHITECTURES[config.model_type].norm_shift, model.state_dict()
    sees = any(WRITES in key for key in state)
    for key, tensor in state.items():
        head = key == "lm_head.weight"
        if (head and config.tie_word_embeddings) or (sees and not head and WRITES not in key):
            continue
        values = in_llama_order(key, tensor.detach().float().cpu().numpy(), config)
        yield name_of(key), values + shift if key.endswith(NORM_SUFFIX) else values


def read_weights(model: Any, read: Callable[[str], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Names in transformers and float32 values of a file's weights: what `weights` has written.

    Args:
        model: Of the file's configuration, with any weights.
        read: The float32 values of a tensor by its name in the file.
    """
    config, name_of = model.config, tensor_names(model.config)
    known = ARCHITECTURES[config.model_type]
    for key in model.state_dict():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = read(name_of(key))
        if known.permuted and (heads := _rotated(key, config)):
            pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        yield key, values - known.norm_shift if key.endswith(NORM_SUFFIX) else values


def in_llama_order(key: str, weight: np.ndarray, config: Any) -> np.ndarray:
    """A tensor, or B of a LoRA layer, whose rows are outputs, as llama.cpp orders them: the two halves of each head's
    rotary pairs side by side."""
    heads = _rotated(key, config)
    if not (heads and ARCHITECTURES[config.model_type].permuted):
        return weight
    pairs = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _rotated(key: str, config: Any) -> int:
    """How many heads the rows of a weight belong to that are rotated; 0 of others."""
    if ".q_proj." in key:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".k_proj." in key else 0
