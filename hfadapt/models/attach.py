"""The adapter on a base: attached for training, saved as peft reads it, opened again for inference."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.adapters import DEFAULT, Context
from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.models.facts import body_name, layer_stacks
from hfadapt.models.load import Base, file_sha256, json_sha256
from hfadapt.recipe.schema import Lock

if TYPE_CHECKING:
    import torch

WEIGHTS = "adapter_model.safetensors"


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
    task = registry.task(lock.task)
    brought = tuple(dict.fromkeys((*base.fresh_modules, *base.sorted_modules)))
    context = Context(brought, base.head_modules, task.peft_task_type, base.source.path, *_layers(base.model), batches)
    model: Any = base.model
    for name, own in locks.items():
        with torch.random.fork_rng():
            torch.manual_seed(own.train.seed)
            model = registry.adapter(own.adapter.method).attach(model, own.adapter, context, name)
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
        if not registry.adapter(lock.adapter.method).whole_model:
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

    if registry.adapter(lock.adapter.method).whole_model:
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


@contextmanager
def one_adapter(model: Any, name: str) -> Iterator[None]:
    """While inside, peft's own forward goes through this adapter of several, which takes the gradients from the
    others; afterwards all is as it was."""
    before, needed = model.active_adapter, [(each, each.requires_grad) for each in model.parameters()]
    model.set_adapter(name)
    try:
        yield
    finally:
        model.set_adapter(before)
        for parameter, gradient in needed:
            parameter.requires_grad_(gradient)


def trained_layers(model: Any, base: Base, name: str) -> dict[str, torch.nn.Parameter]:
    """The low-rank weights of an adapter in a base's body, by their names in the body: the same whatever the head."""
    body = body_name(base.model)
    # A base without a head is its body itself.
    outer, prefix = "base_model.model.", f"{body}." if hasattr(base.model, body) else ""
    found = {}
    for path, parameter in model.named_parameters():
        inside = path.removeprefix(outer)
        if f".{name}" in inside and "lora_" in inside and inside.startswith(prefix):
            found[inside.removeprefix(prefix).replace(f".{name}", "")] = parameter
    return found


def go_on(model: Any, base: Base, name: str, weights: Path) -> None:
    """Gives an adapter the low-rank weights as an earlier training has left them (`trained_layers`).

    Raises:
        RunError: none of them fits.
    """
    import torch
    from safetensors.torch import load_file

    layers, saved = trained_layers(model, base, name), load_file(weights)
    with torch.no_grad():
        for key in layers.keys() & saved.keys():
            layers[key].copy_(saved[key])
    if not layers.keys() & saved.keys():
        raise RunError("the weights of the earlier training are of other layers", place=str(weights))


def fresh_heads(model: Any, base: Base, name: str) -> list[torch.nn.Module]:
    """The modules of the task's head that the checkpoint did not hold, as the adapter of that name trains them."""
    fresh = [head for head in base.head_modules if head in base.fresh_modules]
    found = dict(model.named_modules())
    # A method without peft trains the model's own.
    own = [found.get(f"base_model.model.{head}.modules_to_save.{name}", found.get(head)) for head in fresh]
    return [module for module in own if module is not None]


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
        if registry.adapter(lock.adapter.method).whole_model:
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
    if not isinstance(config.target_modules, str):
        config.target_modules = _named(config.target_modules, config.modules_to_save or ())
    config.base_model_name_or_path = base.source.hub_id or Path(base.source.path).name
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    written = load_file(folder / WEIGHTS)
    if written.keys() != state.keys() or not all(torch.equal(written[key], state[key]) for key in state):
        raise RunError("the adapter on disk differs from the trained one", place=str(folder))


def _named(targets: Iterable[str], whole: Iterable[str]) -> list[str]:
    """Adapted layers as their config names them: in an order, where peft has a set, and none that is trained whole; of
    an adapter beside others peft counts the copies of a head that all of them have as layers."""
    within = tuple(f".{name}." for name in whole)
    return sorted(target for target in targets if not any(name in f".{target}." for name in within))


def open_adapter(base: Base, folder: Path, method: str, device: torch.device) -> Any:
    """Puts a saved adapter on a freshly loaded base, for inference.

    Raises:
        RunError: tensors are missing, or none of the adapter's were used.
    """
    if registry.adapter(method).whole_model:
        return _open_whole(base, folder, device)
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
        saved = load_file(folder / WEIGHTS)
        found = len(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
        if found != len(saved):
            got = f"{found} of {len(saved)} tensors"
            raise RunError("the adapter does not match the base", place=str(folder), got=got)
        if float32_heads:
            # The first loading rounded them to the base's dtype.
            set_peft_model_state_dict(model, saved, adapter_name=name)
    return model.requires_grad_(False).eval()


def _open_whole(base: Base, folder: Path, device: torch.device) -> Any:
    model = type(base.model).from_pretrained(folder, dtype=base.model.dtype, device_map={"": str(device)})
    # What the task reads beside the weights stays with the base.
    model.read_from = base.model.read_from
    return model.requires_grad_(False).eval()
