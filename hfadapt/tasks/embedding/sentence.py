"""How a base makes one vector of a text, as sentence-transformers keeps it beside the weights: read and written back.

modules.json names the modules after the transformer, 1_Pooling/config.json how tokens become one vector,
config_sentence_transformers.json what is put before queries and documents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RequestError
from hfadapt.core.spec import Spec, write_text

if TYPE_CHECKING:
    import torch

MODULES, TRANSFORMER, CONFIG = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
POOLING_FOLDER = "1_Pooling"
POOLING = f"{POOLING_FOLDER}/config.json"
FILES = frozenset({MODULES, TRANSFORMER, CONFIG, POOLING})

MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Keys of 1_Pooling/config.json and what newer versions call them. The largest value of each feature (max) is left out:
it is no weighted sum of the tokens."""
QUERY, DOCUMENT = ("query",), ("document", "passage", "corpus")


class Sentence(Spec):
    """How texts become vectors.

    Args:
        pooling: One of `MODES`.
        normalise: Whether vectors have length 1.
        query, document, default: What is put before texts that look for something, that are found, and others.
        include_prompt: Whether these words count in the pooling.
        lower: Whether texts are put in lower case.
        known: Whether the base says so; else mean and length 1 are assumed.
    """

    pooling: str = "mean"
    normalise: bool = True
    query: str = ""
    document: str = ""
    default: str = ""
    include_prompt: bool = True
    lower: bool = False
    known: bool = False

    @classmethod
    def of(cls, tokenizer: Any) -> Sentence:
        """Of the base whose tokenizer this is."""
        return _read(*getattr(tokenizer, "read_from", (str(tokenizer.name_or_path), None)))

    def weights(self, tokens: int, prompt: int) -> list[float]:
        """What each of so many tokens counts in the vector of a text.

        Args:
            prompt: Tokens before the text itself.
        """
        first = min(prompt, tokens - 1) if not self.include_prompt else 0
        count = tokens - first
        chosen = {
            "mean": [1 / count] * count,
            "mean_sqrt_len_tokens": [count**-0.5] * count,
            "cls": [1.0, *[0.0] * (count - 1)],
            "lasttoken": [*[0.0] * (count - 1), 1.0],
        }
        if self.pooling in chosen:
            return [0.0] * first + chosen[self.pooling]
        places = range(first + 1, tokens + 1)
        return [0.0] * first + [place / sum(places) for place in places]

    def vectors(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Vectors (B, D) of hidden states (B, T, D), with `mask` (B, T) 1 where a token is."""
        import torch

        mask = mask.to(hidden.dtype)
        place, count = mask.cumsum(1) * mask, mask.sum(1, keepdim=True)
        weights = {
            "mean": lambda: mask / count,
            "mean_sqrt_len_tokens": lambda: mask / count.sqrt(),
            "cls": lambda: (place == 1).to(hidden.dtype),
            "lasttoken": lambda: (place == count).to(hidden.dtype),
            "weightedmean": lambda: place / place.sum(1, keepdim=True),
        }[self.pooling]()
        found = (weights[:, None] @ hidden)[:, 0]
        return torch.nn.functional.normalize(found, dim=-1) if self.normalise else found

    def write(self, folder: Path, max_length: int, width: int) -> None:
        """Writes the files from which sentence-transformers reads it."""
        names = ["Transformer", "Pooling", *(["Normalize"] if self.normalise else [])]
        modules = [
            {
                "idx": number,
                "name": str(number),
                "path": f"{number}_{name}" if number else "",
                "type": f"sentence_transformers.models.{name}",
            }
            for number, name in enumerate(names)
        ]
        pooling: dict[str, Any] = {"word_embedding_dimension": width, "pooling_mode_max_tokens": False}
        pooling |= {key: mode == self.pooling for key, mode in MODES.items()} | {"include_prompt": self.include_prompt}
        prompts = {"query": self.query, "document": self.document}
        said = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
        if self.default:
            said |= {"prompts": {**prompts, "default": self.default}, "default_prompt_name": "default"}
        files = {
            MODULES: modules,
            TRANSFORMER: {"max_seq_length": max_length, "do_lower_case": self.lower},
            CONFIG: said,
            POOLING: pooling,
        }
        (folder / POOLING_FOLDER).mkdir()
        for name, content in files.items():
            write_text(folder / name, json.dumps(content, indent=2) + "\n")


@cache
def _read(path: str, revision: str | None) -> Sentence:
    modules = _json(path, MODULES, revision)
    if not isinstance(modules, list):
        return Sentence()
    kinds = {str(each.get("type", "")).rpartition(".")[2]: str(each.get("path", "")) for each in modules}
    if more := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise RequestError(
            "this sentence encoder has modules that hfadapt does not train",
            place=f"{path}: {MODULES}",
            got=", ".join(more),
            allowed="Transformer, Pooling, Normalize",
            fix="choose a base without them, such as sample:minilm-l6",
        )
    pooling = _json(path, f"{kinds['Pooling']}/config.json", revision) if "Pooling" in kinds else {}
    said = _json(path, CONFIG, revision) or {}
    transformer = _json(path, TRANSFORMER, revision) or {}
    prompts = said.get("prompts") or {}
    default = str(prompts.get(said.get("default_prompt_name") or "") or "")

    def prompt(names: tuple[str, ...]) -> str:
        return str(next((prompts[name] for name in names if prompts.get(name)), default))

    return Sentence(
        pooling=_mode(pooling or {}, path),
        normalise="Normalize" in kinds,
        query=prompt(QUERY),
        document=prompt(DOCUMENT),
        default=default,
        include_prompt=bool((pooling or {}).get("include_prompt", True)),
        lower=bool(transformer.get("do_lower_case", False)),
        known=True,
    )


def _mode(pooling: Mapping[str, Any], path: str) -> str:
    """Raises RequestError for one that is no weighted sum of the tokens."""
    named = pooling.get("pooling_mode")
    modes = [named] if isinstance(named, str) else list(named or ())
    modes = modes or [MODES.get(key, "max") for key, on in pooling.items() if key.startswith("pooling_mode_") and on]
    if not modes:
        return "mean"
    if len(modes) > 1 or modes[0] not in MODES.values():
        raise RequestError(
            "this sentence encoder pools tokens in a way that hfadapt does not know",
            place=f"{path}: {POOLING}",
            got=", ".join(map(str, modes)),
            allowed=", ".join(MODES.values()),
            fix="choose another base",
        )
    return str(modes[0])


def _json(path: str, name: str, revision: str | None) -> Any:
    """A file of a folder or a Hub id; None where there is none."""
    from transformers.utils.hub import cached_file

    file = Path(path) / name if Path(path).is_dir() else None
    if file is None:
        found = cached_file(
            path,
            name,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        file = Path(found) if found else None
    if file is None or not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(
            "a file beside the base is not readable JSON", place=str(file), got=str(error)[:120], fix="fetch it again"
        ) from None
