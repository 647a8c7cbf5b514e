"""Whether a folder holds a base at all: its config, and whether the files of its weights are there and whole."""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hfadapt.core import samples
from hfadapt.core.errors import Problem, RequestError
from hfadapt.core.hashing import json_sha256, kept_sha256
from hfadapt.recipe.sources import expanded

ADAPTER = "adapter_config.json"
CONFIG = "config.json"
WHOLE = ("model.safetensors", "pytorch_model.bin")
AGAIN = "copy the model again, or save it again with save_pretrained"
LFS = b"version https://git-lfs"
SMALL_BYTES = 2048
READ_BYTES = 512 << 20
"""Of a file of weights that is read for a plan."""
MOST_LAYERS = 2_000
"""Of a stack; the deepest that are used have a few hundred, and a model is built of them before anything else."""
_LAYERS = re.compile("(num_hidden|num|encoder|decoder|n)_layers?")
INPUTS = (".json", ".txt", ".model", ".vocab", ".tiktoken", ".jinja")
"""Of the files beside the weights, which say what a model makes of its input."""
SAVED_WITH = {
    "model_index.json": "a pipeline of diffusers",
    "consolidated.safetensors": "weights as their authors published them, not as transformers reads them",
    "consolidated.00.pth": "weights as their authors published them, not as transformers reads them",
    "tf_model.h5": "weights of TensorFlow",
    "flax_model.msgpack": "weights of Flax",
    "model.onnx": "an ONNX model",
}


# --- the folder and its config ---------------------------------------------------------------------------------------


def require_base(folder: Path, place: str) -> None:
    """Refuses a folder that holds something else than a base.

    Args:
        place: What the user calls it.

    Raises:
        RequestError: it is an adapter, has no config that can be read, or only a part of the file was fetched.
    """
    adapter = next((path for path in (folder / ADAPTER, folder / "adapter" / ADAPTER) if path.is_file()), None)
    if adapter is not None and (adapter.parent == folder or not (folder / CONFIG).is_file()):
        raise RequestError(
            "this is an adapter, not a base",
            place=place,
            got=f"{adapter.name} of an adapter{_base_of(adapter)}",
            allowed="a folder with config.json and the weights of a whole model",
            fix="name its base; to go on from an adapter, merge it first: hfadapt export RUN --format merged",
        )
    path = folder / CONFIG
    if not path.is_file():
        raise RequestError(
            f"the folder has no {CONFIG}",
            place=place,
            got=_instead(folder),
            allowed="a model as save_pretrained writes it, or a GGUF file",
            fix=_nested(folder) or "give the folder of the model itself",
        )
    if pointer(path):
        raise RequestError(**_not_fetched(path))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        raise RequestError(f"{CONFIG} cannot be read", place=str(path), got=str(error)[:200], fix=AGAIN) from None
    require_plain(config, place)


def _layers(config: Mapping[str, Any]) -> int:
    """The most layers of a stack, also of models that are made of several."""
    own = (value for name, value in config.items() if _LAYERS.fullmatch(str(name)) and isinstance(value, int))
    return max((*own, *(_layers(each) for each in config.values() if isinstance(each, Mapping))), default=0)


def require_plain(config: Mapping[str, Any], place: str) -> None:
    """Refuses what a config says of its model that no adapter can be trained on here.

    Raises:
        RequestError: the weights are quantised, there are more layers than can be built, or transformers would
            have to run code that comes with them.
    """
    kind = config.get("model_type")
    if (layers := _layers(config)) > MOST_LAYERS:
        raise RequestError(
            "the config gives the model more layers than any has",
            place=place,
            got=f"{layers:,}",
            allowed=f"up to {MOST_LAYERS:,}",
            fix="copy config.json again",
        )
    if config.get("auto_map") and not _in_transformers(kind):
        raise RequestError(
            "this model needs code that comes with it, which hfadapt does not run",
            place=place,
            got=f"model_type {kind}, with code in {', '.join(_code_files(config['auto_map']))}",
            allowed="an architecture that transformers itself has",
            fix="choose a model without remote code; many have a copy that is saved for transformers itself",
        )
    quantised = config.get("quantization_config")
    if quantised:
        original = _unquantised(config, place)
        raise RequestError(
            "the weights of this base are quantised already",
            place=place,
            got=f"{_quantisation(quantised)} weights",
            allowed="weights in 16 or 32 bits; quant: int8, nf4 or fp4 quantises them while loading",
            fix=f"name the model they were made from{f': {original}' if original else ''}",
        )


def _in_transformers(kind: Any) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return kind in CONFIG_MAPPING_NAMES


def pointer(path: Path) -> bool:
    """Whether a file holds what Git LFS keeps in place of the content."""
    try:
        if path.stat().st_size > SMALL_BYTES:
            return False
        with path.open("rb") as file:
            return file.read(len(LFS)) == LFS
    except OSError:
        return False


def _not_fetched(path: Path) -> dict[str, Any]:
    return {
        "what": "the file is a pointer of Git LFS, not the content",
        "place": str(path),
        "got": f"{path.stat().st_size} bytes of text",
        "fix": "fetch the content in the folder: git lfs pull",
    }


def _base_of(adapter: Path) -> str:
    """' of BASE', where the adapter says so."""
    try:
        name = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError, OSError):
        return ""
    return f" of {name}" if name else ""


def _instead(folder: Path) -> str:
    known = next((what for name, what in SAVED_WITH.items() if (folder / name).exists()), None)
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    listed = ", ".join(names[:6]) + (" …" if len(names) > 6 else "") if names else "an empty folder"
    return f"{known}: {listed}" if known else listed


def _nested(folder: Path) -> str | None:
    """A model inside the folder, such as the last checkpoint of a training, or a GGUF file."""
    if files := sorted(folder.glob("*.gguf")):
        return f"name the GGUF file: {files[0]}"
    inside = [path.parent for path in folder.glob(f"*/{CONFIG}")] + [
        path.parent for path in folder.glob(f"snapshots/*/{CONFIG}")
    ]
    if not inside:
        return None
    last = max(inside, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)] or [0])
    return f"name the folder in it: {last}"


def _code_files(auto_map: Any) -> list[str]:
    values = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    flat = [each for value in values for each in (value if isinstance(value, (list, tuple)) else [value])]
    return sorted({str(each).split("--")[-1].split(".")[0] + ".py" for each in flat if each})


def _quantisation(config: Any) -> str:
    found = config if isinstance(config, dict) else config.to_dict()
    name = str(found.get("quant_method") or "quantised")
    bits = found.get("bits") or (4 if found.get("load_in_4bit") else 8 if found.get("load_in_8bit") else None)
    return f"{bits}-bit {name}" if bits else name


def _unquantised(config: Mapping[str, Any], place: str) -> str | None:
    """The model that quantised weights were made from, as far as its card or its own name tells."""
    card = expanded(place) / "README.md"
    if card.is_file():
        found = re.search(r"^base_model:\s*(?:-\s*)?(\S+)", card.read_text(encoding="utf-8", errors="replace"), re.M)
        if found:
            return found[1]
    name = place if "/" in place and not Path(place).exists() else str(config.get("_name_or_path") or "")
    plain = re.sub(r"(?i)[-_](unsloth-)?(bnb-?[48]bit|gptq|awq|int[48]|fp8|[48]bit|w\d+a\d+)([-_].*)?$", "", name)
    return plain if plain and plain != name else None


# --- what makes its inputs -------------------------------------------------------------------------------------------


def model_folder(model: str) -> Path | None:
    """The folder of a recipe's model on this machine; None where it would have to be fetched or unpacked."""
    if model.startswith(samples.PREFIX):
        name = model.removeprefix(samples.PREFIX)
        return samples.model_path(name) if samples.is_here(name) else None
    local = expanded(model)
    return local if local.is_dir() else _fetched(model)


def _fetched(model: str) -> Path | None:
    """Where the client of the Hub has put a model's tokenizer or processor."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    name, _, revision = model.partition("@")
    for file in ("tokenizer_config.json", "preprocessor_config.json"):
        with suppress(HFValidationError):
            found = try_to_load_from_cache(name, file, revision=revision or None)
            if isinstance(found, str):
                return Path(found).parent
    return None


def inputs_sha256(folder: Path) -> str:
    """Hash of the config and of the files of tokenizer and processor."""
    files = sorted(path for path in folder.iterdir() if path.suffix in INPUTS and path.is_file())
    return json_sha256({path.name: kept_sha256(path) for path in files})


# --- weights ---------------------------------------------------------------------------------------------------------


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, those of a list of parts among them, whether they are there or not."""
    for name in WHOLE:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                return [folder / each for each in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
            except (ValueError, KeyError, AttributeError, TypeError):
                return [index]
    return []


def file_problems(folder: Path) -> Iterator[Problem]:
    """Weights that are missing, were not fetched, or are not whole."""
    files = weight_files(folder)
    if not files:
        known = _instead(folder)
        allowed = "model.safetensors, or model.safetensors.index.json with its parts"
        yield Problem("the folder has no weights", str(folder), got=known, allowed=allowed, fix=AGAIN)
    for path in files:
        if not path.is_file():
            yield Problem("a part of the weights is missing", str(path), fix=AGAIN)
        elif pointer(path):
            yield Problem(**_not_fetched(path))
        elif why := _not_whole(path):
            yield Problem("the file of the weights is not whole", str(path), got=why, fix=AGAIN)


def _not_whole(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    size = f"{path.stat().st_size:,} bytes"
    if path.suffix == ".json":
        return "a list of parts that cannot be read"
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="np"):
                return None
        except (SafetensorError, OSError) as error:
            return f"{size}: {error}"
    with path.open("rb") as file:
        start = file.read(4)
    # Before PyTorch 1.6 a plain pickle.
    return None if zipfile.is_zipfile(path) or start[:1] == b"\x80" else f"{size}, not a file of torch.save"


def idle_parameters(folder: Path) -> int:
    """Parameters of modules all matrices of which are zero: a gate that is always open, which no export keeps
    (`models.fold`). Reads the weights, so it is asked of small models alone; 0 where they are not in safetensors."""
    from safetensors import safe_open

    sizes: Counter[str] = Counter()
    zero: dict[str, bool] = {}
    for path in weight_files(folder):
        if path.suffix != ".safetensors" or not path.is_file() or path.stat().st_size > READ_BYTES:
            return 0
        with safe_open(path, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dict
                module, value = name.rpartition(".")[0].rpartition(".")[0], tensors.get_tensor(name)
                sizes[module] += value.size
                if value.ndim > 1:
                    zero[module] = zero.get(module, True) and not value.any()
    return sum(sizes[module] for module, idle in zero.items() if idle)
