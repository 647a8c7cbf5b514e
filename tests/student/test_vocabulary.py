"""A vocabulary of a domain's tokens: texts are cut as before, by every kind of rules, and answers stay the same."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from families import SIZES, WORDS, answer, family, reopened, tokenizers
from tiny import PLAIN, labelled
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig, PreTrainedTokenizerFast

from hfadapt.core.errors import RequestError
from hfadapt.student.vocabulary import cut_otherwise, kept_tokens, trim

TEXTS = [row["text"] for row in labelled(8)]
KINDS = tokenizers()


@dataclass
class Loaded:
    """What trimming touches of a base."""

    model: Any
    tokenizer: Any
    parameters: int = 0


@cache
def tokenizer(kind: str) -> Any:
    return KINDS[kind]()


def ids_of(reader: Any, texts: list[str]) -> list[list[int]]:
    return [list(reader(text)["input_ids"]) for text in texts]


def loaded(kind: str, model: str = "bert", **more: Any) -> Loaded:
    reader = tokenizer(kind)
    ids = {"pad_token_id": reader.pad_token_id, "eos_token_id": reader.eos_token_id or reader.sep_token_id}
    return Loaded(family(model, vocab_size=len(reader) + 3, **(ids | more)), reader)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_cut_and_answered_as_before(kind, tmp_path) -> None:
    base = loaded(kind)
    old, vectors = base.tokenizer, base.model.get_input_embeddings().weight
    before = vectors.clone()
    rows = ids_of(old, TEXTS)
    wanted = [answer(base.model, {"input_ids": torch.tensor([row])}) for row in rows]
    used = {token for row in rows for token in row}
    kept = kept_tokens(old, used)
    assert trim(base, used) == (len(old) + 3, len(kept))
    assert len(kept) < len(old)
    base.tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    new = AutoTokenizer.from_pretrained(tmp_path)
    assert new.get_vocab() == base.tokenizer.get_vocab()
    assert [old.convert_ids_to_tokens(number) for number in kept] == new.convert_ids_to_tokens(list(range(len(kept))))
    assert torch.equal(base.model.get_input_embeddings().weight, before[kept])
    after = ids_of(new, TEXTS)
    assert cut_otherwise(old, new, rows, after) == 0
    again = reopened(base.model, tmp_path)
    for row, logits in zip(after, wanted, strict=True):
        torch.testing.assert_close(answer(again, {"input_ids": torch.tensor([row])}), logits)
    assert old.special_tokens_map == new.special_tokens_map
    assert again.config.pad_token_id == new.pad_token_id


@hypothesis.settings(max_examples=15)
@hypothesis.given(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 10**6))
def test_training_texts_are_never_cut_otherwise(kind, seed) -> None:
    draw = random.Random(seed)
    words = draw.sample(WORDS, 6)
    # Words in parts and run together, so that the rules have something to do; and letters that no rule knows.
    words += [word[: draw.randint(1, 5)] + draw.choice(WORDS)[draw.randint(1, 4) :] for word in words] + ["é", "木"]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 7))) for _ in range(20)]
    base = loaded(kind)
    old, before = base.tokenizer, ids_of(base.tokenizer, texts)
    trim(base, {token for row in before for token in row})
    assert cut_otherwise(old, base.tokenizer, before, ids_of(base.tokenizer, texts)) == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_any_text_can_still_be_written(kind) -> None:
    base = loaded(kind)
    trim(base, set())
    assert base.tokenizer.decode(base.tokenizer("Größe 木 zq")["input_ids"], skip_special_tokens=True).strip() == (
        "Größe 木 zq"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_words_can_still_be_spelt(kind) -> None:
    base = loaded(kind)
    trim(base, set())
    for word in PLAIN:
        ids = base.tokenizer(word)["input_ids"]
        assert base.tokenizer.decode(ids, skip_special_tokens=True).strip() == word


def test_what_unknown_letters_cost_stays() -> None:
    """Unigrams count it from the least likely piece, which no text may use."""
    from tokenizers import Tokenizer, models

    pieces = {"<unk>": 0.0, "c": -20.0, "a木d": -20.0, "ca": -1.0, "d": -1.0, "zz": -40.0, "yy": -5.0}
    made = Tokenizer(models.Unigram(list(pieces.items()), unk_id=0, byte_fallback=False))
    reader = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<unk>")
    base = Loaded(family("bert", vocab_size=len(reader), pad_token_id=0), reader)
    before = ids_of(reader, ["ca木d"])
    assert reader.convert_ids_to_tokens(before[0]) == ["c", "a木d"]
    trim(base, {*before[0], 3})
    assert cut_otherwise(reader, base.tokenizer, before, ids_of(base.tokenizer, ["ca木d"])) == 0


@pytest.mark.parametrize(("model", "tied"), [("llama", True), ("qwen2", False), ("gpt2", True)])
def test_what_a_language_model_says_next_stays(model, tied, tmp_path) -> None:
    base = loaded("gpt2", model, tie_word_embeddings=tied)
    old, rows = base.tokenizer, ids_of(base.tokenizer, TEXTS)
    base.model.generation_config.eos_token_id = [old.eos_token_id, old.convert_tokens_to_ids("<|turn|>")]
    wanted = [answer(base.model, {"input_ids": torch.tensor([row])}) for row in rows]
    used = {token for row in rows for token in row}
    kept = kept_tokens(old, used)
    trim(base, used)
    again = reopened(base.model, tmp_path)
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied
    for text, logits in zip(TEXTS, wanted, strict=True):
        found = answer(again, {"input_ids": torch.tensor(ids_of(base.tokenizer, [text]))})
        torch.testing.assert_close(found, logits[..., kept])
    ends = base.tokenizer.convert_ids_to_tokens(again.generation_config.eos_token_id)
    assert ends == [old.eos_token, "<|turn|>"]
    assert base.tokenizer.convert_ids_to_tokens(again.config.eos_token_id) == old.eos_token


def test_ids_of_a_config_are_renumbered_once(tmp_path) -> None:
    reader = tokenizer("gpt2")
    turn = reader.convert_tokens_to_ids("<|turn|>")
    base = loaded("gpt2", eos_token_id=turn, bos_token_id=turn + 2, pad_token_id=turn)
    old = base.tokenizer
    trim(base, {token for row in ids_of(old, TEXTS) for token in row})
    assert base.tokenizer.convert_ids_to_tokens(base.model.config.eos_token_id) == "<|turn|>"
    assert base.model.get_input_embeddings().padding_idx == base.model.config.eos_token_id
    # No token has it.
    assert base.model.config.bos_token_id is None


def test_positions_that_are_counted_from_padding_stay(tmp_path) -> None:
    """As RoBERTa's: a pad token with another number would move every text by some places."""
    reader = tokenizer("unigram")
    used = {token for row in ids_of(reader, TEXTS[:2]) for token in row}
    pad = next(number for number in range(50, 200) if number - 20 not in used)
    base = Loaded(family("roberta", vocab_size=len(reader), pad_token_id=pad, max_position_embeddings=300), reader)
    wanted = [answer(base.model, {"input_ids": torch.tensor([row])}) for row in ids_of(reader, TEXTS[:2])]
    before, after = trim(base, used)
    assert after < before
    assert base.model.config.pad_token_id == pad
    again = reopened(base.model, tmp_path)
    for row, logits in zip(ids_of(base.tokenizer, TEXTS[:2]), wanted, strict=True):
        torch.testing.assert_close(answer(again, {"input_ids": torch.tensor([row])}), logits)


def test_tables_of_tokens_that_no_config_can_say_are_refused() -> None:
    base = loaded("gpt2")
    base.model.bert.embeddings.more = torch.nn.Embedding(4, 4)
    with pytest.raises(RequestError, match="config"):
        trim(base, set())
    rows = len(tokenizer("gpt2"))
    sizes = {"vocab_size": rows, "vocab_size_per_layer_input": rows, "hidden_size_per_layer_input": 4, "head_dim": 8}
    more = {"num_kv_shared_layers": 0, "laurel_rank": 4, "activation_sparsity_pattern": None}
    config = Gemma3nTextConfig(**(SIZES | sizes | more))
    base = Loaded(Gemma3nForCausalLM(config), tokenizer("gpt2"))
    with pytest.raises(RequestError, match="table of tokens"):
        trim(base, set())
    with pytest.raises(RequestError, match="vocabulary of this tokenizer cannot be cut"):
        kept_tokens(object(), set())
