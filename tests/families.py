"""Tiny models of many architectures, and tokenizers of every kind of rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tiny import BAD, GOOD, LABELS, PLAIN

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}
TEXT: dict[str, tuple[type, type, dict[str, Any]]] = {
    "bert": (hf.BertConfig, hf.BertForSequenceClassification, {}),
    "roberta": (hf.RobertaConfig, hf.RobertaForSequenceClassification, {"pad_token_id": 5}),
    "mpnet": (hf.MPNetConfig, hf.MPNetForSequenceClassification, {"pad_token_id": 1}),
    "deberta": (hf.DebertaV2Config, hf.DebertaV2ForSequenceClassification, {"relative_attention": True,
                "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}),
    "modernbert": (hf.ModernBertConfig, hf.ModernBertForSequenceClassification, {"local_attention": 8}),
    "distilbert": (hf.DistilBertConfig, hf.DistilBertForSequenceClassification, {"dim": 32, "n_layers": 4,
                   "n_heads": 4, "hidden_dim": 96}),
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM, {"num_key_value_heads": 2, "head_dim": 16}),
    "gemma3": (hf.Gemma3TextConfig, hf.Gemma3ForCausalLM, {"num_key_value_heads": 2, "head_dim": 16,
               "sliding_window": 8, "sliding_window_pattern": 2}),
    "smollm3": (hf.SmolLM3Config, hf.SmolLM3ForCausalLM, {"num_key_value_heads": 2}),
    "phi3": (hf.Phi3Config, hf.Phi3ForCausalLM, {"num_key_value_heads": 2}),
    "gpt2": (hf.GPT2Config, hf.GPT2LMHeadModel, {"n_inner": 96}),
}  # fmt: skip
OTHER: dict[str, tuple[type, type, dict[str, Any]]] = {
    "vit": (hf.ViTConfig, hf.ViTForImageClassification, {"patch_size": 8, "image_size": 32}),
    "dinov2": (hf.Dinov2Config, hf.Dinov2ForImageClassification, {"patch_size": 8, "image_size": 32, "mlp_ratio": 3}),
    "whisper": (hf.WhisperConfig, hf.WhisperForAudioClassification, {"d_model": 32, "encoder_layers": 4,
                "encoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_layers": 1, "vocab_size": 64,
                "decoder_ffn_dim": 64, "decoder_attention_heads": 2, "max_source_positions": 20, "num_mel_bins": 8,
                "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}),
    # As many convolutions as layers.
    "wav2vec2": (hf.Wav2Vec2Config, hf.Wav2Vec2ForSequenceClassification, {"conv_dim": [16] * 4, "vocab_size": 32,
                 "conv_kernel": [10, 4, 4, 4], "conv_stride": [5, 2, 2, 2], "num_conv_pos_embeddings": 8,
                 "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16}),
}  # fmt: skip
FAMILIES = {**TEXT, **OTHER}


def family(name: str, **more: Any) -> Any:
    """A model of this architecture with weights that answer something, in evaluation mode."""
    config, model, options = FAMILIES[name]
    torch.manual_seed(3)
    made = model(config(**(sizes_of(name) | options | more)))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval().requires_grad_(False)


def inputs(name: str) -> dict[str, torch.Tensor]:
    """Three rows for it, one of them shorter where rows may be."""
    draw = torch.Generator().manual_seed(1)
    if name in TEXT:
        mask = torch.ones(3, 12, dtype=torch.long)
        mask[1, 7:] = 0
        ids = torch.randint(6, 160, (3, 12), generator=draw)
        pad = family_config(name).pad_token_id
        return {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}
    if name == "whisper":
        return {"input_features": torch.randn(3, 8, 40, generator=draw)}
    if name == "wav2vec2":
        return {"input_values": torch.randn(3, 1600, generator=draw)}
    return {"pixel_values": torch.randn(3, 3, 32, 32, generator=draw)}


def family_config(name: str) -> Any:
    """Its config."""
    config, _, options = FAMILIES[name]
    return config(**(sizes_of(name) | options))


def sizes_of(name: str) -> dict[str, Any]:
    """The sizes that its config knows by these names."""
    known = FAMILIES[name][0]()
    sizes = {"vocab_size": 160, "pad_token_id": 1, **SIZES} if name in TEXT else SIZES
    return {field: value for field, value in sizes.items() if hasattr(known, field)}


def answer(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Its logits."""
    with torch.no_grad():
        logits: torch.Tensor = model(**batch).logits
    return logits


def reopened(model: Any, folder: Path) -> Any:
    """The model as plain transformers opens it from its files: without a tensor too many or too few."""
    model.save_pretrained(folder)
    again, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return again.eval()


# --- tokenizers ------------------------------------------------------------------------------------------------------

WORDS = [*PLAIN, *GOOD, *BAD, *LABELS]


def _trained(model: Any, trainer: Any, pre: Any, decoder: Any, texts: Sequence[str], post: Any = None) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoder
    tokenizer.train_from_iterator(texts, trainer)
    if post is not None:
        tokenizer.post_processor = post(tokenizer)
    return tokenizer


def _template(start: str, end: str) -> Callable[[Any], Any]:
    from tokenizers.processors import TemplateProcessing

    return lambda made: TemplateProcessing(
        f"{start} $A {end}",
        f"{start} $A {end} $B {end}",
        [(start, made.token_to_id(start)), (end, made.token_to_id(end))],
    )


def tokenizers() -> dict[str, Callable[[], Any]]:
    """Of word pieces, unigrams, and byte pairs in the manner of GPT-2, Llama and CLIP."""
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    texts = [" ".join(WORDS), " ".join(reversed(WORDS))] * 3

    def wordpiece() -> Any:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        made = _trained(
            models.WordPiece(unk_token="[UNK]"),
            trainers.WordPieceTrainer(vocab_size=220, special_tokens=special, show_progress=False),
            pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(), texts, _template("[CLS]", "[SEP]"),
        )  # fmt: skip
        names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
        return hf.PreTrainedTokenizerFast(tokenizer_object=made, **names)

    def unigram() -> Any:
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        made = _trained(
            models.Unigram(), trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>",
                                                      show_progress=False),
            pre_tokenizers.Metaspace(), decoders.Metaspace(), texts, _template("<s>", "</s>"),
        )  # fmt: skip
        made.add_special_tokens(["<mask>"])
        names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        return hf.PreTrainedTokenizerFast(tokenizer_object=made, mask_token="<mask>", **names)

    def llama() -> Any:
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ended = decoders.Sequence(parts)
        special = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
        made = _trained(
            models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True),
            trainers.BpeTrainer(vocab_size=460, special_tokens=special, show_progress=False),
            None, ended, [text.replace(" ", "▁") for text in texts], _template("<s>", "</s>"),
        )  # fmt: skip
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        # Bytes are no added tokens.
        rules = json.loads(made.to_str())
        rules["added_tokens"] = rules["added_tokens"][:3]
        made = made.from_str(json.dumps(rules))
        names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
        return hf.PreTrainedTokenizerFast(tokenizer_object=made, **names)

    def clip() -> Any:
        special = ["<unk>", "<s>", "</s>"]
        made = _trained(
            models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"),
            trainers.BpeTrainer(vocab_size=260, special_tokens=special, end_of_word_suffix="</w>", show_progress=False),
            pre_tokenizers.Whitespace(), decoders.BPEDecoder(suffix="</w>"), texts, _template("<s>", "</s>"),
        )  # fmt: skip
        names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
        return hf.PreTrainedTokenizerFast(tokenizer_object=made, **names)

    def gpt2() -> Any:
        from tiny import make_tokenizer

        made = make_tokenizer()
        # After the words, as many models have them.
        made.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
        return made

    return {"wordpiece": wordpiece, "unigram": unigram, "llama": llama, "clip": clip, "gpt2": gpt2}
