"""GGUF, the file format of llama.cpp: what is written of a language model, and what is read of a file."""

from hfadapt.core.gguf.blocks import MIXTURES, rounded
from hfadapt.core.gguf.models import (
    ARCHITECTURES,
    add_settings,
    in_llama_order,
    longest,
    read_by_transformers,
    tensor_names,
    unfit,
    weights,
)
from hfadapt.core.gguf.read import VERSION, dequantise, read_config, read_model
from hfadapt.core.gguf.vocabulary import add_tokenizer
from hfadapt.core.gguf.vocabulary import unfit as unfit_tokenizer

__all__ = [
    "ARCHITECTURES",
    "MIXTURES",
    "VERSION",
    "add_settings",
    "add_tokenizer",
    "dequantise",
    "in_llama_order",
    "longest",
    "read_by_transformers",
    "read_config",
    "read_model",
    "rounded",
    "tensor_names",
    "unfit",
    "unfit_tokenizer",
    "weights",
]
