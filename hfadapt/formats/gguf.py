"""One GGUF file for llama.cpp and what is built on it: Llama-like models with a byte-level BPE, in 32 to 4 bits.

Tensor names and the order of the rows of q and k follow llama.cpp's convert_hf_to_gguf.py. llama.cpp itself runs the
file where it is installed (extra `gguf-run`); elsewhere `transformers` reads it back, and the record says so.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.formats import Estimate, Form, Format, Head, _llama_cpp, over_http
from hfadapt.formats._llama_cpp import LlamaCpp
from hfadapt.formats.merged import KIND as MERGED
from hfadapt.models.base import BaseRef
from hfadapt.models.facts import ModelFacts, load_config
from hfadapt.models.load import Base, load_processor, source_of
from hfadapt.models.merge import merged_dtype, open_merged
from hfadapt.recipe.names import DTYPES

if TYPE_CHECKING:
    import numpy as np
    import torch

    from hfadapt.recipe.schema import Lock
    from hfadapt.records.stages import Manifest
    from hfadapt.run_folder import Cell

FILE = "model.gguf"
TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
BLOCKS = {"q8_0": "Q8_0", "q5_1": "Q5_1", "q4_1": "Q4_1", "q4_0": "Q4_0"}
"""Weights in blocks of 32, as the package gguf rounds them."""
SAME, SAME_IN_LLAMA_CPP = 1e-3, 0.02
"""llama.cpp has kernels of its own, and sums in another order and in fewer bits."""
LABELS = 800
"""Each costs a pass."""
SPARE = 64
"""Positions for choices that are longer than a row's own answer."""
PROBE = "In 2024, 12,345 naïve users don't e-mail 東京 😀\n\tfooBar()  ?!"


class Gguf(Format):
    """model.gguf with weights, vocabulary and chat template."""

    name = "gguf"
    needs_base = False
    packages = ("gguf",)
    most_labels = LABELS

    @property
    def runtime(self) -> str:
        """llama.cpp, or what stands for it."""
        return _llama_cpp.runtime() if _llama_cpp.installed() else f"{super().runtime}; llama.cpp was not run"

    def unfit(self, task: str, config: Mapping[str, Any]) -> str | None:
        """Language models like Llama, whose names in GGUF are known here."""
        if not registry.task(task).writes:
            return f"GGUF is for language models, this is {task}"
        if config["model_type"] != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
            return f"architecture {config['model_type']}; it is written for Llama-like models without biases"
        kind = (config.get("rope_parameters") or {}).get("rope_type", "default")
        return f"positions of type {kind}" if kind != "default" else None

    def estimates(self, facts: ModelFacts) -> tuple[Estimate, ...]:
        """8 and 4 bits with a scale for each 32 weights, and 16 bits; norms are small."""
        return (
            Estimate("merged-q8_0", int(facts.parameters * 34 / 32), "int8"),
            Estimate("merged-q4_0", int(facts.parameters * 18 / 32), "int8"),
            Estimate("merged-float16", facts.parameters * 2, "float32"),
        )

    def forms(self, lock: Lock) -> tuple[Form, ...]:
        """Those of a merged model; then, for whoever names them, others that only the gate knows."""
        measured = MERGED.forms(lock)
        others = (Form(storage, True, own=f"merged-{storage}") for storage in ("float16", *BLOCKS))
        return (*measured, *(form for form in others if form.name not in {each.name for each in measured}))

    def refusal(self, cell: Cell) -> str | None:
        """Architectures and tokenizers whose names in GGUF are not known here."""
        if why := self.unfit(cell.lock.task, load_config(BaseRef.of(cell.lock).location).to_dict()):
            return why
        if _pre_tokenizer(_tokenizer(cell)) is None:
            return "its tokenizer cuts text in a way whose name in GGUF is not known"
        return None

    def holds(self, name: str, whole: bool) -> bool:
        """The one file."""
        return name == FILE

    def needed(self, whole: bool) -> frozenset[str]:
        """The one file."""
        return frozenset({FILE})

    def head(self, path: Path) -> Head | None:
        """Names, settings and the vocabulary."""
        if path.suffix != ".gguf":
            return None
        from gguf import GGUFReader

        return Head(int(GGUFReader(path).data_offset), vocabulary=True)

    def write(self, cell: Cell, form: Form | None, folder: Path, device: torch.device) -> Any:
        """Merges, and writes the result with the names of llama.cpp."""
        assert form is not None
        # What is rounded anew starts from the weights that training saw.
        packed = form.dequantised or (bool(form.own) and registry.quant(cell.lock.quant).quantised)
        dtype = form.storage if form.storage in TYPES else merged_dtype(cell.lock)
        base = open_merged(cell.lock, (), cell.adapter, dtype, device, dequantised=packed)
        kind = TYPES.get(form.storage) or BLOCKS[form.storage]
        write_gguf(base.model, base.tokenizer, folder / FILE, kind, f"{cell.lock.name}-{cell.domain}")
        return base.model

    def tolerance(self, cell: Cell, form: Form | None) -> float | None:
        """16 and 32 bits are kept; fewer are rounded."""
        if form is not None and form.storage in BLOCKS:
            return None
        return SAME_IN_LLAMA_CPP if _llama_cpp.installed() else SAME

    def processor(self, cell: Cell, folder: Path) -> Any:
        """llama.cpp's own, which `reopen` looks at."""

    def reopen(self, cell: Cell, folder: Path, device: torch.device) -> Any:
        """llama.cpp with the file, or `AutoModelForCausalLM.from_pretrained(folder, gguf_file=…)`.

        Either way with its tokenizer on a difficult text.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        own = _tokenizer(cell)
        read = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
        # What this reader makes of every vocabulary is one rule for cutting; the ids of words must be the same.
        if read.convert_tokens_to_ids(own.tokenize(PROBE)) != own.convert_tokens_to_ids(own.tokenize(PROBE)):
            raise RunError("the vocabulary in the GGUF file is not the model's", place=str(folder / FILE))
        if _llama_cpp.installed():
            return run_gguf(cell, folder / FILE)
        dtype = torch.float32 if self._stored(folder) == "F32" else torch.bfloat16
        if self._stored(folder) == "F16":
            dtype = torch.float16
        return AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=dtype).to(device).eval()

    def open(self, folder: Path, manifest: Manifest, lock: Lock, device: torch.device) -> Base:
        """Unpacked to the dtype that it is stored in; 8 bits to what was trained in."""
        dtype = manifest.dtype if manifest.dtype in DTYPES else lock.dtype
        return MERGED.open(folder / FILE, manifest.model_copy(update={"dtype": dtype}), lock, device)

    def _stored(self, folder: Path) -> str:
        from gguf import GGUFReader

        tensors = GGUFReader(folder / FILE).tensors
        return str(next(each.tensor_type.name for each in tensors if each.name == "blk.0.attn_q.weight"))

    def usage(self, cell: Cell) -> str:
        """transformers; llama.cpp takes the file as it is."""
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained(".", gguf_file="{FILE}")\n'
            f'model = AutoModelForCausalLM.from_pretrained(".", gguf_file="{FILE}")'
        )

    def notes(self, cell: Cell) -> str:
        """How llama.cpp serves it, asked as training asked it."""
        path, body = over_http(cell)
        said = shlex.quote(json.dumps(body, ensure_ascii=False))
        return (
            "In [llama.cpp](https://github.com/ggml-org/llama.cpp):\n\n```console\n"
            f"llama-server -m {FILE} -c {cell.lock.data.max_length + 64} --port 8080\n"
            f"curl localhost:8080{path} -H 'Content-Type: application/json' -d {said}\n```"
        )


def run_gguf(cell: Cell, file: Path, adapter: Path | None = None) -> LlamaCpp:
    """llama.cpp with a cell's model, or with its base and an adapter.

    Raises RunError where it cuts texts into other tokens than training did.
    """
    ids = _tokenizer(cell)(PROBE)["input_ids"]
    positions = max(cell.lock.data.max_length, len(ids)) + SPARE
    found = LlamaCpp(file, load_config(BaseRef.of(cell.lock).location), positions, adapter)
    apart = float((found.following(PROBE) - found.following(ids)).abs().max())
    if not apart <= SAME:
        raise RunError(
            "llama.cpp cuts texts into other tokens than the model was trained with",
            place=str(file),
            got=f"other answers after {PROBE!r}: by up to {apart:.3g} nats",
        )
    return found


def _tokenizer(cell: Cell) -> Any:
    return load_processor(source_of(BaseRef.of(cell.lock)), registry.task(cell.lock.task).modality)


def write_gguf(model: Any, tokenizer: Any, path: Path, kind: str, name: str) -> None:
    """Writes a Llama-like model.

    Args:
        kind: Of `TYPES` and `BLOCKS`, for matrices; norms are float32, and what tokens are read by and said with has at
            least 8 bits, as llama.cpp itself writes it.
    """
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(_rope(config)["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(int(gguf.LlamaFileType[("ALL_" if kind == "F32" else "MOSTLY_") + kind]))
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    names = tensor_names(config)
    matrix = gguf.GGMLQuantizationType[kind]
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = in_llama_order(key, tensor.detach().float().cpu().numpy(), config)
        stored = matrix if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        if kind in BLOCKS.values() and key.endswith(("embed_tokens.weight", "lm_head.weight")):
            stored = gguf.GGMLQuantizationType.Q8_0
        mapped = names.get_name(key, try_suffixes=(".weight",))
        if mapped is None:
            raise ValueError(f"no name in GGUF for {key}")
        writer.add_tensor(mapped, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensor_names(config: Any) -> Any:
    """What llama.cpp calls the tensors of a Llama-like model."""
    import gguf

    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)


def in_llama_order(key: str, weight: np.ndarray, config: Any) -> np.ndarray:
    """A tensor, or B of a LoRA layer, whose rows are outputs, as llama.cpp orders them."""
    if ".q_proj." in key:
        return _permuted(weight, config.num_attention_heads)
    return _permuted(weight, config.num_key_value_heads) if ".k_proj." in key else weight


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in llama.cpp's order: the two halves of each head's rotary pairs side by side."""
    pairs = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _rope(config: Any) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {"rope_theta": getattr(config, "rope_theta", 10_000.0)})


def _pre_tokenizer(tokenizer: Any) -> str | None:
    """llama.cpp's name for how a byte-level BPE cuts text before it merges, or None when it is not one of these."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    content = json.loads(backend.to_str())
    if content["model"]["type"] != "BPE" or content["normalizer"] is not None:
        return None
    pre = content["pre_tokenizer"] or {}
    steps = pre.get("pretokenizers", [pre])
    kinds = [step.get("type") for step in steps]
    plain = kinds[-1:] == ["ByteLevel"] and steps[-1]["use_regex"] and not steps[-1]["add_prefix_space"]
    if plain and len(kinds) == 1:
        return "gpt-2"
    return "smollm" if plain and kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] else None


def _add_tokenizer(writer: Any, tokenizer: Any, vocab_size: int) -> None:
    import gguf

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    kinds = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    for added in content["added_tokens"]:
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(tokenizer))
    writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in range(vocab_size)])
    writer.add_token_types([kinds.get(number, gguf.TokenType.UNUSED) for number in range(vocab_size)])
    merges = content["model"]["merges"]
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(ids and ids[0] == tokenizer.bos_token_id))
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


KIND: Format = Gguf()
