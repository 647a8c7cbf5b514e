"""The adapter alone as a GGUF file, which llama.cpp puts on its base: `llama-server -m BASE.gguf --lora adapter.gguf`.

Layout, names and the order of the rows of q and k are those of llama.cpp's convert_lora_to_gguf.py: of every layer
`NAME.lora_a` (R, in) and `NAME.lora_b` (out, R), and `adapter.lora.alpha`; llama.cpp multiplies by alpha / R. One base
file then serves all domains. The same adapter stands beside it as peft loads it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import cache, registry
from hfadapt.core import gguf as files
from hfadapt.core.hashing import json_sha256
from hfadapt.formats import Form, Format, _llama_cpp, over_http
from hfadapt.formats.adapter import Adapter, copy_adapter
from hfadapt.formats.gguf import KIND as GGUF
from hfadapt.formats.gguf import (
    LABELS,
    SAME_IN_LLAMA_CPP,
    TYPES,
    run_gguf,
    write_gguf,
)
from hfadapt.models.adapter_files import LORA_TENSOR, tensor_shapes
from hfadapt.models.attach import WEIGHTS, open_adapter
from hfadapt.models.base import BaseRef
from hfadapt.models.load import Base, load_base
from hfadapt.models.merge import merged_dtype
from hfadapt.quants import PLAIN, Access
from hfadapt.recipe.sources import expanded

if TYPE_CHECKING:
    import torch

    from hfadapt.recipe.schema import Lock
    from hfadapt.run_folder import Cell

FILE, BASE = "adapter.gguf", "base.gguf"
STORAGE = "hfadapt.base_storage"
"""Key of the file: how the base was stored on which it was judged."""
PREFIX = "adapter-on-"
ROUNDED = ("q8_0", "q4_k_m")
"""What bases are usually rounded to."""


class GgufAdapter(Adapter):
    """adapter.gguf, beside the adapter as peft writes it."""

    name = "gguf-adapter"
    packages = (_llama_cpp.PACKAGE,)
    extra = "gguf-run"
    most_labels = LABELS
    own_readme = True

    @property
    def runtime(self) -> str:
        """llama.cpp; nothing else reads the file."""
        return _llama_cpp.runtime()

    def forms(self, lock: Lock) -> tuple[Form, ...]:
        """The one file on the base in 16 or 32 bits as it was trained, and on bases that are rounded."""
        return tuple(Form(each, False, own=f"{PREFIX}{each}") for each in (merged_dtype(lock), *ROUNDED))

    def refusal(self, cell: Cell) -> str | None:
        """Bases that `gguf` does not know, and adapters that are more than A and B beside linear layers."""
        if why := GGUF.refusal(cell):
            return why
        method = registry.adapter(cell.lock.adapter.method)
        if not (method.low_rank and method.additive):
            return f"llama.cpp adds B A x to W x and nothing else, the method is {method.name}; --format gguf merges it"
        if Access.REPAIR in method.needs:
            return f"{method.name} repairs the error of the base's quantisation, and llama.cpp has another base"
        for name in tensor_shapes(cell.adapter / WEIGHTS):
            layer = LORA_TENSOR.fullmatch(name)
            if layer is None or "lora_embedding" in name or layer[1].endswith((".lm_head", ".embed_tokens")):
                return (
                    f"it changes {name}, and llama.cpp takes A and B of the layers' matrices; --format gguf merges it"
                )
        return None

    def holds(self, name: str, whole: bool) -> bool:
        """The file, and what peft reads."""
        return name == FILE or (not whole and super().holds(name, whole))

    def needed(self, whole: bool) -> frozenset[str]:
        """The file, and what peft reads."""
        return super().needed(whole) | {FILE}

    def write(self, cell: Cell, form: Form | None, folder: Path, device: torch.device) -> Any:
        """The file from the adapter as peft has it on its base; the base goes to the cache, if it is not there yet."""
        assert form is not None
        copy_adapter(cell, folder)
        base = _base(cell, form.storage, device)
        base_file(cell, form.storage, base)
        model = open_adapter(base, cell.adapter, cell.lock.adapter.method, device)
        write_adapter(model, folder / FILE, f"{cell.lock.name}-{cell.domain}", form.storage)
        return model

    def tolerance(self, cell: Cell, form: Form | None) -> float | None:
        """The same, unless the base is rounded."""
        return SAME_IN_LLAMA_CPP if form is not None and form.storage in TYPES else None

    def reopen(self, cell: Cell, folder: Path, device: torch.device) -> Any:
        """llama.cpp with the base and the file on it. Raises RunError where it does not take them."""
        base = base_file(cell, storage_of(folder / FILE))
        return run_gguf(cell, base, adapter=folder / FILE)

    def notes(self, cell: Cell) -> str:
        """How llama.cpp serves it, asked as training asked it."""
        path, body = over_http(cell)
        said = shlex.quote(json.dumps(body, ensure_ascii=False))
        return (
            f"`{FILE}` in [llama.cpp](https://github.com/ggml-org/llama.cpp), on the base as a GGUF file (of the Hub "
            "or of llama.cpp's convert_hf_to_gguf.py); several adapters on one base: `--lora` several times.\n\n"
            f"```console\nllama-server -m BASE.gguf --lora {FILE} -c {cell.lock.data.max_length + 64} --port 8080\n"
            f"curl localhost:8080{path} -H 'Content-Type: application/json' -d {said}\n```"
        )

    def commands(self, cell: Cell, folder: Path) -> list[str]:
        """llama.cpp's server with the base that is in the cache."""
        base = base_file(cell, storage_of(folder / FILE))
        words = ["llama-server", "-m", str(base), "--lora", str(folder.resolve() / FILE)]
        return [shlex.join([*words, "-c", str(cell.lock.data.max_length + 64), "--port", "8080"])]


def base_file(cell: Cell, storage: str, base: Base | None = None) -> Path:
    """The base of a cell as a GGUF file in the cache, made where it is not there.

    Args:
        storage: Of its matrices: a dtype, or one of the mixtures of `gguf`.
        base: What is written, where it is loaded already.

    Raises:
        RunError: the disk is full.
    """
    ref, manifest = BaseRef.of(cell.lock), cell.manifest
    whose = json_sha256([ref.key, manifest.model_revision, manifest.weights_sha256])[:12]
    name = expanded(ref.model).name.rpartition(":")[2].partition("@")[0]

    def make(folder: Path) -> None:
        import torch

        found = base or _base(cell, storage, torch.device("cpu"))
        write_gguf(found.model, found.tokenizer, folder / BASE, storage, name)

    return cache.made(cache.folder() / "gguf-bases" / f"{name}-{storage}-{whose}", make) / BASE


def _base(cell: Cell, storage: str, device: torch.device) -> Base:
    """The base in 16 or 32 bits; what is rounded starts from the weights that training saw or packed."""
    dtype = storage if storage in TYPES else merged_dtype(cell.lock)
    return load_base(BaseRef.of(cell.lock).stored(PLAIN, dtype), cell.data.labels, device)


def write_adapter(model: Any, path: Path, name: str, storage: str) -> None:
    """Writes the LoRA layers of a peft model, in float32.

    Args:
        storage: How the base is stored on which the file will be judged.

    Raises:
        ValueError: a layer has no name in GGUF.
    """
    import gguf

    config, alpha = model.config.get_text_config(), float(model.peft_config[model.active_adapter].lora_alpha)
    writer = gguf.GGUFWriter(path, files.ARCHITECTURES[config.model_type].name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_name(name)
    writer.add_string(STORAGE, storage)
    name_of = files.tensor_names(config)
    for key, a, b, scale in _layers(model):
        mapped = name_of(key)
        # llama.cpp scales by alpha / R; what differs from it (rsLoRA, alpha of a layer) goes into B.
        b = files.in_llama_order(key, b * (scale * a.shape[0] / alpha), config)
        writer.add_tensor(f"{mapped}.lora_a", a)
        writer.add_tensor(f"{mapped}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _layers(model: Any) -> Iterator[tuple[str, Any, Any, float]]:
    """Name of the weight, A (R, in), B (out, R) and scale of every LoRA layer."""
    import numpy as np
    from peft.tuners.lora import LoraLayer

    active = model.active_adapter
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            a, b = (part[active].weight.detach().float().cpu().numpy() for part in (layer.lora_A, layer.lora_B))
            yield f"{name}.weight", np.ascontiguousarray(a), b, float(layer.scaling[active])


def storage_of(path: Path) -> str:
    """How the base was stored on which an adapter's file was judged."""
    from gguf import GGUFReader

    field = GGUFReader(path).fields[STORAGE]
    return str(field.contents())


KIND: Format = GgufAdapter()
