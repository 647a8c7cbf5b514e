"""From the recipe's `model` to tensors: the quantised base with its tokenizer, and the adapter on top of it.

transformers, peft, bitsandbytes and Accelerate's device maps are used here and in `adapters/` and `quants/`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt import kinds, samples
from hfadapt.adapters import DEFAULT, Context
from hfadapt.errors import RequestError, RunError
from hfadapt.facts import layer_stacks
from hfadapt.recipe import Lock

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER_WEIGHTS = "adapter_model.safetensors"
CONFIG_IDENTITY = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads")


@dataclass(frozen=True)
class ModelSource:
    """Where a base comes from.

    Args:
        path: Local folder, or a Hub id when nothing is on disk.
        revision: Commit or branch on the Hub.
        hub_id: The Hub's name of this model, for the card; None for a local folder.
        license: As the source says; None when it is unknown offline.
    """

    asked: str
    path: str
    revision: str | None = None
    hub_id: str | None = None
    license: str | None = None
    language: str | None = None
    citation: str | None = None


def resolve_model(model: str) -> ModelSource:
    """Finds `sample:NAME`, a folder, a GGUF file or a Hub id (`id@revision`); samples and GGUF files are unpacked.

    Raises:
        RequestError: no such sample, or the path does not exist.
    """
    if model.startswith(samples.PREFIX):
        entry = samples.model_entry(model.removeprefix(samples.PREFIX))
        path = samples.model_path(entry.name)
        return ModelSource(model, str(path), None, entry.hub_id, entry.license, entry.language, entry.citation)
    local = Path(model).expanduser()
    if local.suffix == ".gguf" and local.is_file():
        return ModelSource(model, str(_dequantised(local)))
    if local.is_dir():
        return ModelSource(model, str(local.resolve()))
    if model.startswith((".", "/", "~")) or local.suffix == ".gguf":
        raise RequestError("the model does not exist", place=model, fix="give a folder, a GGUF file or a Hub id")
    name, _, revision = model.partition("@")
    return ModelSource(model, name, revision or None, name)


def _dequantised(gguf: Path) -> Path:
    folder = samples.cache_folder() / "gguf" / file_sha256(gguf)[:16]
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tmp-") as temporary:
            ready = Path(temporary) / "ready"
            ready.mkdir()
            samples.dequantise(gguf, ready)
            shutil.move(ready, folder)
    return folder


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The base's tokenizer; a missing pad token is replaced by the end token, which labels never see as padding."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.path, revision=source.revision)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What rows are padded with; masked, so any token does where the tokenizer has none."""
    return int(tokenizer.pad_token_id or 0)


@dataclass
class Base:
    """A loaded base.

    Args:
        model: The model with the task's head, frozen or not as the adapter will decide.
        head_modules: Top-level modules beside the body, such as `classifier` or `lm_head`.
        fresh_modules: Modules the checkpoint did not hold; they must be trained.
        quantised_modules: Number of linear layers held in 4 or 8 bits.
        parameters: Parameters of the base as its architecture counts them, quantised or not.
        identity: Hashes that tell this base from another, as in the manifest.
    """

    source: ModelSource
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head_modules: tuple[str, ...]
    fresh_modules: tuple[str, ...]
    quantised_modules: int
    parameters: int
    identity: dict[str, str | None]

    @property
    def pad_token_id(self) -> int:
        """What rows are padded with."""
        return pad_token_id(self.tokenizer)


def default_device() -> torch.device:
    """Where a finished adapter is used: the first CUDA device, else the CPU."""
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def device_map(device: torch.device, max_memory: Mapping[Any, int] | None) -> Any:
    """One device for the whole model, or Accelerate's placement when the plan gives room per device."""
    if max_memory:
        return "auto"
    return {"": device.index if device.type == "cuda" and device.index is not None else str(device)}


def load_base(
    lock: Lock,
    labels: Sequence[str],
    device: torch.device,
    *,
    seed: int | None = None,
    max_memory: Mapping[Any, int] | None = None,
) -> Base:
    """Loads the base as the lock says, quantised while loading, with every dropout of the base off.

    Dropout in a frozen base only adds noise to a low-rank update, and without it the result does not depend on the
    number of processes or on what else drew random numbers.

    Raises:
        RequestError: the architecture has no such head.
        RunError: a module that was to be quantised is not.
    """
    import torch
    import transformers
    from accelerate import init_empty_weights

    source = resolve_model(lock.model)
    task = kinds.load("tasks", lock.task)
    auto = getattr(transformers, task.auto_class)
    config = transformers.AutoConfig.from_pretrained(source.path, revision=source.revision)
    config.update(task.model_options(labels))
    for name, value in list(vars(config).items()):
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    tokenizer = load_tokenizer(source)
    try:
        with init_empty_weights():
            skeleton = auto.from_config(config)
        skeleton.tie_weights()
    except ValueError as error:
        raise RequestError(
            f"this model cannot do {lock.task}", place=lock.model, got=config.model_type, allowed=str(error)[:300]
        ) from None
    if task.pipeline_tag == "text-classification" and config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    heads = tuple(
        name
        for name, child in skeleton.named_children()
        if name != skeleton.base_model_prefix and any(True for _ in child.parameters())
    )
    quant = kinds.load("quants", lock.quant)
    dtype = getattr(torch, lock.dtype)
    compute = compute_dtype(dtype, device)
    with torch.random.fork_rng():
        torch.manual_seed(lock.train.seed if seed is None else seed)
        model, info = auto.from_pretrained(
            source.path,
            revision=source.revision,
            config=config,
            dtype=dtype,
            quantization_config=quant.config(compute, heads),
            device_map=device_map(device, max_memory),
            max_memory=dict(max_memory) if max_memory else None,
            output_loading_info=True,
        )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes 0.50 repacks the weight in place at the first evaluation on such CPUs; training and merging
            # on the packed weight are silently wrong afterwards.
            module.support_avx512bf16_for_cpu = False
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    quantised = _check_quantised(model, skeleton, heads, quant.module_class)
    fresh = tuple(dict.fromkeys(_owner(key, model) for key in sorted(info["missing_keys"])))
    model.requires_grad_(False)
    parameters = sum(p.numel() for p in skeleton.parameters())
    known = _identity(model, tokenizer, skeleton, heads)
    return Base(source, model, tokenizer, heads, fresh, quantised, parameters, known)


def compute_dtype(storage: torch.dtype, device: torch.device) -> torch.dtype:
    """What a quantised weight is unpacked to: the dtype of the rest; for float32 bfloat16, where the device has it."""
    import torch

    emulated = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if storage == torch.float32 and not emulated else storage


def _identity(
    model: Any, tokenizer: PreTrainedTokenizerBase, skeleton: Any, heads: Sequence[str]
) -> dict[str, str | None]:
    """Hashes of the config's sizes, the body's parameter shapes, the vocabulary and the chat template."""
    config = {key: getattr(model.config, key, None) for key in CONFIG_IDENTITY}
    shapes = {
        name: list(parameter.shape)
        for name, parameter in skeleton.named_parameters()
        if name.split(".")[0] not in heads
    }
    template = tokenizer.chat_template
    return {
        "config_sha256": json_sha256(config),
        "shapes_sha256": json_sha256(shapes),
        "tokenizer_sha256": json_sha256(sorted(tokenizer.get_vocab().items())),
        "chat_template_sha256": json_sha256(template) if template else None,
    }


def _owner(key: str, model: PreTrainedModel) -> str:
    """The module to train for a missing parameter: its top-level head, or the module itself inside the body."""
    top = key.split(".")[0]
    return key.rsplit(".", 1)[0] if top == model.base_model_prefix else top


def _check_quantised(model: Any, skeleton: Any, heads: Sequence[str], module_class: str) -> int:
    """Counts the quantised linear layers; raises RunError when one that should be is not."""
    import torch

    if module_class == "Linear":
        return 0
    wanted = {
        name
        for name, module in skeleton.named_modules()
        if isinstance(module, torch.nn.Linear) and name.split(".")[0] not in heads
    }
    found = {name for name, module in model.named_modules() if type(module).__name__ == module_class}
    if missing := sorted(wanted - found):
        raise RunError(
            f"{len(missing)} of {len(wanted)} linear layers were not quantised",
            place=", ".join(missing[:4]) + (" …" if len(missing) > 4 else ""),
            allowed=module_class,
            fix="use quant=none, or a device where every layer fits without offloading",
        )
    return len(found)


def attach_adapter(
    base: Base,
    lock: Lock,
    batches: Callable[[], Iterable[Mapping[str, torch.Tensor]]] | None = None,
) -> Any:
    """Adds the recipe's adapter; only its parameters require gradients, and they are float32."""
    return attach_adapters(base, {DEFAULT: lock}, batches)


def adapter_names(count: int) -> list[str]:
    """Names of adapters inside one model: the usual one, or ones that are no word of a module's path.

    peft saves only part of an adapter whose name is one (peft issue 3584).
    """
    return [DEFAULT] if count == 1 else [f"a{json_sha256(i)[:7]}" for i in range(count)]


def attach_adapters(
    base: Base,
    locks: Mapping[str, Lock],
    batches: Callable[[], Iterable[Mapping[str, torch.Tensor]]] | None = None,
) -> Any:
    """Adds an adapter for each name; every one starts as it would alone, and all of them require gradients."""
    import torch

    lock = next(iter(locks.values()))
    task = kinds.load("tasks", lock.task)
    context = Context(
        base.fresh_modules, base.head_modules, task.peft_task_type, base.source.path, *_layers(base.model), batches
    )
    model: Any = base.model
    for name, own in locks.items():
        with torch.random.fork_rng():
            torch.manual_seed(own.train.seed)
            model = kinds.load("adapters", own.adapter.method).attach(model, own.adapter, context, name)
    if len(locks) > 1:
        # peft lets gradients into the active adapter alone.
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not locks.keys().isdisjoint(name.split(".")))
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    _multiply_heads_in_float32(model)
    if lock.train.checkpointing:
        base.model.activation_checkpointing_enable({"use_reentrant": False})
        if lock.adapter.method != "full":
            # transformers lets gradients into the embeddings' outputs, for reentrant checkpointing alone: the backward
            # pass would go through every frozen layer.
            base.model.disable_input_require_grads()
    return model


def _layers(model: Any) -> tuple[int, str, tuple[str, ...]]:
    """The number of a model's layers, the name of their list, and name endings of the linear layers in it."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    stacks = layer_stacks(model)
    if len(stacks) != 1:
        return 0, "", ()
    ((path, stack),) = stacks.items()
    linear = (name for name, module in stack.named_modules() if isinstance(module, (nn.Linear, Conv1D)))
    return len(stack), path.rpartition(".")[2], tuple(dict.fromkeys(name.rpartition(".")[2] for name in linear))


def _multiply_heads_in_float32(model: Any) -> bool:
    """Trained copies of whole modules are float32 and take float32 inputs, whatever the base's dtype; peft sees to
    this in low-rank layers only. Whether there are such modules."""
    import torch
    from peft.utils.other import ModulesToSaveWrapper

    def as_float32(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs)

    wrappers = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    for wrapper in wrappers:
        for copied in wrapper.modules_to_save.values():
            copied.float().register_forward_pre_hook(as_float32)
    return bool(wrappers)


def round_as_saved(model: Any, lock: Lock) -> None:
    """Weights trained in full are saved in the lock's dtype; rounded now, what is checked is what is saved."""
    import torch

    if lock.adapter.method == "full":
        for parameter in model.parameters():
            # Not model.to(): the angles of rotary positions are a buffer that stays float32.
            parameter.data = parameter.data.to(getattr(torch, lock.dtype))


def trainable(model: Any, adapter: str | None = None) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name; of one adapter, where there are several."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (adapter is None or adapter in name.split("."))
    }


def low_rank_start(model: Any) -> dict[str, torch.Tensor]:
    """Copies of A and B as initialised, needed to save methods that move part of W into them."""
    return {name: p.detach().clone() for name, p in trainable(model).items() if "lora_A" in name or "lora_B" in name}


def save_adapter(
    model: Any,
    base: Base,
    lock: Lock,
    folder: Path,
    start: Mapping[str, torch.Tensor] | None = None,
    name: str = DEFAULT,
) -> dict[str, str]:
    """Writes a folder that plain peft loads: safetensors and config, with the base's name instead of a local path.

    Args:
        start: `low_rank_start` of methods that changed the base; they are saved as A' = [A; A0], B' = [B, -B0], which
            is the same update on the untouched base (Meng et al. 2024, arXiv 2404.02948, appendix).

    Returns:
        sha256 by file name.

    Raises:
        RunError: what was written is not what was trained.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".adapter.tmp-") as temporary:
        ready = Path(temporary) / "adapter"
        if lock.adapter.method == "full":
            round_as_saved(model, lock)
            model.save_pretrained(ready)
        else:
            _save_peft(model, base, ready, start, name)
        base.tokenizer.save_pretrained(ready)
        hashes = {path.name: file_sha256(path) for path in sorted(ready.iterdir())}
        if folder.exists():
            shutil.rmtree(folder)
        ready.rename(folder)
    return hashes


def _save_peft(model: Any, base: Base, folder: Path, start: Mapping[str, torch.Tensor] | None, name: str) -> None:
    import copy

    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file, save_file

    config = copy.deepcopy(model.peft_config[name])
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if start:
        for parameter, first in start.items():
            key = parameter.replace(f".{name}.", ".")
            low = "lora_A" in parameter
            state[key] = torch.cat([state[key], first if low else -first], dim=0 if low else 1)
        config.init_lora_weights = True
        config.lora_alpha = config.lora_alpha * (2**0.5 if config.use_rslora else 2)
        config.r *= 2
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    broken = [key for key, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise RunError("the adapter holds NaN or Inf", place=broken[0], got=f"{len(broken)} tensors")
    config.inference_mode = True
    if config.modules_to_save:
        # peft adds its own names for heads, whether they are there or not.
        config.modules_to_save = list(dict.fromkeys(config.modules_to_save))
    config.base_model_name_or_path = base.source.hub_id or Path(base.source.path).name
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    save_file(state, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    written = load_file(folder / ADAPTER_WEIGHTS)
    if written.keys() != state.keys() or not all(torch.equal(written[key], state[key]) for key in state):
        raise RunError("the adapter on disk differs from the trained one", place=str(folder))


def open_adapter(base: Base, folder: Path, method: str, device: torch.device) -> Any:
    """Puts a saved adapter on a freshly loaded base, for inference.

    Raises:
        RunError: tensors are missing, or none of the adapter's were used.
    """
    from hfadapt.adapters import DEFAULT

    if method == "full":
        return _open_full(base, folder, device)
    return _open_named(base, {DEFAULT: folder}, device)


def open_adapters(base: Base, folders: Mapping[str, Path], device: torch.device) -> Any:
    """Puts several saved adapters on one freshly loaded base, for inference; `use_adapter` says which one is on.

    Args:
        folders: The adapter's folder by any name. Inside the model the names are hashed: a name that is a word of the
            model's module names makes peft lose tensors without a word (peft #3584).

    Raises:
        RunError: tensors of an adapter are missing.
    """
    return _open_named(base, {internal_name(name): folder for name, folder in folders.items()}, device)


def use_adapter(model: Any, name: str) -> None:
    """Switches to one of the adapters of `open_adapters`."""
    model.set_adapter(internal_name(name))
    model.requires_grad_(False)


def internal_name(name: str) -> str:
    """What an adapter is called inside the model: no word of a module's name."""
    return "a" + hashlib.sha256(name.encode()).hexdigest()[:12]


def _open_named(base: Base, folders: Mapping[str, Path], device: torch.device) -> Any:
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    model: Any = None
    for name, folder in folders.items():
        if model is None:
            model = PeftModel.from_pretrained(base.model, str(folder), adapter_name=name, torch_device=str(device))
        else:
            model.load_adapter(str(folder), adapter_name=name, torch_device=str(device))
    float32_heads = _multiply_heads_in_float32(model)
    for name, folder in folders.items():
        saved = load_file(folder / ADAPTER_WEIGHTS)
        found = len(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
        if found != len(saved):
            got = f"{found} of {len(saved)} tensors"
            raise RunError("the adapter does not match the base", place=str(folder), got=got)
        if float32_heads:
            # The first loading rounded them to the base's dtype.
            set_peft_model_state_dict(model, saved, adapter_name=name)
    return model.requires_grad_(False).eval()


def _open_full(base: Base, folder: Path, device: torch.device) -> Any:
    model = type(base.model).from_pretrained(folder, dtype=base.model.dtype, device_map={"": str(device)})
    return model.requires_grad_(False).eval()


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def json_sha256(value: Any) -> str:
    """Hex sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
