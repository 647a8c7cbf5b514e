"""Exact and near-duplicates, conflicts, groups."""

import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfadapt.data import duplicates
from hfadapt.data.joins import Join
from hfadapt.data.rows import SPLITS, Ledger, Row, tokens
from hfadapt.files.places import Place
from hfadapt.recipe.schema import Data, Dedupe

WORDS = [f"w{number}" for number in range(30)]


def row(text, number, label=None, source="s", split=""):
    return Row(source, number, {"text": text}, text, label, text, split)


def brute_force(texts, similarity):
    join = Join(texts, similarity)
    return {(a, b) for b in range(len(texts)) for a in range(b) if join.measure(a, b) > 0}


@st.composite
def near_texts(draw):
    """Texts and edited copies of them, from few words so that they collide often."""
    texts = draw(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=25), min_size=2, max_size=12))
    for text in draw(st.lists(st.sampled_from(texts), max_size=8)):
        copy = list(text)
        for at in draw(st.lists(st.integers(0, len(copy) - 1), max_size=max(1, len(copy) // 4))):
            copy[min(at, len(copy) - 1)] = draw(st.sampled_from(WORDS))
        texts.append(copy)
    return texts


@settings(max_examples=150, deadline=None)
@given(near_texts(), st.sampled_from([0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0]))
def test_join_misses_no_pair(texts, similarity):
    found = {(pair.first, pair.second) for pair in Join(texts, similarity).pairs()}
    assert found == brute_force(texts, similarity)


@settings(max_examples=80, deadline=None)
@given(near_texts())
def test_greedy_leaves_no_pair(texts):
    dropped = {pair.second: pair.first for pair in Join(texts, 0.8).greedy(lambda a, b: True)}
    assert all(first not in dropped for first in dropped.values())
    assert not {(a, b) for a, b in brute_force(texts, 0.8) if a not in dropped and b not in dropped}


def test_measure_is_the_share_of_unedited_words():
    text = "one two three four five six seven eight nine ten"
    join = Join([tokens(text), tokens(text.replace("two", "2").upper()), tokens(text + " eleven")], 0.8)
    assert join.measure(0, 1) == pytest.approx(0.9)
    assert join.measure(0, 2) == pytest.approx(10 / 11)


def test_short_texts_and_marks_are_compared_exactly():
    def alike(a, b):
        return Join([tokens(a), tokens(b)], 0.8).measure(0, 1)

    assert alike("I love this phone", "I hate this phone") == 0
    assert alike("Nice :)", "nice :(") == 0
    assert alike("Nice one!", "nice one") == 1


def test_scripts_without_spaces_are_compared_by_character():
    assert tokens("\u6211\u559c\u6b22 tea") == ["\u6211", "\u559c", "\u6b22", "tea"]


def run(domains, **asked):
    ledgers = {name: Ledger() for name in domains}
    kept = duplicates.drop_duplicates(domains, Dedupe(**asked), ledgers)
    return {name: [each.row for each in rows] for name, rows in kept.items()}, ledgers


LONG = "the quick brown fox jumps over the lazy dog near the river"


def test_near_duplicate_names_its_twin():
    kept, ledgers = run(
        {"d": [row(LONG, 0), row("another text entirely about nothing much", 1), row(LONG + " bank", 2)]}
    )
    assert kept == {"d": [0, 1]}
    dropped = ledgers["d"].dropped[0].as_json()
    assert dropped["duplicate_of"] == {"source": "s", "row": 0, "line": None, "in_file": None}
    assert (dropped["source"], dropped["row"], dropped["reason"]) == ("s", 2, "near-duplicate")
    assert dropped["similarity"] == pytest.approx(12 / 13, abs=1e-4)


def test_exact_means_but_for_case_and_space():
    kept, ledgers = run({"d": [row("Hello  World", 0), row("hello world", 1)]}, near=False)
    assert kept == {"d": [0]}
    assert ledgers["d"].counts() == {"exact-duplicate": 1}
    assert run({"d": [row("a b", 0), row("a b", 1)]}, near=False, exact=False)[0] == {"d": [0, 1]}


def test_given_test_rows_win_over_earlier_rows():
    rows = [
        row(LONG, 0),
        row(LONG, 0, source="v", split="validation"),
        row(LONG + " bank", 0, source="t", split="test"),
    ]
    _, ledgers = run({"d": rows})
    assert {each.where.source for each in ledgers["d"].dropped} == {"s", "v"}
    assert ledgers["d"].steps["dedupe"]["across_given_splits"] == 2


def test_across_domains():
    domains = {"a": [row(LONG, 0, source="a")], "b": [row(LONG + " bank", 0, source="b")]}
    kept, ledgers = run(domains)
    assert kept == {"a": [0], "b": []}
    assert ledgers["b"].steps["dedupe"]["of_other_domains"] == 1
    assert run(domains, across_domains=False)[0] == {"a": [0], "b": [0]}


def test_one_source_in_two_domains_is_no_duplicate():
    kept, _ = run({"topic": [row(LONG, 0)], "tone": [row(LONG, 0)]})
    assert kept == {"topic": [0], "tone": [0]}


@pytest.mark.parametrize(("policy", "kept"), [("drop", [4]), ("majority", [0, 1, 4]), ("keep", [0, 1, 2, 3, 4])])
def test_conflicts(policy, kept):
    rows = [row("x y", 0, "a"), row("X  y", 1, "a"), row("x y", 2, "b"), row("x y", 3, "c"), row("z", 4, "a")]
    ledger = Ledger()
    assert [each.row for each in duplicates.resolve_conflicts(rows, policy, ledger)] == kept
    assert len(kept) + len(ledger.dropped) == 5
    assert ledger.steps["conflicts"]["rows"] == 4
    assert set(ledger.counts()) <= {"label-conflict"}
    if policy == "drop":
        said = ledger.dropped[0].said
        assert said == "row 1 of s has the label a, and others of the same content have b, c"


def numbered(text, number, value, split=""):
    return Row("s", number, {"text": text, "label": value}, text, f"{value:g}", text, split, "scored")


def test_near_numbers_of_a_text_are_no_conflict():
    rows = [numbered("x y", 0, 3.0), numbered("X  y", 1, 3.5), numbered("z", 2, 1.0), numbered("z", 3, 5.0)]
    rows += [numbered(f"other {n}", 4 + n, float(n % 5 + 1)) for n in range(40)]
    ledger = Ledger()
    kept, (found,) = duplicates.average(rows, ledger)
    assert kept[0].columns["label"] == 3.25
    assert kept[0].label == "3.25"
    assert [(each.where.row, each.reason, each.duplicate_of) for each in ledger.dropped] == [
        (1, "averaged", Place("s", 0))
    ]
    assert "1 texts with several numbers" in found.message
    kept = duplicates.resolve_conflicts(kept, "drop", ledger)
    assert [each.row for each in kept] == [0, *range(4, 44)], "1 and 5 do contradict each other"
    classes = [row("x", n, "ab"[n % 2]) for n in range(4)]
    assert duplicates.average(classes, Ledger()) == (classes, [])


def test_the_mean_of_a_test_row_knows_no_training_row():
    rows = [numbered("x", 0, 3.0), numbered("x", 1, 3.5, "test"), numbered("x", 2, 3.6, "test")]
    rows += [numbered(f"other {n}", 4 + n, float(n % 5 + 1)) for n in range(40)]
    kept, _ = duplicates.average(rows, Ledger())
    assert (kept[0].row, kept[0].columns["label"]) == (1, 3.55)


def test_a_tie_is_no_majority():
    ledger = Ledger()
    assert duplicates.resolve_conflicts([row("x", 0, "a"), row("x", 1, "b")], "majority", ledger) == []


def test_groups_hold_prompts_and_kept_near_duplicates_together():
    rows = [
        row(LONG, 0),
        row(LONG + " bank", 1),
        *(row(f"filler text number {n} of its own kind", n) for n in range(2, 40)),
    ]
    grouped = duplicates.groups(rows, Data(dedupe=Dedupe(near=False)))
    assert grouped[0] == grouped[1]
    rows[5].prompt = rows[6].prompt = "the same question"
    grouped = duplicates.groups(rows, Data())
    assert grouped[5] == grouped[6]
    assert grouped[0] != grouped[1]


def test_planted_near_duplicates_are_found():
    draw = random.Random(1)
    vocabulary = [f"word{draw.randrange(4000)}" for _ in range(20_000)]
    texts = [[draw.choice(vocabulary) for _ in range(draw.randint(10, 25))] for _ in range(400)]
    for text in texts[:200]:
        copy = list(text)
        for at in draw.sample(range(len(copy)), int(0.15 * len(copy))):
            copy[at] = draw.choice(vocabulary)
        texts.append(copy)
    found = {(pair.first, pair.second) for pair in Join(texts, 0.8).pairs()}
    assert found == {(n, 400 + n) for n in range(200)}


def test_training_rows_that_quote_a_held_out_row_are_dropped():
    rows = [
        row(LONG, 0, split="test"),
        row(f"as they say in books {LONG} and so on and so forth until the end of the day", 1, split="train"),
        row("the quick brown fox sleeps under the lazy dog far from any river at all", 2, split="train"),
        row("short one", 3, split="validation"),
        row("short one more or less as it was", 4, split="train"),
    ]
    ledger = Ledger()
    assert [each.row for each in duplicates.drop_contaminated(rows, Dedupe(), ledger)] == [0, 2, 3, 4]
    assert ledger.dropped[0].duplicate_of == Place("s", 0)
    assert ledger.dropped[0].similarity == 1.0
    assert ledger.steps["contamination"] == {"held_out_rows": 2, "training_rows_dropped": 1}


ABOUT = " ".join(f"word{number}" for number in range(60))


def asking(question, number, answer="yes", label=None, split="", about=ABOUT):
    """A question about a text, each from a column of its own."""
    prompt = f"{question}\n\n{about}"
    columns = {"prompt": prompt, "completion": answer}
    words = prompt if label else f"{prompt}\n{answer}"
    return Row("s", number, columns, words, label, prompt, split, "completion", asked=(question, about))


@pytest.mark.parametrize("label", [None, "a class"])
def test_questions_about_one_text_are_no_near_duplicates(label):
    asked = ["who built the old bridge over the river", "how long is the wall", "why"]
    rows = [asking(question, number, label=label) for number, question in enumerate(asked)]
    assert run({"a": rows})[0] == {"a": [0, 1, 2]}
    same = asking(f"{asked[0]} today", 3, label=label, about=f"{ABOUT} and")
    assert run({"a": [*rows, same]})[0] == {"a": [0, 1, 2]}


def test_where_a_word_of_the_question_is_another_one_the_answer_tells():
    asked = "who built the old bridge over the river"
    rows = [asking(asked, 0, "Anna"), asking(asked.replace("who", "when"), 1, "in 1902"), asking(asked, 2, "Ann")]
    assert run({"a": rows})[0] == {"a": [0, 1]}


def test_rows_that_ask_about_one_text_stay_in_one_split_and_do_not_hold_each_other():
    rows = [asking(f"what does {number} mean", number, about=f"{ABOUT} {number // 4}") for number in range(80)]
    grouped = duplicates.groups(rows, Data())
    assert len({*grouped}) == 20
    held = [asking("who built it", 0, split="test"), asking("when was that", 1, split="train")]
    quoted = asking("she asked: who built it", 2, split="train")
    assert [each.row for each in duplicates.drop_contaminated([*held, quoted], Dedupe(), Ledger())] == [0, 1]


def test_columns_of_a_prompt_are_compared_as_such(tmp_path):
    """As the source and the template have them."""
    from hfadapt.data import prepare
    from hfadapt.recipe.schema import Recipe

    rows = [
        {
            "question": f"what is {WORDS[n % 5]} of {WORDS[n % 7]}",
            "context": f"{ABOUT} {n // 5}",
            "answer": f"it is {n}",
        }
        for n in range(60)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    template = {"prompt": "{context} asks {question}", "completion": " {answer}"}
    for more in ({}, {"template": template}):
        recipe = Recipe(name="r", model="none", task="causal-lm", domains={"d": {"source": "a.jsonl"}}, **more)
        found = prepare(recipe, recipe_folder=tmp_path, cache=tmp_path / "cache")["d"]
        assert found.record.rows_kept == 60
        texts = {
            split: {re.findall(r"word59 (\d+)", row["prompt"])[0] for row in found.rows(split)} for split in SPLITS
        }
        assert not texts["train"] & (texts["validation"] | texts["test"])
