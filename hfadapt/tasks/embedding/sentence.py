"""How a base makes one vector of a text, as sentence-transformers keeps it beside the weights: read and written back.

modules.json names the modules after the transformer, 1_Pooling/config.json how tokens become one vector,
2_Dense/config.json and those after it linear layers that the vector goes through, which stay as they are;
config_sentence_transformers.json what is put before queries and documents.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_serializer

from hfadapt.core.errors import RequestError
from hfadapt.core.hashing import file_sha256
from hfadapt.core.spec import Spec, write_text

if TYPE_CHECKING:
    import torch

MODULES, TRANSFORMER, CONFIG = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
POOLING_FOLDER = "1_Pooling"
POOLING = f"{POOLING_FOLDER}/config.json"
LAYERS = 4
"""Linear layers at most."""
WEIGHTS = "model.safetensors"
FILES = frozenset({MODULES, TRANSFORMER, CONFIG, POOLING}) | {
    f"{number}_Dense/{name}" for number in range(2, 2 + LAYERS) for name in ("config.json", WEIGHTS)
}
VECTOR = "sentence_embedding"
"""What sentence-transformers calls the vector of a text, also in files for other runtimes."""
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
"""Classes of torch.nn, after a linear layer."""

MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Keys of 1_Pooling/config.json and what newer versions call them. The largest value of each feature (max) is left out:
it is no weighted sum of the tokens."""
QUERY, DOCUMENT = ("query",), ("document", "passage", "corpus")


class Dense(Spec):
    """A linear layer that vectors go through.

    Args:
        folder: Where it lies beside the base.
        inputs, outputs: Numbers of a vector before and after.
        activation: One of `ACTIVATIONS`.
        sha256: Of its weights.
    """

    folder: str
    inputs: int
    outputs: int
    bias: bool
    activation: str
    sha256: str


class Sentence(Spec):
    """How texts become vectors.

    Args:
        pooling: One of `MODES`.
        normalise: Whether vectors have length 1.
        query, document, default: What is put before texts that look for something, that are found, and others.
        include_prompt: Whether these words count in the pooling.
        lower: Whether texts are put in lower case.
        known: Whether the base says so; else mean and length 1 are assumed.
        dense: The layers between pooling and length 1.
        model_type: Of the base.
    """

    pooling: str = "mean"
    normalise: bool = True
    query: str = ""
    document: str = ""
    default: str = ""
    include_prompt: bool = True
    lower: bool = False
    known: bool = False
    dense: tuple[Dense, ...] = ()
    model_type: str = Field("", exclude=True)

    @classmethod
    def of(cls, part: Any) -> Sentence:
        """Of the base whose tokenizer or model this is."""
        return _read(*_place(part))

    @model_serializer(mode="wrap")
    def _without_what_few_have(self, write: Any) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        return fields if self.dense else {name: value for name, value in fields.items() if name != "dense"}

    def weights(self, tokens: int, prompt: int) -> list[float]:
        """What each of so many tokens counts in the vector of a text.

        Args:
            prompt: Tokens before the text itself.
        """
        first = min(prompt, tokens - 1) if not self.include_prompt else 0
        count = tokens - first
        chosen = {
            "mean": [1 / count] * count,
            "mean_sqrt_len_tokens": [count**-0.5] * count,
            "cls": [1.0, *[0.0] * (count - 1)],
            "lasttoken": [*[0.0] * (count - 1), 1.0],
        }
        if self.pooling in chosen:
            return [0.0] * first + chosen[self.pooling]
        places = range(first + 1, tokens + 1)
        return [0.0] * first + [place / sum(places) for place in places]

    def vectors(self, hidden: torch.Tensor, mask: torch.Tensor, model: Any = None) -> torch.Tensor:
        """Vectors (B, D) of hidden states (B, T, D), with `mask` (B, T) 1 where a token is.

        Args:
            model: Beside which the layers lie that they go through.
        """
        import torch

        mask = mask.to(hidden.dtype)
        place, count = mask.cumsum(1) * mask, mask.sum(1, keepdim=True)
        weights = {
            "mean": lambda: mask / count,
            "mean_sqrt_len_tokens": lambda: mask / count.sqrt(),
            "cls": lambda: (place == 1).to(hidden.dtype),
            "lasttoken": lambda: (place == count).to(hidden.dtype),
            "weightedmean": lambda: place / place.sum(1, keepdim=True),
        }[self.pooling]()
        found = through_layers(model, (weights[:, None] @ hidden)[:, 0])
        return torch.nn.functional.normalize(found, dim=-1) if self.normalise else found

    def write(self, folder: Path, max_length: int, width: int, tokenizer: Any = None) -> None:
        """Writes the files from which sentence-transformers reads it.

        Args:
            width: Of the hidden states.
            tokenizer: Of the base, beside which its linear layers lie.
        """
        dense = ["Dense"] * len(self.dense)
        names = ["Transformer", "Pooling", *dense, *(["Normalize"] if self.normalise else [])]
        modules = [
            {
                "idx": number,
                "name": str(number),
                "path": f"{number}_{name}" if number else "",
                "type": f"sentence_transformers.models.{name}",
            }
            for number, name in enumerate(names)
        ]
        pooling: dict[str, Any] = {"word_embedding_dimension": width, "pooling_mode_max_tokens": False}
        pooling |= {key: mode == self.pooling for key, mode in MODES.items()} | {"include_prompt": self.include_prompt}
        prompts = {"query": self.query, "document": self.document}
        said = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
        if self.default:
            said |= {"prompts": {**prompts, "default": self.default}, "default_prompt_name": "default"}
        files = {
            MODULES: modules,
            TRANSFORMER: {"max_seq_length": max_length, "do_lower_case": self.lower},
            CONFIG: said,
            POOLING: pooling,
        }
        for number, layer in enumerate(self.dense, 2):
            own = folder / f"{number}_Dense"
            own.mkdir()
            path, revision = _place(tokenizer)
            weights = _file(path, f"{layer.folder}/{WEIGHTS}", revision)
            assert weights is not None
            shutil.copyfile(weights, own / WEIGHTS)
            files[f"{own.name}/config.json"] = {
                "in_features": layer.inputs,
                "out_features": layer.outputs,
                "bias": layer.bias,
                "activation_function": f"torch.nn.{layer.activation}",
            }
        (folder / POOLING_FOLDER).mkdir()
        for name, content in files.items():
            write_text(folder / name, json.dumps(content, indent=2) + "\n")


def through_layers(model: Any, vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (B, D), float32, after the linear layers that lie beside a base, where it has some."""
    import torch

    if model is None:
        return vectors
    place = _place(model)
    for layer in _read(*place).dense:
        weights = _weights(*place, layer, str(vectors.device))
        moved = torch.nn.functional.linear(vectors, weights["linear.weight"], weights.get("linear.bias"))
        vectors = getattr(torch.nn, layer.activation)()(moved)
    return vectors


def _place(part: Any) -> tuple[str, str | None]:
    """Where a tokenizer or model was read from, and its revision."""
    found: tuple[str, str | None] = getattr(part, "read_from", None) or (str(part.name_or_path), None)
    return found


@cache
def _weights(path: str, revision: str | None, layer: Dense, device: str) -> dict[str, torch.Tensor]:
    import torch
    from safetensors.torch import load_file

    file = _file(path, f"{layer.folder}/{WEIGHTS}", revision)
    assert file is not None
    with torch.inference_mode(False):
        return {name: tensor.float().to(device) for name, tensor in load_file(file).items()}


@cache
def _read(path: str, revision: str | None) -> Sentence:
    modules = _json(path, MODULES, revision) if path else None
    model_type = str(((_json(path, "config.json", revision) if path else None) or {}).get("model_type", ""))
    if not isinstance(modules, list):
        return Sentence(model_type=model_type)
    kinds = [(str(each.get("type", "")).rpartition(".")[2], str(each.get("path", ""))) for each in modules]
    names = [name for name, _ in kinds]
    count = names.count("Dense")
    known = ["Transformer", *(["Pooling"] if "Pooling" in names else []), *["Dense"] * count]
    if names not in (known, [*known, "Normalize"]) or count > LAYERS:
        raise RequestError(
            "this sentence encoder has modules that hfadapt does not know, or in another order",
            place=f"{path}: {MODULES}",
            got=", ".join(names),
            allowed=f"Transformer, Pooling, up to {LAYERS} of Dense, Normalize, in this order",
            fix="choose a base without them, such as sample:minilm-l6",
        )
    pooling: Mapping[str, Any] | None = next(
        (_json(path, f"{own}/config.json", revision) for name, own in kinds if name == "Pooling"), {}
    )
    dense = tuple(_dense(path, own, revision) for name, own in kinds if name == "Dense")
    said = _json(path, CONFIG, revision) or {}
    transformer = _json(path, TRANSFORMER, revision) or {}
    prompts = said.get("prompts") or {}
    default = str(prompts.get(said.get("default_prompt_name") or "") or "")

    def prompt(names: tuple[str, ...]) -> str:
        return str(next((prompts[name] for name in names if prompts.get(name)), default))

    return Sentence(
        pooling=_mode(pooling or {}, path),
        normalise="Normalize" in names,
        query=prompt(QUERY),
        document=prompt(DOCUMENT),
        default=default,
        include_prompt=bool((pooling or {}).get("include_prompt", True)),
        lower=bool(transformer.get("do_lower_case", False)),
        known=True,
        dense=dense,
        model_type=model_type,
    )


def _dense(path: str, folder: str, revision: str | None) -> Dense:
    """Raises RequestError for a layer that is not one of torch's after the pooled vector, or has no safe weights."""
    said = _json(path, f"{folder}/config.json", revision) or {}
    # What sentence-transformers takes where the config does not say it.
    activation = str(said.get("activation_function", "Tanh")).rpartition(".")[2]
    where = f"{path}: {folder}"
    if activation not in ACTIVATIONS:
        raise RequestError(
            "this sentence encoder has a layer with an activation that hfadapt does not know",
            place=where,
            got=activation,
            allowed=", ".join(ACTIVATIONS),
            fix="choose another base",
        )
    names = {said.get(key) or VECTOR for key in ("module_input_name", "module_output_name")}
    if names != {VECTOR}:
        raise RequestError(
            "this sentence encoder has a layer that does not read the vector of a text",
            place=where,
            got=", ".join(sorted(names)),
            allowed=VECTOR,
            fix="choose another base",
        )
    weights = _file(path, f"{folder}/{WEIGHTS}", revision)
    if weights is None:
        raise RequestError(
            "the weights of a layer beside the base are not in a format that is safe to open",
            place=where,
            got="no " + WEIGHTS,
            allowed=WEIGHTS,
            fix="open it once with sentence-transformers and save it anew: "
            'SentenceTransformer("…").save_pretrained("folder")',
        )
    inputs, outputs = int(said.get("in_features", 0)), int(said.get("out_features", 0))
    return Dense(
        folder=folder,
        inputs=inputs,
        outputs=outputs,
        bias=_has_bias(weights, inputs, outputs, where),
        activation=activation,
        sha256=file_sha256(weights),
    )


def _has_bias(weights: Path, inputs: int, outputs: int, where: str) -> bool:
    """Whether a layer has one. Raises RequestError where a file holds another layer than its config says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RequestError(
            "the weights of a layer beside the base cannot be read",
            place=where,
            got=str(error)[:200],
            fix="fetch it again",
        ) from None
    allowed = {"linear.weight": (outputs, inputs), "linear.bias": (outputs,)}
    if found.get("linear.weight") != allowed["linear.weight"] or not found.items() <= allowed.items():
        raise RequestError(
            "a layer beside the base is another one than its config says",
            place=where,
            got=", ".join(f"{name} {shape}" for name, shape in sorted(found.items())),
            allowed=", ".join(f"{name} {shape}" for name, shape in allowed.items()),
            fix="fetch it again",
        )
    return "linear.bias" in found


def _mode(pooling: Mapping[str, Any], path: str) -> str:
    """Raises RequestError for one that is no weighted sum of the tokens."""
    named = pooling.get("pooling_mode")
    modes = [named] if isinstance(named, str) else list(named or ())
    modes = modes or [MODES.get(key, "max") for key, on in pooling.items() if key.startswith("pooling_mode_") and on]
    if not modes:
        return "mean"
    if len(modes) > 1 or modes[0] not in MODES.values():
        raise RequestError(
            "this sentence encoder pools tokens in a way that hfadapt does not know",
            place=f"{path}: {POOLING}",
            got=", ".join(map(str, modes)),
            allowed=", ".join(MODES.values()),
            fix="choose another base",
        )
    return str(modes[0])


def _json(path: str, name: str, revision: str | None) -> Any:
    """What a file of a folder or a Hub id says; None where there is none."""
    file = _file(path, name, revision)
    if file is None:
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(
            "a file beside the base is not readable JSON", place=str(file), got=str(error)[:120], fix="fetch it again"
        ) from None


def _file(path: str, name: str, revision: str | None) -> Path | None:
    """A file of a folder or a Hub id, where there is one."""
    from transformers.utils.hub import cached_file

    file = Path(path) / name if Path(path).is_dir() else None
    if file is None:
        found = cached_file(
            path,
            name,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        file = Path(found) if found else None
    return file if file is not None and file.is_file() else None
