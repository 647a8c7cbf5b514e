"""Tasks: what is labelled, what is kept when a row is too long, and that losses and scores equal a plain reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tiny import LABELS, chats, labelled, loss_sum, make_lock, make_tokenizer, pairs, uneven

from hfadapt.core.errors import DataError
from hfadapt.modalities import IGNORED
from hfadapt.modalities.text import token_ids
from hfadapt.models.load import load_base
from hfadapt.tasks.causal_lm.task import KIND as LM
from hfadapt.tasks.causal_lm.task import completion_ids, labelled_logits
from hfadapt.tasks.text_classification.task import KIND as CLASSIFIER
from hfadapt.train.batches import padded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def lm(models):
    return load_base(make_lock(models / "lm"), (), CPU)


@pytest.fixture(scope="module")
def encoder(models):
    return load_base(make_lock(models / "encoder", "text-classification"), LABELS, CPU)


def learned(example, tokenizer):
    """The text of every run of labels."""
    runs = itertools.groupby(example.labels, key=lambda label: label != IGNORED)
    return [tokenizer.decode(list(run)) for kept, run in runs if kept]


# --- completions -----------------------------------------------------------------------------------------------------


def test_the_prompt_is_masked_and_the_end_is_learned(tokenizer):
    row = {"prompt": "the room song :", "completion": " good"}
    [example] = LM.encode([row], tokenizer, max_length=64)
    assert tokenizer.decode(token_ids(example)) == "the room song : good<|end|>"
    assert learned(example, tokenizer) == [" good<|end|>"]
    assert len(example.labels) == len(token_ids(example)) == example.length
    assert all(label in (IGNORED, token) for label, token in zip(example.labels, token_ids(example), strict=True))


@pytest.mark.parametrize("length", [8, 9, 10])
def test_a_cut_takes_the_start_of_the_prompt(tokenizer, length):
    row = {"prompt": " the room song table light morning city garden picture", "completion": " good"}
    [example] = LM.encode([row], tokenizer, max_length=length)
    assert example.truncated
    assert example.length > length == len(token_ids(example))
    assert learned(example, tokenizer) == [" good<|end|>"]
    assert tokenizer.decode(token_ids(example)).endswith(" picture good<|end|>")


def test_a_completion_longer_than_all_is_cut_at_its_end(tokenizer):
    row = {"prompt": " the room song", "completion": " water" * 20}
    [example] = LM.encode([row], tokenizer, max_length=10)
    assert len(token_ids(example)) == 10
    assert example.labels[0] == IGNORED, "the first label can only be learned after a token of the prompt"
    assert sum(label != IGNORED for label in example.labels) == 9


def test_text_is_learned_whole_with_its_end(tokenizer):
    [example] = LM.encode([{"text": " water bread"}], tokenizer, max_length=64)
    # But for its first token, which nothing comes before.
    assert learned(example, tokenizer) == [" bread<|end|>"]


def test_text_that_has_its_end_gets_no_second_one(tokenizer):
    [example] = LM.encode([{"text": " water bread<|end|>"}], tokenizer, max_length=64)
    assert learned(example, tokenizer) == [" bread<|end|>"]


@pytest.mark.parametrize(
    "row",
    [
        {"text": "<|user|>room<|end|>"},
        {"prompt": "room<|end|>", "completion": "good"},
        {"prompt": "room", "completion": "good<|end|>"},
    ],
)
def test_marks_of_the_model_in_a_text_are_said(tokenizer, row):
    (found,) = LM.remarks(row, tokenizer)
    assert (found.code, "the text holds <|end|>" in found.what) == ("special-token", True)
    assert (
        LM.remarks({key: value.replace("<|end|>", "").replace("<|user|>", "") for key, value in row.items()}, tokenizer)
        == []
    )


def test_a_tokenizer_that_closes_every_text_does_not_close_the_prompt(tokenizer):
    from tokenizers.processors import TemplateProcessing

    closing = make_tokenizer()
    closing.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A <|end|>",
        special_tokens=[("<|bos|>", closing.bos_token_id), ("<|end|>", closing.eos_token_id)],
    )
    [example] = LM.encode([{"prompt": " room", "completion": " good"}], closing, max_length=64)
    assert closing.decode(token_ids(example)) == "<|bos|> room good<|end|>"


def test_without_an_end_token_nothing_is_encoded(tokenizer):
    endless = make_tokenizer()
    endless.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        LM.encode([{"prompt": "a", "completion": "b"}], endless, max_length=8)


# --- messages --------------------------------------------------------------------------------------------------------


def turn(role, content):
    return {"role": role, "content": content}


def test_only_assistant_turns_are_learned_with_their_end(tokenizer):
    messages = [
        turn("system", " the paper"),
        turn("user", " the room"),
        turn("assistant", " warm light"),
        turn("user", " the song"),
        turn("assistant", " cold water"),
    ]
    [example] = LM.encode([{"messages": messages}], tokenizer, max_length=128)
    assert learned(example, tokenizer) == [" warm light<|end|>", " cold water<|end|>"]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(token_ids(example)) == text


def test_what_is_asked_at_generation_is_what_precedes_the_labels(tokenizer):
    messages = [turn("user", " the room"), turn("assistant", " warm light")]
    [example] = LM.encode([{"messages": messages}], tokenizer, max_length=128)
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert list(token_ids(example)[: len(asked)]) == asked
    assert [label != IGNORED for label in example.labels[: len(asked) + 1]] == [False] * len(asked) + [True]


def test_answers_in_many_characters_are_marked_to_the_token(tokenizer):
    """Characters of several bytes and tokens: every byte of the answer is learned, none of the question."""
    messages = [
        turn("user", "naïve 日本 ?"),
        turn("assistant", "日本語 ✓ né"),
        turn("user", "é"),
        turn("assistant", "🙂"),
    ]
    [example] = LM.encode([{"messages": messages}], tokenizer, max_length=256)
    assert learned(example, tokenizer) == ["日本語 ✓ né<|end|>", "🙂<|end|>"]


def test_an_empty_answer_still_learns_to_end(tokenizer):
    [example] = LM.encode([{"messages": [turn("user", " room"), turn("assistant", "")]}], tokenizer, max_length=64)
    assert learned(example, tokenizer) == ["<|end|>"]


def test_no_template_is_refused(tokenizer):
    bare = make_tokenizer()
    bare.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        LM.encode(chats(1), bare, max_length=64)


def test_a_template_that_rewrites_earlier_turns_teaches_each_answer_after_what_it_is_shown(tokenizer):
    rewriting = make_tokenizer()
    rewriting.chat_template = (
        "{{ messages | length }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    messages = [turn("user", " the room"), turn("assistant", " light"), turn("user", " song"), turn("assistant", " ok")]
    rows = LM.fitted({"messages": messages}, rewriting)
    texts = [rewriting.decode(token_ids(each)) for each in LM.encode(rows, rewriting, max_length=64)]
    first = "<|user|> the room<|end|><|assistant|> light<|end|>"
    assert texts == [f"1{first}", f"3{first}<|user|> song<|end|><|assistant|> ok<|end|>"]


# --- losses and scores of language models ----------------------------------------------------------------------------


def reference_losses(model, examples):
    """Loss of each row from its full logits, one row at a time, in double precision."""
    found = []
    with torch.no_grad():
        for example in examples:
            logits = model(input_ids=torch.tensor([token_ids(example)])).logits[0, :-1].double()
            targets = torch.tensor(example.labels[1:])
            loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
            found.append(float(loss))
    return found


@pytest.mark.parametrize("rows", [pairs, uneven, chats], ids=["pairs", "uneven", "chats"])
def test_logits_at_labels_equal_those_of_a_full_forward(lm, rows):
    examples = LM.encode(rows(7), lm.tokenizer, max_length=96)
    batch = LM.collate(examples, lm.tokenizer.pad_token_id)
    with torch.no_grad():
        logits, targets, owners = labelled_logits(lm.model, batch)
        full = lm.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    keep = batch["labels"][:, 1:] != IGNORED
    assert torch.allclose(logits, full[:, :-1][keep], atol=1e-5)
    assert torch.equal(targets, batch["labels"][:, 1:][keep])
    assert torch.equal(owners, keep.nonzero()[:, 0])
    loss, count = loss_sum(LM, lm.model, batch)
    assert float(loss) == pytest.approx(sum(reference_losses(lm.model, examples)), rel=1e-5)
    assert count == int(keep.sum())


@pytest.mark.parametrize("rows_per_batch", [1, 3, 16])
def test_scored_losses_do_not_depend_on_the_batch(lm, rows_per_batch):
    examples = LM.encode(uneven(9), lm.tokenizer, max_length=96)
    scores = LM.score(lm.model, examples, lambda e: padded(LM, e, lm.tokenizer.pad_token_id, CPU, rows_per_batch))
    assert scores.gold is None
    assert scores.losses == pytest.approx(reference_losses(lm.model, examples), rel=1e-5)
    assert list(scores.tokens) == [sum(label != IGNORED for label in e.labels[1:]) for e in examples]


@pytest.mark.parametrize(
    "answers",
    [(" good", " bad"), (" good", " bad", " awful water"), (" room", " roomy paper", " good")],
    ids=["single tokens", "mixed", "one begins another"],
)
def test_choices_equal_brute_force(lm, answers):
    """Probability of every answer, row by row, from the full logits of prompt + answer."""
    rows = [{"prompt": row["prompt"], "completion": answers[i % len(answers)]} for i, row in enumerate(pairs(10))]
    choices = [tuple(completion_ids(answer, lm.tokenizer, end=False)) for answer in answers]
    examples = LM.encode(rows, lm.tokenizer, max_length=64)
    scores = LM.score(lm.model, examples, lambda e: padded(LM, e, lm.tokenizer.pad_token_id, CPU, 4), choices)
    expected = np.zeros((len(rows), len(choices)))
    with torch.no_grad():
        for i, row in enumerate(rows):
            prompt = lm.tokenizer(row["prompt"])["input_ids"]
            for j, choice in enumerate(choices):
                logp = torch.log_softmax(lm.model(input_ids=torch.tensor([[*prompt, *choice]])).logits[0].double(), -1)
                expected[i, j] = sum(float(logp[len(prompt) - 1 + k, token]) for k, token in enumerate(choice))
    normalised = np.exp(expected) / np.exp(expected).sum(-1, keepdims=True)
    assert scores.probabilities == pytest.approx(normalised, rel=1e-4)
    assert list(scores.predictions) == list(expected.argmax(-1))
    assert list(scores.gold) == [i % len(answers) for i in range(len(rows))]


def test_both_ways_to_score_single_tokens_agree(lm):
    examples = LM.encode(pairs(8), lm.tokenizer, max_length=64)
    choices = [tuple(completion_ids(f" {label}", lm.tokenizer, end=False)) for label in LABELS]
    assert [len(choice) for choice in choices] == [1, 1]

    def batches(e):
        return padded(LM, e, lm.tokenizer.pad_token_id, CPU, 4)

    fast = LM.score(lm.model, examples, batches, choices)
    longer = tuple(completion_ids(" awful water", lm.tokenizer, end=False))
    slow = LM.score(lm.model, examples, batches, [*choices, longer])
    kept = slow.probabilities[:, :2] / slow.probabilities[:, :2].sum(-1, keepdims=True)
    assert fast.probabilities == pytest.approx(kept, rel=1e-4)


# --- classification --------------------------------------------------------------------------------------------------


def test_labels_become_numbers(tokenizer):
    examples = CLASSIFIER.encode(labelled(4), tokenizer, max_length=64, labels=LABELS)
    assert [example.labels for example in examples] == [(0,), (1,), (0,), (1,)]
    assert [example.row for example in examples] == [0, 1, 2, 3]
    batch = CLASSIFIER.collate(examples, tokenizer.pad_token_id)
    assert batch["labels"].tolist() == [0, 1, 0, 1]
    assert batch["attention_mask"].sum(-1).tolist() == [len(token_ids(example)) for example in examples]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.pad_token_id).all()


def test_a_cut_keeps_the_special_tokens(tokenizer):
    from tokenizers.processors import TemplateProcessing

    framed = make_tokenizer()
    framed.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A <|end|>",
        special_tokens=[("<|bos|>", framed.bos_token_id), ("<|end|>", framed.eos_token_id)],
    )
    [example] = CLASSIFIER.encode([{"text": " room" * 30, "label": "good"}], framed, max_length=10, labels=LABELS)
    assert len(token_ids(example)) == 10
    assert example.length == 32
    assert example.truncated
    assert (token_ids(example)[0], token_ids(example)[-1]) == (framed.bos_token_id, framed.eos_token_id)


def test_an_unknown_label_is_named_with_its_row(tokenizer):
    rows = [
        {"text": "a", "label": "good", "source": "x.csv", "row": 3},
        {"text": "b", "label": "god", "source": "x.csv", "row": 4},
    ]
    with pytest.raises(DataError) as caught:
        CLASSIFIER.encode(rows, tokenizer, max_length=8, labels=LABELS)
    assert "row 5 of x.csv" in str(caught.value)
    assert "did you mean 'good'?" in str(caught.value)


def test_rows_without_a_label_can_be_predicted(tokenizer):
    [example] = CLASSIFIER.encode([{"text": "a room"}], tokenizer, max_length=8, labels=LABELS)
    assert example.labels == ()
    assert "labels" not in CLASSIFIER.collate([example], 0)


@pytest.mark.parametrize("rows_per_batch", [1, 4, 32])
def test_classification_scores_do_not_depend_on_the_batch(encoder, rows_per_batch):
    examples = CLASSIFIER.encode(labelled(11), encoder.tokenizer, max_length=64, labels=LABELS)

    def batches(e):
        return padded(CLASSIFIER, e, encoder.tokenizer.pad_token_id, CPU, rows_per_batch)

    with torch.no_grad():
        scores = CLASSIFIER.score(encoder.model.eval(), examples, batches)
        logits = torch.cat([encoder.model(input_ids=torch.tensor([token_ids(e)])).logits for e in examples])
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(scores.gold), reduction="none")
    assert scores.probabilities == pytest.approx(torch.softmax(logits, -1).numpy(), abs=1e-5)
    assert scores.losses == pytest.approx(losses.numpy(), abs=1e-5)
    assert scores.probabilities.sum(-1) == pytest.approx(1.0)
    assert list(scores.predictions) == logits.argmax(-1).tolist()
