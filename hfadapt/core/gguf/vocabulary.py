"""A tokenizer as llama.cpp has it: byte-level BPE by how it cuts text, or BPE over characters as SentencePiece does it.

llama.cpp knows ways of cutting by name. A name here is the expression of tokenizers that it stands for in llama.cpp
(`llama-vocab.cpp`); a tokenizer that cuts otherwise has no name, and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
LLAMA_3 = CONTRACTIONS + "|" + WORD + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + SPACES
CUTS = {
    ("llama-bpe", "llama3", "llama-v3"): (LLAMA_3, True),
    ("dbrx", "smaug-bpe"): (LLAMA_3, False),
    ("qwen2", "deepseek-r1-qwen"): (
        CONTRACTIONS + "|" + WORD + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + SPACES,
        False,
    ),
    ("qwen35",): (
        CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + SPACES,
        False,
    ),
    ("gpt-4o",): (
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + SPACES,
        False,
    ),
    ("tekken",): (
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + SPACES,
        True,
    ),
}
"""The names of an expression, and whether words of the vocabulary are taken whole (`ignore_merges`)."""
GPT_2, SMOLLM = "gpt-2", "smollm"
"""Cut by the expression that a byte-level tokenizer has itself; the second after each digit has been cut off."""
COMPOSED = ("qwen2", "qwen35", "deepseek-r1-qwen")
"""Tokenizers of these names compose characters first, which their files do not say."""
BEGINS = ("llama-bpe", "llama3", "llama-v3", "tekken")
"""These begin texts with their first token, where a file does not say."""
SPACE = "▁"
UNRANKED = -1e6
"""Score of what no merge makes: it is never put together."""
FALLBACK = {f"<0x{number:02X}>" for number in range(256)}
REASON = "its tokenizer cuts text in a way whose name in GGUF is not known"


def unfit(tokenizer: Any) -> str | None:
    """Why llama.cpp cannot have a tokenizer, or None."""
    content = _content(tokenizer)
    return None if content and (_cut(content) or _space_prefix(content) is not None) else REASON


def add_tokenizer(writer: Any, tokenizer: Any, vocab_size: int) -> None:
    """Writes a tokenizer's vocabulary, rules and chat template. Tokens beyond it are unused ones."""
    import gguf

    content = _content(tokenizer)
    assert content is not None
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    kinds = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    if (cut := _cut(content)) is not None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(cut)
        writer.add_token_merges([" ".join(pair) for pair in _merges(content)])
        writer.add_add_space_prefix(False)
    else:
        kinds |= {number: gguf.TokenType.BYTE for number, token in tokens.items() if token in FALLBACK}
        if tokenizer.unk_token_id is not None:
            kinds[tokenizer.unk_token_id] = gguf.TokenType.UNKNOWN
        scores = _scores(content)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([scores.get(tokens.get(number, ""), UNRANKED) for number in range(vocab_size)])
        writer.add_add_space_prefix(bool(_space_prefix(content)))
    for added in content["added_tokens"]:
        if kinds.get(added["id"]) != gguf.TokenType.UNKNOWN:
            kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in range(vocab_size)])
    writer.add_token_types([kinds.get(number, gguf.TokenType.UNUSED) for number in range(vocab_size)])
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(ids and ids[0] == tokenizer.bos_token_id))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _content(tokenizer: Any) -> dict[str, Any] | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any] | None = json.loads(backend.to_str()) if backend is not None else None
    return content if content is not None and content["model"]["type"] == "BPE" else None


def _steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as a list of simple ones."""
    return [] if part is None else list(part.get(name, [part]))


def _merges(content: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = (each.split(" ", 1) if isinstance(each, str) else each for each in content["model"]["merges"])
    return [(left, right) for left, right in pairs]


def _cut(content: dict[str, Any]) -> str | None:
    """llama.cpp's name for how a byte-level BPE cuts text before it merges, or None when it is not one of these."""
    if any(step["type"] != "NFC" for step in _steps(content["normalizer"], "normalizers")):
        return None
    *first, last = _steps(content["pre_tokenizer"], "pretokenizers") or [{}]
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    kinds, whole = [step["type"] for step in first], bool(content["model"].get("ignore_merges"))
    if last["use_regex"]:
        digits = kinds == ["Digits"] and first[0]["individual_digits"]
        return None if whole or (first and not digits) else SMOLLM if digits else GPT_2
    if kinds != ["Split"] or first[0]["behavior"] != "Isolated" or first[0]["invert"]:
        return None
    asked = (first[0]["pattern"].get("Regex"), whole)
    return next((names[0] for names, known in CUTS.items() if known == asked), None)


def _space_prefix(content: dict[str, Any]) -> bool | None:
    """Whether a BPE over characters begins a text with a space; None where it is another kind."""
    normal = _steps(content["normalizer"], "normalizers")
    before = _steps(content["pre_tokenizer"], "pretokenizers")
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if not content["model"].get("byte_fallback"):
        return None
    if before and before[0]["type"] == "Metaspace" and len(before) == 1 and not normal and not before[0]["split"]:
        return bool(before[0]["prepend_scheme"] != "never")
    # Gemma's cuts at spaces of which the normalizer has left none.
    if any(step["type"] != "Split" or step["pattern"] != {"String": " "} for step in before):
        return None
    if normal == [replaced]:
        return False
    return True if normal == [{"type": "Prepend", "prepend": SPACE}, replaced] else None


def _scores(content: dict[str, Any]) -> dict[str, float]:
    """Of every word that merges make: higher the earlier its first merge, as SentencePiece makes the highest first."""
    found: dict[str, float] = {}
    for rank, (left, right) in enumerate(_merges(content)):
        found.setdefault(left + right, -float(rank))
    return found


# --- reading ---------------------------------------------------------------------------------------------------------


def tokenizer_of(settings: Mapping[str, Any]) -> Any:
    """The tokenizer of a file: what `add_tokenizer` has written, or llama.cpp's converter. None for another kind.

    Args:
        settings: The file's, with its names.
    """
    from transformers import PreTrainedTokenizerFast

    kind, cut = settings["tokenizer.ggml.model"], settings.get("tokenizer.ggml.pre", "default")
    by_bytes = kind == "gpt2"
    backend = _over_bytes(settings, cut) if by_bytes else _over_characters(settings) if kind == "llama" else None
    if backend is None:
        return None
    _add_special(backend, settings)
    tokens = settings["tokenizer.ggml.tokens"]
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    numbers = {name: settings.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    named = {f"{name}_token": tokens[number] for name, number in numbers.items() if number is not None}
    begins = settings.get("tokenizer.ggml.add_bos_token", not by_bytes or cut in BEGINS)
    ends = settings.get("tokenizer.ggml.add_eos_token", False)
    _add_ends(backend, named.get("bos_token") if begins else None, named.get("eos_token") if ends else None)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **named)
    tokenizer.chat_template = settings.get("tokenizer.chat_template")
    return tokenizer


def _words(settings: Mapping[str, Any]) -> dict[str, int]:
    """The vocabulary without the places that no token has."""
    import gguf

    kinds = settings.get("tokenizer.ggml.token_type") or []
    tokens = settings["tokenizer.ggml.tokens"]
    places = {number for number, kind in enumerate(kinds) if kind == gguf.TokenType.UNUSED}
    return {
        token: number for number, token in enumerate(tokens) if not (number in places and token == f"[PAD{number}]")
    }


def _over_bytes(settings: Mapping[str, Any], cut: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    expression, whole = next((known for names, known in CUTS.items() if cut in names), (None, False))
    if expression is None and cut not in (GPT_2, SMOLLM):
        return None
    merges = [tuple(each.split(" ", 1)) for each in settings["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab=_words(settings), merges=merges, ignore_merges=whole))
    backend.normalizer = normalizers.NFC() if cut in COMPOSED else None
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=expression is None)
    first: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cut == SMOLLM else []
    if expression is not None:
        first = [pre_tokenizers.Split(Regex(expression), "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*first, last]) if first else last
    backend.decoder = decoders.ByteLevel()
    return backend


def _over_characters(settings: Mapping[str, Any]) -> Any:
    """Its merges are all the ways in which two words make a third, by the scores of what they make."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    words, scores = _words(settings), settings["tokenizer.ggml.scores"]
    pairs = [
        (-scores[number], words[word[:place]], words[word[place:]], word[:place], word[place:])
        for word, number in words.items()
        for place in range(1, len(word))
        if scores[number] > UNRANKED and word[:place] in words and word[place:] in words
    ]
    merges = [(left, right) for *_, left, right in sorted(pairs)]
    unknown = settings.get("tokenizer.ggml.unknown_token_id", 0)
    backend = Tokenizer(
        models.BPE(
            vocab=words,
            merges=merges,
            unk_token=settings["tokenizer.ggml.tokens"][unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = settings.get("tokenizer.ggml.add_space_prefix", True)
    replace = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prefix else replace
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _add_special(backend: Any, settings: Mapping[str, Any]) -> None:
    """Tokens that are found in a text before it is cut."""
    import gguf
    from tokenizers import AddedToken

    special = {gguf.TokenType.CONTROL: True, gguf.TokenType.UNKNOWN: True, gguf.TokenType.USER_DEFINED: False}
    tokens = settings["tokenizer.ggml.tokens"]
    for token, kind in zip(tokens, settings.get("tokenizer.ggml.token_type") or [None] * len(tokens), strict=True):
        if kind in special:
            backend.add_special_tokens([AddedToken(token, normalized=False, special=special[kind])])


def _add_ends(backend: Any, begin: str | None, end: str | None) -> None:
    """What a text begins and ends with."""
    from tokenizers import processors

    if begin or end:
        parts = [each for each in (begin, "$A", end) if each]
        numbers = [(each, backend.token_to_id(each)) for each in (begin, end) if each]
        backend.post_processor = processors.TemplateProcessing(
            single=parts, pair=[*parts, "$B"], special_tokens=numbers
        )
