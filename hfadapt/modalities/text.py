"""Texts: token ids as a model takes them, padded or packed; changes that leave a label right."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import DataError, RequestError
from hfadapt.core.hashing import stable_hash
from hfadapt.modalities import IGNORED, Example, Modality, Row

if TYPE_CHECKING:
    import torch

PROBE = "The naïve ROUTER, 12,345.6 EUR\n\tdoesn't e-mail 東京 😀  at  noon: fooBar_baz() ?!"
"""What tokenizers that read plain texts alike cut in different ways."""


def text_example(ids: Sequence[int], labels: Sequence[Any], *, length: int, row: int) -> Example:
    """An example of token ids; `length` counts the tokens before any cut."""
    return Example({"input_ids": _shared(ids)}, _shared(labels), len(ids), length, row)


_NUMBERS: dict[int, int] = {}


def _shared(values: Sequence[Any]) -> tuple[Any, ...]:
    """The values, each whole number the one object of its kind: 8 bytes for a token, where its own would be 36."""
    return tuple([_NUMBERS.setdefault(each, each) if type(each) is int else each for each in values])


def token_ids(example: Example) -> tuple[int, ...]:
    """The token ids of a text's example."""
    ids: tuple[int, ...] = example.inputs["input_ids"]
    return ids


def started(ids: Sequence[int], tokenizer: Any) -> Sequence[int]:
    """Token ids of a text; of one that has none the token that a text starts with, as no model reads nothing."""
    if len(ids):
        return ids
    starts = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return [next((start for start in starts if start is not None), 0)]


def cut(text: str, ids: Sequence[int], tokenizer: Any, max_length: int) -> Sequence[int]:
    """Token ids of a text, of at most `max_length`; a cut keeps the special tokens at both ends.

    Args:
        ids: Of the whole text.
    """
    if len(ids) <= max_length:
        return started(ids, tokenizer)
    kept: Sequence[int] = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
    return kept


def pieces(text: str, tokenizer: Any, max_length: int) -> list[str]:
    """A text in consecutive parts of at most `max_length` tokens, special ones included; whole words where there are
    any. A text that fits, or of a tokenizer that does not say where its tokens stand, is one part."""
    if not getattr(tokenizer, "is_fast", False) or len(tokenizer(text, verbose=False)["input_ids"]) <= max_length:
        return [text]
    room = max(1, max_length - tokenizer.num_special_tokens_to_add())
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    found, first = [], 0
    while first < len(spans):
        last = min(first + room, len(spans))
        # A part ends before a word begins: after white space, in its second half.
        ends = range(last, first + room // 2, -1) if last < len(spans) else ()
        last = next((end for end in ends if end > first and _begins_word(text, spans[end][0])), last)
        part = text[spans[first][0] : spans[last - 1][1]].strip()
        # Cut out of its text a part may have other tokens, and more of them.
        found += [part] if part == text else pieces(part, tokenizer, max_length) if part else []
        first = last
    return found or [text]


def tokenised(texts: Sequence[str], tokenizer: Any, max_length: int) -> Iterator[tuple[Sequence[int], int]]:
    """Of each text the token ids, as `cut` has them, and how many they were before."""
    whole = tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
    for text, ids in zip(texts, whole, strict=True):
        yield cut(text, ids, tokenizer, max_length), len(ids)


def with_words(
    texts: Sequence[str], tokenizer: Any, max_length: int
) -> Iterator[tuple[Sequence[int], list[int | None], int]]:
    """As `tokenised`, and between both the number of each token's word, None for special ones."""
    whole: Any = tokenizer(list(texts), verbose=False) if texts else {"input_ids": []}
    for number, (text, ids) in enumerate(zip(texts, whole["input_ids"], strict=True)):
        long = len(ids) > max_length
        words = tokenizer(text, truncation=True, max_length=max_length).word_ids() if long else whole.word_ids(number)
        yield cut(text, ids, tokenizer, max_length), words or [None], len(ids)


def row_seed(row: Row, draw: tuple[int, int]) -> int:
    """A row's own of the draw of an epoch; pieces of one text are told apart by what is in them."""
    return stable_hash(*draw, row.get("source"), row.get("row"), row["text"])


def in_pieces(row: Row, tokenizer: Any, max_length: int | None) -> list[Row]:
    """A row of `text` for each of its text's `pieces`; the row itself where there is no limit."""
    if max_length is None:
        return [row]
    return [{**row, "text": piece} for piece in pieces(row["text"], tokenizer, max_length)]


def _begins_word(text: str, at: int) -> bool:
    """Whether a word, or white space before one, begins at a character."""
    return text[at - 1 : at].isspace() or text[at : at + 1].isspace()


def pad(examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask, both (B, T), padded on the right to the longest example."""
    import torch

    longest = max(example.size for example in examples)
    input_ids = torch.full((len(examples), longest), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(examples), longest), dtype=torch.long)
    for i, example in enumerate(examples):
        input_ids[i, : example.size] = torch.tensor(token_ids(example))
        attention_mask[i, : example.size] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def pad_labelled(examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
    """`pad`, and the labels of the examples' tokens (B, T); `IGNORED` where an example has none."""
    import torch

    batch = pad(examples, pad_token_id)
    batch["labels"] = torch.full_like(batch["input_ids"], IGNORED)
    for i, example in enumerate(examples):
        batch["labels"][i, : len(example.labels)] = torch.tensor(example.labels)
    return batch


def labelled_tokens(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of labels (B, T) the places of those that count, counted through all B·T, with the label and row of each."""
    flat = labels.flatten()
    places = (flat != IGNORED).nonzero()[:, 0]
    return places, flat[places], places // labels.shape[1]


def packed(examples: Sequence[Example], tokens: int, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Rows one after the other: input_ids, position_ids, labels, and the row of each token, all (1, `tokens`).

    The first token of a row is no label: nothing of its row comes before it. Tokens after the last row are padding.
    """
    import torch

    lengths = [example.size for example in examples]
    left = tokens - sum(lengths)
    ids = [token for example in examples for token in token_ids(example)]
    labels = [label for example in examples for label in (IGNORED, *example.labels[1:])]
    positions = [torch.arange(length) for length in (*lengths, left)]
    rows = torch.repeat_interleave(torch.arange(len(examples)), torch.tensor(lengths))
    return {
        "input_ids": torch.tensor([ids + [pad_token_id] * left]),
        "labels": torch.tensor([labels + [IGNORED] * left]),
        "position_ids": torch.cat(positions)[None],
        "rows": torch.nn.functional.pad(rows, (0, left))[None],
    }


# --- changes that leave a label right ---------------------------------------------------------------------------------

MARKS = ".;?:!,"
SHARE = 0.15
"""Share of the words that is changed where careless input is tried."""

_WORD_END = re.compile(r"(?<=\w)[.,;:]+$")
_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBOURS = {
    key: "".join(line[place] for line, place in ((line, at + step) for step in (-1, 1)) if 0 <= place < len(line))
    + (_KEYBOARD[number + 1][at] if number + 1 < len(_KEYBOARD) and at < len(_KEYBOARD[number + 1]) else "")
    + (_KEYBOARD[number - 1][at] if number else "")
    for number, line in enumerate(_KEYBOARD)
    for at, key in enumerate(line)
}


def word_dropout(text: str, share: float, draw: random.Random) -> str:
    """Leaves out a share of the words, never all of them."""
    words = text.split(" ")
    kept = [word for word in words if not word or draw.random() >= share]
    return " ".join(kept) if any(kept) else text


def word_swap(text: str, share: float, draw: random.Random) -> str:
    """Exchanges a share of the words with their right neighbours."""
    words = text.split(" ")
    at = 0
    while at < len(words) - 1:
        if draw.random() < share:
            words[at], words[at + 1] = words[at + 1], words[at]
            at += 1
        at += 1
    return " ".join(words)


def typos(text: str, share: float, draw: random.Random) -> str:
    """Hits a neighbouring key once in a share of the words of four letters or more."""
    words = text.split(" ")
    for number, word in enumerate(words):
        if len(word) >= 4 and draw.random() < share:
            at = draw.randrange(1, len(word))
            keys = NEIGHBOURS.get(word[at].lower())
            if keys:
                words[number] = word[:at] + draw.choice(keys) + word[at + 1 :]
    return " ".join(words)


def punctuation(text: str, share: float, draw: random.Random) -> str:
    """Puts a mark before a share of the words, not the first (AEDA, Karimi et al. 2021, arXiv 2108.13230)."""
    first, *words = text.split(" ")
    return " ".join([first, *(f"{draw.choice(MARKS)} {word}" if draw.random() < share else word for word in words)])


def case(text: str, share: float, draw: random.Random) -> str:
    """Writes a share of the rows in lower or upper case."""
    if draw.random() >= share:
        return text
    return text.lower() if draw.random() < 0.8 else text.upper()


def spacing(text: str, share: float, draw: random.Random) -> str:
    """Doubles the space after a share of the words, and drops their full stops, commas and colons.

    Marks that stand alone, such as `:(`, and `!` and `?` say something, so they stay.
    """
    words = text.split(" ")
    for number, word in enumerate(words):
        if word and draw.random() < share:
            words[number] = _WORD_END.sub("", word) + (" " if number < len(words) - 1 else "")
    return " ".join(words)


MOST_GROWTH = 100_000
"""Characters that replacements may make of one; those of published tokenizers make a few."""
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model"),
    *("vocab.model", "tekken.json", "prophetnet.tokenizer", "source.spm", "added_tokens.json"),
)


def _growth(tokenizer: Any) -> int:
    """How many characters the replacements of a tokenizer, one after the other, can make of one."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None:
        return 1
    # What is read of a state of its own, written in Python, is not known.
    with suppress(ValueError, TypeError):
        return _made_of_one(json.loads(normalizer.__getstate__()))
    return 1


def _made_of_one(step: Mapping[str, Any]) -> int:
    if parts := step.get("normalizers"):
        return math.prod(map(_made_of_one, parts))
    return max(1, len(step.get("content") or step.get("prepend") or ""))


def _unreadable(path: str, error: Exception) -> RequestError:
    folder = Path(path)
    lines = " ".join(str(error).split())
    found = f"{type(error).__name__}: {lines}"[:300]
    if folder.is_dir():
        files = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
        small = [name for name in files if (folder / name).read_bytes()[:23] == b"version https://git-lfs"]
        if not files:
            found = "none of " + ", ".join(TOKENIZER_FILES[:4])
        elif small:
            found = f"{small[0]} is a pointer of Git LFS, not the content: git lfs pull"
    return RequestError(
        "the base has no tokenizer that can be read",
        place=path,
        got=found,
        allowed="the files of its tokenizer beside its weights",
        fix="put the tokenizer of this model there: AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)",
    )


def require_offsets(tokenizer: Any, part: str) -> None:
    """Refuses a tokenizer that cannot say where its tokens stand in a text.

    Args:
        part: What of a text each token is to be found in.

    Raises:
        DataError: it is written in Python.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"the tokenizer does not say which {part} a token belongs to",
            place=str(getattr(tokenizer, "name_or_path", "tokenizer")),
            got=f"{type(tokenizer).__name__}, which is written in Python",
            allowed="a fast tokenizer: one with a tokenizer.json",
            fix="use a model that has one",
        )


class Text(Modality):
    """Texts, read by a tokenizer."""

    name = "text"
    tokens = True
    imports = "from tokenizers import Tokenizer"
    reading = (
        'tokenizer = Tokenizer.from_file("tokenizer.json")\n'
        "tokenizer.no_padding()\n"
        "tokenizer.enable_truncation({max_length})\n"
        "ids = np.array([tokenizer.encode(example).ids])\n"
        'inputs = {{"input_ids": ids, "attention_mask": np.ones_like(ids)}}'
    )
    operations = {
        "word_dropout": word_dropout,
        "word_swap": word_swap,
        "typos": typos,
        "punctuation": punctuation,
        "case": case,
    }
    # AEDA; and of EDA (Wei and Zou 2019) what needs no thesaurus, at its strength.
    trials = ({"punctuation": 0.2}, {"word_dropout": 0.1, "word_swap": 0.1})
    perturbations = {
        "typos": (typos, SHARE),
        "word swaps": (word_swap, SHARE),
        "case": (case, 1.0),
        "spacing": (spacing, SHARE),
    }

    def load_processor(self, path: str, revision: str | None) -> Any:
        """The tokenizer; a missing pad token is replaced by the end token, which labels never see as padding.

        Raises:
            RequestError: there is none, or it cannot be read.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
        except Exception as error:
            # Tokenizers are read by several libraries, with errors of every kind.
            raise _unreadable(path, error) from None
        if (times := _growth(tokenizer)) > MOST_GROWTH:
            raise RequestError(
                "the base's tokenizer makes texts longer than memory holds before it cuts them",
                place=path,
                got=f"up to {times:.0e} characters for one",
                allowed=f"up to {MOST_GROWTH:,}",
                fix="copy tokenizer.json again from where the base is published",
            )
        # Tasks look for what else the base says of texts; the tokenizer knows no revision.
        tokenizer.read_from = (path, revision)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        return tokenizer

    def filling(self, processor: Any) -> dict[str, Any]:
        """The side, and with what."""
        return {"padding_side": processor.padding_side, "pad_token_id": processor.pad_token_id}

    def probes(self) -> list[str]:
        """Capitals, accents, digits and characters of several bytes; and as much of it as is cut off."""
        return [PROBE, " ".join([PROBE] * 100)]


KIND = Text()
