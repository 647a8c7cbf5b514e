"""A vocabulary of the tokens that a domain uses: the others' vectors go, and texts are cut as before.

Kept are tokens of the training rows, special and added ones, and all single characters or bytes, so that any text can
still be written. Of byte pairs all merges that lead to a kept token are kept with their parts, so no text whose tokens
are kept is cut otherwise.

Shapes: V tokens, D features.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RequestError

if TYPE_CHECKING:
    from hfadapt.models.load import Base

CONTINUES = "##"
OLD_FILES = ("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "added_tokens.json")
"""Files of vocabularies beside tokenizer.json, which still have all tokens."""


def kept_tokens(tokenizer: Any, ids: Collection[int], share: float = 0.0) -> list[int]:
    """Ids of the tokens that are kept, ascending.

    Args:
        ids: Those of the training rows.
        share: Of the vocabulary, what is kept from its beginning: all three kinds are written by frequency.

    Raises:
        RequestError: the tokenizer has no rules that can be read.
    """
    rules = _rules(tokenizer)
    model = rules["model"]
    known, used = _ids(model), set(ids)
    kept = {name for name, number in known.items() if number in used or number < share * len(known)}
    kept |= {name for name in known if len(name.removeprefix(CONTINUES)) == 1 or _is_byte(name)}
    if model["type"] == "BPE":
        kept = _closed(kept, [_pair(each) for each in model["merges"]])
    found = {known[name] for name in kept if name in known}
    found |= {each["id"] for each in rules["added_tokens"]} | set(tokenizer.all_special_ids)
    if model["type"] == "Unigram" and model.get("unk_id") is not None:
        found.add(model["unk_id"])
    if (unknown := model.get("unk_token")) in known:
        found.add(known[unknown])
    return sorted(found)


def trim(base: Base, ids: Collection[int], share: float = 0.0) -> tuple[int, int]:
    """Leaves the tokens of `kept_tokens` in a base's tokenizer and model; tokens before and after."""
    import torch

    kept = kept_tokens(base.tokenizer, ids, share)
    new = {old: number for number, old in enumerate(kept)}
    model: Any = base.model
    before = int(model.config.get_text_config().vocab_size)
    base.tokenizer = _rewritten(base.tokenizer, new)
    into, out = model.get_input_embeddings(), model.get_output_embeddings()
    index = torch.tensor(kept, device=into.weight.device)
    tied = out is not None and out.weight is into.weight
    with torch.no_grad():
        into.weight = torch.nn.Parameter(into.weight[index].clone(), requires_grad=False)
        into.num_embeddings = len(kept)
        if into.padding_idx is not None:
            into.padding_idx = new.get(into.padding_idx)
        if out is not None:
            out.weight = into.weight if tied else torch.nn.Parameter(out.weight[index].clone(), requires_grad=False)
            out.out_features = len(kept)
            for owner in model.modules():
                # A bias of the output layer may belong to what is around it, too.
                bias = owner._parameters.get("bias")
                if bias is not None and bias.shape == (before,):
                    owner._parameters["bias"] = torch.nn.Parameter(bias[index].clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config(), getattr(model, "generation_config", None)):
        if config is not None:
            _renumber(config, new)
    model.config.get_text_config().vocab_size = len(kept)
    return before, len(kept)


def cut_otherwise(old: Any, new: Any, before: Iterable[Sequence[int]], after: Iterable[Sequence[int]]) -> float:
    """The share of texts that two tokenizers cut into other tokens, from the ids that each gives."""
    pairs = list(zip(before, after, strict=True))
    other = sum(old.convert_ids_to_tokens(list(a)) != new.convert_ids_to_tokens(list(b)) for a, b in pairs)
    return other / max(1, len(pairs))


def _rules(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    found: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    if found.get("model", {}).get("type") not in ("BPE", "WordPiece", "Unigram"):
        raise RequestError(
            "the vocabulary of this tokenizer cannot be cut",
            place="student.vocabulary",
            got=type(tokenizer).__name__,
            allowed="one with a tokenizer.json of byte pairs, word pieces or unigrams",
            fix="set student.vocabulary: all",
        )
    return found


def _ids(model: dict[str, Any]) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {name: number for number, (name, _) in enumerate(model["vocab"])}
    ids: dict[str, int] = model["vocab"]
    return ids


def _pair(merge: Any) -> tuple[str, ...]:
    """The two parts of a merge, which older files have as one text."""
    return tuple(merge.split(" ") if isinstance(merge, str) else merge)


def _is_byte(name: str) -> bool:
    return len(name) == 6 and name.startswith("<0x") and name.endswith(">")


def _closed(kept: set[str], merges: Sequence[tuple[str, ...]]) -> set[str]:
    """With the parts of which kept tokens are made, on every way."""
    made: dict[str, list[tuple[str, ...]]] = {}
    for pair in merges:
        made.setdefault("".join(pair), []).append(pair)
    left = list(kept)
    while left:
        for pair in made.get(left.pop(), ()):
            left += [part for part in pair if part not in kept]
            kept.update(pair)
    return kept


def _rewritten(tokenizer: Any, new: dict[int, int]) -> Any:
    """The same tokenizer with other ids; opened from files, as whoever has them will."""
    import transformers

    rules = _rules(tokenizer)
    model = rules["model"]
    ids = _ids(model)
    names = {name for name, number in ids.items() if number in new}
    if model["type"] == "Unigram":
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new]
        model["unk_id"] = None if model.get("unk_id") is None else new[model["unk_id"]]
    else:
        model["vocab"] = {name: new[number] for name, number in ids.items() if number in new}
    if model["type"] == "BPE":
        model["merges"] = [each for each in model["merges"] if {*_pair(each), "".join(_pair(each))} <= names]
    for each in rules["added_tokens"]:
        each["id"] = new[each["id"]]
    rules["padding"] = rules["truncation"] = None
    rules["post_processor"] = _renumbered(rules.get("post_processor"), new)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer.save_pretrained(folder)
        for name in OLD_FILES:
            (folder / name).unlink(missing_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(rules, ensure_ascii=False), encoding="utf-8")
        said = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        if "added_tokens_decoder" in said:
            added = said["added_tokens_decoder"].items()
            said["added_tokens_decoder"] = {str(new[int(key)]): each for key, each in added}
            (folder / "tokenizer_config.json").write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _renumbered(processor: Any, new: dict[int, int]) -> Any:
    """A post-processor, which names special tokens with their ids."""
    if isinstance(processor, list):
        if len(processor) == 2 and isinstance(processor[0], str) and isinstance(processor[1], int):
            return [processor[0], new[processor[1]]]
        return [_renumbered(each, new) for each in processor]
    if isinstance(processor, dict):
        return {
            name: [new[each] for each in value] if name == "ids" else _renumbered(value, new)
            for name, value in processor.items()
        }
    return processor


def _renumber(config: Any, new: dict[int, int]) -> None:
    """Ids of special tokens in a config."""
    for name, value in list(vars(config).items()):
        if not name.endswith("_token_id"):
            continue
        if isinstance(value, int):
            setattr(config, name, new.get(value))
        elif isinstance(value, list):
            setattr(config, name, [new[each] for each in value if each in new])
