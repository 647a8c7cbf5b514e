"""What an adapter's folder may hold, looked at before any of it is used: needs no model and runs no code.

An adapter from elsewhere is foreign input. peft builds what adapter_config.json says (modules by regular expression,
layers repeated, modules imported by name) and passes over tensors that do not fit, so both are checked here first.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hfadapt.adapters import AdapterMethod, Saved
from hfadapt.core import registry
from hfadapt.core.errors import Problem
from hfadapt.models.attach import WEIGHTS
from hfadapt.records.stages import Manifest

MANIFEST = "hfadapt.json"
CONFIG = "adapter_config.json"
SUMS = "SHA256SUMS"

TOKENIZER_FILES = frozenset(
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json vocab.txt merges.txt "  # noqa: SIM905
    "tokenizer.model spiece.model sentencepiece.bpe.model chat_template.jinja preprocessor_config.json "
    "processor_config.json".split()
)
WHOLE_FILES = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json"
)
"""A whole model as transformers writes it."""
SIDECARS = ("README.md", "card.json", "loss.svg", "lock.yaml", "evaluation.json")
"""Files about the adapter; they lie beside the records in a cell and beside the adapter once it is published."""

PICTURE = re.compile(r"error-\d{1,2}\.(?:png|jpeg)")
"""Test rows in a card, where rows are files; they lie in a cell, and beside what is published only if that is asked."""

EXPORT = "export.json"
BESIDE = frozenset({MANIFEST, *SIDECARS, SUMS, EXPORT, "CARD.md", "drift.json", ".gitattributes"})
"""Files that may stand beside those that the manifest lists."""

PICKLES = frozenset(".bin .pt .pth .pkl .pickle .ckpt .npy .npz .joblib .h5 .msgpack .keras .mar".split())  # noqa: SIM905
AGAIN_OF_MODEL = "copy the folder again, or export it again: hfadapt export CELL --format "
AGAIN = "copy the adapter folder again, or train it again: hfadapt run RECIPE"
MOST_CONFIG_BYTES = 1 << 20
MOST_RANK = 2048
MOST_NAMES = 10_000
PLAIN_NAME = re.compile(r"[\w.-]{1,200}")

MODULES = frozenset({"target_modules", "modules_to_save"})
"""What every method may set in peft's config, beside `AdapterMethod.saved`. Other fields have to be at the default."""

NEUTRAL = frozenset("peft_type peft_version task_type base_model_name_or_path revision inference_mode".split())  # noqa: SIM905
HARMLESS_STARTS = (True, False, "eva", "gaussian", "orthogonal")
"""Other ways to start LoRA move weights of the base when the adapter is opened."""

RUNS_CODE = ("auto_map", "custom_pipelines", "trust_remote_code", "_attn_implementation_internal")
LORA_TENSOR = re.compile(r"(.+)\.lora_(?:embedding_)?(A|B|magnitude_vector)(?:\.weight)?")


def is_model_file(name: str, format: str, whole: bool) -> bool:
    """Whether a file of this name, below the folder, belongs to an adapter in this format; `whole`: the base itself was
    trained."""
    kind = registry.format(format)
    if name in _task_files():
        return whole or not kind.needs_base
    return name in TOKENIZER_FILES or name == MANIFEST or kind.holds(name, whole)


def _task_files() -> frozenset[str]:
    """What tasks write beside a whole model."""
    return frozenset(name for task in registry.names("tasks") for name in registry.task(task).files)


def files_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a folder of a model and of folders in it, by their names below it."""
    for path in sorted(folder.rglob("*")):
        if not path.is_dir():
            yield path.relative_to(folder).as_posix(), path


def is_pickle(path: Path) -> bool:
    """Whether a file is of a kind whose loading can run code, by its name or its first bytes."""
    if path.suffix.lower() in PICKLES:
        return True
    with path.open("rb") as file:
        head = file.read(4)
    return head == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and len(head) > 1)


def irregular_files(folder: Path) -> Iterator[Problem]:
    """Pipes and devices, which no program saves as a part of an adapter."""
    for path in sorted(folder.rglob("*")):
        if path.exists() and not path.is_file() and not path.is_dir():
            fix = "do not load it; take the adapter from a source you trust"
            yield Problem("a pipe or a device stands in the adapter's folder", str(path), fix=fix)


def folder_problems(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """Everything that keeps an adapter's folder from being opened."""
    found = list(_unknown_names(folder, manifest))
    # Which files it should hold its method and format say.
    found += [*_foreign_files(folder, manifest), *(() if found else _changed_files(folder, manifest))]
    yield from found
    if found:
        # What the files say is not looked at before they are the right ones.
        return
    method = registry.adapter(manifest.method)
    if manifest.whole:
        if (folder / "config.json").is_file():
            yield from _model_config_problems(folder)
    else:
        config, problems = read_config(folder / CONFIG, method)
        yield from problems
        if not problems:
            ranks = (manifest.rank, manifest.rank * 2) if method.changes_base else (manifest.rank,)
            if method.low_rank and config.get("r") not in ranks:
                yield Problem(
                    "the rank differs from the manifest's",
                    str(folder / CONFIG),
                    got=str(config.get("r")),
                    allowed=" or ".join(map(str, ranks)),
                    fix=AGAIN,
                )
            yield from _tensor_problems(folder / WEIGHTS, config, method)
    yield from _count_problems(folder, manifest)


def _unknown_names(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    for what, kind, name in (("method", "adapters", manifest.method), ("format", "formats", manifest.format)):
        if name not in registry.names(kind):
            yield Problem(
                f"the {what} of this adapter is unknown",
                str(folder / MANIFEST),
                got=repr(name),
                allowed=", ".join(registry.names(kind)),
                fix="update hfadapt, or install the package that adds it",
            )


def _foreign_files(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    known = {Path(name).parts[0] for name in manifest.files if "/" in name}
    # A format of a package that is not installed is said elsewhere.
    there = manifest.format in registry.names("formats")
    bare = registry.format(manifest.format).bare & manifest.files.keys() if there else frozenset()
    inside = [path for name in sorted(known) for path in sorted((folder / name).rglob("*"))]
    for path in [*sorted(folder.iterdir()), *inside]:
        if path.is_dir():
            if path.name != ".cache" and (path.name not in known or path.parent != folder):
                yield Problem("a foreign folder stands beside the adapter", str(path), fix="remove it")
        elif not path.exists():
            yield Problem("a link beside the adapter leads nowhere", str(path), fix="copy the whole adapter folder")
        elif path.relative_to(folder).as_posix() not in bare and is_pickle(path):
            yield Problem(
                "a file whose loading can run code stands beside the adapter",
                str(path),
                allowed="safetensors, JSON and text",
                fix="remove it, or take the adapter from a source you trust",
            )
        elif not (
            (name := path.relative_to(folder).as_posix()) in {*manifest.files, *BESIDE} or PICTURE.fullmatch(name)
        ):
            yield Problem(
                "a file that the manifest does not know stands beside the adapter", str(path), fix="remove it"
            )


def _changed_files(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    from hfadapt.models.load import file_sha256

    needed = registry.format(manifest.format).needed(manifest.whole)
    for name in sorted(needed - manifest.files.keys()):
        yield Problem(f"the manifest does not list {name}", str(folder / MANIFEST), fix=AGAIN)
    for name, digest in manifest.files.items():
        path = folder / name
        if not is_model_file(name, manifest.format, manifest.whole):
            yield Problem(
                "the manifest lists a file that no adapter has",
                str(folder / MANIFEST),
                got=repr(name)[:80],
                fix="do not load it; take the adapter from a source you trust",
            )
        elif not path.is_file():
            yield Problem(f"{name} is missing", str(folder), fix="copy the whole adapter folder")
        elif file_sha256(path) != digest:
            yield Problem(
                f"{name} has been changed since it was saved",
                str(path),
                fix=AGAIN if registry.format(manifest.format).needs_base else f"{AGAIN_OF_MODEL}{manifest.format}",
            )


# --- configs ---------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """A JSON object of moderate size, or what is wrong with it."""
    if path.stat().st_size > MOST_CONFIG_BYTES:
        return {}, [
            Problem("the file is too large for a config", str(path), allowed=f"{MOST_CONFIG_BYTES} bytes", fix=AGAIN)
        ]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return {}, [Problem("the file is not readable JSON", str(path), got=str(error)[:120], fix=AGAIN)]
    if not isinstance(content, dict):
        return {}, [Problem("the file is not a JSON object", str(path), fix=AGAIN)]
    return content, []


def read_config(path: Path, method: AdapterMethod) -> tuple[dict[str, Any], list[Problem]]:
    """adapter_config.json, and everything in it that hfadapt would not have written for this method."""
    config, problems = read_json(path)
    return config, problems or list(_config_problems(config, path, method.saved))


def _config_problems(config: Mapping[str, Any], path: Path, saved: Saved) -> Iterator[Problem]:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    fix = "do not load it; take the adapter from a source you trust"
    if config.get("peft_type") != saved.peft_type:
        got = repr(config.get("peft_type"))[:80]
        yield Problem("not a kind of adapter that hfadapt makes", str(path), got=got, allowed=saved.peft_type)
        return
    defaults = PEFT_TYPE_TO_CONFIG_MAPPING[saved.peft_type]()
    plain = {key: _plain(value) for key, value in vars(defaults).items()}
    for key, value in config.items():
        place = f"{path}: {key}"
        if key in saved.settings or key in MODULES:
            if what := _bad_setting(key, value):
                yield Problem(what, place, got=repr(value)[:80], fix=fix)
        elif key in NEUTRAL:
            if value is not None and not isinstance(value, (str, bool)):
                yield Problem("not a word", place, got=repr(value)[:80], fix=fix)
        elif key not in plain:
            yield Problem("a key that peft's config does not have", place, got=repr(value)[:80], fix=fix)
        elif _plain(value) != plain[key] and (value or plain[key]):
            # peft writes an empty list where there is none.
            allowed = json.dumps(plain[key])
            yield Problem("a setting that hfadapt never makes", place, got=repr(value)[:80], allowed=allowed, fix=fix)
    for key in sorted(REQUIRED & (saved.settings | MODULES)):
        if key not in config:
            yield Problem("a setting is missing", f"{path}: {key}", fix=AGAIN)


def _plain(value: Any) -> Any:
    """A default as JSON would give it back."""
    if isinstance(value, (set, tuple)):
        return list(value)
    return value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else None


REQUIRED = frozenset({"r", "lora_alpha", "target_modules"})


def _bad_setting(key: str, value: Any) -> str | None:
    """What is wrong with one of the settings that our methods make."""
    if key == "r":
        right = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_RANK
        return None if right else f"the rank is not a number from 1 to {MOST_RANK}"
    if key in ("lora_alpha", "lora_dropout"):
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return None if number and 0 <= value <= 1e5 else "not a number in a sensible range"
    if key in ("target_modules", "modules_to_save"):
        names = [value] if isinstance(value, str) else value
        if key == "modules_to_save" and value is None:
            return None
        right = isinstance(names, list) and 0 < len(names) <= MOST_NAMES and all(map(_is_name, names))
        # peft reads a string as a regular expression, which can be made to run for hours.
        return None if right else "not a list of plain module names"
    if key == "layers_to_transform":
        numbers = [] if value is None else value
        right = isinstance(numbers, list) and len(numbers) <= MOST_NAMES
        right = right and all(type(number) is int and 0 <= number < MOST_NAMES for number in numbers)
        return None if right else "not a list of numbers of layers"
    if key == "layers_pattern":
        # A part of a regular expression, too; peft writes an empty list where there is none.
        right = value in (None, []) or (isinstance(value, str) and value.isidentifier())
        return None if right else "not the plain name of a list of layers"
    if key in ("rank_pattern", "alpha_pattern"):
        right = isinstance(value, dict) and len(value) <= MOST_NAMES and all(map(_is_name, value))
        inner = "r" if key == "rank_pattern" else "lora_alpha"
        return None if right and not any(_bad_setting(inner, each) for each in value.values()) else "not plain"
    if key == "init_lora_weights":
        known = isinstance(value, (bool, str)) and value in HARMLESS_STARTS
        return None if known else "a start that changes the base"
    if key in ("use_dora", "use_rslora", "fan_in_fan_out"):
        return None if isinstance(value, bool) else "neither true nor false"
    return None if _is_harmless(value) else "not a number, a truth value or plain names"


def _is_harmless(value: Any) -> bool:
    """Of settings that another package's method makes."""
    if isinstance(value, list):
        return len(value) <= MOST_NAMES and all(map(_is_name, value))
    number = isinstance(value, (int, float)) and math.isfinite(value)
    return value is None or number or _is_name(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and PLAIN_NAME.fullmatch(value) is not None


def _model_config_problems(folder: Path) -> Iterator[Problem]:
    config, problems = read_json(folder / "config.json")
    yield from problems
    for key in RUNS_CODE:
        if config.get(key):
            yield Problem(
                "a key that makes transformers load code",
                f"{folder / 'config.json'}: {key}",
                got=repr(config[key])[:80],
                fix="do not load it; take the model from a source you trust",
            )


# --- tensors ---------------------------------------------------------------------------------------------------------


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor, from the header alone.

    Raises:
        ValueError: the file is not whole or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(str(error)) from None


def _tensor_problems(path: Path, config: Mapping[str, Any], method: AdapterMethod) -> Iterator[Problem]:
    try:
        shapes = tensor_shapes(path)
    except ValueError as error:
        yield Problem("the weights cannot be read", str(path), got=str(error)[:120], fix=AGAIN)
        return
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    whole = [f".{name}." for name in config.get("modules_to_save") or ()]
    for name, shape in shapes.items():
        if method.saved.tensors and re.fullmatch(method.saved.tensors, name):
            continue
        if match := LORA_TENSOR.fullmatch(name):
            layers.setdefault(match[1], {})[match[2]] = shape
        elif not any(module in f".{name}." for module in whole):
            yield Problem("a tensor that adapter_config.json does not explain", f"{path}: {name}", fix="train again")
    wanted = {"A", "B", "magnitude_vector"} if config.get("use_dora") else {"A", "B"}
    for layer, parts in layers.items():
        if parts.keys() != wanted:
            missing, extra = sorted(wanted - parts.keys()), sorted(parts.keys() - wanted)
            got = f"without {', '.join(missing)}" if missing else f"with {', '.join(extra)}"
            yield Problem("a layer's tensors are not complete", f"{path}: {layer}", got=got, fix="train again")
            continue
        rank = _rank_of(layer, config)
        (a, b) = parts["A"], parts["B"]
        if len(a) < 2 or len(b) < 2 or (a[0], b[1]) != (rank, rank):
            yield Problem(
                "a tensor's shape does not fit the rank in adapter_config.json",
                f"{path}: {layer}",
                got=f"A {list(a)}, B {list(b)}",
                allowed=f"rank {rank}",
                fix="copy adapter_config.json and the weights from the same run",
            )
            # One line says it all; the others of a changed rank are alike.
            return


def _rank_of(layer: str, config: Mapping[str, Any]) -> int:
    patterns: Mapping[str, int] = config.get("rank_pattern") or {}
    return next((rank for name, rank in patterns.items() if f".{layer}".endswith(f".{name}")), int(config["r"]))


def _count_problems(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    try:
        found = sum(len(tensor_shapes(path)) for path in folder.glob("*.safetensors"))
    except ValueError:
        return
    if found != manifest.tensors:
        yield Problem(
            "tensors are missing" if found < manifest.tensors else "there are more tensors than were saved",
            str(folder),
            got=str(found),
            allowed=str(manifest.tensors),
            fix="copy the adapter folder again, or train again",
        )
