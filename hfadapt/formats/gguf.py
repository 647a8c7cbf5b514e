"""One GGUF file for llama.cpp and what is built on it, in 32 to 4 bits: language models of the architectures that
`hfadapt.core.gguf` knows.

llama.cpp itself runs the file where it is installed (extra `gguf-run`); elsewhere it is read back into transformers,
and the record says so.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hfadapt.core import gguf as files
from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.data import read_split
from hfadapt.formats import Estimate, Form, Format, Head, _llama_cpp, over_http
from hfadapt.formats._llama_cpp import LlamaCpp
from hfadapt.formats._single_file import examples_of, inputs_of
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
ESTIMATED = ("q8_0", "q4_k_m", "q4_0")
TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
ALL_FLOAT = "ALL_F32"
SAME, SAME_IN_LLAMA_CPP = 1e-3, 0.02
"""llama.cpp has kernels of its own, and sums in another order and in fewer bits."""
LABELS = 800
"""Each costs a pass."""
SPARE = 64
"""Positions for choices that are longer than a row's own answer."""
CUT_ROWS, CUT_CHARACTERS = 4, 200
"""Of the test rows, whose tokens are compared too."""
PROBE = "In 2024, 12,345 naïve users don't e-mail 東京 😀\n\tfooBar()  ?!"


IN_LLAMA_CPP = f"""import json

import xllamacpp

asked = xllamacpp.CommonParams()
asked.model.path = "{FILE}"
server = xllamacpp.Server(asked)
server.handle_completions(json.dumps({{"prompt": "TEXT", "n_predict": 64, "temperature": 0}}), print)"""
"""The reader of transformers leaves out settings that it does not know."""


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
        """Language models whose names and settings in GGUF are known here."""
        if not registry.task(task).writes:
            return f"GGUF is for language models, this is {task}"
        return files.unfit(config)

    def estimates(self, facts: ModelFacts) -> tuple[Estimate, ...]:
        """8 and 4 bits with their scales, and 16 bits; norms are small."""
        ends = facts.vocab_size * facts.hidden_size * (1 if facts.config.get("tie_word_embeddings") else 2)
        rounded = (
            Estimate(f"merged-{name}", files.MIXTURES[name].bytes(facts.parameters, ends, facts.hidden_size), "int8")
            for name in ESTIMATED
        )
        return (*rounded, Estimate("merged-float16", facts.parameters * 2, "float32"))

    def forms(self, lock: Lock) -> tuple[Form, ...]:
        """Those of a merged model; then, for whoever names them, others that only the gate knows."""
        measured = MERGED.forms(lock)
        others = (Form(storage, True, own=f"merged-{storage}") for storage in ("float16", *files.MIXTURES))
        return (*measured, *(form for form in others if form.name not in {each.name for each in measured}))

    def refusal(self, cell: Cell) -> str | None:
        """Architectures and tokenizers whose names in GGUF are not known here, and rows beyond a window."""
        config, rows = _config(cell).to_dict(), cell.lock.data.max_length
        if why := self.unfit(cell.lock.task, config) or files.unfit_tokenizer(_tokenizer(cell)):
            return why
        if (most := files.longest(config)) and rows > most:
            return f"rows of up to {rows:,} tokens, and llama.cpp leaves out the model's window of {most:,}"
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
        mixture, name = files.MIXTURES.get(form.storage), f"{cell.lock.name}-{cell.domain}"
        importance = _importance(cell, base) if mixture and mixture.weighed else {}
        write_gguf(base.model, base.tokenizer, folder / FILE, form.storage, name, importance)
        return base.model

    def tolerance(self, cell: Cell, form: Form | None) -> float | None:
        """16 and 32 bits are kept; fewer are rounded."""
        if form is not None and form.storage in files.MIXTURES:
            return None
        return SAME_IN_LLAMA_CPP if _llama_cpp.installed() else SAME

    def processor(self, cell: Cell, folder: Path) -> Any:
        """llama.cpp's own, which `reopen` looks at."""

    def reopen(self, cell: Cell, folder: Path, device: torch.device) -> Any:
        """llama.cpp with the file and its tokenizer, or both in transformers."""
        if _llama_cpp.installed():
            return run_gguf(cell, folder / FILE)
        model, read = files.read_model(folder / FILE)
        own = _tokenizer(cell)
        if read(PROBE)["input_ids"] != own(PROBE)["input_ids"]:
            raise RunError("the vocabulary in the GGUF file is not the model's", place=str(folder / FILE))
        return model.to(device)

    def open(self, folder: Path, manifest: Manifest, lock: Lock, device: torch.device) -> Base:
        """Unpacked to the dtype that it is stored in; 8 bits to what was trained in."""
        dtype = manifest.dtype if manifest.dtype in DTYPES else lock.dtype
        return MERGED.open(folder / FILE, manifest.model_copy(update={"dtype": dtype}), lock, device)

    def usage(self, cell: Cell) -> str:
        """transformers, where they read all of it, else llama.cpp; which takes the file as it is."""
        if not files.read_by_transformers(_config(cell).to_dict()):
            return IN_LLAMA_CPP
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

    Raises RunError where it cuts a difficult text, or one of the test rows, into other tokens than training did.
    """
    tokenizer = _tokenizer(cell)
    positions = max(cell.lock.data.max_length, len(tokenizer(PROBE)["input_ids"])) + SPARE
    found = LlamaCpp(file, _config(cell), positions, adapter)
    for text in (PROBE, *_own_texts(cell, tokenizer)):
        ids = tokenizer(text)["input_ids"]
        if not 0 < len(ids) < positions:
            continue
        apart = float((found.following(text) - found.following(ids)).abs().max())
        if not apart <= SAME:
            raise RunError(
                "llama.cpp cuts texts into other tokens than the model was trained with",
                place=str(file),
                got=f"other answers after {text!r}: by up to {apart:.3g} nats",
            )
    return found


def _own_texts(cell: Cell, tokenizer: Any) -> list[str]:
    """The beginnings of what is asked and answered in a few test rows, and of a chat all of it."""
    schema = registry.schema(cell.data.form)
    rows = read_split(cell.folder, "test", limit=CUT_ROWS)[:CUT_ROWS]
    found = [text[:CUT_CHARACTERS] for row in rows for text in (*schema.asked(row), *schema.answers(row))]
    if schema.chat:
        begin = tokenizer.bos_token or ""
        turns = ({"role": "user", "content": text} for text in found)
        # The template's first token is written by the tokenizer too.
        found = [tokenizer.apply_chat_template([each], tokenize=False).removeprefix(begin) for each in turns]
    return found


def _config(cell: Cell) -> Any:
    return load_config(BaseRef.of(cell.lock).location).get_text_config()


def _tokenizer(cell: Cell) -> Any:
    return load_processor(source_of(BaseRef.of(cell.lock)), registry.task(cell.lock.task).modality)


def _importance(cell: Cell, base: Base) -> dict[str, np.ndarray]:
    """The mean square of each input (C,) of the linear layers over the tokens of the first training rows, by the name
    of the layer's weight in the file."""
    import torch

    examples = examples_of(cell, base, cell.lock.export.calibration_rows)
    name_of = files.tensor_names(base.model.config)
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def heard(name: str) -> Callable[..., None]:
        def hear(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            seen = inputs[0].detach().float().flatten(0, -2).square()
            sums[name] = sums.get(name, torch.zeros(seen.shape[1])) + seen.sum(0).cpu()
            counts[name] = counts.get(name, 0) + len(seen)

        return hear

    layers = [(name, layer) for name, layer in base.model.named_modules() if isinstance(layer, torch.nn.Linear)]
    hooks = [layer.register_forward_pre_hook(heard(f"{name}.weight")) for name, layer in layers]
    try:
        for example in examples:  # One at a time: nothing is padded.
            inputs_of(cell, base, [example])
    finally:
        for hook in hooks:
            hook.remove()
    return {name_of(name): (total / counts[name]).numpy() for name, total in sums.items()}


def write_gguf(
    model: Any,
    tokenizer: Any,
    path: Path,
    storage: str,
    name: str,
    importance: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> None:
    """Writes a model of one of the known architectures.

    Args:
        storage: Of matrices: a dtype, or one of the mixtures; norms are float32.
        importance: How much each input of a matrix matters, by its name in the file.
    """
    import gguf

    config = model.config.get_text_config()
    writer = gguf.GGUFWriter(path, files.ARCHITECTURES[config.model_type].name)
    writer.add_name(name)
    mixture = files.MIXTURES.get(storage)
    kind = storage.upper() if mixture else TYPES[storage]
    writer.add_file_type(int(gguf.LlamaFileType[ALL_FLOAT if kind in ALL_FLOAT else f"MOSTLY_{kind}"]))
    files.add_settings(writer, config)
    files.add_tokenizer(writer, tokenizer, config.vocab_size)
    for mapped, values in files.weights(model):
        own = "F32"
        if values.ndim == 2:
            own = mixture.kind(mapped, values.shape[1], config.num_hidden_layers) if mixture else kind
        stored = files.rounded(values, own, importance.get(mapped))
        writer.add_tensor(mapped, stored, raw_dtype=gguf.GGMLQuantizationType[own])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


KIND: Format = Gguf()
