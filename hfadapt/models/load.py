"""From the recipe's `model` to tensors: the quantised base with its tokenizer.

transformers, bitsandbytes and Accelerate's device maps are used here and in `quants/`.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import cache, gguf, registry, samples
from hfadapt.core.errors import HfadaptError, Problem, RequestError, RunError, fault_of_machine
from hfadapt.core.hashing import file_sha256, json_sha256
from hfadapt.core.progress import quiet_libraries
from hfadapt.hardware.peak_memory import is_out_of_memory
from hfadapt.hardware.processor import BFLOAT16_UNITS, cpu_features
from hfadapt.hardware.shards import Shards
from hfadapt.models.base import BaseRef, made_here
from hfadapt.models.checks import fit_problems, size_problem, token_problems
from hfadapt.models.divided import divide_layers
from hfadapt.models.facts import body_name, build, freeze_front, head_names, is_linear, load_config, more_than_linear
from hfadapt.models.folders import file_problems, require_base, weight_files
from hfadapt.models.heads import BaseHead, class_tensors, start_again, take_rows
from hfadapt.quants import Quant
from hfadapt.recipe.schema import Lock
from hfadapt.recipe.sources import expanded
from hfadapt.records.stages import BaseRecord
from hfadapt.tasks import Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POOLER = "pooler"
CONFIG_IDENTITY = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads")


@dataclass(frozen=True)
class ModelSource:
    """Where a base comes from.

    Args:
        path: Local folder, or a Hub id when nothing is on disk.
        revision: Commit or branch on the Hub.
        hub_id: The Hub's name of this model, for the card; None for a local folder.
        license: As the source says; None when it is unknown offline.
        made: What the folder says about itself, where a stage made the base in it.
    """

    asked: str
    path: str
    revision: str | None = None
    hub_id: str | None = None
    license: str | None = None
    language: str | None = None
    citation: str | None = None
    made: BaseRecord | None = None


def resolve_model(model: str) -> ModelSource:
    """Finds `sample:NAME`, a folder, a GGUF file or a Hub id (`id@revision`); samples and GGUF files are unpacked.

    Raises:
        RequestError: no such sample, or the path does not exist.

    Example:
        >>> from hfadapt import load_recipe, resolve_model
        >>> resolve_model(load_recipe("sentiment.yaml").model).path
        '...encoder'
    """
    if model.startswith(samples.PREFIX):
        entry = samples.model_entry(model.removeprefix(samples.PREFIX))
        path = samples.model_path(entry.name)
        return ModelSource(model, str(path), None, entry.hub_id, entry.license, entry.language, entry.citation)
    local = expanded(model)
    if local.suffix == ".gguf" and local.is_file():
        return ModelSource(model, str(_dequantised(local)))
    if local.is_dir():
        require_base(local, model)
        return ModelSource(model, str(local.resolve()), made=made_here(local))
    if model.startswith((".", "/", "~")) or local.suffix == ".gguf":
        raise RequestError(
            "the model does not exist",
            place=model,
            got=f"nothing at {local.resolve()}",
            allowed="a folder, a GGUF file or a Hub id",
            fix="put the base back there, or name the place where it is now",
        )
    name, _, revision = model.partition("@")
    return ModelSource(model, name, revision or None, name)


def source_of(ref: BaseRef) -> ModelSource:
    """Where the tensors of a base come from; licence and origin are those of the recipe's model.

    Raises:
        RequestError: as `resolve_model`.
        RunError: the base that a stage had made is gone or is another one.
    """
    source = resolve_model(ref.model)
    if ref.made is None:
        return source
    folder = Path(ref.made.folder)
    made = made_here(folder)
    if made is None or made.sha256 != ref.made.sha256:
        raise RunError(
            f"this is not the base that the stage {ref.made.made_by} made",
            place=str(folder),
            got="another base" if made else "no such base",
            allowed=f"sha256 {ref.made.sha256[:16]}…",
            fix="run the recipe again",
        )
    return replace(source, path=str(folder.resolve()), revision=None, made=made)


def _dequantised(file: Path) -> Path:
    def make(folder: Path) -> None:
        try:
            gguf.dequantise(file, folder)
        except Exception as error:
            # Of a damaged file its reader raises whatever comes first.
            if isinstance(error, HfadaptError) or fault_of_machine(error) or is_out_of_memory(error):
                raise
            got = f"{type(error).__name__}: {error}"[:200]
            fix = "fetch the file again, or name the model as its authors publish it, as a folder or a Hub id"
            raise RequestError("this GGUF file cannot be read", place=str(file), got=got, fix=fix) from None

    return cache.made(cache.folder() / "gguf" / f"{file_sha256(file)[:16]}-{gguf.VERSION}", make)


def load_processor(source: ModelSource, modality: str, max_length: int | None = None) -> Any:
    """What turns values into the base's inputs: of texts the tokenizer, with a pad token.

    Args:
        max_length: Of the examples that it will make, where that is known.
    """
    kind = registry.modality(modality)
    processor = kind.load_processor(source.path, source.revision)
    return processor if max_length is None else kind.sized(processor, max_length)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What rows are padded with; masked, so any token does where the tokenizer has none."""
    return int(tokenizer.pad_token_id or 0)


@dataclass
class Base:
    """A loaded base.

    Args:
        model: The model with the task's head, frozen or not as the adapter will decide.
        head_modules: Top-level modules beside the body, such as `classifier` or `lm_head`.
        fresh_modules: Modules the checkpoint did not hold, or not for this task; they must be trained.
        sorted_modules: Heads with the checkpoint's rows in another order; an adapter has to bring them.
        quantised_modules: Number of linear layers held in 4 or 8 bits.
        parameters: Parameters of the base as its architecture counts them, quantised or not.
        identity: Hashes that tell this base from another, as in the manifest.
        head_note: What became of the checkpoint's own head, in a line, where it is not used as it is.
        shards: Where its layers are divided over the processes.
    """

    source: ModelSource
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head_modules: tuple[str, ...]
    fresh_modules: tuple[str, ...]
    quantised_modules: int
    parameters: int
    identity: dict[str, str | None]
    sorted_modules: tuple[str, ...] = ()
    head_note: str | None = None
    shards: Shards | None = None

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
    base: BaseRef | Lock,
    labels: Sequence[str],
    device: torch.device,
    *,
    seed: int | None = None,
    max_memory: Mapping[Any, int] | None = None,
    divided: bool = False,
) -> Base:
    """Loads a base, quantised while loading, with every dropout of the base off. A lock stands for the base it names.

    Dropout in a frozen base only adds noise to a low-rank update, and without it the result does not depend on the
    number of processes or on what else drew random numbers.

    Args:
        seed: Of what the checkpoint does not hold, in the place of the base's.
        max_memory: Room by device, for spreading it over several.
        divided: Divide its layers over the processes, all of which load it.

    Raises:
        RequestError: the architecture has no such head.
        RunError: a module that was to be quantised is not, or the base cannot be divided.
    """
    import torch
    import transformers

    ref = BaseRef.of(base) if isinstance(base, Lock) else base
    source = source_of(ref)
    task = registry.task(ref.task)
    config = transformers.AutoConfig.from_pretrained(source.path, revision=source.revision, trust_remote_code=False)
    auto = getattr(transformers, task.auto_class_of(config.model_type))
    head = BaseHead.of(config)
    config.update(task.model_options(labels))
    for name, value in list(vars(config).items()):
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    if getattr(config, "apply_spec_augment", False):
        # Parts of what is heard hidden at random (Park et al. 2019), whichever rows are beside each other.
        config.apply_spec_augment = False
    tokenizer = load_processor(source, task.modality, ref.max_length)
    skeleton = _skeleton(auto, config, ref)
    # A head over a whole text takes the last token that is no padding.
    if registry.modality(task.modality).tokens and not task.writes and config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    heads = head_names(skeleton)
    quant = registry.quant(ref.quant)
    dtype = getattr(torch, ref.dtype)
    compute = compute_dtype(dtype, device)
    wanted = _Head(task, tuple(labels), head, type(skeleton).__name__, ref.seed if seed is None else seed)
    with torch.random.fork_rng():
        torch.manual_seed(wanted.seed)
        model, info = _from_pretrained(
            auto,
            source,
            config=wanted.as_saved(config),
            dtype=dtype,
            quantization_config=quant.config(compute, (*heads, *more_than_linear(skeleton))),
            device_map=device_map(torch.device("cpu") if divided else device, max_memory),
            max_memory=dict(max_memory) if max_memory else None,
        )
    model.read_from = (source.path, source.revision)
    _steady(model)
    quantised = _check_quantised(model, skeleton, heads, quant)
    if registry.modality(task.modality).tokens:
        _raise_problems(_token_problems(tokenizer, model, ref.location))
    fresh = dict.fromkeys(_owner(key, model) for key in sorted(info["missing_keys"]))
    if not heads:
        # Nobody reads it where there is no head.
        fresh.pop(POOLER, None)
    changed, note = wanted.settle(auto, model, info, ref.location)
    fresh |= dict.fromkeys(changed if wanted.rows is None else ())
    model.requires_grad_(False)
    freeze_front(model)
    parameters = sum(p.numel() for p in skeleton.parameters())
    known = _identity(model, registry.modality(task.modality).identity(tokenizer), tokenizer, skeleton, heads)
    moved = () if wanted.rows is None else changed
    shards = divide_layers(model, task, heads, device) if divided else None
    return Base(source, model, tokenizer, heads, tuple(fresh), quantised, parameters, known, moved, note, shards)


def _steady(model: Any) -> None:
    """Turns off what would make outputs depend on other rows, chance or an earlier pass."""
    import torch

    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes 0.50 repacks the weight in place at the first evaluation on such CPUs; training and merging
            # on the packed weight are silently wrong afterwards.
            module.support_avx512bf16_for_cpu = False
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            # With the statistics of the base: of a batch they would hang on which rows are beside each other.
            module.train = partial(_stays_in_evaluation, module)  # type: ignore[assignment, method-assign]
            module.eval()


def _skeleton(auto: Any, config: Any, ref: BaseRef) -> Any:
    """The model without weights. Raises RequestError where the architecture has no such head."""
    from accelerate import init_empty_weights

    try:
        with init_empty_weights():
            skeleton = auto.from_config(config)
        skeleton.tie_weights()
    except ValueError as error:
        raise RequestError(
            f"this model cannot do {ref.task}", place=ref.location, got=config.model_type, allowed=str(error)[:300]
        ) from None
    return skeleton


class _Head:
    """The head that a task wants of a checkpoint, on the way from its config to the loaded model."""

    def __init__(self, task: Task, labels: tuple[str, ...], found: BaseHead, architecture: str, seed: int) -> None:
        self.task, self.labels, self.found, self.architecture, self.seed = task, labels, found, architecture, seed
        self.matters = task.outputs(labels) > 0
        self.rows = found.rows(task, labels, architecture) if self.matters else None
        self.moves = self.rows is not None and self.rows != tuple(range(len(found.classes)))

    def as_saved(self, config: Any) -> Any:
        """The config with which the checkpoint's own head fits, where its rows are to be taken."""
        if not self.moves:
            return config
        config = copy.deepcopy(config)
        config.update({"num_labels": len(self.found.classes), "id2label": dict(enumerate(self.found.classes))})
        return config

    def settle(self, auto: Any, model: Any, info: Mapping[str, Any], place: str) -> tuple[tuple[str, ...], str | None]:
        """Makes the loaded model's head the one that is wanted.

        Returns:
            The modules that are changed by it, and a note for the user; nothing where the checkpoint has no such head.

        Raises:
            RequestError: other tensors of the checkpoint do not fit.
        """
        looked_at = self.matters and (self.rows is None or self.moves)
        tensors = class_tensors(auto, model.config) if info["mismatched_keys"] or looked_at else {}
        # A head whose rows are taken by their names has to have as many as there are names.
        allowed = tensors if self.rows is None else {}
        _raise_problems(_weight_problems(model, info, place, self.task, allowed=allowed))
        tensors = {name: dim for name, dim in tensors.items() if name not in info["missing_keys"]}
        if not looked_at or not tensors:
            model.config.update(self.task.model_options(self.labels))
            return (), None
        if self.rows is None:
            start_again(model, tensors, self.seed)
        else:
            take_rows(model, tensors, self.rows)
        model.config.update(self.task.model_options(self.labels))
        changed = dict.fromkeys(_owner(key, model) for key in tensors)
        return tuple(changed), self.found.note(self.task, self.labels, self.architecture)


@quiet_libraries()
def check_base(base: BaseRef) -> None:
    """Looks at a base on disk before anything is done with it: its files, whether its weights fit its config, and its
    tokenizer. What is not on disk is looked at when it is loaded.

    Raises:
        RequestError: it cannot be used; all that is wrong with it.
    """
    folder = expanded(base.location)
    if not folder.is_dir():
        return
    import torch
    import transformers

    config = load_config(base.location)
    source, task = source_of(base), registry.task(base.task)
    auto_class = task.auto_class_of(config.model_type)
    build(config, auto_class, base.location)
    _raise_problems(file_problems(folder))
    model = None
    if all(path.suffix == ".safetensors" for path in weight_files(folder)):
        auto = getattr(transformers, auto_class)
        # As it was saved, so that the head's classes are as many as in the weights.
        model, info = _from_pretrained(auto, source, config=config, dtype=torch.float32, device_map={"": "meta"})
        _raise_problems(_weight_problems(model, info, base.location, task, allowed=()))
    tokenizer = load_processor(source, task.modality)
    if model is not None and registry.modality(task.modality).tokens:
        _raise_problems(_token_problems(tokenizer, model, base.location))


def _from_pretrained(auto: Any, source: ModelSource, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model, and what was loaded of it; what does not fit is left for `_weight_problems` to say, by name.

    Raises:
        RequestError: the weights cannot be read.
    """
    from safetensors import SafetensorError

    try:
        model, info = auto.from_pretrained(
            source.path,
            revision=source.revision,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            **options,
        )
    except pickle.UnpicklingError:
        what = "the weights of the base are a pickle with more than tensors, which could run code"
        fix = "take a base with model.safetensors; of one that you trust save_pretrained writes it"
        raise RequestError(what, place=source.asked, fix=fix) from None
    except (SafetensorError, EOFError) as error:
        raise RequestError(
            "the weights of the base cannot be read", place=source.asked, got=str(error)[:200], fix="fetch them again"
        ) from None
    return model, info


def _weight_problems(
    model: Any, info: Mapping[str, Any], place: str, task: Task, allowed: Collection[str]
) -> Iterator[Problem]:
    """What of the weights does not fit; tensors of other sizes are `allowed` for the classes of a head."""
    sizes = {key: (tuple(found), tuple(needed)) for key, found, needed in info["mismatched_keys"] if key not in allowed}
    if sizes:
        yield size_problem(sizes, place)
        return
    yield from fit_problems(model, info, place, needs_head=task.needs_head)


def _token_problems(tokenizer: Any, model: Any, place: str) -> Iterator[Problem]:
    if Path(place).suffix == ".gguf":
        # The reader of these files adds special tokens that no model has.
        return
    with suppress(NotImplementedError):
        yield from token_problems(tokenizer, int(model.get_input_embeddings().weight.shape[0]), place)


def _raise_problems(found: Iterable[Problem]) -> None:
    if problems := list(found):
        raise RequestError("this base cannot be used", problems=problems)


def compute_dtype(storage: torch.dtype, device: torch.device) -> torch.dtype:
    """What a quantised weight is unpacked to: the dtype of the rest; for float32 bfloat16, where the device has it."""
    import torch

    emulated = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    emulated |= device.type == "cpu" and not BFLOAT16_UNITS & set(cpu_features())
    return torch.bfloat16 if storage == torch.float32 and not emulated else storage


def _identity(
    model: Any, processor: Any, tokenizer: PreTrainedTokenizerBase, skeleton: Any, heads: Sequence[str]
) -> dict[str, str | None]:
    """Hashes of the config's sizes, the body's parameter shapes, the vocabulary or what else makes inputs, and the chat
    template."""
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
        "tokenizer_sha256": json_sha256(processor),
        "chat_template_sha256": json_sha256(template) if template else None,
    }


def _stays_in_evaluation(module: torch.nn.Module, mode: bool = True) -> torch.nn.Module:
    module.training = False
    return module


def _owner(key: str, model: PreTrainedModel) -> str:
    """The module to train for a missing parameter: its top-level head, or the module itself inside the body."""
    top = key.split(".")[0]
    return key.rsplit(".", 1)[0] if top == body_name(model) else top


def _check_quantised(model: Any, skeleton: Any, heads: Sequence[str], quant: Quant) -> int:
    """Counts the quantised linear layers; raises RunError when one that should be is not."""
    import torch

    if not quant.quantised:
        return 0
    wanted = {
        name
        for name, module in skeleton.named_modules()
        if isinstance(module, torch.nn.Linear) and is_linear(module) and name.split(".")[0] not in heads
    }
    found = {name for name, module in model.named_modules() if type(module).__name__ == quant.module_class}
    if missing := sorted(wanted - found):
        raise RunError(
            f"{len(missing)} of {len(wanted)} linear layers were not quantised",
            place=", ".join(missing[:4]) + (" …" if len(missing) > 4 else ""),
            allowed=quant.module_class,
            fix="use quant=none, or a device where every layer fits without offloading",
        )
    return len(found)
