"""Augmentation: seeded by (seed, epoch, row), only what may change changes."""

import random

import pytest
from tiny_images import png

from hfadapt.data import augment
from hfadapt.modalities import text as text_changes
from hfadapt.modalities._later import Blended
from hfadapt.recipe.schema import Augment

ROWS = [
    {"text": f"the quick brown fox number {n} jumps over several lazy dogs", "label": "a", "source": "s", "row": n}
    for n in range(20)
]
ALL = Augment(word_dropout=0.2, word_swap=0.2, typos=0.3, case=0.3)


def test_same_seed_epoch_and_row_give_the_same_text():
    first = augment.apply(ROWS, "labelled", ALL, 1, 0)
    assert first == augment.apply(ROWS, "labelled", ALL, 1, 0)
    assert first[7:9] == augment.apply(ROWS[7:9], "labelled", ALL, 1, 0)
    assert first != augment.apply(ROWS, "labelled", ALL, 1, 1)
    assert first != augment.apply(ROWS, "labelled", ALL, 2, 0)


def test_known_draw():
    assert augment.apply(ROWS[:1], "labelled", ALL, 17, 0)[0]["text"] == "brown the nymber fox 0 junps ofer lazy dogs"


def test_rows_labels_and_order_stay():
    changed = augment.apply(ROWS, "labelled", ALL, 1, 0)
    assert [(row["label"], row["row"]) for row in changed] == [(row["label"], row["row"]) for row in ROWS]
    assert ROWS[0]["text"].startswith("the quick")
    assert augment.apply(ROWS, "labelled", Augment(), 1, 0) == ROWS
    assert ALL.on
    assert not Augment().on


def test_answers_never_change():
    rows = [
        {"prompt": "a fairly long question about things", "completion": "a fairly long answer about things", "row": 0},
        {
            "messages": [
                {"role": "user", "content": "hello there my friend"},
                {"role": "assistant", "content": "hello there"},
            ]
        },
        {"text": "plain text that is learned itself and stays", "row": 2},
    ]
    forms, settings = ("completion", "messages", "text"), Augment(typos=0.99, word_swap=0.9)
    changed = [augment.apply([row], form, settings, 1, 0)[0] for row, form in zip(rows, forms, strict=True)]
    assert changed[0]["completion"] == rows[0]["completion"]
    assert changed[0]["prompt"] != rows[0]["prompt"]
    assert changed[1]["messages"][1] == rows[1]["messages"][1]
    assert changed[1]["messages"][0] != rows[1]["messages"][0]
    assert changed[2] == rows[2]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_shares(share):
    text = " ".join(["letters"] * 2000)
    draw = random.Random(1)
    assert abs(len(text_changes.word_dropout(text, share, draw).split()) / 2000 - (1 - share)) < 0.05
    typed = text_changes.typos(text, share, draw).split()
    assert abs(sum(word != "letters" for word in typed) / 2000 - share) < 0.05
    assert sorted(text_changes.word_swap("a b c d e f", share, draw).split()) == list("abcdef")


def test_a_text_is_never_emptied():
    assert text_changes.word_dropout("one two", 0.999, random.Random(1)).strip()


def test_neighbours_are_neighbours():
    assert set(text_changes.NEIGHBOURS["g"]) >= {"f", "h"}
    assert set("".join(text_changes.NEIGHBOURS.values())) <= set("abcdefghijklmnopqrstuvwxyz")


def test_marks_are_put_between_words_and_every_word_stays():
    text = " ".join(["letters"] * 2000)
    marked = text_changes.punctuation(text, 0.3, random.Random(1)).split()
    marks = [word for word in marked if word in text_changes.MARKS]
    assert abs(len(marks) / 2000 - 0.3) < 0.05
    assert [word for word in marked if word not in text_changes.MARKS] == text.split()
    assert {*marks} == {*text_changes.MARKS}
    assert text_changes.punctuation("alone", 0.99, random.Random(1)) == "alone"


PICTURED = [{"image": png(n), "label": "abc"[n % 3], "source": "s", "row": n} for n in range(60)]


def test_a_share_of_the_rows_is_blended_with_others_and_so_are_their_labels():
    settings = Augment(mixup=0.3, cutmix=0.4)
    changed = augment.apply(PICTURED, "pictured", settings, 1, 0)
    names = [row["image"].name if isinstance(row["image"], Blended) else "" for row in changed]
    assert all(abs(names.count(name) / 60 - share) < 0.15 for name, share in (("mixup", 0.3), ("cutmix", 0.4)))
    for old, new in zip(PICTURED, changed, strict=True):
        if isinstance(new["image"], Blended):
            own, other = old["label"], next(r["label"] for r in PICTURED if r["image"] == new["image"].second.kept)
            share = new["image"].share
            assert new["image"].first.kept == old["image"]
            assert new["label"] == (own if own == other else {own: share, other: 1 - share})
        else:
            assert new == old
    assert changed != augment.apply(PICTURED, "pictured", settings, 1, 1)


def test_who_a_row_is_blended_with_depends_on_seed_epoch_and_row_alone():
    settings = Augment(mixup=0.5, cutmix=0.5, flip=1.0)
    whole = augment.apply(PICTURED, "pictured", settings, 1, 2)
    assert augment.apply(PICTURED[20:30], "pictured", settings, 1, 2, among=PICTURED) == whole[20:30]
    partners = {row["image"].second.kept for row in whole if isinstance(row["image"], Blended)}
    assert partners <= {row["image"] for row in PICTURED}
    assert len(partners) > 20
