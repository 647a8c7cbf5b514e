"""A vocabulary of the tokens that a domain uses: the others' vectors go, and texts are cut as before.

Kept are tokens of the training rows, special and added ones, and all single characters or bytes, so that any text can
still be written. Of byte pairs all merges that lead to a kept token are kept with their parts, so no text whose tokens
are kept is cut otherwise.

Shapes: V tokens, D features.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RequestError
from hfadapt.models.said import built, require_said, shapes

if TYPE_CHECKING:
    from hfadapt.models.load import Base

HERE = ("student.vocabulary", "set student.vocabulary: all")
POSITIONS = re.compile("pos|wpe")
"""In names of tables that are not of tokens."""
OLD_FILES = ("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "added_tokens.json")
"""Files of vocabularies beside tokenizer.json, which still have all tokens."""


def kept_tokens(tokenizer: Any, ids: Collection[int], share: float = 0.0) -> list[int]:
    """Ids of the tokens that are kept, in the order of their new ones: tokens of the rules, then added ones.

    Args:
        ids: Those of the training rows, and others that have to stay.
        share: Of the vocabulary, what is kept from its beginning: all three kinds are written by frequency.

    Raises:
        RequestError: the tokenizer has no rules that can be read.
    """
    rules = rules_of(tokenizer)
    model = rules["model"]
    known, used = _ids(model), set(ids)
    kept = {name for name, number in known.items() if number in used or number < share * len(known)}
    kept |= {name for name in known if len(_letters(name, model)) == 1 or _is_byte(name)}
    if model["type"] == "BPE":
        kept = _closed(kept, model)
    found = {known[name] for name in kept}
    found |= {each["id"] for each in rules["added_tokens"]} | set(tokenizer.all_special_ids)
    if model["type"] == "Unigram":
        # What an unknown letter costs is counted from the least likely piece.
        least = min(range(len(model["vocab"])), key=lambda number: model["vocab"][number][1])
        found |= {least, model.get("unk_id") or 0}
    if (unknown := model.get("unk_token")) in known:
        found.add(known[unknown])
    numbers = set(known.values())
    return sorted(found, key=lambda number: (number not in numbers, number))


def trim(base: Base, ids: Collection[int], share: float = 0.0) -> tuple[int, int]:
    """Leaves the tokens of `kept_tokens` and those that configs name in a base; tokens before and after.

    `base.identity` stays that of the larger base, until the written one is opened.

    Raises:
        RequestError: the model or its tokenizer has tables of tokens that cannot be told.
    """
    model: Any = base.model
    configs = _configs(model)
    before = int(model.config.get_text_config().vocab_size)
    named = {number for config in configs for _, numbers in _token_ids(config) for number in numbers}
    kept = kept_tokens(base.tokenizer, {*ids, *named, *_counted_from(model)} & {*range(before)}, share)
    new = {old: number for number, old in enumerate(kept)}
    tokenizer = _rewritten(base.tokenizer, new)
    for config in configs:
        for name, numbers in _token_ids(config):
            left = [new[number] for number in numbers if number in new]
            first = left[0] if left else None
            setattr(config, name, left if isinstance(getattr(config, name), list) else first)
    _take_rows(model, kept)
    into = model.get_input_embeddings()
    if into.padding_idx is not None:
        into.padding_idx = new.get(into.padding_idx)
    base.tokenizer, base.parameters = tokenizer, sum(each.numel() for each in model.parameters())
    return before, len(kept)


def require_tables(model: Any) -> None:
    """Sees to it that a smaller vocabulary fits everything in a model, which may be without weights; it is changed.

    Raises:
        RequestError: it has tables of tokens that cannot be told from its config.
    """
    for config in _configs(model):
        for name, numbers in _token_ids(config):
            setattr(config, name, [0 for _ in numbers] if isinstance(getattr(config, name), list) else 0)
    _take_rows(model, range(max(1, int(model.config.get_text_config().vocab_size) // 2)))


def _take_rows(model: Any, kept: Sequence[int]) -> None:
    """Leaves these rows of all tables of tokens: of what is larger the more tokens a config says."""
    import torch
    from torch import nn

    said = model.config.get_text_config()
    before, said.vocab_size = said.vocab_size, len(kept)
    smaller, index = shapes(built(model, model.config, *HERE)), torch.tensor(kept)
    for name, parameter in model.named_parameters():
        if (after := smaller.get(name)) is not None and after != parameter.shape:
            axis = next(axis for axis, size in enumerate(after) if size != parameter.shape[axis])
            # In place, so that tied ones stay so.
            parameter.data = parameter.data.index_select(axis, index.to(parameter.device))
    for module in model.modules():
        for field in ("num_embeddings", "out_features"):
            rows = getattr(getattr(module, "weight", None), "shape", (None,))[0]
            if getattr(module, field, rows) == before and rows == len(kept):
                setattr(module, field, rows)
    tables = {name: each for name, each in model.named_modules() if isinstance(each, nn.Embedding)}
    others = [
        name
        for name, each in tables.items()
        # Small vocabularies have fewer tokens than there are positions.
        if each.num_embeddings >= before > len(kept) and not POSITIONS.search(name.rpartition(".")[2])
    ]
    require_said(model, model.config, *HERE)
    if others:
        raise RequestError(
            "this model has a table of tokens that cannot be cut",
            place="student.vocabulary",
            got=f"{type(model).__name__}: {', '.join(others)}",
            allowed="tables that are as large as the config's vocab_size",
            fix="set student.vocabulary: all",
        )


def _configs(model: Any) -> list[Any]:
    """What names tokens by their ids, each once."""
    found = (model.config, model.config.get_text_config(), getattr(model, "generation_config", None))
    return list({id(config): config for config in found if config is not None}.values())


def _token_ids(config: Any) -> list[tuple[str, list[int]]]:
    """Fields of a config with the ids of tokens."""
    found = []
    for name, value in vars(config).items():
        if name.endswith(("_token_id", "suppress_tokens")) and value is not None:
            found.append((name, value if isinstance(value, list) else [int(value)]))
    return found


def _counted_from(model: Any) -> range:
    """Ids that stay as they are, as RoBERTa counts positions from that of padding on."""
    from torch import nn

    into = model.get_input_embeddings()
    tables = [each for each in model.modules() if isinstance(each, nn.Embedding) and each is not into]
    pads = [each.padding_idx for each in tables if each.padding_idx is not None]
    return range(max(pads) + 1 if pads else 0)


def cut_otherwise(old: Any, new: Any, before: Iterable[Sequence[int]], after: Iterable[Sequence[int]]) -> float:
    """The share of texts that two tokenizers cut into other tokens, from the ids that each gives."""
    pairs = list(zip(before, after, strict=True))
    other = sum(old.convert_ids_to_tokens(list(a)) != new.convert_ids_to_tokens(list(b)) for a, b in pairs)
    return other / max(1, len(pairs))


def rules_of(tokenizer: Any) -> dict[str, Any]:
    """What tokenizer.json holds. Raises RequestError where it has no rules by which a vocabulary can be cut."""
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


def _letters(name: str, model: dict[str, Any]) -> str:
    """A token without what says that it goes on with a word, or ends it."""
    name = name.removeprefix(model.get("continuing_subword_prefix") or "")
    return name.removesuffix(model.get("end_of_word_suffix") or "")


def _merged(pair: tuple[str, ...], model: dict[str, Any]) -> str:
    first, second = pair
    return first + second.removeprefix(model.get("continuing_subword_prefix") or "")


def _closed(kept: set[str], model: dict[str, Any]) -> set[str]:
    """With the parts of which kept tokens are made, on every way."""
    made: dict[str, list[tuple[str, ...]]] = {}
    for merge in model["merges"]:
        pair = _pair(merge)
        made.setdefault(_merged(pair, model), []).append(pair)
    left = list(kept)
    while left:
        for pair in made.get(left.pop(), ()):
            left += [part for part in pair if part not in kept]
            kept.update(pair)
    return kept


def _rewritten(tokenizer: Any, new: dict[int, int]) -> Any:
    """The same tokenizer with other ids; opened from files, as whoever has them will."""
    import transformers

    rules = rules_of(tokenizer)
    model = rules["model"]
    ids = _ids(model)
    names = {name for name, number in ids.items() if number in new}
    if model["type"] == "Unigram":
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new]
        model["unk_id"] = None if model.get("unk_id") is None else new[model["unk_id"]]
    else:
        model["vocab"] = {name: new[number] for name, number in ids.items() if number in new}
    if model["type"] == "BPE":
        pairs = ((merge, _pair(merge)) for merge in model["merges"])
        model["merges"] = [merge for merge, pair in pairs if {*pair, _merged(pair, model)} <= names]
    for each in rules["added_tokens"]:
        each["id"] = new[each["id"]]
    rules["added_tokens"].sort(key=lambda each: each["id"])
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
        found = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    wanted = {name: new[number] for name, number in tokenizer.get_vocab().items() if number in new}
    if found.get_vocab() != wanted:
        raise RequestError(
            "the vocabulary of this tokenizer cannot be cut: transformers opens it with other tokens",
            place="student.vocabulary",
            got=f"{type(tokenizer).__name__}, {len(found):,} tokens instead of {len(wanted):,}",
            allowed="a tokenizer that is as its tokenizer.json says",
            fix="set student.vocabulary: all",
        )
    found.name_or_path = tokenizer.name_or_path
    return found


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
