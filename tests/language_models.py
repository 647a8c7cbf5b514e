"""Tiny language models of many architectures, and tokenizers of many kinds."""

from __future__ import annotations

import json
from typing import Any

import torch
from tiny import BAD, CHAT_TEMPLATE, GOOD, LABELS, PLAIN
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from hfadapt.core.gguf.vocabulary import CUTS
from hfadapt.formats.gguf import PROBE

TEXT = " ".join([*PLAIN, *GOOD, *BAD, *LABELS])
MARKS = "हिन्दी"
"""llama.cpp does not keep their marks with their letters where upper and lower case are told apart."""
HARD = (PROBE, "It's 1,234,567 HTTPServer\n\n  fooBar's \n", f"naïve {MARKS} 東京 😀", f"{TEXT[:40]} 2024 12345")
SPECIAL = ["<unk>", "<s>", "</s>"]
SIZES = {
    "vocab_size": 704,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOWS = {"num_hidden_layers": 7, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 5e5}
SCALES = {"attention_multiplier": 0.2, "embedding_multiplier": 3, "residual_multiplier": 0.7, "logits_scaling": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3.2": (
        "llama",
        {"rope_parameters": {**LLAMA_3, "original_max_position_embeddings": 8192}, "tie_word_embeddings": True},
    ),
    "llama, stretched": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "mistral": ("mistral", {"head_dim": 32, "sliding_window": None}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, yarn": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 1e6,
            }
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}),
    "gemma": ("gemma", {"head_dim": 32}),
    "gemma2": ("gemma2", {**WINDOWS, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0}),
    "gemma3": ("gemma3_text", WINDOWS),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3, a window": ("phi3", {"sliding_window": 200}),
    "phi3, some positions": ("phi3", {"sliding_window": None, "partial_rotary_factor": 0.5}),
    "granite": ("granite", SCALES),
    "olmo2": ("olmo2", {}),
}


def configured(kind: str, **fields: Any) -> Any:
    return AutoConfig.for_model(kind, **{**SIZES, **fields})


def made(config: Any) -> Any:
    """A model of wide weights: what a layer does is not lost in rounding."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
            elif "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def byte_level(*before: Any, regex: bool = True, normalizer: Any = None, whole: bool = False) -> Any:
    """A BPE over bytes with one way of cutting, whose merges would reach over every cut."""
    backend = Tokenizer(models.BPE(ignore_merges=whole))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*HARD, f" {TEXT}"] * 4, trainer)
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)]
    )
    return named(backend)


def over_characters(prefix: bool, metaspace: bool = False) -> Any:
    """A BPE over characters with bytes for what it does not know, as SentencePiece has it."""
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(
        [f"{TEXT} TEXT 2024 don't"] * 4, trainers.BpeTrainer(vocab_size=250, show_progress=False)
    )
    vocabulary = {token: place for place, token in enumerate([*SPECIAL, *bytes_, *learner.get_vocab()])}
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    replace = normalizers.Replace(" ", "▁")
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
        if not prefix:
            backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return named(backend)


def named(backend: Tokenizer) -> Any:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def cut(name: str) -> Any:
    """A tokenizer with the expression that has a name in llama.cpp."""
    expression, whole = next(known for names, known in CUTS.items() if name in names)
    nfc = normalizers.NFC() if name.startswith("qwen") else None
    split = pre_tokenizers.Split(Regex(expression), "isolated")
    return byte_level(split, regex=False, normalizer=nfc, whole=whole)


TOKENIZERS = {
    "gpt-2": byte_level,
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "dbrx": lambda: cut("dbrx"),
    "llama-bpe": lambda: cut("llama-bpe"),
    "qwen2": lambda: cut("qwen2"),
    "qwen35": lambda: cut("qwen35"),
    "gpt-4o": lambda: cut("gpt-4o"),
    "tekken": lambda: cut("tekken"),
    "llama 2": lambda: over_characters(prefix=True),
    "llama 2, metaspace": lambda: over_characters(prefix=True, metaspace=True),
    "gemma": lambda: over_characters(prefix=False),
}
