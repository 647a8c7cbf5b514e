"""A GGUF file as a model of transformers: the same configuration, tokens and weights that llama.cpp has of it.

The reader of transformers leaves out what stretches positions, caps scores or cuts a text; it is asked for
architectures alone that are not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.gguf import models, vocabulary
from hfadapt.core.progress import quiet_libraries

if TYPE_CHECKING:
    import numpy as np

VERSION = 2
"""Of what is made of a file: raised where the same file is read otherwise."""
TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


class _Settings(Mapping[str, Any]):
    """Of a file; lists of a vocabulary are long, and read where they are asked for."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def __getitem__(self, name: str) -> Any:
        return self._fields[name].contents()

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


class _File:
    """Settings and tensors of a file, by their names."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        reader = GGUFReader(path)
        self.settings = _Settings(reader.fields)
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.fields = models.fields_of(
            self.settings, self.tensors, self.read(models.FREQUENCIES) if models.FREQUENCIES in self.tensors else None
        )

    def read(self, name: str) -> np.ndarray:
        """The float32 values of a tensor. Raises ValueError where there is none."""
        from gguf.quants import dequantize

        if name not in self.tensors:
            raise ValueError(f"no tensor {name} in the file")
        tensor = self.tensors[name]
        found: np.ndarray = dequantize(tensor.data, tensor.tensor_type)
        return found

    @property
    def dtype(self) -> str:
        """What its matrices are kept in once they are unpacked."""
        kinds = {tensor.tensor_type.name for tensor in self.tensors.values() if len(tensor.shape) == 2}
        return "float32" if kinds == {"F32"} else "bfloat16"

    def config(self) -> Any:
        """The configuration, with the tokens that the file names."""
        from transformers import AutoConfig

        ends = {name: self.settings.get(f"tokenizer.ggml.{key}_token_id") for name, key in TOKENS.items()}
        return AutoConfig.for_model(**{**(self.fields or {}), **ends})


def read_config(path: Path) -> Any:
    """The configuration of a file's model.

    Raises:
        ValueError: it has settings whose meaning is not known.
    """
    from transformers import AutoConfig

    file = _File(path)
    if file.fields is None:
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    return file.config()


@quiet_libraries()
def read_model(path: Path, dtype: str | None = None) -> tuple[Any, Any]:
    """The causal model and the tokenizer of a file.

    Args:
        dtype: Of the weights; by default float32 where the file has that, else bfloat16.

    Raises:
        ValueError: it has settings whose meaning is not known, or lacks a tensor.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = _File(path)
    kind = getattr(torch, dtype or file.dtype)
    if file.fields is None:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=kind)
    else:
        config = file.config()
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
        state = {key: torch.from_numpy(value).to(kind) for key, value in models.read_weights(empty, file.read)}
        model = type(empty).from_pretrained(None, config=config, state_dict=state, dtype=kind)
        model.config._name_or_path = ""
    tokenizer = vocabulary.tokenizer_of(file.settings)
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return model.eval(), tokenizer


def dequantise(path: Path, folder: Path) -> None:
    """Writes a GGUF model as safetensors with its tokenizer into an empty folder.

    Raises ValueError as `read_model`.
    """
    model, tokenizer = read_model(path)
    # transformers 5.23 refuses to save a model that still holds its GGUF quantizer.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # Whichever of several processes is here alone writes: transformers would leave it to the first one.
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
